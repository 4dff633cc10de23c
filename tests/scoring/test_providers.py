from importlib.metadata import EntryPoint

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_polystep import Engine, PolyStep
from lightning_polystep.scoring import providers
from lightning_polystep.scoring.loop import LoopTier
from lightning_polystep.scoring.providers import providers_of
from lightning_polystep.scoring.recognised import Recognised
from lightning_polystep.scoring.taped import Recording
from lightning_polystep.scoring.tier import NotOfferedError, Provider

ESTIMATES = ["by the answers of units", "as operands", "by learned feedback", "by node perturbation"]


def names(module, evaluation):
    return [each.name for each in providers_of(module, Recognised(module), Recording(), evaluation)]


def test_the_fastest_come_first_and_the_loop_last():
    stack = nn.Module()
    stack.network, stack.criterion = nn.Linear(2, 2), nn.CrossEntropyLoss()
    assert names(nn.Linear(2, 2), "auto") == [*ESTIMATES, "from the tape", "loop"]
    assert names(stack, "auto") == ["as part of a stack", *ESTIMATES, "from the tape", "loop"]


@pytest.mark.parametrize(("evaluation", "expected"), [("tape", [*ESTIMATES, "from the tape"]), ("loop", ["loop"])])
def test_one_way_is_taken_when_asked_for(evaluation, expected):
    assert names(nn.Linear(2, 2), evaluation) == expected


class Halved(LoopTier):
    """Scores in a way that the loop contradicts."""

    name = "halved"

    def score(self, proposal, probe, start, stop):
        return super().score(proposal, probe, start, stop) / 2


class Users(LoopTier):
    name = "users"


def offer_users(module):
    return Provider("as users do", lambda block: Users()) if isinstance(module, nn.Linear) else None


def offer_halved(module):
    return Provider("by halves", lambda block: Halved())


def refuse(module):
    def offer(block):
        raise NotOfferedError(f"no word of {block.name or 'it'}")

    return Provider("by word", offer)


def plan_with(monkeypatch, function, module):
    entry = EntryPoint("mine", f"{__name__}:{function}", providers.TIERS)
    monkeypatch.setattr(providers, "entry_points", lambda group: [entry] if group == providers.TIERS else [])
    engine = Engine(module, PolyStep(module.parameters(), seed=0), announce=None)
    x, y = torch.randn(8, 4), torch.tensor([0, 1] * 4)
    engine.step(lambda: functional.cross_entropy(module(x), y))
    (assignment,) = engine.plan.assignments
    return assignment


def test_an_installed_package_adds_a_way_of_scoring(monkeypatch):
    assert plan_with(monkeypatch, "offer_users", nn.Linear(4, 2)).tier.name == "users"


def test_it_may_offer_nothing_for_a_module(monkeypatch):
    assert plan_with(monkeypatch, "offer_users", nn.Sequential(nn.Linear(4, 2))).tier.name == "tape"


def test_it_is_compared_with_the_loop_as_all_others(monkeypatch):
    assignment = plan_with(monkeypatch, "offer_halved", nn.Linear(4, 2))
    assert assignment.tier.name == "tape"
    assert "not by halves: differs from a re-run" in assignment.note


def test_its_refusal_is_told(monkeypatch):
    assert "not by word: no word of it" in plan_with(monkeypatch, "refuse", nn.Linear(4, 2)).note
