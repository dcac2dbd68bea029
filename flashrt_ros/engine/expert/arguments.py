"""The argument record of kernels/expert_layers.cu, field by field as in kernels/expert_arguments.cuh."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from enum import IntFlag
from typing import Any, TypeVar

from torch import Tensor


class Pointers(ctypes.Structure):
    """A record that keeps the tensors whose addresses are in it."""

    kept: tuple[Tensor, ...] = ()


Record = TypeVar('Record', bound=Pointers)

_POINTERS = (
    *('qkv_weights', 'qkv_scale', 'output_weights', 'output_scale', 'gate_up_weights', 'gate_up_scale'),
    *('down_weights', 'down_scale', 'mixer_weights', 'mixer_scale'),
    *('qkv_bias', 'gate_up_bias', 'gate', 'norm_scale', 'scales', 'rotary', 'length', 'prefix_k', 'prefix_v'),
    *('normed_qkv', 'statistics_qkv', 'normed_gate_up', 'statistics_gate_up', 'queries', 'keys', 'values'),
    *('sums', 'softmax', 'attended', 'output_parts', 'hidden', 'down_parts', 'mixer_parts'),
    *('embedded', 'base', 'stamps'),
    *('kept_x', 'kept_queries', 'kept_keys', 'kept_values', 'kept_gate_up', 'kept_attended', 'kept_log_sums'),
    *('kept_squares', 'frozen'),
)
_NUMBERS = (
    *('capacity', 'layers', 'rows', 'state_token', 'step', 'phases', 'normed_layers', 'shared_bytes'),
    'clean',
)
_END_POINTERS = (
    *('out_weight', 'velocity_shift', 'in_weight', 'in_bias', 'target', 'pull', 'gammas', 'actions'),
    *('velocities', 'squares'),
)
_END_NUMBERS = ('steps', 'bias_stride')


class Phase(IntFlag):
    """Parts of a layer; pi0's second embedding layer in front of the first one; and, where steps are launched
    one by one, the embedding of the actions in front of that."""

    EMBED = 1
    QKV = 2
    ATTENTION = 4
    OUTPUT = 8
    GATE_UP = 16
    DOWN = 32
    ACTIONS_IN = 64


LAYER = Phase.QKV | Phase.ATTENTION | Phase.OUTPUT | Phase.GATE_UP | Phase.DOWN


class LayerArguments(Pointers):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int) for name in _NUMBERS),
        *((name, ctypes.c_void_p) for name in _END_POINTERS),
        *((name, ctypes.c_int) for name in _END_NUMBERS),
    )


def layer_arguments(**values: Tensor | int | None) -> LayerArguments:
    """The record with tensors as their device pointers; what is not named is null or zero."""
    return fill(LayerArguments(), 'expert_layers.cu', values)


def fill(record: Record, kernel: str, values: Mapping[str, Tensor | int | None]) -> Record:
    """The record with these fields, tensors as their device pointers. kernel: whose it is."""
    names = {field[0] for field in record._fields_}
    for name, value in values.items():
        known: Any = value.data_ptr() if isinstance(value, Tensor) else value
        if name not in names:
            raise TypeError(f'{kernel} has no argument {name!r}')
        setattr(record, name, known)
    record.kept = tuple(value for value in values.values() if isinstance(value, Tensor))
    return record
