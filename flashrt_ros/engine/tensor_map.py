"""Descriptions of matrices for Hopper's copy engine (CUtensorMap)."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from flashrt_ros.engine.driver import check

ROW_BYTES = 128
"""Width of a box: what one row of the 128-byte swizzle holds."""


def tensor_map(matrix: Tensor, box_rows: int, row_bytes: int = ROW_BYTES) -> Any:
    """Describe a contiguous matrix to the copy engine in boxes of `row_bytes` (32, 64 or 128) by `box_rows`,
    in the swizzle of that width."""
    from cuda.bindings import driver

    bf16 = matrix.dtype == torch.bfloat16
    kind = driver.CUtensorMapDataType
    encoded = check(
        driver.cuTensorMapEncodeTiled(
            kind.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 if bf16 else kind.CU_TENSOR_MAP_DATA_TYPE_UINT8,
            2,
            matrix.data_ptr(),
            [driver.cuuint64_t(size) for size in reversed(matrix.shape)],
            [driver.cuuint64_t(matrix.stride(0) * matrix.element_size())],
            [driver.cuuint32_t(row_bytes // matrix.element_size()), driver.cuuint32_t(box_rows)],
            [driver.cuuint32_t(1)] * 2,
            driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
            getattr(driver.CUtensorMapSwizzle, f'CU_TENSOR_MAP_SWIZZLE_{row_bytes}B'),
            driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        ),
        'tensor map',
    )
    return (ctypes.c_uint64 * 16).from_buffer_copy(ctypes.string_at(encoded.getPtr(), 128))
