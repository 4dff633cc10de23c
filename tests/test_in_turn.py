"""Modules that move their particles themselves, one after the other, where the transport draws a vertex."""

import pytest
import torch
from torch import nn

from lightning_polystep import Engine, PolyStep
from lightning_polystep.in_turn import IN_TURN, Moved, MovesInTurn, movers_of
from lightning_polystep.schedules import Linear


class Wishes(nn.Module):
    """Numbers whose signs are wished for."""

    own_subspaces = {"values": "signs"}  # noqa: RUF012 - as a module of the user's would write it

    def __init__(self):
        super().__init__()
        self.values = nn.Parameter(torch.tensor([-1.0, 1.0, -1.0]))
        self.turns = []

    def forward(self):
        return (self.values < 0).double().sum()

    def evaluate_rows(self, name, rows, values):
        assert name == "values"
        return self() + (values[:, 0] < 0).double() - (self.values[rows] < 0).double()

    def move_in_turn(self, turn):
        self.turns.append(turn)
        self.values.abs_()
        return Moved(6, 8.0)


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.wishes, self.other = Wishes(), nn.Parameter(torch.ones(2))

    def forward(self):
        return self.wishes() + self.other.square().sum()


def engine_of(module, **options):
    return Engine(module, PolyStep(module.parameters(), seed=3, **options), announce=None)


def test_what_moves_in_turn_is_found_by_its_own_parameters():
    module = Around()
    assert isinstance(module.wishes, MovesInTurn)
    assert movers_of(module) == {module.wishes.values: module.wishes}


def test_a_transport_that_draws_has_the_module_move_and_the_rest_is_moved_as_ever():
    module = Around()
    engine = engine_of(module, lr=0.5, transport="sample", epsilon=Linear(3.0, 1.0, steps=2))
    before = module.other.detach().clone()
    for _ in range(2):
        engine.step(module)
    assert [(turn.epsilon, turn.step, turn.share, turn.seed) for turn in module.wishes.turns] == [
        (3.0, 0, 0.5, 3),
        (2.0, 1, 0.5, 3),
    ]
    assert module.wishes.values.tolist() == [1.0, 1.0, 1.0]
    assert not torch.equal(module.other, before)
    notes = {each.block.name: each.note for each in engine.plan.assignments}
    assert IN_TURN in notes["wishes.values"]
    assert IN_TURN not in notes["other"]
    report, scored = engine.optimizer.binding.report, 2 * (6 + 4)
    assert engine.optimizer.progress.candidates == scored
    assert report["candidates"] == scored / 2
    assert float(report["step_norm"]) >= 8**0.5


def test_a_barycentre_is_reached_by_all_at_once():
    module = Wishes()
    engine = engine_of(module, lr=0.6, transport="softmax", epsilon=0.1, momentum=0.0)
    for _ in range(2):
        engine.step(module)
    assert not module.turns
    assert [each.tier.name for each in engine.plan.assignments] == ["evaluate_rows"]
    assert bool((module.values > 0).all())


def test_nothing_but_what_moves_in_turn():
    module = Wishes()
    engine = engine_of(module, lr=2.0, transport="sample")
    assert float(engine.step(module)) == 2.0
    assert module.turns[0].share == 1.0
    assert float(engine.step(module)) == 0.0
    assert set(engine.optimizer.binding.report) == {"candidates", "step_norm"}


@pytest.mark.parametrize("transport", ["softmax", "sample"])
def test_frozen_numbers_stay(transport):
    module = Around()
    module.wishes.values.requires_grad_(False)
    engine = engine_of(module, transport=transport)
    engine.step(module)
    assert module.wishes.values.tolist() == [-1.0, 1.0, -1.0]
    assert not module.wishes.turns
