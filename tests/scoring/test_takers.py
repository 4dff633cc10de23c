"""What takes in what units pass on, one kind at a time."""

import torch
from torch import nn

from lightning_polystep.scoring.mirror import Mirror
from lightning_polystep.scoring.takers import Met, Moment, Multiplied, Readout
from lightning_polystep.tape import product_of
from tests.helpers.tapes import record


class Fixed:
    """A layer whose slopes are given."""

    def __init__(self, slopes, *, learns=False):
        self.slopes, self.learns, self.learned = slopes, learns, 0

    def slopes_by_made(self, moment):
        return self.slopes

    def learn(self, moment):
        self.learned += 1


def setting(run):
    torch.manual_seed(0)
    net, x = nn.Linear(6, 5, bias=False).double(), torch.randn(7, 6).double()
    recording, _, _ = record(net, lambda: run(net(x)).sum(1).mean())
    return net, recording.taken()


def test_the_readout_takes_in_by_its_weights():
    net, tape = setting(lambda out: out.square())
    (product,) = [each for each in (product_of(tape, one) for one in tape.operations) if each is not None]
    slopes = torch.randn(7, 5).double()
    taker = Readout(product.inputs, product.made, product.weight)
    assert not taker.learns
    torch.testing.assert_close(
        taker.worth(Moment(tape, {product.made: slopes}, (0, 0, 0))), slopes @ net.weight.detach()
    )


def test_a_later_product_takes_in_by_its_mirror_which_learns_with_all_behind():
    net, tape = setting(lambda out: out.square())
    (product,) = [each for each in (product_of(tape, one) for one in tape.operations) if each is not None]
    slopes, mirror = torch.randn(7, 5).double(), Mirror("layer", {})
    layer = Fixed({product.made: slopes})
    taker = Multiplied(product.inputs, product, layer, mirror)
    assert taker.learns
    for step in range(30):
        taker.learn(Moment(tape, {}, (0, step, 0)))
    assert layer.learned == 30
    worth = taker.worth(Moment(tape, {}, (0, 30, 0)))
    torch.testing.assert_close(worth, slopes @ net.weight.detach(), rtol=1e-4, atol=1e-4)


def test_what_meets_itself_counts_at_both_places():
    _, tape = setting(lambda out: out * out)
    operation = next(each for each in tape.operations if each.function is torch.ops.aten.mul.Tensor)
    sink, slopes = operation.operands[0], torch.randn(7, 5).double()
    for learns in (False, True):
        taker = Met(sink, operation, Fixed({operation.outputs[0]: slopes}, learns=learns))
        assert taker.learns == learns
        worth = taker.worth(Moment(tape, {}, (0, 0, 0)))
        torch.testing.assert_close(worth, 2 * slopes * tape.values[sink].tensor)
