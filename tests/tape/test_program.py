"""A program tells where its axes are, what mixes them, and of which tapes it holds."""

import torch
from torch import nn
from torch.nn import functional as F

from tests.helpers.tapes import compiled


def two_layers():
    first, second, x, y = nn.Linear(4, 5), nn.Linear(5, 3), torch.randn(7, 4), torch.randint(3, (7,))
    return first, second, lambda: F.cross_entropy(second(torch.relu(first(x))), y)


def test_axes_of_units_and_samples_are_told_by_value():
    first, _, run = two_layers()
    tape, program = compiled(run, first.weight)
    hidden = next(i for i, value in enumerate(tape.values) if value.tensor.shape == (7, 5))
    assert program.position(hidden, program.sample) == 0
    assert program.position(hidden, program.unit) == 1
    assert program.position(hidden, None) is None
    assert program.slots(hidden) == [program.sample, program.unit]


def test_products_mix_units_and_activations_do_not():
    first, _, run = two_layers()
    tape, program = compiled(run, first.weight)
    numbers = {str(tape.operations[step.number].function): step.number for step in program.steps}
    last = max(number for name, number in numbers.items() if "addmm" in name)
    assert program.mixes(program.operation(tape, last), last, program.unit)
    relu = numbers["aten.relu.default"]
    assert not program.mixes(program.operation(tape, relu), relu, program.unit)


def test_only_units_that_meet_in_a_softmax_compete():
    first, second, run = two_layers()
    for layer, competes in ((first, False), (second, True)):
        tape, program = compiled(run, layer.weight)
        assert program.competes(tape) == competes


def test_a_program_holds_for_a_tape_of_the_same_numbers_only():
    weight = nn.Parameter(torch.ones(4))

    def run(scale):
        scaled = weight * scale
        return scaled.sum()

    _, program = compiled(lambda: run(0.5), weight)
    assert program.holds_for(compiled(lambda: run(0.5), weight)[0])
    assert not program.holds_for(compiled(lambda: run(0.25), weight)[0])
