"""The whole engine against the plain model, on nano sizes with fresh random weights and observations."""

from dataclasses import replace

import pytest
import torch

from engine.reference import NANO_PI0, cosine, relative_error
from flashrt_ros.engine.calibration.scales import calibrate
from flashrt_ros.engine.engine import Engine
from flashrt_ros.engine.weights.store import pack, pack_exact
from flashrt_ros.errors import ObservationError
from flashrt_ros.models.pi import load_model
from flashrt_ros.models.random import random_tensors
from flashrt_ros.models.spec import NANO_PI05

pytestmark = pytest.mark.gpu

SPECS = {'pi05': NANO_PI05, 'pi0': NANO_PI0}


class Case:
    """One policy with random weights, its plain fp32 model, and random observations."""

    def __init__(self, library, spec, precision, views=2, seed=0, exact=False):
        self.spec, self.views = spec, views
        self.generator = torch.Generator().manual_seed(seed)
        tensors = random_tensors(spec, seed, torch.float32, 'cuda')
        self.model = load_model(spec, tensors, torch.float32)
        scales = {}
        if precision == 'fp8':
            observer = Engine(library, spec, pack(tensors, spec, 'bf16'), views)
            scales = calibrate(observer, [self.observation() for _ in range(8)])
        packed = pack(tensors, spec, precision)
        if exact:
            packed |= pack_exact(tensors, spec)
        self.engine = Engine(library, spec, packed, views, scales, exact=exact)
        self.engine.capture()

    def observation(self, views=None, count=20):
        """(images, tokens, state, noise) on the host."""
        spec, draw = self.spec, self.generator
        size = spec.vision.image_size
        images = (
            torch.randint(0, 256, (views or self.views, 3, size, size), generator=draw).float() / 255 * 2 - 1
        )
        tokens = torch.randint(0, spec.vocab, (count,), generator=draw)
        state = torch.randn(spec.action_dim, generator=draw)
        return images, tokens, state, torch.randn(spec.horizon, spec.action_dim, generator=draw)

    @torch.no_grad()
    def expected(self, observation, guide=None):
        images, tokens, state, noise = (x.cuda() for x in observation)
        prefix = self.model.prefill(self.model.see(images), tokens[None], state[None])
        table = self.model.flow_table(self.spec.steps)
        if guide is not None:
            guide = replace(guide, target=guide.target.cuda(), weights=guide.weights.cuda())
        return self.model.denoise(noise[None], prefix, table, guide)[0].cpu()

    def found(self, observation, guide=None):
        self.engine.write(*observation, guide=guide)
        self.engine.replay()
        return self.engine.read().clone()


@pytest.fixture(scope='module', params=list(SPECS))
def bf16(library, request):
    return Case(library, SPECS[request.param], 'bf16')


@pytest.fixture(scope='module', params=list(SPECS))
def fp8(library, request):
    return Case(library, SPECS[request.param], 'fp8')


@pytest.mark.parametrize(('views', 'count'), [(1, 1), (2, 20), (2, 48), (1, 33)])
def test_bf16_matches_the_plain_model(bf16, views, count):
    observation = bf16.observation(views, count)
    expected, found = bf16.expected(observation), bf16.found(observation)
    assert relative_error(found - observation[3], expected - observation[3]) < 0.02


def test_fp8_stays_near_the_plain_model(fp8):
    for _ in range(5):
        observation = fp8.observation()
        expected, found, noise = fp8.expected(observation), fp8.found(observation), observation[3]
        assert cosine(found - noise, expected - noise) > 0.99


def test_every_prompt_length_without_another_capture(library):
    case = Case(library, NANO_PI05, 'bf16')
    graphs = dict(case.engine._acting)
    for count in (1, 2, 63, 64, 65, 127, 128, 129, 199, 200):
        observation = case.observation(2, count)
        expected, found = case.expected(observation), case.found(observation)
        assert relative_error(found - observation[3], expected - observation[3]) < 0.02, count
    assert case.engine._acting == graphs


def test_repeated_replays_give_the_same_bits(bf16):
    observation = bf16.observation()
    first = bf16.found(observation)
    for _ in range(200):
        assert torch.equal(bf16.found(observation), first)


def test_stages_are_timed_inside_the_graph(bf16):
    bf16.found(bf16.observation())
    seconds = bf16.engine.stage_seconds()
    assert list(seconds) == ['vision', 'prefill', 'denoise']
    assert all(0 < s < 1 for s in seconds.values())


def test_two_engines_in_one_process_do_not_disturb_each_other(library):
    one, two = Case(library, NANO_PI05, 'bf16', seed=1), Case(library, NANO_PI0, 'bf16', seed=2)
    first, second = one.observation(), two.observation()
    alone = one.found(first), two.found(second)
    for case, observation in ((one, first), (two, second)):
        case.engine.write(*observation)
    one.engine.replay()
    two.engine.replay()
    assert torch.equal(one.engine.read(), alone[0])
    assert torch.equal(two.engine.read(), alone[1])


@pytest.mark.parametrize('steps', [1, 4])
def test_other_numbers_of_steps(library, steps):
    case = Case(library, replace(NANO_PI05, steps=steps, horizon=10), 'bf16')
    observation = case.observation()
    expected, found = case.expected(observation), case.found(observation)
    assert relative_error(found - observation[3], expected - observation[3]) < 0.02


def test_a_prompt_longer_than_the_buffers_is_refused(bf16):
    observation = bf16.observation(2, bf16.spec.max_tokens + 1)
    with pytest.raises(ObservationError, match=f'{bf16.spec.max_tokens + 1} tokens'):
        bf16.engine.write(*observation)


@pytest.mark.slow
def test_all_prompt_lengths(library):
    case = Case(library, NANO_PI05, 'bf16')
    for count in range(1, 201):
        observation = case.observation(2, count)
        expected, found = case.expected(observation), case.found(observation)
        assert relative_error(found - observation[3], expected - observation[3]) < 0.02, count


@pytest.mark.slow
def test_ten_thousand_replays_neither_drift_nor_leak(bf16):
    observation = bf16.observation()
    first, free = bf16.found(observation), torch.cuda.mem_get_info()[0]
    for i in range(10_000):
        found = bf16.found(observation)
        assert i % 100 or torch.equal(found, first)
    assert torch.equal(found, first)
    assert torch.cuda.mem_get_info()[0] == free
