"""Products of the way back on Hopper: how each is divided, and its launch (kernels/back_product_sm90.cu)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from flashrt_ros.engine.cuda.library import KernelLibrary
from flashrt_ros.engine.cuda.tensor_map import tensor_map
from flashrt_ros.engine.weights.back_layout import BOX, BackWeight

BLOCKS, MOST_SLOTS = 128, 16


@dataclass(frozen=True)
class BackPlan:
    """How a product is divided: ranges of K of `steps` boxes each, the ranges that a cluster adds up, and how
    many boxes of weights and of gradient a block has room for. early: the kernel behind may start at once.
    groups: warpgroups that multiply.
    """

    steps: int
    ranges: int
    cluster: int
    weight_slots: int
    row_slots: int
    early: bool = False
    groups: int = 1

    @property
    def parts(self) -> int:
        """In how many parts the result is left."""
        return self.ranges // self.cluster

    def shared(self, rows: int, eight_bits: bool) -> int:
        """Bytes of dynamic shared memory."""
        boxes = self.row_slots * rows * 128 + self.weight_slots * BOX * BOX * (1 if eight_bits else 2)
        return 1024 + boxes + self.groups * BOX * rows * 4


def plan_product(
    depth: int,
    columns: int,
    *,
    whole: bool = False,
    most_cluster: int = 4,
    slots: tuple[int, int] = (16, 8),
    early: bool = False,
    groups: int = 1,
) -> BackPlan:
    """As many ranges as occupy BLOCKS; whole: the cluster adds all of them up.

    slots: of weights and of gradient at most; of gradient more than `groups`, as each is given back late.
    """
    boxes, tiles = depth // BOX, columns // BOX
    possible = [n for n in range(1, boxes + 1) if boxes % n == 0 and n * tiles <= BLOCKS] or [1]
    if whole:
        possible = [n for n in possible if n in (1, 2, 4)]
    ranges = max(possible)
    largest = ranges if whole else min(most_cluster, ranges)
    cluster = max(n for n in (1, 2, 4) if ranges % n == 0 and n <= largest)
    steps = boxes // ranges
    weight_slots, row_slots = (
        min(count, steps, MOST_SLOTS) for count in (slots[0], max(groups + 1, slots[1]))
    )
    return BackPlan(steps, ranges, cluster, weight_slots, row_slots, early, groups)


def row_box(rows: int) -> int:
    """Rows of a gradient that a block multiplies."""
    return 56 if rows <= 56 else 64


def constants(plan: BackPlan, rows: int, eight_bits: bool, gated: bool) -> dict[str, int]:
    sizes = {'CLUSTER': plan.cluster, 'ROWS': row_box(rows), 'GROUPS': plan.groups}
    return {'FP8': int(eight_bits), 'GATED': int(gated), **sizes}


def launch_product(
    library: KernelLibrary,
    plan: BackPlan,
    gradient: Tensor,
    weight: BackWeight,
    out: Tensor,
    rows: int,
    gated: Tensor | None = None,
) -> None:
    """gradient bf16 [64, depth], of which `rows` rows count, times the weight: out bf16 [parts, 64, columns].

    With `gated`, gate and up in bf16 [64, 2 * columns], their gradient instead, [64, 2 * columns]."""
    eight_bits = weight.scale is not None
    kernel = library.kernel(
        'back_product_sm90', 'back_product', **constants(plan, rows, eight_bits, gated is not None)
    )
    kernel(
        (weight.columns // BOX, plan.ranges),
        128 * plan.groups + 64,
        tensor_map(gradient, row_box(rows)),
        weight.boxes,
        weight.scale,
        out,
        weight.columns,
        plan.steps,
        plan.weight_slots,
        plan.row_slots,
        plan.early,
        gated,
        shared=plan.shared(row_box(rows), eight_bits),
        cluster=(1, plan.cluster) if plan.cluster > 1 else None,
        dependent=True,
        most_shared=True,
    )


def empty_parts(plan: BackPlan, columns: int, device: torch.device) -> Tensor:
    return torch.zeros(plan.parts, 64, columns, dtype=torch.bfloat16, device=device)


def expert_plans(
    sizes: Mapping[str, tuple[int, int]],
    slots: Mapping[str, tuple[int, int]],
    gate_up_cluster: int = 2,
    groups: int = 1,
) -> dict[str, BackPlan]:
    """Of the four products of a layer, by name; sizes: depth and columns, slots: of weights and of gradient.

    Those whose results are not added up by what follows are whole. Between two norms there is always one that
    waits before the kernel behind it starts: a norm reads early what the norm before it wrote.
    """
    return {
        'down': plan_product(*sizes['down'], whole=True, slots=slots['down'], early=True),
        'gate_up': plan_product(
            *sizes['gate_up'], most_cluster=gate_up_cluster, slots=slots['gate_up'], groups=groups
        ),
        'o': plan_product(*sizes['o'], whole=True, slots=slots['o'], early=True),
        'qkv': plan_product(*sizes['qkv'], slots=slots['qkv']),
    }
