"""The tower with products of our own: how it is wired, and which kernels it needs, without a GPU."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from engine.plain_operators import PlainOperators, real
from engine.reference import relative_error
from flashrt_ros.engine.builds import policy_builds
from flashrt_ros.engine.calibration.ranges import Ranges
from flashrt_ros.engine.operators import fused_gemm
from flashrt_ros.engine.operators.forward import Operators
from flashrt_ros.engine.operators.fused_gemm import GELU, Tiling
from flashrt_ros.engine.towers import vision
from flashrt_ros.engine.towers.vision import VisionTower
from flashrt_ros.engine.towers.vision_tilings import SO400M
from flashrt_ros.engine.weights.packing import pack_vision
from flashrt_ros.models.random import random_tensors
from flashrt_ros.models.spec import NANO_PI05, PI05

CPU = torch.device('cpu')
SMALL = replace(PI05, vision=replace(PI05.vision, layers=2))


class PlainFused:
    """What kernels/gemm_sm90.cu computes, in plain torch."""

    def __init__(self, library, product, x, out, epilogue, tiling, *, following=None, ahead=()):
        self.product, self.x, self.out, self.gelu, self.parts = (
            product,
            x,
            out,
            epilogue == GELU,
            tiling.parts,
        )
        assert self.gelu == (following is not None)
        assert all(p.weight.shape[0] > 0 for p in ahead)

    def __call__(self):
        x, weight = self.x.float(), self.product.weight.float()
        if self.gelu:
            self.out.copy_(F.gelu(real(x @ weight.T, self.product), approximate='tanh'))
            return
        pieces = zip(x.tensor_split(self.parts, 1), weight.tensor_split(self.parts, 1), strict=True)
        sums = torch.stack([a @ b.T for a, b in pieces])
        self.out.copy_(sums if self.out.dim() == 3 else sums[0])


def tower(tilings, views=2):
    packed = pack_vision(random_tensors(NANO_PI05, 1, torch.float32, 'cpu'), NANO_PI05, 'bf16')
    return VisionTower(PlainOperators(), NANO_PI05.vision, packed, {}, views, tilings)


@pytest.mark.parametrize('present', [1, 2])
def test_own_products_in_parts_give_what_the_librarys_do(monkeypatch, present):
    monkeypatch.setattr(vision, 'FusedProduct', PlainFused)
    torch.manual_seed(0)
    images = torch.rand(present, 3, 224, 224) * 2 - 1
    own = {'qkv': Tiling(64, 5), 'o': Tiling(64, 3, 3), 'up': Tiling(64, 5), 'down': Tiling(64, 5, 4)}
    ours, librarys = tower({256: own, 512: own}), tower({})
    for each in (ours, librarys):
        each.run(images)
    assert not torch.equal(ours.output(present), librarys.output(present))
    assert relative_error(ours.output(present), librarys.output(present)) < 0.01


def test_calibration_sees_the_inputs_of_every_product(monkeypatch):
    monkeypatch.setattr(vision, 'FusedProduct', PlainFused)
    ranges = Ranges()
    watched = tower({512: {'up': Tiling(64, 5), 'o': Tiling(64, 3, 3)}})
    for product in [watched.projector, *(p for layer in watched.layers for p in layer.values())]:
        product.observer = ranges
    watched.run(torch.rand(2, 3, 224, 224))
    parts = [
        f'vision.{i}.{part}' for i in range(NANO_PI05.vision.layers) for part in ('qkv', 'o', 'up', 'down')
    ]
    assert set(ranges.names) == {'vision.projector', *parts}


class RecordingLibrary:
    def __init__(self):
        self.gpu = SimpleNamespace(device=CPU, capability=(9, 0), multiprocessors=132)
        self.asked = []

    def kernel(self, file, name, **constants):
        build = (file, tuple(sorted(constants.items())))
        return lambda *arguments, **options: self.asked.append(build)


@pytest.mark.parametrize('views', [1, 2, 3])
def test_the_full_sized_towers_kernels_are_compiled_beforehand(monkeypatch, views):
    for function in ('tensor_map', 'plain_map'):
        monkeypatch.setattr(fused_gemm, function, lambda *arguments: None)
    monkeypatch.setattr('flashrt_ros.engine.operators.attention_sm90.tensor_map', lambda *arguments: None)
    library = RecordingLibrary()
    packed = pack_vision(random_tensors(SMALL, 1, torch.float32, 'cpu'), SMALL, 'bf16')
    VisionTower(Operators(library), SMALL.vision, packed, {}, 3).see(views)
    compiled = {
        (file, tuple(sorted(constants.items())))
        for file, constants in policy_builds(library.gpu, SMALL, 'bf16', views)
    }
    assert set(library.asked) <= compiled
    products = [file for file, _ in library.asked if file == 'gemm_sm90']
    assert len(products) == SMALL.vision.layers * len(SO400M['bf16'][views * 256])
