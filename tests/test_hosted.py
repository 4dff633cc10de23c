"""The engine asks three things of an optimizer, and hosts whatever answers them."""

import copy

import pytest
import torch
from torch import nn

from lightning_polystep import Engine
from lightning_polystep.hosted import HostedOptimizer
from lightning_polystep.particles import Block, Proposal
from lightning_polystep.randomness import generator
from tests.helpers.boring import Boring, loader, trainer

GROUP = {"rank": 1, "rotations": 1, "response_grid": 0}


class BestOfEight(HostedOptimizer):
    """Goes to the best of eight random neighbours of each parameter, if it is better."""

    kind = "BestOfEight"

    def blocks(self, module, held=frozenset()):
        named = [(n, p) for n, p in module.named_parameters() if p.requires_grad and p not in held]
        return [Block(n, (p,), (n,), GROUP, 1, p.numel(), "own", population=8) for n, p in named]

    def propose(self, block, *, rank, rotations=1, most_rows=None, among=None):
        draw = generator(self.seed, self.progress.step, block.name)
        moved = torch.randn(1, 8, block.dim, generator=draw).to(block.parameters[0])
        return Proposal(block, torch.zeros(1, dtype=torch.int64), torch.ones(1), moved, 1, self.defaults["lr"])

    def update(self, pending):
        for proposal, costs, incumbent in zip(pending.proposals, pending.costs, pending.incumbents, strict=True):
            best = int(costs.argmin())
            if costs[best] < incumbent:
                _, moved = proposal.displacements(best, best + 1)
                (parameter,) = proposal.block.parameters
                parameter.add_(moved.reshape(parameter.shape))
        return {"proposals": float(len(pending.proposals))}


def best_of_eight(module):
    return BestOfEight(module.parameters(), {"lr": 0.1}, seed=0)


def test_an_optimizer_of_ones_own_is_hosted_by_the_engine():
    torch.manual_seed(0)
    model, x = nn.Linear(3, 1), torch.randn(16, 3)
    engine = Engine(model, best_of_eight(model), announce=None)
    losses = [float(engine.step(lambda: (model(x) - 1).square().mean())) for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]
    assert engine.plan.last_candidates == {"weight": 8, "bias": 8}
    assert engine.optimizer.progress.candidates == 40 * 16


def test_and_by_the_trainer(tmp_path):
    module = Boring(best_of_eight)
    trainer(tmp_path, max_epochs=4).fit(module, loader())
    assert torch.stack(module.losses[-8:]).mean() < torch.stack(module.losses[:8]).mean()


def test_its_step_without_an_engine_says_what_is_missing():
    with pytest.raises(RuntimeError, match=r"BestOfEight\.step\(\) has no candidates"):
        best_of_eight(nn.Linear(2, 1)).step()


def test_a_module_in_the_place_of_parameters_is_refused_by_its_name():
    with pytest.raises(TypeError, match=r"BestOfEight\(Linear\(\.\.\.\)\): it takes parameters"):
        BestOfEight(nn.Linear(2, 1), {"lr": 0.1})


def test_its_state_says_whose_it_is():
    optimizer = best_of_eight(nn.Linear(2, 1))
    saved = optimizer.state_dict()
    assert saved["polystep"]["optimizer"] == "BestOfEight"
    other = copy.deepcopy(saved)
    other["polystep"]["optimizer"] = "SPSA"
    with pytest.raises(ValueError, match="state of another optimizer"):
        optimizer.load_state_dict(other)
    optimizer.load_state_dict(saved)


def test_a_radius_that_is_no_number_is_named_with_its_optimizer():
    model = nn.Linear(2, 1)
    optimizer = best_of_eight(model)
    engine = Engine(model, optimizer, announce=None)
    optimizer.param_groups[0]["lr"] = float("nan")
    with pytest.raises(ValueError, match="BestOfEight's lr was set to nan"):
        engine.step(lambda: model(torch.ones(1, 2)).sum())


def test_what_a_subclass_has_to_say_is_asked_for():
    class Nothing(HostedOptimizer):
        kind = "Nothing"

    optimizer, model = Nothing([nn.Parameter(torch.zeros(1))], {}), nn.Linear(1, 1)
    with pytest.raises(NotImplementedError):
        optimizer.blocks(model)
    assert optimizer.own_state() == {}
