"""Where rows enter a step, and as what, is on the tape, whatever was done to them before."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune

from lightning_polystep.tape import added_by_rows, products_of, summed_over_places
from tests.helpers.tapes import blocks_of, record


class Doubled(nn.Module):
    """A constraint of its author's."""

    def forward(self, weight):
        return 2 * weight.tanh()


def pruned():
    layer = nn.Linear(6, 5)
    prune.random_unstructured(layer, "weight", 0.5)
    return layer


def constrained():
    layer = nn.Linear(6, 5)
    parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 5), pruned, constrained], ids=["plain", "pruned", "constrained"])
def test_rows_as_they_are_multiplied(make):
    torch.manual_seed(0)
    layer, x = make().double(), torch.randn(7, 6).double()
    recording, _, _ = record(layer, lambda: layer(x).square().mean())
    block = max(blocks_of(layer), key=lambda block: block.dim)
    entries, _ = recording.entries(block)
    assert len(entries.products) == 1
    (weight,) = (p for p in block.parameters if p.ndim == 2)
    row, change = torch.tensor([3]), torch.randn(1, 6).double()
    tape, before = recording.taken(), layer.weight.detach().clone()
    given = {tape.leaves[id(weight)]: (weight.detach()[row] + change)[:, None]}
    bias = [p for p in block.parameters if p.ndim == 1]
    given |= {tape.leaves[id(p)]: p.detach()[row][:, None] for p in bias}
    found = entries.rows_as_multiplied(tape, row, given)
    with torch.no_grad():
        weight[row] += change
    after = layer(torch.eye(6).double()) - layer(torch.zeros(1, 6).double())
    torch.testing.assert_close(found[entries.products[0].weight][0], after[:, 3] - before[3])


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(2, 4, 3, stride=2, padding=1), (7, 2, 8, 9)),
        (nn.Conv2d(2, 4, (2, 3), dilation=(2, 1)), (7, 2, 8, 9)),
        (nn.Conv2d(2, 4, 3, stride=3), (7, 2, 8, 7)),
        (nn.Conv1d(2, 4, 3, stride=2, padding=2), (7, 2, 9)),
        (nn.Linear(3, 4), (7, 3)),
    ],
    ids=["stride", "dilation", "pixels left over", "rows", "linear"],
)
def test_what_rows_add_and_what_places_say_of_rows(layer, shape):
    x = torch.randn(shape, dtype=torch.float64)
    recording, _, _ = record(layer.double(), lambda: layer(x).square().mean())
    entries, _ = recording.entries(blocks_of(layer)[0])
    (entry,) = entries.products
    out = added_by_rows(recording.taken(), entry, layer.weight.detach().flatten(1))
    made = layer(x)
    expected = made.detach() - layer.bias.detach().reshape(1, -1, *[1] * (x.ndim - 2))
    torch.testing.assert_close(out.transpose(0, 1).reshape(expected.shape), expected)
    said = torch.randn_like(made)
    by_row = summed_over_places(recording.taken(), entry, said.transpose(0, 1).reshape(4, 7, -1))
    (expected,) = torch.autograd.grad(made, layer.weight, said)
    torch.testing.assert_close(by_row, expected.flatten(1))


@pytest.mark.parametrize(
    "loss",
    [
        lambda layer, x: layer(x).square().mean() + layer.weight.square().sum(),
        lambda layer, x: (layer(x) * layer.weight.sum()).mean(),
    ],
    ids=["a penalty", "a scale"],
)
def test_rows_that_act_in_other_ways_too_are_left_alone(loss):
    layer, x = nn.Linear(6, 5), torch.randn(7, 6)
    recording, _, _ = record(layer, lambda: loss(layer, x))
    assert recording.entries(blocks_of(layer)[0]) is None


class LateBias(nn.Linear):
    """Its bias is added behind a scale; what it is added to may go elsewhere too."""

    def __init__(self, twice=False, scale=2.0):
        super().__init__(6, 5)
        self.twice, self.scale = twice, scale

    def forward(self, x):
        made = F.linear(x, self.weight)
        return made * self.scale + self.bias + (made.square() if self.twice else 0.0)


def test_a_bias_behind_a_scale_is_a_part_of_its_product_if_nothing_else_reads_that():
    x = torch.randn(5, 6)  # as many samples as units

    def entries(**options):
        layer = LateBias(**options)
        recording, _, _ = record(layer, lambda: layer(x).square().mean())
        return recording.entries(blocks_of(layer)[0]), recording

    (found, _), recording = entries()
    (entry,) = found.products
    assert entry.bias is not None
    assert entry.gain(recording.taken()) == 2.0
    assert entries(twice=True)[0] is None
    assert entries(scale=torch.rand(5, 1))[0] is None
    (found, _), recording = entries(scale=torch.arange(1.0, 6.0))
    assert torch.equal(found.products[0].gain(recording.taken()), torch.arange(1.0, 6.0))


def test_groups_of_channels_are_left_alone():
    layer, x = nn.Conv2d(4, 4, 3, groups=2), torch.randn(7, 4, 6, 6)
    recording, _, _ = record(layer, lambda: layer(x).square().mean())
    for block in blocks_of(layer):
        assert block.dim == 1 or recording.entries(block) is None


@pytest.mark.parametrize(("loss", "compete"), [(F.cross_entropy, True), (F.multi_margin_loss, False)])
def test_scores_of_a_softmax_compete(loss, compete):
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    x, y = torch.randn(7, 6), torch.arange(7) % 3
    recording, _, _ = record(net, lambda: loss(net(x), y))
    first, last = (recording.script(block).program.competes(recording.taken()) for block in blocks_of(net))
    assert (first, last) == (False, compete)


class Strided(nn.Module):
    """Reads inputs that lie apart in memory, as every token but the last, of which torch makes a product and a sum."""

    def __init__(self, twice=False):
        super().__init__()
        self.layer, self.twice = nn.Linear(5, 4), twice

    def forward(self, x):
        made = self.layer(x[:, :-1])
        return made + self.layer.bias if self.twice else made


@pytest.mark.parametrize("twice", [False, True])
def test_the_bias_of_a_linear_of_strided_inputs_is_a_part_of_its_product(twice):
    torch.manual_seed(0)
    net, x = Strided(twice), torch.randn(6, 3, 5)
    recording, _, _ = record(net, lambda: net(x).square().mean())
    tape, (block,) = recording.taken(), blocks_of(net)
    weight, bias = recording.leaves_of(block)
    assert any(operation.function is torch.ops.aten.mm.default for operation in tape.operations)
    products = products_of(tape, recording.leaves_of(block))
    if twice:
        assert products is None
    else:
        ((_, _, *rows),) = [each[:4] for each in products]
        assert rows == [weight, bias]
        assert recording.entries(block)[0].products == products
