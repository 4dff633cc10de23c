"""Costs of step functions by outcomes: against brute force, whole networks, and bit for bit against themselves."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from lightning_polystep.kernels import step_outcome_costs
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
    layers_behind,
    network,
    scores_case,
    table,
    torch_losses,
)

NAME = "step_outcome_costs"


@given(loss=st.sampled_from(LOSSES), dense=st.booleans(), **OPTIONS)
def test_cpu_equals_the_reference(sizes, loss, dense, own_shifts, own_tables, dtype, seed):
    torch.manual_seed(seed)
    # A level that differed would change a cost by 1e-3 or more.
    tolerance = 1e-5 * sizes.samples**0.5 if dtype == torch.float32 else 1e-11
    options = {"dense": dense, "own_shifts": own_shifts, "own_tables": own_tables}
    assert_cpu_is_close(NAME, sizes, loss, dtype, tolerance, **options)


@given(dense=st.booleans(), **OPTIONS)
def test_cpu_equals_the_reference_bit_for_bit_where_nothing_rounds(sizes, dense, own_shifts, own_tables, dtype, seed):
    torch.manual_seed(seed)
    # Each layer that is linear in its input adds three bits: float32 holds the squares of few of them, float64 of all.
    dtype = dtype if len(sizes.behind) == 0 else torch.float64
    assert_cpu_is_equal(NAME, sizes, dtype, dense=dense, own_shifts=own_shifts, own_tables=own_tables)


@pytest.mark.parametrize(("steps", "uniform"), [(4, False), (40, False), (40, True)])
@pytest.mark.parametrize("relu", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("behind", [(), (5,), (4, 6)], ids=["last", "1 behind", "2 behind"])
@pytest.mark.parametrize("loss", LOSSES)
def test_equals_networks_that_run_candidate_by_candidate(loss, behind, relu, steps, uniform):
    sizes, dtype = Sizes(behind=behind, relu=relu, steps=steps, uniform=uniform), torch.float64
    first, layers = table(1, sizes, dtype), layers_behind(sizes, dtype)
    _, *tail = scores_case(sizes, loss, dtype)
    forward = network(first, layers)
    current, shifts = (
        values(sizes.samples, sizes.units, dtype=dtype),
        values(sizes.samples, sizes.candidates, dtype=dtype),
    )
    expected = candidate_by_candidate(current, shifts, lambda a: torch_losses(forward(a)[-1], *tail))
    _, *hidden, scores = forward(current)
    found = step_outcome_costs(current, shifts, *first, hidden, *layers[1:], scores, *tail)
    assert found.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("start", [-100.0, 100.0])
def test_units_that_cannot_change_cost_nothing(start):
    _, *rest = case(NAME, Sizes(behind=(4,)), "cross_entropy")
    arguments = (torch.full((5, 3), start, dtype=torch.float64), *rest)
    assert torch.equal(run("cpu", NAME, arguments), torch.zeros(3, 6, dtype=torch.float64))


def test_zero_weights_cost_nothing():
    *front, weights, scores, target, loss, smoothing = case(NAME, Sizes(behind=(4, 3, 2)), "cross_entropy")
    for dead in range(4):
        some = [weight * (layer != dead) for layer, weight in enumerate(weights)]
        costs = run("cpu", NAME, (*front, some, scores, target, loss, smoothing))
        assert torch.equal(costs, torch.zeros(3, 6, dtype=torch.float64))


def test_candidates_that_all_skip_outcomes_next_to_the_incumbent():
    for offset in (-2.0, 2.0):
        current, shifts, *rest = case(NAME, Sizes(behind=(4,)), "cross_entropy")
        arguments = (current - offset / 2, shifts * 0.1 + offset, *rest)
        torch.testing.assert_close(run("cpu", NAME, arguments), run("reference", NAME, arguments))


def test_boundaries_at_infinity_are_never_reached():
    current, shifts, boundaries, levels, hidden, edges, values_, *rest = case(NAME, Sizes(behind=(4,)), "mse")
    expected = step_outcome_costs(current, shifts, boundaries, levels, hidden, edges, values_, *rest)
    far, more = torch.full((1, 2), torch.inf).double(), torch.ones(1, 2).double()
    boundaries, levels = torch.cat([boundaries, far], 1), torch.cat([levels, more], 1)
    edges, values_ = [torch.cat([edges[0], far], 1)], [torch.cat([values_[0], more], 1)]
    found = step_outcome_costs(current, shifts, boundaries, levels, hidden, edges, values_, *rest)
    assert torch.equal(found, expected)


def test_large_scores_do_not_overflow():
    *front, scores, target, loss, _ = case(NAME, Sizes(classes=19), "cross_entropy")
    arguments = (*front, scores * 1e4, target, loss, 0.0)
    torch.testing.assert_close(run("cpu", NAME, arguments), run("reference", NAME, arguments))


@pytest.mark.parametrize(("units", "candidates"), [(0, 6), (3, 0)])
def test_nothing_to_score(units, candidates):
    arguments = case(NAME, Sizes(units=units, candidates=candidates, behind=(4,)), "mse")
    assert run("cpu", NAME, arguments).shape == (units, candidates)


@pytest.mark.parametrize("steps", [4, 40])
def test_the_number_of_threads_changes_no_bit(steps):
    sizes = Sizes(100, 10, 40, 37, (20, 12), steps, relu=(False, False), uniform=steps > 4)
    assert_threads_change_nothing(NAME, step_outcome_costs, sizes)


@pytest.mark.parametrize("behind", [(), (4, 2)])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_operator_is_declared_correctly(loss, behind):
    torch.library.opcheck(step_outcome_costs, case(NAME, Sizes(behind=behind), loss, own_shifts=bool(behind)))


def test_wrong_arguments_are_refused():
    current, shifts, boundaries, levels, *rest = case(NAME, Sizes(behind=(4,)), "mse")
    with pytest.raises(TypeError, match="shifts must be"):
        step_outcome_costs(current, shifts.float(), boundaries, levels, *rest)
    with pytest.raises(ValueError, match="boundaries must ascend"):
        step_outcome_costs(current, shifts, boundaries.flip(1), levels, *rest)
    with pytest.raises(ValueError, match="1 or all 3 units"):
        step_outcome_costs(current, shifts, boundaries.repeat(2, 1), levels, *rest)
    with pytest.raises(ValueError, match="levels must have shape"):
        step_outcome_costs(current, shifts, boundaries, levels[:, 1:], *rest)
