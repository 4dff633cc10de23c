"""Costs of the scores themselves: against brute force, torch's losses, and bit for bit against themselves."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from lightning_polystep.kernels import score_direct_costs
from tests.kernels.cases import run, values
from tests.kernels.feedforward_cases import (
    LOSSES,
    OPTIONS,
    Sizes,
    assert_cpu_is_close,
    assert_cpu_is_equal,
    assert_threads_change_nothing,
    candidate_by_candidate,
    case,
    scores_case,
    torch_losses,
)

NAME = "score_direct_costs"
ANY = {name: option for name, option in OPTIONS.items() if name != "own_tables"} | {"dense": st.booleans()}


@given(loss=st.sampled_from(LOSSES), **ANY)
def test_cpu_equals_the_reference(sizes, loss, dense, own_shifts, dtype, seed):
    torch.manual_seed(seed)
    # Even from float32: only the sum of a score and its shift is rounded to it.
    assert_cpu_is_close(NAME, sizes, loss, dtype, 1e-11, dense=dense, own_shifts=own_shifts)


@given(**ANY)
def test_cpu_equals_the_reference_bit_for_bit_where_nothing_rounds(sizes, dense, own_shifts, dtype, seed):
    torch.manual_seed(seed)
    assert_cpu_is_equal(NAME, sizes, dtype, dense=dense, own_shifts=own_shifts)


@pytest.mark.parametrize("dense", [False, True], ids=["classes", "dense"])
@pytest.mark.parametrize("loss", LOSSES)
def test_equals_the_loss_of_torch(loss, dense):
    sizes = Sizes(candidates=300)  # more than one tile
    scores, *tail = scores_case(sizes, loss, torch.float64, dense=dense)
    shifts = values(sizes.samples, sizes.candidates, dtype=torch.float64)
    expected = candidate_by_candidate(scores, shifts, lambda scores: torch_losses(scores, *tail))
    torch.testing.assert_close(score_direct_costs(shifts, scores, *tail), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e3, 1e5])
def test_small_and_large_scores_and_shifts(scale):
    shifts, scores, target, loss, smoothing = case(NAME, Sizes(), "cross_entropy")
    for arguments in ((shifts * scale, scores), (shifts, scores * scale), (shifts * scale, scores * scale)):
        found, expected = (run(name, NAME, (*arguments, target, loss, smoothing)) for name in ("cpu", "reference"))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13 * max(1.0, scale))


def test_the_number_of_threads_changes_no_bit():
    assert_threads_change_nothing(NAME, score_direct_costs, Sizes(50, 10, 300))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_operator_is_declared_correctly(loss):
    torch.library.opcheck(score_direct_costs, case(NAME, Sizes(), loss))


def test_wrong_arguments_are_refused():
    shifts, *rest = case(NAME, Sizes(), "mse")
    with pytest.raises(ValueError, match="shifts must have shape"):
        score_direct_costs(shifts[:2], *rest)
    with pytest.raises(ValueError, match="loss must be one of"):
        score_direct_costs(shifts, *rest[:2], "hinge")
