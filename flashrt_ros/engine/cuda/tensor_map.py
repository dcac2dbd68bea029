"""Descriptions of matrices for Hopper's copy engine (CUtensorMap)."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from flashrt_ros.engine.cuda.driver import check

ROW_BYTES = 128
"""Width of a box: what one row of the 128-byte swizzle holds."""


def tensor_map(matrix: Tensor, box_rows: int, row_bytes: int = ROW_BYTES) -> Any:
    """Describe a contiguous matrix to the copy engine in boxes of `row_bytes` (32, 64 or 128) by `box_rows`,
    in the swizzle of that width."""
    return _encode(matrix, (row_bytes // matrix.element_size(), box_rows), f'{row_bytes}B')


def plain_map(slices: Tensor, box_rows: int, box_columns: int) -> Any:
    """Describe contiguous [slices, rows, columns] in boxes of one slice that lie row by row in shared
    memory."""
    return _encode(slices, (box_columns, box_rows, 1), 'NONE')


def _encode(tensor: Tensor, box: tuple[int, ...], swizzle: str) -> Any:
    from cuda.bindings import driver

    bf16, rank = tensor.dtype == torch.bfloat16, tensor.dim()
    kind = driver.CUtensorMapDataType
    encoded = check(
        driver.cuTensorMapEncodeTiled(
            kind.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 if bf16 else kind.CU_TENSOR_MAP_DATA_TYPE_UINT8,
            rank,
            tensor.data_ptr(),
            [driver.cuuint64_t(size) for size in reversed(tensor.shape)],
            [driver.cuuint64_t(tensor.stride(i) * tensor.element_size()) for i in reversed(range(rank - 1))],
            [driver.cuuint32_t(size) for size in box],
            [driver.cuuint32_t(1)] * rank,
            driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            getattr(driver.CUtensorMapSwizzle, f'CU_TENSOR_MAP_SWIZZLE_{swizzle}'),
            driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        ),
        'tensor map',
    )
    return (ctypes.c_uint64 * 16).from_buffer_copy(ctypes.string_at(encoded.getPtr(), 128))
