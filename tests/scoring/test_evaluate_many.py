"""An objective that evaluates many candidates at once, as batched rollouts do, in one file of the user's."""

import pytest
import torch
from torch import nn

from lightning_polystep import Engine, PolyStep
from lightning_polystep.scoring.evaluate_many import ManyTier, offer_many
from lightning_polystep.scoring.tier import NotOfferedError


class Policy(nn.Module):
    """Pushes a mass to the origin; how it moves is no function that torch could differentiate."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.gains = nn.Parameter(torch.zeros(1, 2))
        self.calls, self.runs = [], 0

    def rollouts(self, gains, start):
        state = start.expand(len(gains), *start.shape).clone()  # (K, N, 2)
        cost = torch.zeros(len(gains))
        for _ in range(20):
            force = torch.where((state @ gains.transpose(1, 2))[..., 0] > 0, -1.0, 1.0)
            state[..., 1] += 0.1 * force
            state[..., 0] += 0.1 * state[..., 1]
            cost = cost + state.square().sum(-1).mean(-1)
        return cost / 20

    def loss(self, start):
        self.start, self.runs = start, self.runs + 1
        return self.rollouts(self.gains[None], start)[0]

    def evaluate_many(self, parameters):
        self.calls.append({name: tuple(value.shape) for name, value in parameters.items()})
        return self.rollouts(parameters["gains"], self.start)


def engine_of(module):
    return Engine(module, PolyStep(module.parameters(), seed=0, rank=2, lr=0.2, subspace="full"), announce=None)


def test_it_scores_all_candidates_in_one_call_and_learns():
    module = Policy()
    engine, start = engine_of(module), torch.randn(16, 2)
    losses = [float(engine.step(lambda: module.loss(start))) for _ in range(30)]
    assert [a.tier.name for a in engine.plan.assignments] == ["evaluate_many"]
    assert min(losses[-5:]) < 0.8 * losses[0]
    runs = module.runs
    engine.step(lambda: module.loss(start))
    assert module.runs == runs + 1, "once the plan is made, the step itself runs once"
    assert all(set(call) == {"gains"} for call in module.calls)


def test_what_contradicts_the_step_is_not_used():
    class Wrong(Policy):
        def evaluate_many(self, parameters):
            return 2 * super().evaluate_many(parameters)

    module = Wrong()
    engine = engine_of(module)
    engine.step(lambda: module.loss(torch.randn(16, 2)))
    (assignment,) = engine.plan.assignments
    assert assignment.tier.name != "evaluate_many"
    assert "not by evaluate_many: differs from a re-run" in assignment.note


def test_a_wrong_shape_is_named_in_the_plan():
    class Wrong(Policy):
        def evaluate_many(self, parameters):
            return super().evaluate_many(parameters).mean()

    module = Wrong()
    engine = engine_of(module)
    engine.step(lambda: module.loss(torch.randn(16, 2)))
    assert "evaluate_many returned shape ()" in engine.plan.assignments[0].note


def test_it_has_to_be_a_method():
    module = Policy()
    module.evaluate_many = 3
    with pytest.raises(NotOfferedError, match="no method"):
        offer_many(module, None)


def test_chunks_and_budget_are_its_own():
    tier = ManyTier(lambda parameters: None)
    assert tier.chunking(1).size > 1
    assert tier.affordable() > 1
