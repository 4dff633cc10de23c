"""Candidates that change one row, scored by the module that holds the parameter."""

import pytest
import torch
from torch import nn

from lightning_polystep import Engine, PolyStep
from lightning_polystep.particles import Block
from lightning_polystep.scoring.by_rows import RowsTier, knows_rows, offer_rows
from lightning_polystep.scoring.tier import NotOfferedError


class Table(nn.Module):
    """A loss that is a sum over rows, so that one row is quickly told."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.rows = nn.Parameter(torch.randn(50, 3))
        self.factor = factor

    def forward(self):
        return self.rows.sign().sum(1).square().sum()

    def evaluate_rows(self, name, rows, values):
        assert name == "rows"
        change = values.sign().sum(1).square() - self.rows[rows].sign().sum(1).square()
        return self.factor * (self() + change)


def stepped(module, **options):
    optimizer = PolyStep(module.parameters(), seed=0, lr=0.3, probe_radius=1.0, rank=3, **options)
    engine = Engine(module, optimizer, announce=None)
    losses = [float(engine.step(module)) for _ in range(25)]
    return engine, losses


def test_it_scores_all_candidates_and_learns():
    module = nn.Sequential(Table())
    module.forward = module[0].forward
    assert knows_rows(module)
    engine, losses = stepped(module)
    assert [each.tier.name for each in engine.plan.assignments] == ["evaluate_rows"]
    assert losses[-1] < 0.8 * losses[0]


def test_what_contradicts_the_step_is_not_used():
    engine, _ = stepped(Table(factor=3.0))
    (assignment,) = engine.plan.assignments
    assert assignment.tier.name != "evaluate_rows"
    assert "not by evaluate_rows: differs from a re-run" in assignment.note


def test_a_wrong_shape_is_named_in_the_plan():
    module = Table()
    module.evaluate_rows = lambda _name, _rows, values: values
    engine, _ = stepped(module)
    assert "evaluate_rows returned shape" in engine.plan.assignments[0].note


def test_it_is_offered_for_parameters_of_modules_that_have_it():
    module = nn.ModuleList([Table(), nn.Linear(2, 2)])
    (weight, bias), rows = module[1].parameters(), module[0].rows
    own = Block("0.rows", (rows,), ("0.rows",), {}, 50, 3, "full")
    assert isinstance(offer_rows(module, own), RowsTier)
    other = Block("1", (weight, bias), ("1.weight", "1.bias"), {}, 2, 3, "inputs")
    with pytest.raises(NotOfferedError, match="no method evaluate_rows"):
        offer_rows(module, other)
    assert not knows_rows(module[1])


def test_chunks_follow_the_budget():
    tier = RowsTier(lambda name, rows, values: values, "rows")
    assert tier.chunking(2**20).size < tier.chunking(2**24).size
    assert tier.affordable() is None
