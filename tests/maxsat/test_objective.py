"""The objective: its loss is the formula's, and both ways of moving lead down."""

import numpy as np
import pytest
import torch
from hypothesis import given

from lightning_polystep import Engine, PolyStep
from lightning_polystep.in_turn import Turn
from lightning_polystep.maxsat import UnsatisfiedWeight, random_ksat
from lightning_polystep.schedules import Exponential
from tests.maxsat.formulas import formulas


@given(formula=formulas(hard=True))
def test_the_loss_and_that_of_every_flip(formula):
    objective = UnsatisfiedWeight(formula)
    n, penalty = formula.variables, objective.search.penalty
    empty = penalty * int((formula.hard & (np.diff(formula.starts) == 0)).sum())

    def loss(values):
        return formula.cost(values) + penalty * formula.violated(values) - empty

    assert float(objective()) == loss(objective.assignment())
    values = -objective.values.detach()[:, None]
    found = objective.evaluate_rows("values", torch.arange(n), values)
    for variable in range(n):
        flipped = objective.assignment().copy()
        flipped[variable] = not flipped[variable]
        assert float(found[variable]) == loss(flipped)
    assert torch.equal(objective.evaluate_rows("values", torch.arange(n), -values), objective().expand(n))


def share(steps, **options):
    formula = random_ksat(1000, 4.27, seed=1)
    objective = UnsatisfiedWeight(formula)
    engine = Engine(objective, PolyStep(objective.parameters(), seed=0, **options), announce=None)
    for _ in range(steps):
        engine.step(objective)
    assert objective.best_cost == formula.cost(objective.best.numpy())
    assert (objective.best_violated, formula.violated(objective.best.numpy())) == (0, 0)
    return formula.satisfied_share(objective.best.numpy())


def test_a_drawn_vertex_gets_further_than_the_barycentre():
    assert 0.975 < share(80, lr=0.15, transport="softmax", epsilon=1.0, momentum=0.0) < 0.99
    assert share(40, lr=1.0, transport="sample", epsilon=Exponential(0.25, 0.04, steps=39)) > 0.997


def test_the_best_is_kept_when_the_walk_goes_up_again():
    objective = UnsatisfiedWeight(random_ksat(200, 4.27, seed=1), acceptance="heat_bath")
    for step, epsilon in enumerate((0.3, 0.05, 50.0)):
        objective.move_in_turn(Turn(epsilon, 1.0, 0, step))
    assert objective.best_cost < 0.5 * float(objective())


def test_the_unit_of_temperature_is_that_of_the_first_step():
    objective = UnsatisfiedWeight(random_ksat(200, 4.27, seed=1))
    first = objective.search.costs.std()
    objective()
    first = objective.search.costs.std()
    for step in range(3):
        objective.move_in_turn(Turn(0.05, 1.0, 0, step))
    assert float(objective.spread) == pytest.approx(first)
    assert objective.search.costs.std() < 0.9 * first


def test_what_is_refused():
    formula = random_ksat(10)
    with pytest.raises(ValueError, match="sweeps must be at least 1"):
        UnsatisfiedWeight(formula, sweeps=0)
    with pytest.raises(ValueError, match="'metropolis' or 'heat_bath'"):
        UnsatisfiedWeight(formula, acceptance="greedy")
    with pytest.raises(ValueError, match="is minimised"):
        UnsatisfiedWeight(formula).move_in_turn(Turn(1.0, 1.0, 0, 0, maximize=True))
