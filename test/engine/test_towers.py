"""The engine's three stages on packed weights, with plain operators on the CPU, against the plain model."""

from types import SimpleNamespace

import pytest
import torch

from engine.plain_operators import PlainOperators
from engine.reference import NANO_PI0, relative_error
from flashrt_ros.engine import builds, frame_inputs
from flashrt_ros.engine.buffers import PrefixCache
from flashrt_ros.engine.calibration.ranges import Ranges
from flashrt_ros.engine.operators import attention_sm90, forward, fused_gemm, wide_gemm
from flashrt_ros.engine.operators.forward import Operators
from flashrt_ros.engine.operators.gemm import Product
from flashrt_ros.engine.towers.denoise import PlainDenoise
from flashrt_ros.engine.towers.prefill import Prefill
from flashrt_ros.engine.towers.vision import VisionTower
from flashrt_ros.engine.weights.packing import pack_vision
from flashrt_ros.engine.weights.store import pack
from flashrt_ros.engine.weights.wide_layout import pack_wide_language
from flashrt_ros.models.pi import load_model
from flashrt_ros.models.random import random_tensors
from flashrt_ros.models.spec import NANO_PI05

VIEWS, WORDS, PADDED = 2, 21, 64
CPU = torch.device('cpu')


@pytest.fixture(scope='module', params=[(NANO_PI05, False), (NANO_PI05, True), (NANO_PI0, False)], ids=str)
def case(request):
    """Everything that the stages leave behind, found and expected; also with the prefill's own products."""
    torch.manual_seed(0)
    spec, wide = request.param
    tensors = random_tensors(spec, 1)
    images, state, noise = torch.rand(VIEWS, 3, 224, 224) * 2 - 1, torch.randn(32), torch.randn(50, 32)
    tokens = torch.randint(0, spec.vocab, (WORDS,))
    with torch.inference_mode():
        return _run(spec, tensors, images, tokens, state, noise, wide), _expect(
            spec, tensors, images, tokens, state, noise
        )


def _run(spec, tensors, images, tokens, state, noise, wide):
    packed, operators = pack(tensors, spec, 'bf16', wide=wide), PlainOperators()
    cache = PrefixCache.allocate(spec, VIEWS, CPU)
    vision = VisionTower(operators, spec.vision, packed, {}, VIEWS)
    prefill = Prefill(operators, spec, packed, {}, VIEWS, cache)
    denoise = PlainDenoise(operators, spec, packed, {}, cache)
    rows = VIEWS * spec.vision.tokens + WORDS
    cache.length.fill_(rows)
    vision.run(images)
    padded = torch.zeros(PADDED, dtype=torch.int32)
    padded[:WORDS] = tokens
    prefill.run(vision.output(VIEWS), vision.projector, padded)
    found = {'features': vision.output(VIEWS).float() + vision.projector.bias}
    found |= {
        f'{name}{i}': t[i, :rows].clone()
        for name, t in (('k', cache.keys), ('v', cache.values))
        for i in range(len(t))
    }
    denoise.actions.copy_(noise)
    denoise.state.copy_(state)
    denoise.run()
    return found | {'change': denoise.actions - noise}


def _expect(spec, tensors, images, tokens, state, noise):
    model = load_model(spec, tensors, torch.float32)
    features = model.see(images)
    prefix = model.prefill(features, tokens[None], state[None])
    rows = features.shape[1] + WORDS
    expected = {'features': features[0]}
    expected |= {
        f'{name}{i}': t[0, 0, :rows]
        for i, pair in enumerate(prefix)
        for name, t in zip('kv', pair, strict=True)
    }
    return expected | {'change': model.denoise(noise[None], prefix, model.flow_table(spec.steps))[0] - noise}


def test_every_stage_computes_what_the_plain_model_does(case):
    found, expected = case
    assert found.keys() == expected.keys()
    errors = {name: relative_error(found[name], expected[name]) for name in expected}
    assert max(errors.values()) < 0.02, errors


def test_towers_in_integers(monkeypatch):
    """Scales from the towers in bf16; then products of small integers, and down's of E4M3."""
    torch.manual_seed(0)
    spec, tensors, ranges = NANO_PI0, random_tensors(NANO_PI0, 1), Ranges()
    images, tokens = torch.rand(VIEWS, 3, 224, 224) * 2 - 1, torch.randint(0, spec.vocab, (WORDS,))
    padded = torch.cat([tokens, torch.zeros(PADDED - WORDS, dtype=torch.long)]).int()
    rows = VIEWS * spec.vision.tokens + WORDS

    def run(packed, scales, observer=None):
        cache = PrefixCache.allocate(spec, VIEWS, CPU)
        cache.length.fill_(rows)
        vision = VisionTower(PlainOperators(), spec.vision, packed, scales, VIEWS)
        prefill = Prefill(PlainOperators(), spec, packed, scales, VIEWS, cache)
        for layer in (*vision.layers, *prefill.layers):
            for product in layer.values():
                product.observer = observer
        vision.projector.observer = prefill.last.observer = observer
        vision.run(images)
        prefill.run(vision.output(VIEWS), vision.projector, padded)
        return [t[i, :rows].clone() for t in (cache.keys, cache.values) for i in range(len(t))]

    with torch.inference_mode():
        exact = run(pack(tensors, spec, 'bf16'), {}, ranges)
        uneven = frozenset({'vision.0.qkv', 'language.0.o'})
        packed = pack_vision(tensors, spec, 'int8', uneven) | pack_wide_language(
            tensors, spec, 'int8', uneven
        )
        assert packed['language.0.gated.weight'].dtype == torch.int8
        assert packed['language.0.split_down.weight'].dtype == torch.float8_e4m3fn
        found = run(packed, ranges.scales())
    assert max(relative_error(f, e) for f, e in zip(found, exact, strict=True)) < 0.05


class RecordingLibrary:
    """Gives kernels that do nothing, and notes which were asked for."""

    def __init__(self, capability):
        self.gpu = SimpleNamespace(device=CPU, capability=capability, multiprocessors=132)
        self.asked = set()

    def kernel(self, file, name, **constants):
        self.asked.add((file, tuple(sorted(constants.items()))))
        return lambda *arguments, **options: None


@pytest.mark.parametrize('spec', [NANO_PI05, NANO_PI0], ids=lambda spec: spec.family)
@pytest.mark.parametrize('capability', [(8, 0), (9, 0), (12, 0)])
def test_the_kernels_compiled_beforehand_are_those_that_run(capability, spec, monkeypatch):
    monkeypatch.setattr(attention_sm90, 'tensor_map', lambda *_: None)  # a driver's work
    library = RecordingLibrary(capability)
    packed, operators = pack(random_tensors(spec, 1), spec, 'bf16'), Operators(library)
    cache = PrefixCache.allocate(spec, VIEWS, CPU)
    vision = VisionTower(operators, spec.vision, packed, {}, VIEWS)
    monkeypatch.setattr(frame_inputs, 'pinned_zeros', lambda shape, dtype: torch.zeros(shape, dtype=dtype))
    frame_inputs.FrameInputs(library, spec.vision, 'pil', VIEWS).launch(0, VIEWS, vision.patch_rows(VIEWS))
    vision.see(VIEWS)
    tokens = torch.zeros(PADDED, dtype=torch.int32)
    Prefill(operators, spec, packed, {}, VIEWS, cache).run(vision.output(VIEWS), vision.projector, tokens)
    PlainDenoise(operators, spec, packed, {}, cache).run()
    compiled = builds.policy_builds(library.gpu, spec, 'bf16', VIEWS)
    assert library.asked == {(file, tuple(sorted(constants.items()))) for file, constants in compiled}


@pytest.mark.parametrize('precision', ['bf16', 'fp8'])
def test_so_are_those_of_the_wide_prefill(precision, monkeypatch):
    for module in (attention_sm90, wide_gemm, fused_gemm):
        monkeypatch.setattr(module, 'tensor_map', lambda *_: None)
    monkeypatch.setattr(fused_gemm, 'plain_map', lambda *_: None)
    monkeypatch.setattr(builds, 'covers_prefill', lambda *_: True)
    tower, patch = NANO_PI05.language, NANO_PI05.vision.width
    attended, pair = tower.heads * tower.head_dim, 2 * tower.head_dim
    shapes = [
        (attended + pair, tower.width),
        (tower.width, attended),
        (pair, tower.width),
        (tower.width, patch),
    ]
    monkeypatch.setattr(forward, 'OWN_E4M3', shapes)
    monkeypatch.setattr(Product, '__call__', lambda *_: None)  # the CPU multiplies no E4M3
    library, spec = RecordingLibrary((9, 0)), NANO_PI05
    packed = pack(random_tensors(spec, 1), spec, precision, wide=True)
    cache, operators = PrefixCache.allocate(spec, VIEWS, CPU), Operators(library)
    projected = torch.zeros(VIEWS * spec.vision.tokens, spec.language.width, dtype=torch.bfloat16)
    projector, tokens = Product(packed, 'vision.projector', CPU), torch.zeros(PADDED, dtype=torch.int32)
    Prefill(operators, spec, packed, {}, VIEWS, cache).run(projected, projector, tokens)
    compiled = {
        (f, tuple(sorted(c.items()))) for f, c in builds.policy_builds(library.gpu, spec, precision, VIEWS)
    }
    assert library.asked <= compiled
    own = {'gemm_sm90'} if precision == 'fp8' else set()
    assert {file for file, _ in library.asked} >= {'gated_gemm_sm90', 'split_gemm_sm90'} | own
