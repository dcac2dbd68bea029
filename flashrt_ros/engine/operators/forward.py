"""The element-wise and attention kernels as Python calls on tensors; contracts are in the kernel files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from flashrt_ros.engine.cuda.device import Gpu
from flashrt_ros.engine.cuda.library import KernelLibrary
from flashrt_ros.engine.guidance import GuideInputs
from flashrt_ros.engine.operators import attention_sm90, wide_gemm
from flashrt_ros.engine.operators.fused_gemm import MOST_PARTS, RAW, FusedProduct, Tiling, plain_tiling
from flashrt_ros.engine.operators.gemm import Product
from flashrt_ros.engine.weights.formats import E4M3, INT8, constants

ROOMY = ((9, 0), (10, 0), (10, 3), (11, 0))
"""GPUs whose blocks may use over 200 KB of shared memory; the others have 99 or 163."""

OWN_E4M3 = ((2560, 2048), (2048, 2048), (512, 2048), (2048, 1152))
"""(out, in) of E4M3 products that a kernel of ours multiplies on Hopper: the prefill's QKV, output, last keys
and values, and the projector. The library's kernels neither start early nor let their successor do so."""


def owns(gpu: Gpu, dtype: torch.dtype, columns: int, depth: int) -> bool:
    """Whether `Operators.multiply` takes a kernel of ours: for all integers, since the library leaves their
    sums in 32 bits."""
    if gpu.capability != (9, 0):
        return False
    return dtype == INT8 or (dtype == E4M3 and (columns, depth) in OWN_E4M3)


class Modulation(NamedTuple):
    """adaRMS vectors fp32 [width]: y = norm(x) * (1 + scale) + shift; the gate is of the sublayer behind.

    The first *frozen rows (int32 [1]) take vectors that lie `clean` values behind these, the gate too.
    """

    scale: Tensor | None
    shift: Tensor | None
    gate: Tensor | None
    frozen: Tensor | None = None
    clean: int = 0


@dataclass(frozen=True)
class Operators:
    """Kernels of one library, launched on the current stream, each depending on the one before it."""

    library: KernelLibrary

    def norm(
        self,
        residual: Tensor,
        out: Tensor,
        following: Product | None,
        *,
        delta: Tensor | None = None,
        preceding: Product | None = None,
        gate: Tensor | None = None,
        modulation: Modulation | None = None,
        updated: Tensor | None = None,
    ) -> None:
        """Add `delta` (the raw output of `preceding`) to the residual and normalise it for `following`.

        delta: bf16 [rows, width] or more, or in parts of the product's K [parts, rows, width]. updated: where
        the sum goes, if not into the residual.
        """
        rows, width = residual.shape
        kernel = self.library.kernel('norm', 'residual_norm', WIDTH=width, **constants(out.dtype))
        kernel(
            rows,
            _threads(width // 8),
            residual,
            delta,
            delta.shape[0] if delta is not None and delta.dim() == 3 else 1,
            None if preceding is None else preceding.channel_scale,
            None if preceding is None else preceding.bias,
            gate,
            None if modulation is None else modulation.scale,
            None if modulation is None else modulation.shift,
            out,
            1.0 if following is None else following.inverse_scale,
            None if modulation is None else modulation.frozen,
            0 if modulation is None else modulation.clean,
            updated,
            dependent=True,
        )

    def flow_step(
        self,
        actions: Tensor,
        velocity: Tensor | None,
        guide: GuideInputs,
        step: int,
        product: Tensor | None = None,
    ) -> None:
        """Guide the velocity [H, A], update the actions and freeze the first rows; without one only freeze.

        product: the pull times the Jacobian of the velocity, for exact guidance.
        """
        steps = len(guide.gammas)
        self.library.kernel('flow_step', 'flow_step')(
            -(-actions.numel() // 256),
            256,
            actions,
            velocity,
            product,
            guide.target,
            guide.weights,
            guide.gammas[step:],
            guide.frozen,
            1 - step / steps,
            1 / steps,
            actions.shape[1],
            actions.numel(),
            dependent=True,
        )

    def multiply(self, product: Product, x: Tensor, out: Tensor) -> None:
        """x [rows, in] -> out bf16 [rows, out], raw: by the library, or by a kernel of ours (`has_own`)."""
        if self.has_own(product):
            self._multiply(product, x, out[None], self._plain_tiling(product, x, 1))
        else:
            product(x, out)

    def multiply_in_parts(self, product: Product, x: Tensor, memory: Tensor) -> Tensor:
        """As `multiply` by a kernel of ours, into the front of flat bf16 `memory`, which has room for
        `fused_gemm.MOST_PARTS`. Returns bf16 [parts, rows, out]: sums over parts of K."""
        rows, columns = x.shape[0], product.weight.shape[0]
        tiling = self._plain_tiling(product, x, MOST_PARTS)
        out = memory[: tiling.parts * rows * columns].view(tiling.parts, rows, columns)
        self._multiply(product, x, out, tiling)
        return out

    def has_own(self, product: Product) -> bool:
        """Whether `multiply` takes a kernel of ours (`owns`)."""
        columns, depth = product.weight.shape
        return owns(self.library.gpu, product.dtype, columns, depth)

    def _plain_tiling(self, product: Product, x: Tensor, most_parts: int) -> Tiling:
        row_bytes, blocks = x.shape[1] * x.element_size(), self.library.gpu.multiprocessors
        return plain_tiling(x.shape[0], product.weight.shape[0], row_bytes, blocks, most_parts)

    def _multiply(self, product: Product, x: Tensor, out: Tensor, tiling: Tiling) -> None:
        FusedProduct(self.library, product, x, out, RAW, tiling)()

    def gated_product(self, x: Tensor, product: Product, out: Tensor, following: Product) -> None:
        """Gemma's gate and up product with its activation: x [rows, in] -> out [rows, width] for `following`.

        Hopper only; the weight is in `wide_layout.gated_order`.
        """
        wide_gemm.gated(self.library, x, product, out, following)

    def split_product(self, x: Tensor, product: Product, out: Tensor) -> None:
        """x [rows, in] -> out bf16 [parts, rows, columns], raw, over ranges of K; `norm` adds the parts up.

        Hopper only; the weight is in `wide_layout.lane_order`.
        """
        wide_gemm.split(self.library, x, product, out)

    def bias_gelu(self, x: Tensor, preceding: Product, out: Tensor, following: Product) -> None:
        """SigLIP's activation: x [rows, width] raw -> out for `following`."""
        self._activation('bias_gelu', x, (preceding.channel_scale, preceding.bias), out, following)

    def gelu_gate(self, x: Tensor, preceding: Product, out: Tensor, following: Product) -> None:
        """Gemma's activation: x [rows, 2 * width] raw, gate before up -> out for `following`."""
        self._activation('gelu_gate', x, (preceding.channel_scale,), out, following)

    def _activation(
        self, name: str, x: Tensor, vectors: tuple[Tensor | None, ...], out: Tensor, following: Product
    ) -> None:
        rows, width = out.shape
        kernel = self.library.kernel('activation', name, WIDTH=width, **constants(out.dtype))
        blocks = -(-rows * width // (8 * 256))
        kernel(blocks, 256, x, *vectors, out, following.inverse_scale, rows, dependent=True)

    def layer_norm(
        self,
        residual: Tensor,
        out: Tensor,
        following: Product,
        sums: Tensor,
        *,
        preceding: Product | None = None,
        start: Tensor | None = None,
    ) -> None:
        """Add what `preceding` left, raw bf16 [parts, rows, width], to the residual and normalise it.

        start: fp32 [start rows, width] to begin with instead of the residual, repeated over the rows.
        """
        rows, width = residual.shape
        sizes = layer_norm_constants(width, sums.shape[0], start is not None, out.dtype)
        self.library.kernel('layer_norm', 'layer_norm', **sizes)(
            rows,
            32 * sizes['WARPS'],
            residual,
            start,
            1 if start is None else start.shape[0],
            sums,
            None if preceding is None else preceding.channel_scale,
            None if preceding is None else preceding.bias,
            out,
            following.inverse_scale,
            dependent=True,
        )

    def rope(
        self,
        qkv: Tensor,
        preceding: Product,
        table: Tensor,
        offset: Tensor | None,
        queries: Tensor | None,
        keys: Tensor,
        values: Tensor,
    ) -> None:
        """Rotate and scatter raw qkv [rows, columns], or [parts, rows, columns] in parts of the product's K.
        Without `queries` it holds keys and values only."""
        head_dim, (rows, columns) = keys.shape[1], qkv.shape[-2:]
        heads = columns // head_dim - 2
        kernel = self.library.kernel('rope', 'rope', HEADS=heads, DIM=head_dim)
        items = (heads + 1) * head_dim // 16 + head_dim // 8
        scale = preceding.channel_scale
        kernel(
            rows,
            _threads(items),
            qkv,
            qkv.shape[0] if qkv.dim() == 3 else 1,
            scale,
            table,
            offset,
            queries,
            keys,
            values,
            dependent=True,
        )

    def attention(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        length: Tensor,
        out: Tensor,
        following: Product,
        *,
        appended: int = 0,
        first_sees: int = -1,
        log_sums: Tensor | None = None,
    ) -> None:
        """Gemma attention of queries [rows, heads * dim] on the cache [capacity, dim] of one layer.

        keys, values: cut to the rows that may be valid, since their number decides how they are divided.
        log_sums: fp32 [rows, heads] for log2 of each sum of exponentials; by the portable kernel alone.
        """
        rows, dim = queries.shape[0], keys.shape[1]
        heads = queries.shape[1] // dim
        arguments = (length, appended, first_sees, rows)
        if log_sums is None and attention_sm90.covers_gemma(self.library.gpu, dim):
            attention_sm90.gemma(self.library, queries, keys, values, arguments, out, following.inverse_scale)
            return
        sizes = portable_attention(self.library.gpu, heads, dim, out.dtype)
        kernel = self.library.kernel('gemma_attention', 'gemma_attention', **sizes)
        kernel(
            -(-rows * heads // 64),
            256,
            queries,
            keys,
            values,
            *arguments,
            out,
            following.inverse_scale,
            log_sums,
            shared=max((64 + sizes['STAGES'] * 128) * (dim + 8) * 2, (4 + dim // 2) * 512),
            dependent=True,
        )

    def vision_attention(
        self, qkv: Tensor, preceding: Product, tokens: int, heads: int, out: Tensor, following: Product
    ) -> None:
        """SigLIP attention inside each image of `tokens` rows; qkv raw [views * tokens, 3 * width]."""
        dim = out.shape[1] // heads
        if attention_sm90.covers_vision(self.library.gpu, tokens, dim):
            attention_sm90.vision(self.library, qkv, preceding, heads, out, following.inverse_scale)
            return
        sizes = {'TOKENS': tokens, 'HEADS': heads, 'DIM': dim, **constants(out.dtype)}
        kernel = self.library.kernel('vision_attention', 'vision_attention', **sizes)
        stride = -(-dim // 16) * 16 + 8
        kernel(
            (tokens // 64, heads, qkv.shape[0] // tokens),
            256,
            qkv,
            preceding.channel_scale,
            preceding.bias,
            out,
            following.inverse_scale,
            shared=(2 * tokens + 64) * stride * 2,
            dependent=True,
        )

    def patches(self, images: Tensor, patch: int, out: Tensor) -> None:
        """Images fp32 [views, 3, size, size] in [-1, 1] -> patch rows [views * tokens, columns]."""
        size = images.shape[2]
        kernel = self.library.kernel('embedding', 'patches', SIZE=size, PATCH=patch, COLUMNS=out.shape[1])
        kernel(out.shape[0], 128, images, out, dependent=True)

    def prefix_embedding(
        self,
        projected: Tensor,
        projector: Product,
        tokens: Tensor,
        table: Tensor,
        residual: Tensor,
        out: Tensor,
        following: Product,
    ) -> None:
        """First residual of the language tower and its norm: image rows, then prompt rows."""
        rows, width = residual.shape
        kernel = self.library.kernel('embedding', 'prefix_embedding', WIDTH=width, **constants(out.dtype))
        kernel(
            rows,
            _threads(width // 8),
            projected,
            projector.channel_scale,
            projector.bias,
            projected.shape[0],
            tokens,
            table,
            residual,
            out,
            following.inverse_scale,
            dependent=True,
        )


def attention_builds(gpu: Gpu, heads: int, dim: int, dtype: torch.dtype) -> list[tuple[str, dict[str, int]]]:
    """Kernel files and constants of the Gemma attention for a GPU. dtype: of what it leaves."""
    if attention_sm90.covers_gemma(gpu, dim):
        return attention_sm90.gemma_builds(heads, dtype)
    return [('gemma_attention', portable_attention(gpu, heads, dim, dtype))]


def portable_attention(gpu: Gpu, heads: int, dim: int, dtype: torch.dtype) -> dict[str, int]:
    """Constants of gemma_attention.cu."""
    stages = 2 if gpu.capability in ROOMY else 1
    return {'HEADS': heads, 'DIM': dim, 'STAGES': stages, **constants(dtype)}


def layer_norm_constants(width: int, parts: int, start: bool, dtype: torch.dtype) -> dict[str, int]:
    """Of kernels/layer_norm.cu; a thread has up to twelve columns."""
    return {
        'WIDTH': width,
        'PARTS': parts,
        'START': int(start),
        'WARPS': -(-width // 384),
        **constants(dtype),
    }


def vision_attention_build(
    gpu: Gpu, tokens: int, heads: int, dim: int, dtype: torch.dtype
) -> tuple[str, dict[str, int]]:
    """Kernel file and constants of the vision attention for a GPU."""
    if attention_sm90.covers_vision(gpu, tokens, dim):
        return attention_sm90.vision_build(heads, dim, dtype)
    return 'vision_attention', {'TOKENS': tokens, 'HEADS': heads, 'DIM': dim, **constants(dtype)}


def _threads(count: int) -> int:
    """Rounded up to whole warps."""
    return -(-count // 32) * 32
