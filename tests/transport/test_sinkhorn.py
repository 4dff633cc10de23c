"""Sinkhorn equals POT, gives rows and columns what they were promised, and cancels what all units have in common."""

import numpy as np
import ot
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lightning_polystep.polytopes import POLYTOPES
from lightning_polystep.transport import Sinkhorn, softmax_transport

F64 = torch.float64
COSTS = arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(2, 7)), elements=st.floats(-2, 2))
EXACT = Sinkhorn(tolerance=1e-10, iterations=50_000)


def shares_of(draws):
    """Shares above 0 from numbers above 0."""
    return tuple((np.asarray(draws) / np.sum(draws)).tolist())


@given(costs=COSTS, epsilon=st.floats(0.5, 10), data=st.data())
def test_equals_pot(costs, epsilon, data):
    rows, columns = costs.shape
    shares = data.draw(
        st.none() | st.lists(st.floats(0.1, 1), min_size=columns, max_size=columns).map(shares_of), "shares"
    )
    asked = Sinkhorn(columns=shares, tolerance=1e-10, iterations=50_000)
    weights, error, converged = asked.weigh(torch.from_numpy(costs)[:, None], epsilon)
    b = np.full(columns, 1 / columns) if shares is None else np.array(shares)
    reference = ot.sinkhorn(
        np.full(rows, 1 / rows), b, costs, epsilon, method="sinkhorn_log", numItermax=50_000, stopThr=1e-12, warn=False
    )
    assert converged
    np.testing.assert_allclose(weights[:, 0].numpy() / rows, reference, atol=1e-6)
    np.testing.assert_allclose(weights[:, 0].mean(0).numpy(), b, atol=1e-8)
    assert float(error) < 1e-8


@pytest.mark.parametrize("epsilon", [0.05, 0.2, 1.0])
def test_equals_pot_on_the_size_of_a_layer(epsilon):
    costs = np.random.default_rng(0).normal(size=(20, 16))
    weights, _, converged = EXACT.weigh(torch.from_numpy(costs)[:, None], epsilon)
    assert converged
    reference = ot.sinkhorn(
        np.full(20, 1 / 20),
        np.full(16, 1 / 16),
        costs,
        epsilon,
        method="sinkhorn_log",
        numItermax=50_000,
        stopThr=1e-12,
    )
    np.testing.assert_allclose(weights[:, 0].numpy() / 20, reference, atol=1e-6)


def test_what_a_column_or_a_row_costs_in_all_does_not_matter():
    """They get the same weight whatever it costs."""
    costs = torch.randn(5, 2, 4, dtype=F64)
    dearer = costs + torch.randn(5, 2, 1, dtype=F64) + torch.randn(1, 2, 4, dtype=F64)
    torch.testing.assert_close(EXACT.weigh(dearer, 1.0).weights, EXACT.weigh(costs, 1.0).weights, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("polytope", ["orthoplex", "simplex", "cube"])
def test_the_moves_of_all_units_sum_to_zero(polytope):
    vertices = POLYTOPES[polytope].vertices(3)
    costs = torch.randn(7, 1, len(vertices), dtype=F64) + 2 * vertices[:, 0]  # a direction that is bad for all
    balanced = EXACT.weigh(costs, 1.0).weights[:, 0] @ vertices
    assert balanced.sum(0).abs().max() < 1e-7
    assert balanced.norm(dim=1).min() > 1e-3
    free = softmax_transport(costs, 1.0)[:, 0] @ vertices
    assert free.sum(0)[0] < -0.5


def test_a_single_row_weighs_as_the_columns_say():
    costs = torch.randn(1, 2, 4, dtype=F64)
    shares = (0.1, 0.2, 0.3, 0.4)
    weights = Sinkhorn(columns=shares).weigh(costs, 1.0).weights
    torch.testing.assert_close(weights, torch.tensor(shares, dtype=F64).expand(1, 2, 4), rtol=1e-5, atol=1e-6)
