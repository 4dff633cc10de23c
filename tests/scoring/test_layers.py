"""Layers from the last to the first: what is told of all of them, against the derivative where there is one."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep.scoring import alike as alike_module
from lightning_polystep.scoring import answers as answers_module
from lightning_polystep.scoring import scores as scores_module
from lightning_polystep.scoring.layer import Layer, Radii
from lightning_polystep.scoring.layers import Layers
from lightning_polystep.scoring.scores import Scores
from lightning_polystep.scoring.slopes import add_slopes
from lightning_polystep.scoring.takers import Moment
from lightning_polystep.tape import NotOnTapeError
from tests.helpers.tapes import blocks_of, record


class Smooth(nn.Module):
    def forward(self, x):
        return x.tanh()


class OverTime(nn.Module):
    """Two layers that leak, at three times."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        one, two, total = 0.0, 0.0, 0.0
        for time in range(3):
            one = 0.5 * one + self.first(x.roll(time, 1))
            two = 0.7 * two + self.second(one.tanh())
            total = total + self.head(two.tanh())
        return total


class Residual(nn.Module):
    """Two blocks with a shortcut, as of images or of transformers, behind a first layer."""

    def __init__(self, layer, norm, *, norm_first):
        super().__init__()
        self.first, self.one, self.two, self.third = layer(1), layer(5), layer(5), layer(5)
        self.norms, self.norm_first = nn.ModuleList([norm(), norm()]), norm_first
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        x = self.first(x)
        for layer, norm in zip((self.one, self.two), self.norms, strict=True):
            x = x + layer(norm(x).tanh()) if self.norm_first else norm(x + layer(x.tanh()))
        x = self.third(x.tanh()).tanh()
        return self.head(x.flatten(2).mean(2) if x.ndim == 4 else x.mean(1))


class Gated(nn.Module):
    """Two layers decide how much another passes on."""

    def __init__(self):
        super().__init__()
        self.first, self.value, self.head = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 3)
        self.gate = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 5))

    def forward(self, x):
        seen = self.first(x).tanh()
        return self.head((seen * self.gate(seen).sigmoid() - self.value(x)).tanh())


class Attending(nn.Module):
    """One layer of attention over tokens, with two heads, in plain operations."""

    def __init__(self):
        super().__init__()
        self.first, self.heads, self.mix, self.head = (
            nn.Linear(6, 8),
            nn.Linear(8, 24),
            nn.Linear(8, 8),
            nn.Linear(8, 3),
        )

    def forward(self, x):
        x = self.first(x).tanh()
        q, k, v = self.heads(x).chunk(3, dim=-1)
        q, k, v = (each.reshape(*each.shape[:2], 2, 4).transpose(1, 2) for each in (q, k, v))
        seen = (q @ k.mT / 2).softmax(-1) @ v
        x = x + self.mix(seen.transpose(1, 2).flatten(2))
        return self.head(x.tanh().mean(1))


class ProjectedApart(Attending):
    """The same with a projection of its own each for queries, keys and values."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        x = self.first(x).tanh()
        q, k, v = (each(x).unflatten(-1, (2, 4)).transpose(1, 2) for each in self.heads)
        seen = (q @ k.mT / 2).softmax(-1) @ v
        x = x + self.mix(seen.transpose(1, 2).flatten(2))
        return self.head(x.tanh().mean(1))


class Recurrent(nn.Module):
    """Reads a series and remembers, by gates or without."""

    def __init__(self, cell):
        super().__init__()
        self.cell, self.head = cell(6, 4), nn.Linear(4, 3)

    def forward(self, x):
        state = None
        for at in range(x.shape[1]):
            state = self.cell(x[:, at], state)
        return self.head(state[0] if isinstance(state, tuple) else state)


def convolution(channels):
    return nn.Conv2d(channels, 5, 3, padding=1)


def token(width):
    return nn.Linear(6 if width == 1 else width, 5)


NETS = {
    "deep": (lambda: nn.Sequential(
        nn.Linear(6, 5), Smooth(), nn.Linear(5, 5), Smooth(), nn.Linear(5, 4), Smooth(), nn.Linear(4, 3)), (40, 6)),
    "convolutions": (lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), Smooth(), nn.AvgPool2d(2), nn.Conv2d(4, 5, 2, stride=2), Smooth(), nn.Flatten(),
        nn.Linear(20, 4), Smooth(), nn.Linear(4, 3)), (20, 1, 8, 8)),
    "largest of windows": (lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.MaxPool2d(2), Smooth(), nn.Conv2d(4, 5, 2, stride=2), Smooth(),
        nn.MaxPool2d(2, 1), nn.Conv2d(5, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Smooth(), nn.Linear(4, 3)),
        (20, 1, 12, 12)),
    "normalised": (lambda: nn.Sequential(
        nn.Linear(6, 5), nn.BatchNorm1d(5), Smooth(), nn.Linear(5, 5), nn.BatchNorm1d(5), Smooth(), nn.Linear(5, 3)),
        (40, 6)),
    "time": (OverTime, (40, 6)),
    "residual": (lambda: Residual(convolution, lambda: nn.BatchNorm2d(5), norm_first=True), (20, 1, 5, 5)),
    "norm behind": (lambda: Residual(convolution, lambda: nn.BatchNorm2d(5), norm_first=False), (20, 1, 5, 5)),
    "tokens": (lambda: Residual(token, lambda: nn.LayerNorm(5), norm_first=True), (20, 4, 6)),
    "tokens, norm behind": (lambda: Residual(token, lambda: nn.LayerNorm(5), norm_first=False), (20, 4, 6)),
    "groups": (lambda: Residual(convolution, lambda: nn.GroupNorm(1, 5), norm_first=True), (20, 1, 5, 5)),
    "gates": (Gated, (40, 6)),
    "a memory": (lambda: Recurrent(nn.RNNCell), (20, 5, 6)),
    "gated memory": (lambda: Recurrent(nn.LSTMCell), (20, 5, 6)),
    "two gates": (lambda: Recurrent(nn.GRUCell), (20, 5, 6)),
    "attention": (Attending, (20, 5, 6)),
    "attention, projected apart": (ProjectedApart, (20, 5, 6)),
}  # fmt: skip


def setting(make, shape, train=None):
    torch.manual_seed(0)
    net = make().double()
    for parameter in net.parameters():
        parameter.requires_grad_(train is None or any(parameter is each for each in net[train].parameters()))
    x, y = torch.randn(shape).double(), torch.arange(shape[0]) % 3
    recording, _, _ = record(net, lambda: F.cross_entropy(net(x), y))
    recording.names = {id(parameter): name for name, parameter in net.named_parameters()}
    scores = Scores.of(recording)
    moment = Moment(recording.taken(), scores.slopes(recording), (0, 0, 0))
    return net, x, y, Layers(recording, scores), moment


def small(layer, tape, units):
    shifts = {}
    for entry in layer.products:
        made = tape.values[entry.made].tensor
        shifts[entry.key] = torch.full((len(made), *made.shape[2:]), 1e-3).double()
    return Radii(shifts, torch.ones(units).double())


@pytest.mark.parametrize("kind", sorted(NETS))
def test_slopes_of_smooth_networks_come_to_those_of_the_derivative(kind, monkeypatch):
    """Differences of whole layers over small shifts, mirrors, and the readout's measured slopes, put together."""
    monkeypatch.setattr(alike_module, "_USUAL_SHIFT", 1e-3)
    monkeypatch.setattr(scores_module, "_RADII", (1e-3,))
    monkeypatch.setattr(answers_module, "_FAR", 1e-3)
    net, x, y, layers, moment = setting(*NETS[kind])
    blocks = [each for each in blocks_of(net) if each.dim > 2 and each.rows != 3]
    found, entries_of = {}, {}
    for block in blocks:
        try:
            entries_of[block.name] = layers.entries(block)
            found[block.name] = layers.layer(entries_of[block.name])
        except NotOnTapeError:
            entries_of[block.name], found[block.name] = layers.parted(block)
    for step in range(40):
        for each in found.values():
            each.learn(moment._replace(key=(0, step, 0)))
    weights = [block.parameters[0] for block in blocks]
    with torch.enable_grad():
        exact = torch.autograd.grad(F.cross_entropy(net(x), y), weights)
    moment = moment._replace(key=(0, 40, 0))
    for block in blocks:
        found[block.name].look_at(moment.tape, small(found[block.name], moment.tape, block.rows))
    for block, wanted in zip(blocks, exact, strict=True):
        entries = entries_of[block.name]
        slopes = found[block.name].slopes_by_made(moment)
        sums = {}
        for entry in entries.products:
            made = slopes[entry.made]
            add_slopes(sums, moment.tape, entry, made.movedim(1, 0).reshape(made.shape[1], made.shape[0], -1))
        own = next(each for each in sums.values() if each.shape[1] > 1)
        similarity = float(F.cosine_similarity(own.detach().flatten(), wanted.flatten(), dim=0))
        assert similarity > 0.995, (block.name, similarity)


def test_a_layer_is_found_once_whoever_asks():
    net, _, _, layers, _ = setting(*NETS["deep"])
    first, second, *_ = (layers.entries(block) for block in blocks_of(net))
    taker = layers.layer(first).worth.takers[0]
    assert isinstance(taker.layer, Layer)
    assert layers.layer(second) is taker.layer
    assert taker.mirror.name == "2.weight, 5 by 5"


def test_layers_that_are_not_trained_are_gone_through():
    net, _, _, layers, moment = setting(*NETS["deep"], train=0)
    (block,) = blocks_of(net)
    layer = layers.layer(layers.entries(block))
    layer.learn(moment)
    (made,) = layer.slopes_by_made(moment).values()
    assert made.abs().sum() > 0


def test_values_of_one_kind_have_one_layer_behind_them_and_those_of_a_recurrence_one_each():
    net, _, _, layers, _ = setting(*NETS["deep"])
    products = [each for block in blocks_of(net)[:2] for each in layers.entries(block).products]
    found = layers.behind_kind({each.made: [1] for each in products})
    assert found[products[0].made] is not found[products[1].made], "the second lies behind the first"
    assert layers.behind_kind({products[0].made: [1]}) == {products[0].made: found[products[0].made]}


def test_the_first_axis_that_may_be_that_of_units_is_taken():
    net, _, _, layers, _ = setting(*NETS["deep"])
    (product,) = layers.entries(blocks_of(net)[0]).products
    first, other = (layers.behind_kind({product.made: axes})[product.made] for axes in ([1], [0, 1]))
    assert first is other, "no layer lies behind samples"
    with pytest.raises(NotOnTapeError):
        layers.behind_kind({product.made: [0]})
