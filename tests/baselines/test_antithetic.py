"""What optimizers with pairs of candidates have in common."""

import itertools

import pytest
import torch
from torch import nn

from lightning_polystep.baselines import EGGROLL, SPSA, MeZO, OpenAIES
from tests.helpers.quadratics import Quadratic

PAIRED = [SPSA, MeZO, OpenAIES, EGGROLL]


@pytest.mark.parametrize("kind", PAIRED)
def test_a_pair_without_two_finite_losses_counts_for_nothing(kind):
    problem = Quadratic(lambda ps: kind(ps, pairs=3, seed=0))
    (block,) = problem.optimizer.blocks(problem.module)
    moved = problem.optimizer.propose(block, rank=1).directions[0]
    losses = torch.tensor([1.0, 2.0, 3.0, 0.5, float("nan"), 5.0], dtype=torch.float64)
    kept = [0, 2, 3, 5]
    whole = problem.optimizer.estimate(block, moved, losses)
    torch.testing.assert_close(whole, problem.optimizer.estimate(block, moved[kept], losses[kept]))
    assert whole.abs().max() > 0


@pytest.mark.parametrize("kind", PAIRED)
def test_without_any_finite_pair_nothing_moves(kind):
    problem = Quadratic(lambda ps: kind(ps, pairs=2, seed=0), evaluation="loop")
    problem.run(2)
    # The loop puts back lists that a step has changed, and cannot put back a count.
    point, calls = problem.point, itertools.count()

    def loss():
        return problem.loss() if next(calls) == 0 else torch.full((), float("nan"), dtype=torch.float64)

    problem.engine.step(loss)
    assert next(calls) > 1
    assert torch.equal(problem.point, point)


@pytest.mark.parametrize("kind", PAIRED)
def test_each_group_has_its_own_step_and_radius(kind):
    def make(parameters):
        still, free = list(parameters)
        return kind([{"params": [still], "lr": 0.0, "probe_radius": 0.5}, {"params": [free]}], pairs=2, seed=0)

    problem = Quadratic(make)
    (block,) = problem.optimizer.blocks(problem.module)
    moved = problem.optimizer.propose(block, rank=1).directions[0]
    assert moved[:, :3].abs().mean() > 2 * moved[:, 3:].abs().mean()
    start, end = problem.run(1)
    assert torch.equal(start[:3], end[:3])
    assert not torch.equal(start[3:], end[3:])


WRONG = {"lr": -1.0, "probe_radius": 0.0, "weight_decay": -0.1, "betas": (0.9, 1.0), "momentum": 1.0, "rule": "best"}


@pytest.mark.parametrize("name", WRONG)
def test_values_out_of_range_are_refused_by_name(name):
    with pytest.raises(ValueError, match=rf"OpenAIES\({name}="):
        OpenAIES([nn.Parameter(torch.zeros(2))], **{name: WRONG[name]})
    with pytest.raises(ValueError, match=rf"OpenAIES\({name}="):
        OpenAIES([{"params": [nn.Parameter(torch.zeros(2))], name: WRONG[name]}])
