"""Operations that are recorded as simpler ones give the same numbers."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep.tape import Recorder
from lightning_polystep.tape.decompositions import running_statistics

# Drawn when this file is collected: the same after any others. Labels that are all left out have no mean.
DRAW = torch.Generator().manual_seed(0)
X, Y = torch.randn(6, 4, dtype=torch.float64, generator=DRAW), torch.randint(4, (6,), generator=DRAW)
NUMBERS = torch.rand(6, 4, dtype=torch.float64, generator=DRAW)


def recorded(run):
    with torch.no_grad(), Recorder() as recorder:
        result = run()
    return result, [str(operation.function) for operation in recorder.tape.operations]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    "loss",
    [
        lambda r: F.mse_loss(X, NUMBERS, reduction=r),
        lambda r: F.smooth_l1_loss(X, NUMBERS, reduction=r),
        lambda r: F.huber_loss(X, NUMBERS, reduction=r, delta=0.5),
        lambda r: F.binary_cross_entropy(X.sigmoid(), NUMBERS, reduction=r),
        lambda r: F.binary_cross_entropy_with_logits(X, NUMBERS, reduction=r),
        lambda r: F.soft_margin_loss(X, NUMBERS.sign(), reduction=r),
        lambda r: F.multi_margin_loss(X, Y, reduction=r, margin=0.7),
        lambda r: F.cross_entropy(X, Y, reduction=r),
        lambda r: F.cross_entropy(X, Y.where(Y > 0, -100), weight=X[0].exp(), reduction=r),
        lambda r: F.cross_entropy(X[..., None, None].expand(6, 4, 2, 3), Y[:, None, None].expand(6, 2, 3), reduction=r),
        lambda r: F.nll_loss(X.log_softmax(1), Y, reduction=r),
    ],
)
def test_a_loss_is_recorded_as_that_of_each_sample_and_how_they_are_taken_together(loss, reduction):
    result, operations = recorded(lambda: loss(reduction))
    assert torch.equal(result, loss(reduction)), "a step goes on with the bits that it would have"
    if reduction != "none":
        assert any(name.startswith(("aten.sum", "aten.mean")) for name in operations)


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"num_layers": 2, "bias": False}])
def test_lstm_step_by_step_is_lstm(options):
    lstm, x = nn.LSTM(4, 3, **options), torch.randn(5, 6, 4)
    (sequence, (hidden, cell)), operations = recorded(lambda: lstm(x))
    with torch.no_grad():
        expected = lstm(x)
    for given, wanted in zip((sequence, hidden, cell), (expected[0], *expected[1]), strict=True):
        assert torch.equal(given, wanted)
    assert not any("rnn" in name for name in operations)


def test_dropout_of_one_kernel_is_a_product_with_its_mask():
    torch.manual_seed(1)
    (out, mask), operations = recorded(lambda: torch.native_dropout(X, 0.4, True))
    torch.manual_seed(1)
    expected, same = torch.native_dropout(X, 0.4, True)
    assert torch.equal(mask, same)
    torch.testing.assert_close(out, expected)
    assert set(operations) == {"aten.mul.Tensor"}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("_foreach_mul", ([X, NUMBERS], 2.0)),
        ("_foreach_add", ([X, NUMBERS], [NUMBERS, X])),
        ("_foreach_mul", ([X, NUMBERS], [2.0, 3.0])),
        ("_foreach_addcmul", ([X, NUMBERS], [X, X], [NUMBERS, NUMBERS], [2.0, 3.0])),
        ("_foreach_lerp", ([X, NUMBERS], [NUMBERS, X], 0.3)),
        ("_foreach_tanh", ([X, NUMBERS],)),
    ],
)
def test_operations_on_lists_are_recorded_one_by_one(name, arguments):
    result, operations = recorded(lambda: getattr(torch, name)(*arguments))
    expected = getattr(torch, name)(*arguments)
    assert all(torch.equal(one, other) for one, other in zip(result, expected, strict=True))
    assert len(operations) == 2
    in_place = [[t.clone() for t in arguments[0]], *arguments[1:]]
    recorded(lambda: getattr(torch, f"{name}_")(*in_place))
    assert all(torch.equal(one, other) for one, other in zip(in_place[0], expected, strict=True))


def test_running_statistics_are_those_that_batch_norm_writes():
    norm, x = nn.BatchNorm1d(4, momentum=0.3).double(), X
    before = norm.running_mean.clone(), norm.running_var.clone()
    with torch.no_grad():
        norm(x)
    mean, variance = running_statistics(x, None, None, *before, True, 0.3, 1e-5)
    torch.testing.assert_close(mean, norm.running_mean)
    torch.testing.assert_close(variance, norm.running_var)
