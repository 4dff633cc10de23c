"""Random networks: pieces of many kinds, one after the other, on tensors whose axes mean anything in any order.

Every piece takes a tensor of two to five axes to another one. Parameters are made when the network is, so that a piece
may use those of an earlier one again.
"""

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Piece = Callable[[Tensor], Tensor]
# No number that a sum of few terms hits, so that rounding decides on nothing.
_THRESHOLD = 0.12345

PIECES: dict[str, Callable[["Network", Tensor], Piece | None]] = {}


def piece(build):
    """Register what builds a piece for a tensor, or returns None where the tensor does not suit it."""
    PIECES[build.__name__] = build
    return build


class Network(nn.Module):
    """Pieces drawn at random, and a loss."""

    def __init__(self, seed: int, depth: int, kinds: list[str] | None = None) -> None:
        super().__init__()
        self.draw = random.Random(seed)
        self.weights = nn.ParameterList()
        self.parts = nn.ModuleList()
        self.penalties: list[Callable[[], Tensor]] = []
        self.pieces: list[Piece] = []
        self.names: list[str] = []
        sizes = [self.draw.choice([2, 3, 4]) for _ in range(self.draw.choice([2, 3, 4]))]
        if self.draw.random() < 0.3:
            sizes = [sizes[0]] * len(sizes)
        self.inputs = torch.randn(sizes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        h = self.linear(-1)(self.inputs)
        self.pieces.append(lambda x, first=self._last: first(x))
        self.names.append("linear")
        while len(self.pieces) <= depth:
            name = self.draw.choice(kinds or list(PIECES))
            if h.numel() > 600 and name not in {"sums", "select", "slices", "pools", "reductions"}:
                continue
            made = PIECES[name](self, h)
            if made is None:
                if kinds and self.draw.random() < 0.2:
                    break
                continue
            with torch.no_grad():
                out = made(h)
            if out.ndim < 2 or out.ndim > 5 or not out.numel():
                continue
            h = out
            self.pieces.append(made)
            self.names.append(f"{name} -> {tuple(h.shape)}")
        self.loss = _loss(self, h)

    def forward(self) -> Tensor:
        h = self.inputs
        for each in self.pieces:
            h = each(h)
        loss = self.loss(h)
        for penalty in self.penalties:
            loss = loss + penalty()
        return loss

    def weight(self, *shape: int, scale: float | None = None) -> Callable[[], Tensor]:
        """Return what reads a parameter of a shape, now and then one that is in use already, masked or rescaled."""
        known = [i for i, p in enumerate(self.weights) if tuple(p.shape) == shape]
        if known and self.draw.random() < 0.3:
            number = self.draw.choice(known)
        else:
            number = len(self.weights)
            scale = 1 / math.sqrt(max(1, shape[-1] if len(shape) > 1 else 1)) if scale is None else scale
            self.weights.append(nn.Parameter(scale * torch.randn(shape, dtype=torch.float64)))
        kind = self.draw.random()
        if kind < 0.1:
            mask = (torch.rand(shape) < 0.7).double()
            return lambda: self.weights[number] * mask
        if kind < 0.15:
            return lambda: self.weights[number] / (1.0 + self.weights[number].abs().amax())
        if kind < 0.2:
            self.penalties.append(lambda: 0.1 * self.weights[number].square().sum())
        return lambda: self.weights[number]

    def linear(self, axis: int, out: int | None = None) -> Piece:
        """Return a product along one axis."""

        def run(h: Tensor) -> Tensor:
            return F.linear(h.transpose(axis, -1), weight(), bias() if bias else None).transpose(axis, -1)

        size = self._size(axis)
        out = out or self.draw.choice([2, 3, 4])
        weight = self.weight(out, size)
        bias = self.weight(out, scale=0.3) if self.draw.random() < 0.6 else None
        self._last = run
        return run

    def _size(self, axis: int) -> int:
        return self._h.shape[axis] if hasattr(self, "_h") else self.inputs.shape[axis]

    def axis(self, h: Tensor) -> int:
        self._h = h
        return self.draw.randrange(h.ndim)


@piece
def linear(net, h):
    return net.linear(net.axis(h))


@piece
def smooth(net, h):
    return net.draw.choice([torch.tanh, torch.sigmoid, F.softplus, lambda x: x * 0.5 + 0.1, torch.sin, F.gelu])


@piece
def kinked(net, h):
    return net.draw.choice(
        [
            torch.relu,
            torch.abs,
            lambda x: x.clamp(-0.5, 0.7),
            F.leaky_relu,
            lambda x: torch.where(x > _THRESHOLD, x, 0.1 * x),
            F.hardtanh,
            lambda x: torch.maximum(x, x.flip(-1)),
        ]
    )


@piece
def stepped(net, h):
    return net.draw.choice(
        [
            lambda x: (x > _THRESHOLD).to(x.dtype),
            lambda x: (3 * x + _THRESHOLD).round() / 3,
            lambda x: torch.sign(x - _THRESHOLD),
            lambda x: torch.where(x.ge(_THRESHOLD), 1.0, -1.0).float().to(x.dtype),
            lambda x: (4 * x + _THRESHOLD).floor().long().remainder(5).to(x.dtype),
            lambda x: torch.heaviside(x - _THRESHOLD, x.new_zeros(())),
        ]
    )


@piece
def scaled(net, h):
    axis = net.axis(h)
    shape = [1] * h.ndim
    if net.draw.random() < 0.7:
        shape[axis] = h.shape[axis]
    gain = net.weight(*(shape if net.draw.random() < 0.7 else []), scale=1.0)
    return net.draw.choice([lambda x: x * gain(), lambda x: x + gain(), lambda x: x / (1.5 + gain().tanh())])


@piece
def noisy(net, h):
    noise = torch.randn(h.shape, dtype=h.dtype)
    return net.draw.choice([lambda x: x + noise, lambda x: x * noise, lambda x: x + 0.1 * torch.randn_like(x)])


@piece
def dropped(net, h):
    return net.draw.choice([lambda x: F.dropout(x, 0.3), lambda x: F.alpha_dropout(x, 0.2, training=True)])


@piece
def products(net, h):
    if h.ndim == 2:
        return net.draw.choice([lambda x: x @ x.t() @ x, lambda x: torch.einsum("ab,cb->ac", x, x.tanh())])
    if h.ndim == 3:
        left = net.weight(h.shape[0], 2, h.shape[1])
        added = net.weight(h.shape[2], scale=0.2)
        return net.draw.choice(
            [
                lambda x: torch.bmm(left(), x),
                lambda x: torch.baddbmm(added(), left(), x),
                lambda x: torch.einsum("abc,acd->abd", x, x.transpose(1, 2)) @ x,
                lambda x: x.softmax(-1).transpose(1, 2) @ x,
            ]
        )
    return None


@piece
def mixed_by_einsum(net, h):
    if h.ndim != 3:
        return None
    weight = net.weight(h.shape[1], 3, h.shape[2])
    return net.draw.choice(
        [lambda x: torch.einsum("abc,bdc->abd", x, weight()), lambda x: torch.einsum("abc,bdc->dba", x, weight())]
    )


@piece
def convolutions(net, h):
    if h.ndim not in {3, 4} or min(h.shape[2:]) < 2 or not h.shape[1]:
        return None
    channels, kind = h.shape[1], net.draw.random()
    run, ones = (F.conv1d, (2,)) if h.ndim == 3 else (F.conv2d, (2, net.draw.choice([1, 2])))
    options = {"stride": net.draw.choice([1, 2]), "padding": net.draw.choice([0, 1])}
    if kind < 0.25:
        weight, options = net.weight(channels, 1, *ones, scale=0.5), {**options, "groups": channels}
    elif kind < 0.4 and channels % 2 == 0:
        weight, options = net.weight(4, channels // 2, *ones, scale=0.5), {**options, "groups": 2}
    elif kind < 0.5:
        weight = net.weight(channels, 3, *ones, scale=0.5)
        run, options = F.conv_transpose1d if h.ndim == 3 else F.conv_transpose2d, {"stride": options["stride"]}
    else:
        weight = net.weight(3, channels, *ones, scale=0.4)
    out = weight().shape[1 if run in {F.conv_transpose1d, F.conv_transpose2d} else 0]
    bias = net.weight(out, scale=0.2) if net.draw.random() < 0.5 else None
    return lambda x: run(x, weight(), bias() if bias else None, **options)


@piece
def pools(net, h):
    if h.ndim not in {3, 4} or min(h.shape[2:]) < 2:
        return None
    flat = h.ndim == 3
    return net.draw.choice(
        [
            lambda x: (F.max_pool1d if flat else F.max_pool2d)(x, 2),
            lambda x: (F.avg_pool1d if flat else F.avg_pool2d)(x, 2, ceil_mode=True),
            lambda x: (F.adaptive_avg_pool1d if flat else F.adaptive_avg_pool2d)(x, 2),
            lambda x: (F.adaptive_max_pool1d if flat else F.adaptive_max_pool2d)(x, 2),
            lambda x: F.interpolate(x, scale_factor=2),
        ]
    )


@piece
def norms(net, h):
    kind, size = net.draw.randrange(6), h.shape[1] if h.ndim > 1 else 0
    if kind == 0:
        module = nn.LayerNorm(h.shape[-net.draw.choice([1, min(2, h.ndim)]) :])
    elif kind == 1 and h.ndim >= 3:
        module = nn.GroupNorm(1 if size % 2 else 2, size)
    elif kind in {2, 3} and h.ndim in {2, 3, 4} and h.numel() > 2 * size:
        module = nn.BatchNorm2d(size) if h.ndim == 4 else nn.BatchNorm1d(size)
        module.train(kind == 2)
    elif kind == 4 and h.ndim == 4 and h[0, 0].numel() > 1:
        module = nn.InstanceNorm2d(size, affine=True, track_running_stats=net.draw.random() < 0.5)
    elif kind == 5:
        return lambda x: F.normalize(x, dim=0)
    else:
        return None
    for parameter in module.parameters():
        nn.init.normal_(parameter, 1.0, 0.3)
    net.parts.append(module.double())
    return module


@piece
def choices(net, h):
    axis = net.axis(h)
    return net.draw.choice(
        [
            lambda x: x.softmax(axis),
            lambda x: x.log_softmax(axis).clamp(min=-3),
            lambda x: (
                F.one_hot(
                    (x + 1e-3 * torch.arange(x.shape[axis]).view(-1, *[1] * (x.ndim - axis - 1))).argmax(axis),
                    x.shape[axis],
                )
                .movedim(-1, axis)
                .to(x.dtype)
            ),
            lambda x: x.topk(min(2, x.shape[axis]), axis)[0],
            lambda x: x.sort(axis, descending=True)[0],
            lambda x: x.cumsum(axis),
        ]
    )


@piece
def reductions(net, h):
    if h.ndim < 3:
        return None
    axes = sorted(net.draw.sample(range(h.ndim), net.draw.choice([1, h.ndim - 2])))
    one = axes[0]
    return net.draw.choice(
        [
            lambda x: x.sum(axes),
            lambda x: x.mean(axes),
            lambda x: x.amax(axes),
            lambda x: x.var(axes, correction=0),
            lambda x: x.max(one)[0],
            lambda x: x.logsumexp(axes),
            lambda x: x.norm(dim=one),
            lambda x: x.contiguous().median(one)[0],
        ]
    )


@piece
def centred(net, h):
    axis = net.axis(h)
    return net.draw.choice(
        [lambda x: x - x.mean(axis, keepdim=True), lambda x: x / (0.5 + x.std(axis, keepdim=True, correction=0))]
    )


@piece
def joins(net, h):
    axis, constant = net.axis(h), torch.randn(h.shape, dtype=h.dtype)
    weight = net.weight(*h.shape)
    return net.draw.choice(
        [
            lambda x: torch.cat([x, constant], axis),
            lambda x: torch.cat([x.tanh(), x], axis),
            lambda x: torch.cat([weight(), x], axis),
            lambda x: torch.stack([x, 2 * x.sin(), constant], axis),
            lambda x: torch.cat([torch.tensor([], dtype=x.dtype), x]),
        ]
    )


@piece
def cuts(net, h):
    axis = net.axis(h)
    return net.draw.choice(
        [
            lambda x: torch.stack([p * (i + 1) for i, p in enumerate(x.unbind(axis))], axis),
            lambda x: torch.cat([p.tanh() if i else p for i, p in enumerate(x.split(1, axis))], axis),
            lambda x: torch.cat(x.chunk(2, axis)[::-1], axis),
            lambda x: sum((i + 1) * p for i, p in enumerate(x.unbind(axis))).unsqueeze(axis),
        ]
    )


@piece
def select(net, h):
    axis, place = net.axis(h), net.draw.choice([0, -1])
    return (lambda x: x.select(axis, place)) if h.ndim > 2 else None


@piece
def slices(net, h):
    axis = net.axis(h)
    size = h.shape[axis]
    return (
        net.draw.choice([lambda x: x.narrow(axis, 1, size - 1), lambda x: x.transpose(0, axis)[::2].transpose(0, axis)])
        if size > 1
        else None
    )


@piece
def indices(net, h):
    axis = net.axis(h)
    index = torch.randint(h.shape[axis], (3,))
    wide = torch.randint(h.shape[axis], h.shape)
    return net.draw.choice(
        [
            lambda x: x.index_select(axis, index),
            lambda x: x.gather(axis, wide),
            lambda x: x.movedim(axis, 0)[index].movedim(0, axis),
            lambda x: x.scatter(axis, wide, 0.5),
            lambda x: x.masked_fill(wide > 0, 0.25),
        ]
    )


@piece
def turns(net, h):
    order = net.draw.sample(range(h.ndim), h.ndim)
    one, other = net.draw.randrange(h.ndim), net.draw.randrange(h.ndim)
    return net.draw.choice(
        [
            lambda x: x.permute(order),
            lambda x: x.transpose(one, other),
            lambda x: x.flip(one),
            lambda x: x.roll(1, one),
            lambda x: x.roll(1),
            lambda x: x.movedim(one, other).contiguous(),
        ]
    )


@piece
def shapes(net, h):
    place = net.draw.randrange(h.ndim - 1) if h.ndim > 2 else None
    axis = net.axis(h)
    even = [i for i, size in enumerate(h.shape) if size == 4]
    options = [
        lambda x: x.unsqueeze(axis).expand(*x.shape[:axis], 2, *x.shape[axis:]),
        lambda x: x.unsqueeze(axis),
        lambda x: x.repeat(*[1] * axis, 2, *[1] * (x.ndim - axis - 1)),
        lambda x: x.repeat_interleave(2, axis),
        lambda x: F.pad(x, (1, 0)),
        lambda x: F.pad(x, (1, -1)),
        lambda x: F.pad(x, (0, 0, 1, -1)),
    ]
    if place is not None:
        options += [lambda x: x.flatten(place, place + 1)] * 3
    if even:
        options += [lambda x: x.unflatten(even[0], (2, 2))] * 3
    return net.draw.choice(options)


@piece
def looked_up(net, h):
    table = net.weight(5, 3, scale=1.0)
    constant = torch.randint(5, h.shape[:2])
    if net.draw.random() < 0.5:
        return lambda x: F.embedding((3 * x.flatten(1).sum(1) + _THRESHOLD).round().long().remainder(5), table())
    return lambda x: (
        F.embedding(constant, table()) * x.flatten(2).sum(-1, keepdim=True)
        if x.ndim > 2
        else F.embedding(constant, table()) + x.unsqueeze(-1)
    )


@piece
def attention(net, h):
    if h.ndim != 3:
        return None
    size = h.shape[2]
    if net.draw.random() < 0.3:
        return lambda x: F.scaled_dot_product_attention(x[:, None], x.tanh()[:, None], x[:, None]).squeeze(1)
    heads = 2 if size % 2 == 0 else 1
    first = net.draw.random() < 0.5
    if net.draw.random() < 0.5:
        module = nn.MultiheadAttention(size, heads, batch_first=first).double()
        net.parts.append(module)
        return lambda x: module(x, x, x, need_weights=False)[0]
    module = nn.TransformerEncoderLayer(size, heads, 3, 0.1, batch_first=first).double()
    net.parts.append(module)
    return module


@piece
def gated(net, h):
    if h.ndim != 3:
        return None
    kind = net.draw.choice([nn.LSTM, nn.GRU, nn.RNN])
    module = kind(h.shape[2], 3, batch_first=net.draw.random() < 0.5, bidirectional=net.draw.random() < 0.3).double()
    net.parts.append(module)
    return lambda x: module(x)[0]


@piece
def spiking(net, h):
    if h.ndim < 3:
        return None
    axis = net.axis(h)
    leak = net.weight(*([h.shape[-1]] if net.draw.random() < 0.5 and axis != h.ndim - 1 else []), scale=0.5)
    threshold = net.weight(scale=0.1)
    style, reset = net.draw.randrange(4), net.draw.random() < 0.5

    def run(x):
        membrane = torch.zeros_like(x.select(axis, 0))
        record, counted, list_of = torch.zeros_like(x.movedim(axis, 0)), torch.zeros_like(membrane), []
        for t, current in enumerate(x.unbind(axis)):
            membrane = leak().sigmoid() * membrane + current
            spike = (membrane > _THRESHOLD + threshold().abs()).to(x.dtype)
            membrane = membrane * (1 - spike) if reset else membrane - spike * threshold()
            list_of.append(spike)
            record[t] = spike + 0.1 * membrane
            counted += spike
        if style == 0:
            return torch.stack(list_of, axis)
        if style == 1:
            return record.movedim(0, axis)
        if style == 2:
            return counted + membrane
        return torch.stack(list_of).sum(0)

    return run


@piece
def written(net, h):
    axis, gain = net.axis(h), net.weight(scale=0.7)
    size = h.shape[axis]

    def through_views(x):
        x = x.clone()
        x.select(axis, 0).mul_(gain())
        x.flatten()[::2].add_(0.1)
        if size > 1:
            x.narrow(axis, 1, size - 1).copy_(x.narrow(axis, 0, size - 1).clone().tanh_())
        return x

    def masked(x):
        x = x * gain()
        x[x > _THRESHOLD] = 0.5
        x[x < -1] *= 1.0
        return x

    def filled(x):
        out = torch.empty_like(x)
        for place in range(size):
            out.select(axis, place).copy_(x.select(axis, place) * (place + 1))
        out.relu_().sub_(gain())
        return out

    def by_out(x):
        out = torch.empty(0, dtype=x.dtype)
        torch.mul(x, gain(), out=out)
        total = x.new_zeros(())
        total += out.mean()
        return out.add_(total).clamp_(-2, 2)

    def views_of_views(x):
        x = x * 1.0
        a, b = x.contiguous().view(-1).unsqueeze(0), x.transpose(0, -1)
        b += 0.2 * gain()
        a[:, 1:].sin_()
        b[0] = b[-1].clone()
        return x

    return net.draw.choice(
        [through_views, filled, by_out, views_of_views, lambda x: (x + 0.0).relu_().mul_(gain())]
        + ([masked] if net.draw.random() < 0.5 else [])
    )


def _loss(net: Network, h: Tensor) -> Callable[[Tensor], Tensor]:
    """Draw a loss: of the places of one axis, or of all numbers."""
    axis, kind = net.axis(h), net.draw.randrange(12)
    n = h.shape[axis]
    head = net.weight(4, h.numel() // n)
    target, weight = torch.randint(4, (n,)), torch.tensor([1.0, 2.0, 0.5, 1.5], dtype=h.dtype)
    numbers = torch.randn(n, 4, dtype=h.dtype)
    sparse = target.clone()
    sparse[0] = -100 if n > 1 else sparse[0]

    def scores(x: Tensor) -> Tensor:
        return F.linear(x.movedim(axis, 0).flatten(1), head())

    losses: list[Callable[[Tensor], Tensor]] = [
        lambda x: F.cross_entropy(scores(x), target),
        lambda x: F.cross_entropy(scores(x), sparse, weight=weight, label_smoothing=0.1),
        lambda x: F.cross_entropy(scores(x), sparse, reduction="none").mean(),
        lambda x: F.cross_entropy(scores(x), numbers.softmax(1), reduction="sum"),
        lambda x: F.mse_loss(scores(x), numbers),
        lambda x: F.binary_cross_entropy(scores(x).sigmoid(), numbers.sigmoid()),
        lambda x: F.binary_cross_entropy_with_logits(scores(x), numbers.sigmoid(), pos_weight=weight),
        lambda x: F.multi_margin_loss(scores(x), target, weight=weight),
        lambda x: F.huber_loss(scores(x), numbers, reduction="sum") / 7,
        lambda x: F.nll_loss(scores(x).log_softmax(1), target, reduction="sum"),
        lambda x: (scores(x).logsumexp(1) - scores(x)[:, 0]).square().mean() + x.abs().mean(),
        lambda x: F.cross_entropy(
            scores(x)[..., None, None].expand(-1, -1, 2, 1), target[:, None, None].expand(-1, 2, 1)
        ),
    ]
    return losses[kind]
