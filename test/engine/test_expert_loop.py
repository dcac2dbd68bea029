"""The fused denoise loop against the plain model in fp32: two layers of published width, fresh random prefixes."""

import pytest
import torch

from engine.expert_reference import LoopCase
from engine.reference import cosine
from flashrt_ros.engine.expert import ExpertShape, Prefix, _check_shape
from flashrt_ros.errors import BackendError

pytestmark = pytest.mark.gpu

LEAST_COSINE = {'bf16': 0.9999, 'fp8': 0.996}
"""Of what the flow steps add to the noise."""


@pytest.mark.parametrize('family', ['pi05', 'pi0'])
@pytest.mark.parametrize('precision', ['bf16', 'fp8'])
@pytest.mark.parametrize('horizon', [1, 10, 50, 63])
def test_actions_are_those_of_the_plain_model(library, family, precision, horizon):
    case = LoopCase(library, family, precision, horizon=horizon)
    for length in (562, 1, 200, 712):
        observed = case.observe(length)
        added = case.found(*observed) - observed[0]
        assert cosine(added, case.expected(*observed) - observed[0]) > LEAST_COSINE[precision]


def test_one_graph_serves_every_prefix_length(library):
    case = LoopCase(library, 'pi05', 'bf16', lookahead=2)
    case.observe(562)
    stream = library.context.new_stream()
    with torch.cuda.stream(stream):
        case.loop.launch()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        case.loop.launch()
    for length in (1, 64, 65, 700):
        observed = case.observe(length)
        case.stage(*observed)
        graph.replay()
        torch.cuda.synchronize()
        added = case.loop.actions - observed[0]
        assert cosine(added, case.expected(*observed) - observed[0]) > LEAST_COSINE['bf16']


def test_replays_are_equal_to_the_last_bit(library):
    case = LoopCase(library, 'pi05', 'fp8')
    observed = case.observe(400)
    first = case.found(*observed)
    assert all(torch.equal(case.found(*observed), first) for _ in range(20))


def test_a_horizon_beyond_the_tile_is_refused():
    prefix = Prefix(torch.zeros(1, 64, 256), torch.zeros(1, 64, 256), torch.zeros(1))
    with pytest.raises(BackendError, match='horizon 65 gives 65 rows, the kernels take 1 to 64'):
        _check_shape(ExpertShape(65, 64), 65, prefix)
    with pytest.raises(BackendError, match='a prefix of 128 tokens does not fit'):
        _check_shape(ExpertShape(50, 128), 50, prefix)
