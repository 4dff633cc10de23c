"""Which axes stay apart."""

import torch
from torch import nn

from lightning_polystep.tape.apart import unit_of, within_unit
from lightning_polystep.tape.axes import Labels
from tests.helpers.tapes import compiled


def test_samples_that_are_normalised_together_are_not_apart():
    first, norm, x = nn.Linear(4, 5), nn.BatchNorm1d(5), torch.randn(7, 4)
    second = nn.Linear(5, 5)
    _, program = compiled(lambda: norm(second(torch.relu(first(x)))).abs().mean(), first.weight)
    assert program.samples == 5, "each feature behind goes by itself instead"
    _, program = compiled(lambda: norm(second(torch.relu(first(x)))).softmax(1).square().mean(), first.weight)
    assert program.sample is None
    _, program = compiled(lambda: second(torch.relu(norm(first(x)))).abs().mean(), first.weight)
    assert program.samples == 7, "a unit is normalised by itself"


def test_time_in_front_of_the_batch_is_not_taken_for_samples():
    first, second, x = nn.Linear(4, 5), nn.Linear(5, 3), torch.randn(50, 7, 4)

    def run():
        total, h = 0, torch.tanh(first(x))
        for step in h:
            total = 0.5 * total + second(step)
        return total.square().mean()

    assert compiled(run, first.weight)[1].samples == 7


def test_rows_of_one_axis_are_units_and_of_several_are_none():
    labels = Labels()
    a, b = labels.fresh(3), labels.fresh(4)
    axes = {0: (a, b), 1: (a,), 2: (b, a), 3: (a, a)}
    assert unit_of(labels, axes, {0: 0, 1: 0}) == a[0]
    assert unit_of(labels, axes, {0: 0, 2: 0}) is None
    assert unit_of(labels, axes, {0: 0, 1: None}) is None
    assert unit_of(labels, axes, {3: 0}) is None, "a row of a square that meets its transpose is no place of it"


def test_what_is_within_a_unit_ends_at_the_next_product():
    first, second, x = nn.Linear(4, 5), nn.Linear(5, 3), torch.randn(7, 4)
    tape, program = compiled(lambda: second(torch.relu(first(x))).square().mean(), first.weight, first.bias)
    numbers = [step.number for step in program.steps]
    needed = {program.loss} | {index for number in numbers for index in tape.operations[number].operands}
    local = within_unit(tape, numbers, needed, program.axes, program.flows, program.unit)
    assert [str(tape.operations[number].function) for number in sorted(local)] == [
        "aten.t.default",
        "aten.addmm.default",
        "aten.relu.default",
    ]
    assert within_unit(tape, numbers, needed, program.axes, program.flows, None) == set()
