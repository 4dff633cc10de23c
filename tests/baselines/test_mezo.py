"""MeZO is zeroth-order SGD."""

import torch

from lightning_polystep.baselines import MeZO
from tests.helpers.quadratics import GOAL, Quadratic, agree, draws, loss_at


def test_its_path_is_that_of_a_loop_over_the_equations():
    problem = Quadratic(lambda ps: MeZO(ps, lr=0.02, probe_radius=0.01, pairs=2, weight_decay=0.1, seed=7))
    theta, expected = torch.zeros(9, dtype=torch.float64), [torch.zeros(9, dtype=torch.float64)]
    for k in range(10):
        gradient = torch.zeros(9, dtype=torch.float64)
        for z in torch.randn(2, 9, generator=draws(7, k), dtype=torch.float64):
            gradient += (loss_at(theta + 0.01 * z) - loss_at(theta - 0.01 * z)) / 0.02 * z / 2
        theta = (1 - 0.02 * 0.1) * theta - 0.02 * gradient
        expected.append(theta)
    agree(problem.run(10), expected)


def test_it_finds_the_minimum():
    problem = Quadratic(lambda ps: MeZO(ps, lr=0.03, pairs=2, seed=0))
    assert (problem.run(400)[-1] - GOAL).abs().max() < 0.01


def test_on_a_quadratic_the_mean_of_many_pairs_is_the_gradient():
    problem = Quadratic(lambda ps: MeZO(ps, lr=1.0, pairs=4000, seed=0))
    (start, end) = problem.run(1)
    problem = Quadratic(lambda ps: MeZO(ps, seed=0))
    gradient = torch.autograd.grad(problem.loss(), list(problem.module))
    expected = torch.cat([each.flatten() for each in gradient])
    assert (start - end - expected).norm() < 0.1 * expected.norm()
