"""Rows and columns scaled in turns: the fixed point is that of the equations, or the result says that it is not."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_polystep.transport import KLRelaxed, Sinkhorn
from lightning_polystep.transport.columns import scale_in_turns

F64 = torch.float64


def scale(costs, epsilon=1.0, pull=1.0, **settings):
    return scale_in_turns(torch.as_tensor(costs, dtype=F64), epsilon, Sinkhorn(**settings), pull)


def by_hand(costs, epsilon, shares, pull, rounds):
    """The two updates of the equation, on plain numbers, for one place."""
    n, m = len(costs), len(costs[0])
    f, g = [0.0] * n, [0.0] * m
    for _ in range(rounds):
        f = [-math.log(sum(math.exp(g[v] - costs[i][v] / epsilon) for v in range(m))) for i in range(n)]
        g = [
            pull * (math.log(n * shares[v]) - math.log(sum(math.exp(f[i] - costs[i][v] / epsilon) for i in range(n))))
            for v in range(m)
        ]
    f = [-math.log(sum(math.exp(g[v] - costs[i][v] / epsilon) for v in range(m))) for i in range(n)]
    return [[math.exp(f[i] + g[v] - costs[i][v] / epsilon) for v in range(m)] for i in range(n)]


@pytest.mark.parametrize("pull", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("rounds", [1, 2, 30])
def test_rounds_are_those_of_the_equations(pull, rounds):
    costs, shares = torch.randn(4, 1, 3, dtype=F64), (0.2, 0.3, 0.5)
    weights = scale(costs, 0.7, pull, columns=shares, iterations=rounds, tolerance=1e-300).weights
    expected = torch.tensor(by_hand(costs[:, 0].tolist(), 0.7, shares, pull, rounds), dtype=F64)
    torch.testing.assert_close(weights[:, 0], expected)


@given(st.integers(0, 1000), st.floats(1e-3, 1e-1))
def test_small_temperatures_overflow_nothing(seed, epsilon):
    costs = 30 * torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(seed), dtype=F64)
    weights, error, _ = scale(costs, epsilon, iterations=30)
    torch.testing.assert_close(weights.sum(-1), torch.ones(5, 2, dtype=F64))
    assert torch.isfinite(error)


def test_too_few_iterations_are_told_with_how_far_off_the_shares_are():
    costs = 3 * torch.randn(6, 1, 4, dtype=F64)
    weights, error, converged = scale(costs, 0.05, iterations=2)
    assert not converged
    assert float(error) == pytest.approx(float((weights.mean(0) - 0.25).abs().sum()))
    assert float(error) > 1e-3
    enough = scale(costs, 0.05, iterations=100_000)
    assert enough.converged
    assert float(enough.marginal_error) < 1e-5


def test_the_error_is_that_of_the_worst_place():
    costs = torch.randn(6, 3, 4, dtype=F64)
    _, error, _ = scale(costs, 1.0, pull=0.5)
    alone = [float(scale(costs[:, [place]], 1.0, pull=0.5).marginal_error) for place in range(3)]
    assert float(error) == pytest.approx(max(alone), rel=1e-5)


def test_a_column_that_nobody_can_take_leaves_its_share_to_the_others():
    costs = torch.randn(6, 1, 4, dtype=F64)
    costs[:, 0, 1] = math.inf
    weights, error, converged = scale(costs, columns=(0.1, 0.4, 0.2, 0.3), tolerance=1e-9)
    assert converged
    got = weights[:, 0].mean(0)
    torch.testing.assert_close(got, torch.tensor([1 / 6, 0.0, 2 / 6, 3 / 6], dtype=F64))
    assert float(error) == pytest.approx(0.8), "0.4 are missing in one column and too much in others"


def test_shares_that_cannot_be_given_are_approached_and_told():
    """Five of six rows can only take the first of two columns."""
    costs = torch.zeros(6, 1, 2, dtype=F64)
    costs[:5, 0, 1] = math.inf
    weights, error, converged = scale(costs, iterations=200)
    assert not converged
    assert weights[:5, 0].tolist() == [[1.0, 0.0]] * 5
    assert float(weights[5, 0, 1]) == pytest.approx(1.0)
    assert float(error) == pytest.approx(2 * (5 / 6 - 1 / 2))


def test_nothing_finite_at_all():
    weights, error, converged = scale(torch.full((3, 2, 4), math.inf))
    assert weights.unique().tolist() == [0.25]
    assert float(error) == 0
    assert converged


@pytest.mark.parametrize("kind", [Sinkhorn, KLRelaxed])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"columns": (0.5, 0.6)}, r"columns=\(0.5, 0.6\)\): the shares must be above 0 and sum to 1"),
        ({"columns": (1.0, 0.0)}, "must be above 0"),
        ({"columns": ()}, "sum to 1"),
        ({"columns": (math.nan, 0.5)}, "must be above 0"),
        ({"tolerance": 0.0}, r"tolerance=0.0\): the tolerance must be above 0"),
        ({"tolerance": math.nan}, "the tolerance must be above 0"),
        ({"iterations": 0}, r"iterations=0\): there must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(kind, settings, message):
    with pytest.raises(ValueError, match=rf"{kind.__name__}\(.*{message}"):
        kind(**settings)


def test_as_many_shares_as_vertices():
    with pytest.raises(ValueError, match=r"has 2 shares, but a particle has 4 vertices: set columns to None"):
        Sinkhorn(columns=(0.5, 0.5)).weigh(torch.zeros(2, 1, 4), 1.0)


def test_a_list_of_shares_becomes_a_tuple():
    assert Sinkhorn(columns=[0.25, 0.75]) == Sinkhorn(columns=(0.25, 0.75))
    assert hash(Sinkhorn(columns=[0.25, 0.75])) == hash(Sinkhorn(columns=(0.25, 0.75)))
