"""Costs of ReLU and linear units: against brute force, whole networks, and bit for bit against themselves."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from lightning_polystep.kernels import relu_direct_costs
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
    torch_losses,
)

NAME = "relu_direct_costs"


@given(loss=st.sampled_from(LOSSES), dense=st.booleans(), **OPTIONS)
def test_cpu_equals_the_reference(sizes, loss, dense, own_shifts, own_tables, dtype, seed):
    torch.manual_seed(seed)
    # Even from float32: both round what the layers send in the same order.
    options = {"dense": dense, "own_shifts": own_shifts, "own_tables": own_tables}
    assert_cpu_is_close(NAME, sizes, loss, dtype, 1e-11, **options)


@given(dense=st.booleans(), **OPTIONS)
def test_cpu_equals_the_reference_bit_for_bit_where_nothing_rounds(sizes, dense, own_shifts, own_tables, dtype, seed):
    torch.manual_seed(seed)
    sizes = sizes._replace(behind=sizes.behind[:2])  # the squares of three layers need more bits than a float64 has
    assert_cpu_is_equal(NAME, sizes, dtype, dense=dense, own_shifts=own_shifts, own_tables=own_tables)


@pytest.mark.parametrize("relu", [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("behind", [(), (5,), (4, 6)], ids=["last", "1 behind", "2 behind"])
@pytest.mark.parametrize("loss", LOSSES)
def test_equals_networks_that_run_candidate_by_candidate(loss, behind, relu):
    sizes, dtype = Sizes(behind=behind, relu=relu), torch.float64
    layers, nothing = layers_behind(sizes, dtype), torch.empty(1, 0, dtype=dtype)
    _, *tail = scores_case(sizes, loss, dtype)
    forward = network((nothing, nothing), layers)
    current, shifts = (values(sizes.samples, size, dtype=dtype) for size in (sizes.units, sizes.candidates))
    expected = candidate_by_candidate(current, shifts, lambda a: torch_losses(forward(a)[-1], *tail))
    _, *hidden, scores = forward(current)
    found = relu_direct_costs(current, shifts, hidden, *layers[1:], scores, *tail)
    assert found.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@given(loss=st.sampled_from(LOSSES), **OPTIONS)
def test_linear_units_change_by_their_shift(sizes, loss, own_shifts, own_tables, dtype, seed):
    """Whatever their pre-activation, as ReLUs do that are far from silent."""
    torch.manual_seed(seed)
    current, *rest = case(NAME, sizes, loss, dtype, dyadic=True, own_shifts=own_shifts, own_tables=own_tables)
    linear = [run(kind, NAME, (current, *rest, -math.inf)) for kind in ("cpu", "reference")]
    torch.testing.assert_close(*linear, rtol=1e-11, atol=1e-11)
    assert torch.equal(linear[0], run("cpu", NAME, (current + 1024, *rest)))


def test_silent_units_cost_nothing():
    current, *rest = case(NAME, Sizes(behind=(4,)), "cross_entropy")
    costs = run("cpu", NAME, (torch.full_like(current, -100.0), *rest))
    assert torch.equal(costs, torch.zeros(3, 6, dtype=torch.float64))


@pytest.mark.parametrize(("units", "candidates"), [(0, 6), (3, 0)])
def test_nothing_to_score(units, candidates):
    arguments = case(NAME, Sizes(units=units, candidates=candidates, behind=(4,)), "mse")
    assert run("cpu", NAME, arguments).shape == (units, candidates)


def test_the_number_of_threads_changes_no_bit():
    assert_threads_change_nothing(NAME, relu_direct_costs, Sizes(20, 10, 40, 17, (20, 12), relu=(True, True)))


@pytest.mark.parametrize("behind", [(), (4, 2)])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_operator_is_declared_correctly(loss, behind):
    torch.library.opcheck(relu_direct_costs, case(NAME, Sizes(behind=behind), loss, own_shifts=bool(behind)))


def test_wrong_arguments_are_refused():
    current, shifts, *rest = case(NAME, Sizes(behind=(4,)), "mse")
    with pytest.raises(TypeError, match="shifts must be"):
        relu_direct_costs(current, shifts.float(), *rest)
    with pytest.raises(ValueError, match="preactivation must have shape"):
        relu_direct_costs(current[:2], shifts, *rest)
