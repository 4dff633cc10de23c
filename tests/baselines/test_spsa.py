"""SPSA is that of Spall's equations."""

import pytest
import torch

from lightning_polystep.baselines import SPSA
from tests.helpers.quadratics import GOAL, Quadratic, agree, draws, loss_at


def reference(steps, a, c, stability, pairs):
    theta, points = torch.zeros(9, dtype=torch.float64), [torch.zeros(9, dtype=torch.float64)]
    for k in range(steps):
        gain, radius = a / (k + 1 + stability) ** 0.602, c / (k + 1) ** 0.101
        signs = 2.0 * torch.randint(2, (pairs, 9), generator=draws(5, k)).double() - 1.0
        gradient = torch.zeros(9, dtype=torch.float64)
        for delta in signs:
            difference = loss_at(theta + radius * delta) - loss_at(theta - radius * delta)
            gradient += difference / (2 * radius) / delta / pairs
        theta = theta - gain * gradient
        points.append(theta)
    return points


@pytest.mark.parametrize(("pairs", "stability"), [(1, 0.0), (3, 10.0)])
def test_its_path_is_that_of_a_loop_over_the_equations(pairs, stability):
    problem = Quadratic(lambda ps: SPSA(ps, lr=0.2, probe_radius=0.05, pairs=pairs, stability=stability, seed=5))
    agree(problem.run(12), reference(12, 0.2, 0.05, stability, pairs))


def test_it_finds_the_minimum():
    problem = Quadratic(lambda ps: SPSA(ps, lr=0.3, pairs=4, seed=0))
    assert (problem.run(300)[-1] - GOAL).abs().max() < 0.05


@pytest.mark.parametrize("wrong", [{"stability": -1.0}, {"lr_decay": -0.1}, {"radius_decay": "slow"}, {"pairs": 0}])
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match=rf"SPSA\({next(iter(wrong))}="):
        SPSA([torch.nn.Parameter(torch.zeros(2))], **wrong)
