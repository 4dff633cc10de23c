"""Gaps are those of the definition, and the benchmark measures all of its problems."""

import math

import pytest
import torch

from benchmarks.theory import PROBLEMS, SETTINGS, Turned, main, path, rate, slope, stairs, ticks
from lightning_polystep.step import transport


@pytest.mark.parametrize("name", PROBLEMS)
def test_derivatives_are_those_of_the_function(name):
    function = PROBLEMS[name]
    x = torch.linspace(-2.03, 2.04, 60, dtype=torch.float64, requires_grad=True)
    (slopes,) = torch.autograd.grad(function.value(x).sum(), x)
    low, high = function.derivatives(x.detach(), 1e-9)
    torch.testing.assert_close(low, slopes, atol=1e-6, rtol=0)
    torch.testing.assert_close(high, slopes, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_range_of_derivatives_is_that_of_many_points(name):
    function = PROBLEMS[name]
    for x in torch.linspace(-1.7, 1.6, 23, dtype=torch.float64):
        near = (x + torch.linspace(-0.4, 0.4, 4001, dtype=torch.float64)).requires_grad_()
        (slopes,) = torch.autograd.grad(function.value(near).sum(), near)
        low, high = function.derivatives(x, 0.4)
        assert float(low) == pytest.approx(float(slopes.min()), abs=1e-3)
        assert float(high) == pytest.approx(float(slopes.max()), abs=1e-3)


STATIONARY = {"bent": [0.0], "sharp": [0.0], "wells": [-1.0, 0.0, 1.0]}


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_gap_is_zero_exactly_at_the_stationary_points(name):
    at = torch.tensor(STATIONARY[name], dtype=torch.float64)[:, None].expand(-1, 3)
    assert PROBLEMS[name].gaps(at).max() < 1e-12
    assert (PROBLEMS[name].gaps(at + 0.2) > 0.05).all()


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_gap_is_the_smallest_delta_of_its_definition(name):
    draw = torch.Generator().manual_seed(0)
    points = torch.randn(20, 3, generator=draw, dtype=torch.float64)
    gaps = PROBLEMS[name].gaps(points)
    for share, holds in [(1 + 1e-6, True), (1 - 1e-6, False)]:
        low, high = PROBLEMS[name].derivatives(points, share * gaps[:, None])
        least = torch.maximum(low, -high).clamp(min=0).norm(dim=1)
        assert ((least <= share * gaps) == holds).all()


def test_candidates_are_scored_as_the_loss_is_computed():
    problem = Turned(stairs, seed=1)
    thetas = torch.randn(5, 8, dtype=torch.float64)
    many = problem.evaluate_many({"theta": thetas})
    for theta, loss in zip(thetas, many, strict=True):
        with torch.no_grad():
            problem.theta.copy_(theta)
        assert float(problem().detach()) == pytest.approx(float(loss))


def test_a_run_nears_the_stationary_point():
    points = path(Turned(PROBLEMS["bent"].value, seed=0), SETTINGS["decaying radii, no momentum"], 60, seed=0)
    gaps = PROBLEMS["bent"].gaps(torch.stack(points))
    assert len(points) == 61
    assert gaps[-1] < 0.1 * gaps[0]


def test_figures_of_the_rate():
    times = ticks(1000)
    assert (times[0], times[-1]) == (4, 1000)
    assert rate(100) == pytest.approx(math.log(100) / 10)
    assert slope(times, [3 / time for time in times]) == pytest.approx(-1)
    assert math.isnan(slope([1, 2], [0.0, 0.0]))


def test_all_problems_and_settings_are_measured_and_drawn(quick, tmp_path):
    results = quick("theory", "--plot", tmp_path / "picture.png")
    assert results["gaps"].keys() == PROBLEMS.keys()
    for runs in results["gaps"].values():
        assert runs.keys() == SETTINGS.keys()
        for run in runs.values():
            assert run["gaps"] == sorted(run["gaps"], reverse=True)
    assert all(row["reached"] <= row["runs"] for row in results["hitting"])
    assert (tmp_path / "picture.png").stat().st_size > 0


def test_its_help_explains_itself(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "stationarity gap" in capsys.readouterr().out


def test_on_a_linear_loss_a_step_is_along_the_gradient_whatever_its_length():
    """docs/theory.md: the barycentre is -g / (epsilon |g|), to first order in 1 / epsilon."""
    draw = torch.Generator().manual_seed(0)
    gradient, epsilon = torch.randn(6, generator=draw, dtype=torch.float64), 1e4
    turned = torch.linalg.qr(torch.randn(6, 6, generator=draw, dtype=torch.float64)).Q
    vertices = torch.cat([turned, -turned])
    for length, radius in [(1.0, 0.3), (100.0, 0.01)]:
        costs = (radius * length * vertices @ gradient)[None, None]
        group = {"epsilon": epsilon, "transport": "softmax"}
        weights = transport(costs, group, seed=0, step=0, name="w").weights[0, 0]
        moved = 6**0.5 * weights @ vertices
        torch.testing.assert_close(epsilon * moved, -gradient / gradient.norm(), rtol=1e-3, atol=1e-3)
