"""CMAES is that of Hansen's tutorial."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from lightning_polystep.baselines import CMAES
from lightning_polystep.baselines.cmaes import Constants
from lightning_polystep.engine import Engine
from tests.helpers.quadratics import GOAL, Quadratic, agree, draws, loss_at


def reference(steps, rho, candidates, *, diagonal=False):
    """The tutorial's algorithm in loops of NumPy, from the unit covariance."""
    n, best = 9, candidates // 2
    raw = [np.log((candidates + 1) / 2) - np.log(i + 1) for i in range(best)]
    w = np.array(raw) / sum(raw)
    mass = 1 / sum(w**2)
    cs, cc = (mass + 2) / (n + mass + 5), (4 + mass / n) / (n + 4 + 2 * mass / n)
    faster = (n + 2) / 3 if diagonal else 1
    c1 = min(1, faster * 2 / ((n + 1.3) ** 2 + mass))
    cmu = min(1 - c1, faster * 2 * (mass - 2 + 1 / mass) / ((n + 2) ** 2 + mass))
    damping = 1 + 2 * max(0, np.sqrt((mass - 1) / (n + 1)) - 1) + cs
    chi = np.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n * n))
    mean, sigma, C, ps, pc = np.zeros(n), rho, np.eye(n), np.zeros(n), np.zeros(n)
    points = [torch.from_numpy(mean)]
    for k in range(steps):
        z = torch.randn(candidates, n, generator=draws(3, k), dtype=torch.float64).numpy()
        squares, B = np.linalg.eigh(C)
        y = [B @ np.diag(np.sqrt(squares)) @ B.T @ each for each in z]
        order = sorted(range(candidates), key=lambda i: loss_at(torch.from_numpy(mean + sigma * y[i])))
        chosen = [y[i] for i in order[:best]]
        yw = sum(weight * each for weight, each in zip(w, chosen, strict=True))
        mean = mean + sigma * yw
        ps = (1 - cs) * ps + np.sqrt(cs * (2 - cs) * mass) * (B @ ((B.T @ yw) / np.sqrt(squares)))
        length = np.linalg.norm(ps)
        h = length / np.sqrt(1 - (1 - cs) ** (2 * (k + 1))) < (1.4 + 2 / (n + 1)) * chi
        pc = (1 - cc) * pc + h * np.sqrt(cc * (2 - cc) * mass) * yw
        rank_mu = sum(weight * np.outer(each, each) for weight, each in zip(w, chosen, strict=True))
        C = (1 - c1 - cmu) * C + c1 * (np.outer(pc, pc) + (1 - h) * cc * (2 - cc) * C) + cmu * rank_mu
        C = np.diag(np.diag(C)) if diagonal else (C + C.T) / 2
        sigma = sigma * np.exp(cs / damping * (length / chi - 1))
        points.append(torch.from_numpy(mean))
    return points


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_its_path_is_that_of_a_loop_over_the_equations(covariance):
    problem = Quadratic(lambda ps: CMAES(ps, probe_radius=0.3, candidates=8, covariance=covariance, seed=3))
    agree(problem.run(15), reference(15, 0.3, 8, diagonal=covariance == "diagonal"))


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_it_finds_the_minimum_to_many_digits(covariance):
    problem = Quadratic(lambda ps: CMAES(ps, probe_radius=0.3, covariance=covariance, seed=0))
    assert (problem.run(250)[-1] - GOAL).abs().max() < 1e-4


def test_the_usual_number_of_candidates_grows_with_the_logarithm():
    optimizer = CMAES([nn.Parameter(torch.zeros(2))], seed=0)
    assert [optimizer.population(numbers) for numbers in (1, 9, 1000)] == [4, 10, 24]
    assert CMAES([nn.Parameter(torch.zeros(2))], candidates=6).population(1000) == 6


def test_rates_stay_in_their_range_where_there_are_many_candidates():
    for diagonal in (False, True):
        constants = Constants.of(3, 400, diagonal)
        assert constants.c_1 > 0
        assert 0 < constants.c_mu <= 1 - constants.c_1


def test_a_full_covariance_of_too_many_parameters_is_refused_with_the_cure():
    model = nn.Linear(60, 60)
    engine = Engine(model, CMAES(model.parameters(), seed=0), announce=None)
    with pytest.raises(ValueError, match="set covariance='diagonal'"):
        engine.step(lambda: model(torch.ones(2, 60)).square().mean())


def test_the_search_starts_anew_where_a_parameter_is_frozen():
    problem = Quadratic(lambda ps: CMAES(ps, seed=0))
    problem.run(3)
    problem.module[0].requires_grad_(False)
    before = problem.module[0].detach().clone()
    problem.run(2)
    assert len(problem.optimizer.search["p_c"]) == 6
    assert torch.equal(problem.module[0], before)


def test_a_step_without_enough_finite_losses_moves_and_learns_nothing():
    problem = Quadratic(lambda ps: CMAES(ps, candidates=6, seed=0), evaluation="loop")
    problem.run(2)
    point, search = problem.point, copy.deepcopy(problem.optimizer.search)
    calls = itertools.count()  # which the loop cannot put back, as it would a list

    def loss():
        return problem.loss() if next(calls) == 0 else torch.full((), float("inf"), dtype=torch.float64)

    problem.engine.step(loss)
    assert next(calls) > 1
    assert torch.equal(problem.point, point)
    assert all(torch.equal(search[name], value) for name, value in problem.optimizer.search.items())


def test_paths_and_covariance_are_part_of_the_state_and_keep_their_precision():
    whole = Quadratic(lambda ps: CMAES(ps, seed=0))
    points = whole.run(8)
    first = Quadratic(lambda ps: CMAES(ps, seed=0))
    first.run(4)
    rest = Quadratic(lambda ps: CMAES(ps, seed=1))
    rest.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    rest.module.load_state_dict(first.module.state_dict())
    assert torch.equal(rest.run(4)[-1], points[-1])
