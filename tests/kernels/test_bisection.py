"""Bisection of the floating-point numbers."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from lightning_polystep.kernels.bisection import TooManyChangesError, bisect, check_dtype


@given(
    st.lists(st.floats(-(2.0**59), 2.0**59, width=32), min_size=1, max_size=4), st.sampled_from(["float32", "float64"])
)
def test_finds_every_change_of_every_function(thresholds, dtype):
    thresholds = torch.tensor(thresholds, dtype=getattr(torch, dtype))

    def count(index, x):
        return torch.stack([(x >= thresholds[index]).int(), (x >= -thresholds[index]).int()], 1)

    lowest, highest = torch.full_like(thresholds, -2e18), torch.full_like(thresholds, 2e18)
    first, index, number, values = bisect(count, lowest, highest)
    assert torch.equal(first, torch.zeros_like(first))
    assert torch.equal(number, number.sort().values)
    for row, threshold in enumerate(thresholds.tolist()):
        assert number[index == row].tolist() == sorted({threshold, -threshold})
    assert torch.equal(values, count(index, number))


def test_stops_early_where_there_is_no_end():
    ends = torch.tensor([0.0]), torch.tensor([1.0])
    with pytest.raises(TooManyChangesError):
        bisect(lambda _, x: x[:, None], *ends, most=1000)
    assert len(bisect(lambda _, x: (x >= 0.5)[:, None], *ends, most=1)[1]) == 1


def test_other_dtypes_are_refused():
    check_dtype(torch.float64, "op")
    with pytest.raises(TypeError, match=r"op: dtype must be float32 or float64, got torch\.bfloat16"):
        check_dtype(torch.bfloat16, "op")
