"""Losses of units of two levels: against units that are moved and looked at, and bit for bit against the reference."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from lightning_polystep.kernels import two_level_losses
from tests.kernels.cases import run
from tests.kernels.two_level_cases import case

NAME = "two_level_losses"


SIZES = {
    "units": st.integers(1, 4),
    "samples": st.integers(1, 40),
    "starts": st.integers(1, 17),
    "shifts": st.integers(1, 3),
    "whole": st.booleans(),
}


@given(sizes=st.fixed_dictionaries(SIZES), seed=st.integers(0, 2**32))
def test_cpu_equals_the_reference_bit_for_bit(sizes, seed):
    torch.manual_seed(seed)
    arguments = case(**sizes)
    assert torch.equal(run("cpu", NAME, arguments), run("reference", NAME, arguments))


@given(whole=st.booleans(), seed=st.integers(0, 2**32))
def test_equals_units_that_move(whole, seed):
    torch.manual_seed(seed)
    lacking, other, starts, shifts = case(whole=whole)
    found = two_level_losses(lacking, other, starts, shifts)
    for unit in range(len(lacking)):
        at_first = -lacking[unit] >= 0
        for place, shift in enumerate(shifts[unit]):
            moved = torch.stack([(start >= lacking[unit] - shift) != at_first for start in starts[unit]])
            assert torch.equal(found[unit, place], moved.sum(0) * other[unit])


def test_threads_change_nothing():
    arguments = case(7, 100)
    torch.set_num_threads(1)
    one = run("cpu", NAME, arguments)
    torch.set_num_threads(2)
    assert torch.equal(run("cpu", NAME, arguments), one)


def test_the_operator_is_declared_correctly():
    torch.library.opcheck(two_level_losses, case())


def test_wrong_arguments_are_refused():
    lacking, other, starts, shifts = case()
    with pytest.raises(TypeError, match="two_level_losses: other must be float64"):
        two_level_losses(lacking, other.float(), starts, shifts)
    with pytest.raises(ValueError, match=r"starts must have shape \(3, 4\), got \(2, 4\)"):
        two_level_losses(lacking, other, starts[:2], shifts)
