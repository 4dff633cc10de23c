"""OpenAIES is that of Salimans et al."""

import torch

from lightning_polystep.baselines import OpenAIES
from tests.helpers.quadratics import GOAL, Quadratic, agree, draws, loss_at


def estimate(theta, step, sigma, pairs):
    z = torch.randn(pairs, 9, generator=draws(2, step), dtype=torch.float64)
    candidates = [theta + sigma * each for each in z] + [theta - sigma * each for each in z]
    losses = [loss_at(each) for each in candidates]
    ranks = [sum(other < own for other in losses) / (2 * pairs - 1) - 0.5 for own in losses]
    total = sum(rank * noise for rank, noise in zip(ranks, [*z, *-z], strict=True))
    return total / (2 * pairs * sigma)


def test_with_sgd_its_path_is_that_of_a_loop_over_the_equations():
    make = lambda ps: OpenAIES(  # noqa: E731
        ps, lr=0.01, probe_radius=0.05, pairs=4, rule="sgd", momentum=0.5, weight_decay=0.2, seed=2
    )
    theta = memory = torch.zeros(9, dtype=torch.float64)
    expected = [theta]
    for k in range(8):
        memory = 0.5 * memory + estimate(theta, k, 0.05, 4)
        theta = (1 - 0.01 * 0.2) * theta - 0.01 * memory
        expected.append(theta)
    agree(Quadratic(make).run(8), expected)


def test_with_adam_it_steps_as_torch_does_along_the_estimate():
    problem = Quadratic(lambda ps: OpenAIES(ps, lr=0.05, probe_radius=0.05, pairs=4, betas=(0.8, 0.99), seed=2))
    theta = torch.zeros(9, dtype=torch.float64, requires_grad=True)
    adam, expected = torch.optim.Adam([theta], lr=0.05, betas=(0.8, 0.99)), [theta.detach().clone()]
    for k in range(8):
        theta.grad = estimate(theta.detach(), k, 0.05, 4)
        adam.step()
        expected.append(theta.detach().clone())
    agree(problem.run(8), expected)


def test_it_finds_the_minimum_as_far_as_adam_lets_it():
    problem = Quadratic(lambda ps: OpenAIES(ps, lr=0.02, pairs=8, seed=0))
    assert (problem.run(250)[-1] - GOAL).abs().max() < 0.1
