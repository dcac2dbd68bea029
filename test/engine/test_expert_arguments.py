"""The argument records of the kernels that stay on the GPU."""

import weakref

import pytest
import torch

from flashrt_ros.engine.expert.arguments import layer_arguments


def test_a_record_keeps_what_it_points_to():
    tensor = torch.zeros(4)
    address, still_there = tensor.data_ptr(), weakref.ref(tensor)
    record = layer_arguments(queries=tensor, rows=3)
    del tensor
    assert (record.queries, record.rows, record.keys) == (address, 3, None)
    assert still_there() is not None
    del record
    assert still_there() is None


def test_an_argument_that_the_kernel_does_not_have():
    with pytest.raises(TypeError, match=r"expert_layers\.cu has no argument 'query'"):
        layer_arguments(query=torch.zeros(4))
