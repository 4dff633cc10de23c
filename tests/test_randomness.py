"""Every draw is a function of (seed, step, micro-batch, role), and the global generators never notice."""

import random
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_polystep.randomness import derive_seed, generator, noise_frame, preserved_generators

SEEDS = st.integers(0, 2**63 - 1)


def draws():
    """One number from each of the global generators."""
    return torch.rand(1).item(), np.random.rand(), random.random()


def states():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


@given(SEEDS, st.integers(0, 10**6), st.integers(0, 100), st.text(max_size=30))
def test_a_derived_seed_is_a_63_bit_function_of_its_arguments(seed, step, micro_batch, role):
    value = derive_seed(seed, step, micro_batch, role)
    assert 0 <= value < 2**63
    assert value == derive_seed(seed, step, micro_batch, role)


def test_no_two_of_many_draws_share_a_seed():
    roles = ["noise", "basis/fc1", "basis/fc2", "basis/fc1/weight", ""]
    keys = list(product([0, 1, 12, 2**63], range(12), range(12), roles))
    assert len({derive_seed(*key) for key in keys}) == len(keys)


def test_neighbouring_numbers_do_not_run_together():
    """1/23 and 12/3 would be one string without a separator."""
    assert derive_seed(1, 23, 0, "a") != derive_seed(12, 3, 0, "a")
    assert derive_seed(0, 1, 23, "a") != derive_seed(0, 12, 3, "a")


def test_the_seeds_are_those_of_the_first_release():
    """A checkpoint continues on other numbers, silently, if this changes."""
    assert derive_seed(0, 0, 0, "noise") == 792011621244050106
    assert derive_seed(42, 7, 3, "basis/network.fc1") == 1039167681612008565


def test_a_generator_depends_on_its_key_alone():
    first = torch.randn(5, generator=generator(3, 4, "basis/a", 1))
    torch.randn(100)
    generator(3, 4, "basis/b", 1)
    assert torch.equal(torch.randn(5, generator=generator(3, 4, "basis/a", 1)), first)
    for other in [(4, 4, "basis/a", 1), (3, 5, "basis/a", 1), (3, 4, "basis/b", 1), (3, 4, "basis/a", 0)]:
        assert not torch.equal(torch.randn(5, generator=generator(*other)), first)


def test_making_a_generator_leaves_the_global_ones_alone():
    before = states()
    torch.randn(5, generator=generator(0, 0, "x"))
    assert states() == before


def test_a_noise_frame_repeats_all_three_generators_and_puts_them_back():
    before = states()
    with noise_frame(1, 2, 3):
        first = draws()
    with noise_frame(1, 2, 3):
        again = draws()
    assert first == again
    assert states() == before
    for key in [(2, 2, 3), (1, 3, 3), (1, 2, 4)]:
        with noise_frame(*key):
            assert all(a != b for a, b in zip(draws(), first, strict=True))


def test_a_noise_frame_makes_equal_dropout_masks():
    dropout, ones = nn.Dropout(0.5), torch.ones(64)
    with noise_frame(0, 0, 0):
        first = dropout(ones)
    torch.rand(17)
    with noise_frame(0, 0, 0):
        assert torch.equal(dropout(ones), first)
    with noise_frame(0, 1, 0):
        assert not torch.equal(dropout(ones), first)
    assert 0 < first.count_nonzero() < 64


def test_generators_are_put_back_after_an_error():
    before = states()
    with pytest.raises(ZeroDivisionError), preserved_generators():
        draws()[0] / 0
    assert states() == before


def test_frames_nest():
    with noise_frame(0, 0, 0):
        torch.rand(3)
        expected = torch.rand(1)
    with noise_frame(0, 0, 0):
        torch.rand(3)
        with noise_frame(9, 9, 9):
            torch.rand(5)
        assert torch.equal(torch.rand(1), expected)


def test_a_frame_takes_the_whole_range_of_seeds():
    with noise_frame(torch.iinfo(torch.int64).max, 10**9, 10**6):
        draws()
