"""The softmax is the solution of one-sided entropic optimal transport, by two independent solvers."""

import math

import numpy as np
import ot
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize

from lightning_polystep.transport import TRANSPORTS, Softmax, softmax_transport

COSTS = arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(2, 7)), elements=st.floats(-5, 5))
EPSILONS = st.floats(0.05, 10)


def test_is_known_by_its_name():
    assert TRANSPORTS["softmax"] == Softmax()


@given(COSTS, st.floats(0.2, 10))
def test_equals_the_semi_relaxed_plan_of_pot(costs, epsilon):
    """Row sums fixed (an infinite penalty), column sums free (no penalty), entropy relative to the uniform law."""
    rows, columns = costs.shape
    reference = ot.unbalanced.sinkhorn_unbalanced(
        np.ones(rows), np.ones(columns) / columns, costs, epsilon, reg_m=(np.inf, 0.0), reg_type="kl"
    )
    np.testing.assert_allclose(reference.sum(1), 1.0, atol=1e-9)
    np.testing.assert_allclose(softmax_transport(torch.from_numpy(costs), epsilon).numpy(), reference, atol=1e-9)


@pytest.mark.parametrize("epsilon", [0.3, 2.0])
def test_equals_a_general_minimiser(epsilon):
    costs = np.random.default_rng(0).normal(size=6)

    def objective(weights):
        return weights @ costs + epsilon * np.sum(weights * np.log(np.maximum(weights, 1e-300) * len(weights)))

    best = minimize(
        objective,
        np.full(6, 1 / 6),
        bounds=[(1e-12, 1)] * 6,
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1},
        options={"ftol": 1e-15, "maxiter": 500},
    )
    assert best.success
    np.testing.assert_allclose(softmax_transport(torch.from_numpy(costs), epsilon).numpy(), best.x, atol=1e-5)


@given(COSTS, EPSILONS, st.floats(-100, 100))
def test_rows_sum_to_one_and_a_constant_changes_nothing(costs, epsilon, constant):
    costs = torch.from_numpy(costs)
    weights = softmax_transport(costs, epsilon)
    torch.testing.assert_close(weights.sum(-1), torch.ones(len(costs), dtype=torch.float64))
    torch.testing.assert_close(softmax_transport(costs + constant, epsilon), weights, rtol=1e-9, atol=1e-12)


@given(COSTS, EPSILONS)
def test_the_cheaper_vertex_weighs_more_by_the_exponential_of_the_difference(costs, epsilon):
    ordered = torch.from_numpy(costs).sort(-1).values
    weights = softmax_transport(ordered, epsilon)
    assert (weights.diff(dim=-1) <= 0).all()
    visible = weights[:, 1:] > 1e-200
    ratio = torch.exp(ordered.diff(dim=-1) / epsilon)
    torch.testing.assert_close((weights[:, :-1] / weights[:, 1:])[visible], ratio[visible], rtol=1e-9, atol=0)


def test_an_infinite_cost_never_wins():
    weights = softmax_transport(torch.tensor([[1.0, math.inf, 1.0, 5.0]]), 0.5)
    assert weights[0, 1] == 0
    assert weights.sum() == pytest.approx(1)
    torch.testing.assert_close(weights[0, [0, 2, 3]], softmax_transport(torch.tensor([1.0, 1.0, 5.0]), 0.5))


def test_a_row_without_a_finite_cost_is_uniform():
    weights = softmax_transport(torch.tensor([[math.inf] * 4, [0.0, math.inf, math.inf, math.inf]]), 1.0)
    assert weights.tolist() == [[0.25] * 4, [1.0, 0.0, 0.0, 0.0]]


def test_equal_costs_share():
    assert softmax_transport(torch.full((2, 3, 5), 7.0), 1e-3).unique().tolist() == pytest.approx([0.2])


def test_the_limits_of_the_temperature():
    costs = torch.tensor([0.3, 0.1, 0.2])
    assert softmax_transport(costs, 1e-4).tolist() == [0.0, 1.0, 0.0]
    torch.testing.assert_close(softmax_transport(costs, 1e6), torch.full((3,), 1 / 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keeps_shape_and_dtype_and_its_argument(dtype):
    costs = torch.randn(2, 3, 4, dtype=dtype)
    before = costs.clone()
    weights = softmax_transport(costs, 1.0)
    assert weights.shape == costs.shape
    assert weights.dtype == dtype
    assert torch.equal(costs, before)


def test_the_object_weighs_as_the_function_does():
    costs = torch.randn(3, 2, 4, dtype=torch.float64)
    costs[0, 0, 0] = math.inf
    weights, error, converged = Softmax().weigh(costs, 0.7)
    assert torch.equal(weights, softmax_transport(costs, 0.7))
    assert float(error) == 0
    assert converged
