"""EGGROLL perturbs matrices by others of low rank."""

import pytest
import torch

from lightning_polystep.baselines import EGGROLL
from tests.helpers.quadratics import GOAL, Quadratic, agree, draws, loss_at


def perturbations(step, pairs, rank):
    """Those of a vector of 3 and a matrix of 2 x 3."""
    draw = draws(4, step)
    vector = torch.randn(pairs, 3, generator=draw, dtype=torch.float64)
    left = torch.randn(pairs, 2, rank, generator=draw, dtype=torch.float64)
    right = torch.randn(pairs, 3, rank, generator=draw, dtype=torch.float64)
    for i in range(pairs):
        matrix = sum(torch.outer(left[i, :, r], right[i, :, r]) for r in range(rank)) / rank**0.5
        yield torch.cat([vector[i], matrix.flatten()])


@pytest.mark.parametrize("rank", [1, 2])
def test_its_path_is_that_of_a_loop_over_the_equations(rank):
    problem = Quadratic(lambda ps: EGGROLL(ps, lr=0.02, probe_radius=0.1, pairs=3, rank=rank, seed=4))
    theta, expected = torch.zeros(9, dtype=torch.float64), [torch.zeros(9, dtype=torch.float64)]
    for k in range(8):
        noise = list(perturbations(k, 3, rank))
        losses = [loss_at(theta + 0.1 * z) for z in noise] + [loss_at(theta - 0.1 * z) for z in noise]
        mean = sum(losses) / 6
        spread = (sum((loss - mean) ** 2 for loss in losses) / 6) ** 0.5
        scores = [(loss - mean) / spread for loss in losses]
        gradient = sum((scores[i] - scores[i + 3]) * z for i, z in enumerate(noise)) / (6 * 0.1)
        theta = theta - 0.02 * gradient
        expected.append(theta)
    agree(problem.run(8), expected)


def test_it_finds_the_minimum_as_far_as_its_step_lets_it():
    problem = Quadratic(lambda ps: EGGROLL(ps, lr=0.002, pairs=16, seed=0))
    assert (problem.run(300)[-1] - GOAL).abs().max() < 0.1


def test_a_rank_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"EGGROLL\(rank=0\)"):
        EGGROLL([torch.nn.Parameter(torch.zeros(2))], rank=0)
