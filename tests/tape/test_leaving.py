"""Whatever reads the numbers of a tensor without an operation of torch is seen."""

import numpy as np
import pytest
import torch

from lightning_polystep.tape.leaving import Leaving


@pytest.mark.parametrize(
    "read",
    [
        torch.Tensor.tolist,
        torch.Tensor.numpy,
        np.asarray,
        torch.Tensor.data_ptr,
        lambda t: t.__dlpack__(),
    ],
)
def test_numbers_that_are_read_at_once_are_seen(read):
    seen, tensor = [], torch.ones(3)
    with Leaving(seen.append, lambda tensor, value, do: do()):
        read(tensor)
    assert seen
    assert seen[0] is tensor


def test_data_that_are_assigned_are_seen_and_assigned():
    seen, tensor = [], torch.zeros(2)

    def assign(*arguments):
        seen.append(arguments[:2])
        arguments[2]()

    with Leaving(seen.append, assign):
        tensor.data = torch.ones(2)
    assert torch.equal(tensor, torch.ones(2))
    assert seen[0][0] is tensor


def test_nothing_else_is_told():
    seen = []
    with Leaving(seen.append, lambda *arguments: seen.append(arguments)):
        _ = (torch.ones(2) * 2).sum().data
    assert not seen
