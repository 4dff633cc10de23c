"""A program knows what stays within a unit, which axis holds samples, and what cannot be repeated."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep.tape import NotOnTapeError, Recorder, compile_program
from lightning_polystep.tape.program import Stage


def compiled(run, *parameters, axis=0):
    with torch.no_grad(), Recorder() as recorder:
        loss = run()
    tape = recorder.tape
    rows = {tape.leaves[id(parameter)]: axis for parameter in parameters}
    return tape, compile_program(tape, rows, tape.find(loss))


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


def test_equal_operations_run_once():
    layer, x = nn.Linear(4, 3), torch.randn(5, 4)
    tape, program = compiled(lambda: sum((layer(x) * t).sum() for t in range(6)), layer.weight)
    products = [s for s in program.steps if "mm" in str(tape.operations[s.number].function)]
    assert len(products) == 1
    assert len(program.merged) == 10


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (lambda w: torch.zeros(()) + 1, "does not depend on it"),
        (lambda w: torch.bernoulli(w.sigmoid()).sum(), "draws at random what depends on it"),
        (lambda w: torch.normal(w, 1.0).sum(), "draws at random what depends on it"),
        (lambda w: w[w > 0].sum(), "how many values aten.index.Tensor returns depends on it"),
        (lambda w: w.masked_select(w > 0).sum(), "how many values aten.masked_select.default returns depends on it"),
        (lambda w: w.long().unique().sum().float(), "how many values"),
        (lambda w: (w > 0).nonzero().sum().float(), "how many values aten.nonzero.default returns depends on it"),
        (lambda w: (torch.empty(4) + w.sum()).sum(), "code that the tape does not see"),
    ],
)
def test_what_cannot_be_repeated_is_refused_with_the_reason(run, reason):
    weight = nn.Parameter(torch.linspace(-1, 1, 4))
    with torch.no_grad(), Recorder() as recorder:
        weight * 1
        loss = run(weight)
    with pytest.raises(NotOnTapeError, match=reason):
        compile_program(recorder.tape, {recorder.tape.leaves[id(weight)]: 0}, recorder.tape.find(loss))


def test_random_draws_that_depend_on_no_parameter_are_noise():
    weight = nn.Parameter(torch.ones(4))

    def run():
        noisy = weight * torch.bernoulli(torch.full((4,), 0.5)) + torch.randn_like(weight)
        return noisy.sum()

    compiled(run, weight)


def test_masks_and_indices_that_are_data_pick_what_they_picked():
    weight = nn.Parameter(torch.ones(4))
    mask = torch.tensor([True, False, True, True])
    compiled(lambda: weight[mask].sum() + weight.masked_select(mask).sum() + weight[torch.tensor([0, 0])].sum(), weight)


def test_only_numbers_that_depend_on_the_parameters_are_doubted():
    weight, other = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))

    def run():
        (other * 2).sum().item()
        return (weight * 2).sum() + (other * 3).sum()

    assert not compiled(run, weight)[1].escapes
    assert compiled(run, other)[1].escapes


def test_a_program_holds_for_a_tape_of_the_same_numbers_only():
    weight = nn.Parameter(torch.ones(4))

    def run(scale):
        scaled = weight * scale
        return scaled.sum()

    _, program = compiled(lambda: run(0.5), weight)
    assert program.holds_for(compiled(lambda: run(0.5), weight)[0])
    assert not program.holds_for(compiled(lambda: run(0.25), weight)[0])
