"""Stages and levels of operations, and what is read across them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep.tape.program import Stage
from tests.helpers.tapes import compiled


def test_a_network_of_two_layers_has_units_then_samples_then_a_number():
    first, second, x, y = nn.Linear(4, 5), nn.Linear(5, 3), torch.randn(7, 4), torch.randint(3, (7,))
    _, program = compiled(lambda: F.cross_entropy(second(torch.relu(first(x))), y), first.weight, first.bias)
    assert program.samples == 7
    assert program.levels == 1
    stages = [step.stage for step in program.steps]
    assert stages == sorted(stages)
    assert {Stage.UNIT, Stage.SAMPLE, Stage.WHOLE} == set(stages)


@pytest.mark.parametrize(("activation", "first", "last"), [(torch.sign, 3, 1), (torch.relu, 3, 1), (torch.tanh, 1, 1)])
def test_each_product_behind_begins_a_level_where_a_change_may_have_gone(activation, first, last):
    layers, x = [nn.Linear(4, 4) for _ in range(4)], torch.randn(7, 4)

    def run():
        h = x
        for layer in layers:
            h = activation(layer(h))
        return h.square().mean()

    assert compiled(run, layers[0].weight)[1].levels == first
    assert compiled(run, layers[3].weight)[1].levels == last


def test_sums_over_samples_run_with_their_level_and_all_else_behind():
    first, second, x = nn.Linear(4, 5), nn.Linear(5, 3), torch.randn(7, 4)
    _, program = compiled(lambda: second(torch.relu(first(x))).square().mean().sqrt(), first.weight)
    *_, summed, root = program.steps
    assert (summed.sums_samples, summed.level) == (True, 1)
    assert (root.stage, root.sums_samples) == (Stage.WHOLE, False)


def test_a_level_reads_what_comes_out_of_the_unit():
    first, second, x = nn.Linear(4, 5), nn.Linear(5, 3), torch.randn(7, 4)
    tape, program = compiled(lambda: second(torch.relu(first(x))).square().mean(), first.weight)
    (made,) = (
        tape.operations[s.number].outputs[0] for s in program.steps if "relu" in str(tape.operations[s.number].function)
    )
    assert program.exits == {1: [made]}
    assert program.home[made] == (Stage.UNIT, 0)
    assert program.home[program.loss] == (Stage.WHOLE, 0)
