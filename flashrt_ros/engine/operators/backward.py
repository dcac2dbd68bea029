"""The kernels that carry a gradient back through a Gemma layer, as calls on tensors; contracts are in the
kernel files."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flashrt_ros.engine.buffers import round_up
from flashrt_ros.engine.cuda.device import Gpu
from flashrt_ros.engine.cuda.library import KernelLibrary
from flashrt_ros.engine.cuda.tensor_map import tensor_map
from flashrt_ros.engine.guidance import GuideInputs
from flashrt_ros.engine.operators.exact_ends import ExactEnds, ends_build
from flashrt_ros.models.spec import PolicySpec

QUERIES, KEYS = 32, 64
"""Flat queries and keys of a tile of kernels/attention_backward.cu."""


def backward_builds(gpu: Gpu, policy: PolicySpec) -> list[tuple[str, dict[str, int]]]:
    """Kernel files and constants."""
    spec = policy.expert
    own: list[tuple[str, dict[str, int]]] = []
    if gpu.capability == (9, 0):
        own = [('back_gemm_sm90', {}), ('back_gemm_sm90', {'GATED': 1})]
    return [
        *own,
        ('norm_backward', {'WIDTH': spec.width}),
        ('activation', {'WIDTH': spec.mlp, 'FP8': 0}),
        ('attention_backward', {'HEADS': spec.heads, 'DIM': spec.head_dim}),
        ends_build(spec.width, policy.action_dim),
    ]


BOX, MOST_STEPS, RING, BLOCKS = 64, 16, 8, 128
"""Of kernels/back_gemm_sm90.cu: rows and columns of a box, most boxes of a block along K, blocks wanted."""


def product_parts(depth: int, columns: int) -> int:
    """Ranges of K: as many as occupy BLOCKS, at least as many as make each fit a block."""
    steps, tiles = depth // BOX, columns // BOX
    possible = [n for n in range(1, steps + 1) if steps % n == 0 and steps // n <= MOST_STEPS]
    return max([n for n in possible if n * tiles <= BLOCKS] or possible[:1])


def _parts(upstream: Tensor) -> tuple[int, int]:
    """Number of parts and how many values lie between them."""
    return upstream.shape[0], upstream.stride(0)


class AttentionScratch:
    """What the two kernels of the attention hand to each other, fp32; see kernels/attention_backward.cu."""

    def __init__(self, heads: int, dim: int, rows: int, capacity: int, device: torch.device) -> None:
        self.tiles, self.splits = -(-rows * heads // QUERIES), capacity // KEYS

        def empty(*sizes: int) -> Tensor:
            return torch.zeros(sizes, device=device)

        self.query_parts = empty(self.splits, rows * heads, dim)
        self.key_parts, self.value_parts = (empty(self.tiles, rows, dim) for _ in range(2))


@dataclass(frozen=True)
class BackwardOperators:
    """Kernels of one library, launched on the current stream, each depending on the one before it."""

    library: KernelLibrary

    def parts(self, weight: Tensor, rows: int) -> int:
        """In how many parts `product` leaves gradient [rows, out] @ weight [out, in]."""
        return product_parts(*weight.shape) if self._own(weight, rows) else 1

    def product(self, gradient: Tensor, weight: Tensor, out: Tensor) -> None:
        """gradient bf16 [rows, out] @ weight bf16 [out, in] -> out bf16 [parts, rows, in], to be added up."""
        if not self._own(weight, len(gradient)):
            torch.mm(gradient, weight, out=out[0])
            return
        self._launch_product(gradient, weight, out, len(out))

    def gated_product(self, gradient: Tensor, weight: Tensor, x: Tensor, hidden: Tensor, out: Tensor) -> None:
        """`product` with the down projection and `gelu_gate` behind it: the gradient of x, gate before up.

        hidden: room for what is between them, as `product` leaves it.
        """
        rows, depth = len(gradient), len(weight)
        if self._own(weight, rows) and depth <= MOST_STEPS * BOX:
            self._launch_product(gradient, weight, out, 1, x)
            return
        self.product(gradient, weight, hidden)
        self.gelu_gate(x, hidden, out)

    def _launch_product(
        self, gradient: Tensor, weight: Tensor, out: Tensor, parts: int, gated: Tensor | None = None
    ) -> None:
        (depth, columns), constants = weight.shape, {} if gated is None else {'GATED': 1}
        steps = depth // BOX // parts
        self.library.kernel('back_gemm_sm90', 'back_gemm', **constants)(
            (columns // BOX, parts),
            160,
            tensor_map(gradient, BOX),
            tensor_map(weight, BOX),
            out,
            columns,
            steps,
            gated,
            shared=(steps + min(steps, RING)) * BOX * 128 + 1024,
            dependent=True,
        )

    def _own(self, weight: Tensor, rows: int) -> bool:
        hopper = self.library.gpu.capability == (9, 0)
        return hopper and rows == BOX and not any(size % BOX for size in weight.shape)

    def norm(
        self,
        x: Tensor,
        upstream: Tensor,
        gradient: Tensor,
        out: Tensor | None,
        *,
        scale: Tensor | None = None,
        gate: Tensor | None = None,
    ) -> None:
        """Back through norm(x) * (1 + scale): add to `gradient` of x; out = gradient * gate for the product
        in front. x, gradient fp32 [rows, width]; upstream bf16 [parts, rows, width]; out bf16."""
        (rows, width), (parts, stride) = gradient.shape, _parts(upstream)
        kernel = self.library.kernel('norm_backward', 'norm_backward', WIDTH=width)
        threads = round_up(width // 8, 32)
        arguments = x, upstream, parts, stride, scale, gate, gradient, out
        kernel(rows, threads, *arguments, dependent=True)

    def gelu_gate(self, x: Tensor, upstream: Tensor, out: Tensor) -> None:
        """Gradient of x bf16 [rows, 2 * width], gate before up, from that of gelu(gate) * up, bf16 [parts,
        rows, width]."""
        (_, rows, width), (parts, stride) = upstream.shape, _parts(upstream)
        kernel = self.library.kernel('activation', 'gelu_gate_backward', WIDTH=width, FP8=0)
        kernel(-(-rows * width // (8 * 256)), 256, x, upstream, parts, stride, out, rows, dependent=True)

    def attention(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        results: tuple[Tensor, Tensor],
        length: Tensor,
        table: Tensor,
        upstream: Tensor,
        out: Tensor,
        scratch: AttentionScratch,
        constant: int = 0,
    ) -> None:
        """Gradient of the raw product q, k, v, bf16 [rows, (heads + 2) * dim], from that of the result.

        queries, upstream: bf16 [rows, heads * dim]. keys, values: the cache of one layer, whose
        first *length + constant rows are constant. results: of the forward pass, bf16 [rows, heads * dim],
        and log2 of its sums of exponentials, fp32 [rows, heads]. table: rotations.
        """
        rows, dim = queries.shape[0], keys.shape[1]
        heads = queries.shape[1] // dim

        def launch(
            name: str, grid: tuple[int, int], threads: int, *arguments: Tensor | int, shared: int = 0
        ) -> None:
            kernel = self.library.kernel('attention_backward', name, HEADS=heads, DIM=dim)
            kernel(grid, threads, *arguments, shared=shared, dependent=True)

        known, shared = (queries, keys, values, *results), 2 * (QUERIES + KEYS) * (dim + 8) * 2
        parts, tiles = (scratch.query_parts, scratch.key_parts, scratch.value_parts), scratch.tiles
        pulled = *known, upstream, length, constant, rows, *parts
        launch('attention_pull', (tiles, scratch.splits), 128, *pulled, shared=shared)
        given = *parts, table, length, constant, tiles, out
        launch('attention_gradients', (rows, heads + 2), dim // 2, *given)

    def ends(self, actions: Tensor, guide: GuideInputs, gradient: Tensor) -> ExactEnds:
        """What is before and behind the layers, of a chunk: see `ExactEnds`."""
        return ExactEnds(self.library, actions, torch.zeros_like(actions), guide, gradient)
