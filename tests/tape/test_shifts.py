"""Products that take a parameter as it is are found, and nothing else is taken for one."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.helpers.tapes import blocks_of, record

X = torch.randn(6, 4)


def script(layer, run):
    recording, _, _ = record(layer, lambda: run(layer).square().mean())
    return recording.script(blocks_of(layer)[0])


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_shifted_by_its_rows(bias):
    found = script(nn.Linear(4, 3, bias=bias), lambda layer: torch.tanh(layer(X)))
    assert found.shifts_only
    assert [product.columns for product in found.products] == [(0, 1) if bias else (0,)]


def test_a_layer_at_each_of_several_times_is_shifted_at_each():
    found = script(nn.Linear(4, 3), lambda layer: sum(torch.tanh(layer(X * t)) for t in range(1, 4)))
    assert len(found.products) == 3
    assert found.shifts_only


@pytest.mark.parametrize(
    "run",
    [
        lambda layer: layer(X) + layer.weight.abs().sum(),
        lambda layer: layer(X) * layer.bias,
        lambda layer: F.linear(X, layer.weight * 0.5, layer.bias),
        lambda layer: torch.addmm(layer.bias, X, layer.weight.t(), alpha=0.5),
    ],
)
def test_a_parameter_that_something_else_reads_is_given_as_a_whole(run):
    assert not script(nn.Linear(4, 3), run).shifts_only


def test_convolutions_are_no_products_of_rows():
    conv = nn.Conv1d(2, 3, 2)
    assert not script(conv, lambda layer: layer(X.view(6, 2, 2))).products
