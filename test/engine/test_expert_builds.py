"""The fused denoise loop asks for the kernels that are compiled beforehand, and for no others."""

import pytest

from benchmarks.expert_trial import TrialShape, small_policy
from engine.test_towers import CPU, RecordingLibrary
from flashrt_ros.engine import builds
from flashrt_ros.engine.buffers import PrefixCache
from flashrt_ros.engine.expert.denoise import OBSERVED, FusedDenoise, restore
from flashrt_ros.engine.expert.exact import ExactDenoise, back_format
from flashrt_ros.engine.expert.forward import FusedForward
from flashrt_ros.engine.operators.backward import BackwardOperators
from flashrt_ros.engine.operators.forward import Operators
from flashrt_ros.engine.towers.flow import FlowHeads
from flashrt_ros.engine.weights.store import pack, pack_exact
from flashrt_ros.models.random import random_tensors

VIEWS, PREFIX_ROWS = 1, 300


@pytest.mark.parametrize('family', ['pi05', 'pi0'])
@pytest.mark.parametrize('precision', ['bf16', 'fp8'])
def test_the_kernels_of_the_loop_are_compiled_beforehand(family, precision, monkeypatch):
    monkeypatch.setattr(builds, 'covers_prefill', lambda *_: True)
    spec, library = small_policy(family, TrialShape(layers=1, steps=2)), RecordingLibrary((9, 0))
    packed = pack(random_tensors(spec, 1), spec, precision, fused=True, wide=True)
    scales = {f'expert.0.{name}': 0.1 for name in OBSERVED.values()}
    cache = PrefixCache.allocate(spec, VIEWS, CPU)
    FusedDenoise(library, spec, packed, scales, cache, PREFIX_ROWS).run()
    compiled = builds.policy_builds(library.gpu, spec, precision, VIEWS)
    assert library.asked == {as_asked(build) for build in compiled if build[0].startswith('expert')}

    library.asked.clear()
    operators, heads = Operators(library), FlowHeads(packed, spec, CPU)
    forward = FusedForward(operators, spec, *restore(packed, spec, scales, CPU), heads, cache, PREFIX_ROWS)
    forward.begin()
    forward.run_layers(1)
    compiled = {as_asked(build) for build in builds.exact_builds(library.gpu, spec, precision, VIEWS)}
    assert library.asked == {build for build in compiled if build[0] == 'expert_layers'}

    form = back_format(library.gpu, spec, precision)
    exact = packed | pack_exact(random_tensors(spec, 1), spec, fused=True, form=form)
    ExactDenoise(operators, BackwardOperators(library), forward, exact, cache).run()
    assert library.asked == compiled


def as_asked(build):
    file, constants = build
    return file, tuple(sorted(constants.items()))
