"""Weights that act by their signs alone are told from those whose sizes matter; a flip does what it does in a step."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep.tape import acts_by_signs, entries_of, opposites
from tests.helpers.tapes import compiled


class Quantised(nn.Module):
    """A layer, or filters, whose weights become something else on the way."""

    def __init__(self, quantise, shape=(5, 6), bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape, dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(shape[0], dtype=torch.float64)) if bias else None
        self.quantise = quantise

    def forward(self, x):
        multiply = F.linear if self.weight.ndim == 2 else F.conv2d
        return multiply(x, self.quantise(self.weight), self.bias)


def binary(weight):
    return torch.where(weight >= 0, 0.5, -0.5).to(weight)


def masked(weight):
    return weight.sign() * (torch.arange(weight.numel()).reshape(weight.shape) % 3 > 0)


def of_rows(weight, statistic):
    return statistic(weight.flatten(1)).reshape(-1, *[1] * (weight.ndim - 1))


def xnor(weight):
    return weight.sign() * of_rows(weight, lambda rows: rows.abs().mean(1))


def centred(weight):
    return (weight - of_rows(weight, lambda rows: rows.mean(1))).sign()


def ternary(weight):
    return weight.sign() * (weight.abs() > of_rows(weight, lambda rows: 0.7 * rows.abs().mean(1)))


def four_bits(weight):
    scale = of_rows(weight, lambda rows: rows.abs().amax(1)) / 7
    return (weight / scale).round().clamp(-7, 7) * scale


BY_SIGNS = [binary, torch.sign, masked, xnor, lambda weight: (weight > 0).to(weight), lambda weight: 3 - binary(weight)]
BY_SIZE = [
    lambda weight: weight * 2,
    torch.tanh,
    ternary,
    four_bits,
    centred,
    lambda weight: weight / of_rows(weight, lambda rows: rows.norm(dim=1)),
    lambda weight: weight.clamp(-0.1, 0.1),
    lambda weight: torch.zeros_like(weight) * weight.sign(),
]


def read(module):
    x = torch.randn(7, 6).double() if module.weight.ndim == 2 else torch.randn(7, 2, 4, 5).double()
    with torch.no_grad():
        tape, program = compiled(lambda: module(x).square().flatten(1).sum(1).mean(), *module.parameters())
    return tape, entries_of(tape, program, [tape.leaves[id(each)] for each in module.parameters()])


@pytest.mark.parametrize("shape", [(5, 6), (5, 2, 3, 2)], ids=["rows", "filters"])
@pytest.mark.parametrize("bias", [True, False])
def test_sizes_of_binary_weights_do_not_matter(shape, bias):
    torch.manual_seed(0)
    assert all(acts_by_signs(*read(Quantised(quantise, shape, bias))) for quantise in BY_SIGNS)


@pytest.mark.parametrize("shape", [(5, 6), (5, 2, 3, 2)], ids=["rows", "filters"])
@pytest.mark.parametrize("place", range(len(BY_SIZE)))
def test_those_of_others_do(shape, place):
    torch.manual_seed(0)
    assert not acts_by_signs(*read(Quantised(BY_SIZE[place], shape)))


def test_weights_as_they_are_and_biases_alone_have_sizes():
    torch.manual_seed(0)
    assert not acts_by_signs(*read(Quantised(lambda weight: weight)))
    module = Quantised(binary)
    tape, program = compiled(lambda: module(torch.randn(7, 6).double()).square().sum(1).mean(), module.bias)
    assert not acts_by_signs(tape, entries_of(tape, program, [tape.leaves[id(module.bias)]]))


@pytest.mark.parametrize("quantise", [binary, masked, xnor])
@pytest.mark.parametrize("shape", [(5, 6), (5, 2, 3, 2)], ids=["rows", "filters"])
def test_a_flip_changes_what_is_multiplied_as_it_does_in_a_step(quantise, shape):
    torch.manual_seed(0)
    module = Quantised(quantise, shape)
    tape, entries = read(module)
    (weight,) = {each.weight for each in entries.products}
    found, before = opposites(tape, entries)[weight], quantise(module.weight.detach())
    for row, number in [(0, 0), (2, 4), (4, 5)]:
        latent = module.weight.detach().clone()
        latent.flatten(1)[row, number] *= -1
        expected = (quantise(latent) - before).flatten(1)[row]
        torch.testing.assert_close(found[row, number], expected[number])
    assert opposites(tape, entries)[weight] is found
