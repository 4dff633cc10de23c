"""Costs interpolated on a grid: against brute force on the same grid, and against the costs that they approximate."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from lightning_polystep.kernels import relu_direct_costs, relu_grid_costs
from tests.kernels.cases import run
from tests.kernels.feedforward_cases import LOSSES, OPTIONS, Sizes, assert_threads_change_nothing, case, grid_limits

NAME = "relu_grid_costs"
TOLERANCES = {torch.float32: {"rtol": 1e-4, "atol": 1e-4}, torch.float64: {"rtol": 1e-9, "atol": 1e-9}}


@given(
    loss=st.sampled_from(LOSSES),
    grid=st.tuples(st.sampled_from([0.0, -math.inf]), st.sampled_from([3, 4, 9])),
    limited=st.booleans(),
    **OPTIONS,
)
def test_cpu_equals_the_reference(sizes, loss, grid, limited, own_shifts, own_tables, dtype, seed):
    torch.manual_seed(seed)
    arguments = case(NAME, sizes, loss, dtype, dense=limited, own_shifts=own_shifts, own_tables=own_tables)
    limits = grid_limits(sizes, dtype) if limited else ()
    found, expected = (run(kind, NAME, (*arguments, *grid, *limits)) for kind in ("cpu", "reference"))
    torch.testing.assert_close(found, expected, **TOLERANCES[dtype])


@pytest.mark.parametrize("floor", [0.0, -math.inf])
@pytest.mark.parametrize("behind", [(), (5,), (4, 6)], ids=["last", "1 behind", "2 behind"])
@pytest.mark.parametrize("loss", LOSSES)
def test_more_nodes_come_closer(loss, behind, floor):
    """With ReLUs behind there are bends, but no jumps: the error falls at least like the distance of two nodes."""
    arguments = case(NAME, Sizes(20, behind=behind, relu=(True, True)), loss)
    exact = relu_direct_costs(*arguments, floor)
    errors = [float((relu_grid_costs(*arguments, floor, nodes) - exact).abs().max()) for nodes in (5, 50, 500)]
    assert errors[0] < 0.5 * exact.abs().max()
    assert errors[1] < errors[0] / 5
    assert errors[2] < errors[1] / 5


@pytest.mark.parametrize("nodes", [3, 6, 9])
def test_candidates_on_the_nodes_cost_what_they_cost(nodes):
    """The shifts are a grid already, and 0 is one of them."""
    current, shifts, *rest = case(NAME, Sizes(behind=(4,), relu=(True,), candidates=nodes - 1), "cross_entropy")
    shifts[:] = torch.arange(nodes - 1) - 1.0
    exact = relu_direct_costs(current, shifts, *rest, -math.inf)
    torch.testing.assert_close(relu_grid_costs(current, shifts, *rest, -math.inf, nodes), exact, rtol=1e-9, atol=1e-9)


@given(seed=st.integers(0, 2**32), own=st.booleans())
def test_gain_multiplies_the_shifts(seed, own):
    torch.manual_seed(seed)
    current, shifts, *rest = case(NAME, Sizes(behind=(4,)), "cross_entropy", own_shifts=True)
    gain = torch.randn(current.shape if own else (1, 1), dtype=current.dtype)
    scaled = relu_grid_costs(current, gain.expand_as(current).T[..., None] * shifts, *rest)
    torch.testing.assert_close(relu_grid_costs(current, shifts, *rest, gain=gain), scaled, rtol=1e-9, atol=1e-9)


def test_candidates_beyond_the_limits_cost_nothing_and_others_the_offset():
    current, shifts, *rest = case(NAME, Sizes(samples=1, units=1, candidates=5), "cross_entropy")
    shifts[:] = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    lower, upper, offset = (shifts.new_full(shape, x) for shape, x in (((1, 1), -1.0), ((1, 1), 1.5), ((1,), 8.0)))
    limits = {"lower": lower, "upper": upper, "offset": offset}
    costs = relu_grid_costs(current, shifts, *rest, -math.inf, 400, **limits)[0]
    exact = relu_direct_costs(current, shifts, *rest, -math.inf)[0]
    assert costs[[0, 4]].tolist() == [0.0, 0.0]
    assert costs[2] == 8.0
    torch.testing.assert_close(costs[[1, 3]], exact[[1, 3]] + 8, rtol=0, atol=1e-4)


def test_a_grid_far_from_no_change():
    """Only large changes count, of which two are as good as equal."""
    current, shifts, *rest = case(NAME, Sizes(samples=1, units=1, candidates=3), "mse")
    shifts[:] = torch.tensor([0.0, 3.0, 3.0 + 1e-12], dtype=torch.float64)
    limits = {"lower": shifts.new_full((1, 1), 2.0), "upper": shifts.new_full((1, 1), 3.0)}
    costs = relu_grid_costs(current, shifts, *rest, -math.inf, 200, **limits)[0]
    exact = relu_direct_costs(current, shifts, *rest, -math.inf)[0]
    assert costs[[0, 2]].tolist() == [0.0, 0.0]
    torch.testing.assert_close(costs[1], exact[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("implementation", ["cpu", "reference"])
@pytest.mark.parametrize("nodes", [3, 9])
def test_changes_too_small_to_be_told_apart_cost_nothing(nodes, implementation):
    """Ten and fewer of the smallest numbers there are, whose ninth part rounds to one."""
    current, shifts, *rest = case(NAME, Sizes(behind=(4,), candidates=21), "cross_entropy", torch.float32)
    shifts[:] = (torch.arange(21) - 10) * 2.0**-149
    costs = run(implementation, NAME, (torch.zeros_like(current), shifts, *rest, -math.inf, nodes))
    assert costs.abs().max() < 1e-30


def test_what_is_not_finite_has_no_cost():
    current, shifts, *rest = case(NAME, Sizes(units=2, candidates=3), "cross_entropy")
    gain = torch.ones_like(current)
    gain[0, 0] = math.inf
    costs = relu_grid_costs(current, shifts, *rest, -math.inf, gain=gain)
    assert costs[0].isnan().all()
    assert costs[1].isfinite().all()


@given(loss=st.sampled_from(LOSSES), **OPTIONS)
def test_no_change_costs_nothing(sizes, loss, own_shifts, own_tables, dtype, seed):
    torch.manual_seed(seed)
    current, shifts, *rest = case(NAME, sizes, loss, dtype, own_shifts=own_shifts, own_tables=own_tables)
    shifts[..., 0] = 0.0
    assert torch.equal(relu_grid_costs(current, shifts, *rest)[:, 0], torch.zeros(sizes.units, dtype=torch.float64))
    silent = relu_grid_costs(torch.full_like(current, -100.0), shifts, *rest)
    assert torch.equal(silent, torch.zeros_like(silent))


@pytest.mark.parametrize("implementation", ["cpu", "reference"])
@pytest.mark.parametrize(("units", "candidates"), [(0, 6), (3, 0)])
def test_nothing_to_score(units, candidates, implementation):
    arguments = case(NAME, Sizes(units=units, candidates=candidates, behind=(4,)), "mse")
    assert run(implementation, NAME, arguments).shape == (units, candidates)


def test_the_number_of_threads_changes_no_bit():
    assert_threads_change_nothing(NAME, relu_grid_costs, Sizes(20, 10, 40, 17, (20, 12), relu=(True, True)))


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("behind", [(), (4, 2)])
def test_the_operator_is_declared_correctly(behind, limited):
    sizes = Sizes(behind=behind)
    limits = (0.0, 5, *grid_limits(sizes, torch.float64)) if limited else ()
    torch.library.opcheck(relu_grid_costs, (*case(NAME, sizes, "mse", own_shifts=bool(behind)), *limits))


def test_wrong_arguments_are_refused():
    arguments = case(NAME, Sizes(behind=(4,)), "mse")
    with pytest.raises(ValueError, match="nodes must be at least 3, got 2"):
        relu_grid_costs(*arguments, nodes=2)
    with pytest.raises(ValueError, match=r"gain must have shape \(5, 3\), got \(3, 5\)"):
        relu_grid_costs(*arguments, gain=torch.ones(3, 5, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"offset must be torch\.float64"):
        relu_grid_costs(*arguments, offset=torch.zeros(5))
    with pytest.raises(TypeError, match="shifts must be"):
        relu_grid_costs(arguments[0], arguments[1].float(), *arguments[2:])
