"""What lies between some values and the loss, and what cannot be repeated of it."""

import pytest
import torch
from torch import nn

from lightning_polystep.tape import NotOnTapeError, Recorder, compile_program
from lightning_polystep.tape.dependence import operations_between
from tests.helpers.tapes import compiled


def test_only_what_leads_from_the_values_to_the_loss_lies_between():
    weight, other = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    with torch.no_grad(), Recorder() as recorder:
        beside = weight.exp()
        loss = ((weight * 2) + other.sin()).sum()
    tape = recorder.tape
    numbers, reached = operations_between(tape, {tape.leaves[id(weight)]}, tape.find(loss))
    names = [str(tape.operations[number].function) for number in numbers]
    assert names == ["aten.mul.Tensor", "aten.add.Tensor", "aten.sum.default"]
    assert tape.find(beside) in reached
    assert tape.leaves[id(other)] not in reached
    assert operations_between(tape, {tape.find(beside)}, tape.find(loss))[0] == []


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
