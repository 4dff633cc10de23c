"""Loops run once they pay, and are given up where they do not do what operations do."""

import pytest
import torch

from lightning_polystep.tape.fuse import Loops


def test_no_loops_never_pay():
    assert not Loops.of("nothing", [object()]).pay(10**9, 10**9)


def test_the_price_is_that_of_statements_against_calls_and_elements():
    loops = Loops("loops", 1.0)
    assert not loops.pay(24, 1000)
    assert loops.pay(26, 1000)
    assert not loops.pay(1, 0, 0.9e9)
    assert loops.pay(1, 0, 1.1e9)


def test_the_first_numbers_alone_are_compared(recwarn):
    loops, found = Loops("loops", 1.0), {3: torch.ones(4)}
    assert loops.checked(found, lambda: {3: torch.ones(4)}) is found
    assert loops.checked(found, lambda: pytest.fail("compared again")) is found
    assert loops
    assert not recwarn


def test_a_spike_in_many_may_flip_by_rounding(recwarn):
    flipped = torch.zeros(2000)
    flipped[7] = 1
    assert float(Loops("loops", 1.0).checked({0: flipped}, lambda: {0: torch.zeros(2000)})[0].sum()) == 1
    assert not recwarn


def test_loops_that_differ_are_given_up_and_said():
    loops = Loops("what layer 3 changes", 1.0)
    with pytest.warns(UserWarning, match=r"what layer 3 changes: compiled loops differ from torch by 2, .* report"):
        right = loops.checked({0: torch.full((3,), 3.0)}, lambda: {0: torch.ones(3)})
    assert torch.equal(right[0], torch.ones(3))
    assert not loops
    assert not loops.pay(10**9, 10**9)
