"""What the rows of a parameter are multiplied with is on the tape, whoever wrote the layer."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_polystep.tape import Recorder, factors_of

WEIGHT, BIAS, X = torch.randn(4, 3), torch.randn(4), torch.randn(6, 3)


def found(run, parameters):
    with torch.no_grad(), Recorder() as recorder:
        run()
    return list(factors_of(recorder.tape, parameters))


@pytest.mark.parametrize(
    "run",
    [
        lambda: functional.linear(X, WEIGHT),
        lambda: functional.linear(X, WEIGHT, BIAS),
        lambda: X @ WEIGHT.t(),
        lambda: torch.addmm(BIAS, X, WEIGHT.t()),
        lambda: functional.linear(X.reshape(2, 3, 3), WEIGHT, BIAS),
    ],
    ids=["linear", "with bias", "matmul", "addmm", "more axes"],
)
def test_rows_of_a_matrix(run):
    (product,) = found(run, [WEIGHT])
    assert product.parameter is WEIGHT
    assert torch.equal(product.rows().reshape(6, 3), X)


def test_every_use_in_its_order():
    pairs = found(lambda: functional.linear(torch.tanh(functional.linear(X, WEIGHT)), WEIGHT.t()[:, :4]), [WEIGHT])
    assert len(pairs) == 1, "columns are no rows"
    first, second = found(lambda: (functional.linear(X, WEIGHT), functional.linear(2 * X, WEIGHT)), [WEIGHT])
    assert torch.equal(2 * first.inputs, second.inputs)


@pytest.mark.parametrize("run", [lambda: X * WEIGHT[0], lambda: WEIGHT @ X.t(), (X * 2).sum])
def test_what_is_no_such_product_has_none(run):
    assert found(run, [WEIGHT]) == []


def test_recurrent_layers():
    lstm, x = nn.LSTM(3, 2), torch.randn(5, 6, 3)
    pairs = found(lambda: lstm(x), [lstm.weight_ih_l0, lstm.weight_hh_l0])
    driven = [inputs for parameter, inputs, _ in pairs if parameter is lstm.weight_ih_l0]
    assert torch.equal(torch.cat(driven).reshape(5, 6, 3), x)
    hidden = [inputs for parameter, inputs, _ in pairs if parameter is lstm.weight_hh_l0]
    assert len(hidden) == 5
    torch.testing.assert_close(torch.stack(hidden[1:]), lstm(x)[0][:-1].detach())


MASK = torch.rand(4, 3) > 0.5


@pytest.mark.parametrize(
    "made",
    [
        lambda: WEIGHT * MASK,
        lambda: WEIGHT.masked_fill(MASK, 0.0),
        lambda: WEIGHT + (WEIGHT.sign() - WEIGHT).detach(),
        lambda: WEIGHT.clamp(-1, 1).mul(127).round() / 127,
        lambda: WEIGHT / WEIGHT.norm(dim=1, keepdim=True),
    ],
    ids=["mask", "filled", "straight-through", "quantised", "normalised"],
)
def test_what_lies_between_a_matrix_and_its_product_hides_no_inputs(made):
    (product,) = found(lambda: functional.linear(X, made(), BIAS), [WEIGHT])
    assert product.parameter is WEIGHT
    assert torch.equal(product.rows(), X)


def test_a_sum_of_two_matrices_is_of_neither():
    other = torch.randn(4, 3)
    assert found(lambda: functional.linear(X, WEIGHT + other), [WEIGHT, other]) == []


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"dilation": 2}])
def test_filters_are_multiplied_with_patches(dims, options):
    convolve = functional.conv1d if dims == 1 else functional.conv2d
    filters, images = torch.randn(5, 3, *[3] * dims), torch.randn(2, 3, *[8] * dims)
    (product,) = found(lambda: convolve(images, filters * 2, torch.randn(5), **options), [filters])
    expected = convolve(images, filters, **options).transpose(0, 1).flatten(1)
    torch.testing.assert_close(filters.flatten(1) @ product.rows().T, expected, rtol=1e-5, atol=1e-5)


def test_of_many_patches_some_are_taken():
    filters, images = torch.randn(2, 1, 3, 3), torch.randn(40, 1, 34, 34)
    (product,) = found(lambda: functional.conv2d(images, filters), [filters])
    assert 4000 < len(product.rows()) <= 10_240


def test_filters_with_a_channel_each_have_no_inputs_in_common():
    filters, images = torch.randn(3, 1, 3, 3), torch.randn(2, 3, 8, 8)
    assert found(lambda: functional.conv2d(images, filters, groups=3), [filters]) == []
