"""The relaxed transport equals POT, and leads from the softmax to Sinkhorn."""

import math

import numpy as np
import ot
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize

from lightning_polystep.transport import KLRelaxed, Sinkhorn, softmax_transport

F64 = torch.float64
COSTS = arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(2, 7)), elements=st.floats(-2, 2))
EXACT = {"tolerance": 1e-10, "iterations": 50_000}


def shares_of(draws):
    return tuple((np.asarray(draws) / np.sum(draws)).tolist())


@given(costs=COSTS, epsilon=st.floats(0.5, 10), tau=st.floats(0.01, 20), data=st.data())
def test_equals_pot(costs, epsilon, tau, data):
    """Row sums fixed by an infinite penalty, column sums by a finite one; entropy relative to the uniform law."""
    rows, columns = costs.shape
    shares = data.draw(
        st.none() | st.lists(st.floats(0.1, 1), min_size=columns, max_size=columns).map(shares_of), "shares"
    )
    weights, _, converged = KLRelaxed(tau=tau, columns=shares, **EXACT).weigh(torch.from_numpy(costs)[:, None], epsilon)
    b = np.full(columns, 1 / columns) if shares is None else np.array(shares)
    reference = ot.unbalanced.sinkhorn_unbalanced(
        np.ones(rows),
        rows * b,
        costs,
        epsilon,
        reg_m=(np.inf, tau),
        reg_type="kl",
        c=np.ones_like(costs) / columns,
        numItermax=50_000,
        stopThr=1e-13,
    )
    assert converged
    np.testing.assert_allclose(weights[:, 0].numpy(), reference, atol=1e-6)


def test_equals_a_general_minimiser():
    costs, epsilon, tau, b = np.random.default_rng(0).normal(size=(3, 3)), 0.7, 1.3, np.array([0.2, 0.3, 0.5])

    def entropy(p, q):
        return np.sum(p * np.log(np.maximum(p, 1e-300) / q) - p + q)

    def objective(flat):
        plan = flat.reshape(3, 3)
        return (plan * costs).sum() + epsilon * entropy(plan, 1 / 3) + tau * entropy(plan.sum(0), 3 * b)

    rows = {"type": "eq", "fun": lambda flat: flat.reshape(3, 3).sum(1) - 1}
    best = minimize(
        objective,
        np.full(9, 1 / 3),
        bounds=[(1e-12, 1)] * 9,
        constraints=rows,
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    assert best.success
    weights = KLRelaxed(tau=tau, columns=tuple(b), **EXACT).weigh(torch.from_numpy(costs)[:, None], epsilon).weights
    np.testing.assert_allclose(weights.flatten().numpy(), best.x, atol=1e-5)


@given(costs=COSTS, epsilon=st.floats(0.5, 10))
def test_leads_from_the_softmax_to_sinkhorn(costs, epsilon):
    costs = torch.from_numpy(costs)[:, None]
    softmax, sinkhorn = softmax_transport(costs, epsilon), Sinkhorn(**EXACT).weigh(costs, epsilon).weights
    assert torch.equal(KLRelaxed(tau=0.0).weigh(costs, epsilon).weights, softmax)
    assert torch.equal(KLRelaxed(tau=math.inf, **EXACT).weigh(costs, epsilon).weights, sinkhorn)
    near = [KLRelaxed(tau=tau, **EXACT).weigh(costs, epsilon).weights for tau in (1e-6, 1e6)]
    torch.testing.assert_close(near[0], softmax, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(near[1], sinkhorn, rtol=1e-4, atol=1e-5)


def test_the_dearer_the_shares_the_nearer_they_are():
    costs = torch.randn(8, 2, 6, dtype=F64) + torch.randn(1, 2, 6, dtype=F64)
    errors = [float(KLRelaxed(tau=tau).weigh(costs, 0.5).marginal_error) for tau in (0.0, 0.1, 1.0, 10.0, 1000.0)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.3
    assert errors[-1] < 0.01


@pytest.mark.parametrize("tau", [0.0, 0.5, 20.0])
def test_a_single_row_is_a_softmax_of_a_higher_temperature(tau):
    costs, shares, epsilon = torch.randn(1, 1, 4, dtype=F64), (0.1, 0.2, 0.3, 0.4), 0.8
    weights = KLRelaxed(tau=tau, columns=shares, **EXACT).weigh(costs, epsilon).weights
    prior = torch.tensor(shares, dtype=F64).log() * tau / (tau + epsilon)
    torch.testing.assert_close(weights, torch.softmax(prior - costs / (epsilon + tau), dim=-1), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("tau", [-1.0, math.nan])
def test_a_price_below_zero_is_refused(tau):
    with pytest.raises(ValueError, match=rf"KLRelaxed\(tau={tau}\): the price must be at least 0"):
        KLRelaxed(tau=tau)
