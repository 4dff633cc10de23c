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
    ((parameter, inputs),) = found(run, [WEIGHT])
    assert parameter is WEIGHT
    assert torch.equal(inputs.reshape(6, 3), X)


def test_every_use_in_its_order():
    pairs = found(lambda: functional.linear(torch.tanh(functional.linear(X, WEIGHT)), WEIGHT.t()[:, :4]), [WEIGHT])
    assert len(pairs) == 1, "columns are no rows"
    first, second = found(lambda: (functional.linear(X, WEIGHT), functional.linear(2 * X, WEIGHT)), [WEIGHT])
    assert torch.equal(2 * first[1], second[1])


@pytest.mark.parametrize("run", [lambda: X * WEIGHT[0], lambda: WEIGHT @ X.t(), (X * 2).sum])
def test_what_is_no_such_product_has_none(run):
    assert found(run, [WEIGHT]) == []


def test_recurrent_layers():
    lstm, x = nn.LSTM(3, 2), torch.randn(5, 6, 3)
    pairs = found(lambda: lstm(x), [lstm.weight_ih_l0, lstm.weight_hh_l0])
    driven = [inputs for parameter, inputs in pairs if parameter is lstm.weight_ih_l0]
    assert torch.equal(torch.cat(driven).reshape(5, 6, 3), x)
    hidden = [inputs for parameter, inputs in pairs if parameter is lstm.weight_hh_l0]
    assert len(hidden) == 5
    torch.testing.assert_close(torch.stack(hidden[1:]), lstm(x)[0][:-1].detach())
