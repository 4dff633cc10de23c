"""Products and norms of many candidates are those of each, whatever of them a candidate changes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep.tape.fuse import cpu
from tests.helpers.tapes import assert_parity, interpreted


@pytest.fixture(autouse=True)
def plain_loops(monkeypatch):
    monkeypatch.setattr(cpu, "compiled", interpreted)


def check(run, *shapes, **layers):
    """Compare candidates of the first layer, of parameters that a product takes in every place, and of layers."""
    module = nn.ModuleDict({**layers, "first": nn.Linear(4, 5)}).double()
    weights = nn.ParameterList([nn.Parameter(torch.randn(shape).double() / 2) for shape in shapes])
    holder = nn.ModuleList([module, weights])
    x = torch.randn(6, 4).double()
    assert_parity(holder, lambda: run(torch.tanh(module["first"](x)), module, *weights).square().mean())


@pytest.mark.parametrize(
    ("run", "shapes"),
    [
        (lambda h, m, w: h @ w, [(5, 3)]),
        (lambda h, m, w: h @ w.t(), [(3, 5)]),
        (lambda h, m, w: w @ h, [(3, 6)]),
        (lambda h, m, w: (w @ h.t()).t(), [(3, 5)]),
        (lambda h, m, w, b: torch.addmm(b, h, w), [(5, 3), (3,)]),
        (lambda h, m, w, b: torch.addmm(b, h, w, beta=0.5, alpha=2), [(5, 3), (3,)]),
        (lambda h, m, w, b: torch.addmm(b, h, w), [(5, 3), (6, 3)]),
        (lambda h, m, w: torch.addmm(h, h, w), [(5, 5)]),
        (lambda h, m, w: torch.tanh(h @ w) @ w, [(5, 5)]),
        (lambda h, m, w: torch.tanh(h @ w) @ w.t(), [(4, 5)][::-1] and [(5, 4)]),
        (lambda h, m, w: h @ h.t() @ h @ w, [(5, 3)]),
        (lambda h, m, w: torch.bmm(h[None].expand(2, 6, 5), w), [(2, 5, 3)]),
        (lambda h, m, w: torch.mv(h, w), [(5,)]),
        (lambda h, m, w: h @ w.view(5, 6), [(5, 3, 2)]),
        (lambda h, m, w: h @ w.view(6, 5).t(), [(3, 2, 5)]),
        (lambda h, m, w: h.view(6, 5, 1) * w, [(5, 3)]),
        (lambda h, m, w, v: F.linear(F.linear(h, w), v, w[:, 0]), [(3, 5), (3, 3)]),
    ],
)  # fmt: skip
def test_products(run, shapes):
    check(run, *shapes)


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"dilation": 2}, {"bias": False}, {"groups": 5}])
@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions(options, transposed):
    if transposed and "dilation" in options:
        pytest.skip("too small")
    kind = nn.ConvTranspose1d if transposed else nn.Conv1d
    line = torch.linspace(-1, 1, 6).double()
    check(lambda h, m: m["conv"](h[..., None] * line), conv=kind(5, 5, 2, **options))


def test_a_convolution_used_twice():
    line = torch.linspace(-1, 1, 6).double()
    check(lambda h, m: m["conv"](torch.relu(m["conv"](h[..., None] * line))), conv=nn.Conv1d(5, 5, 3, padding=1))


@pytest.mark.parametrize("kind", ["max_pool2d", "avg_pool2d"])
def test_pools(kind):
    plane = torch.randn(4, 4).double()
    check(lambda h, m: getattr(F, kind)(torch.sin(h[..., None, None] * plane), 2))


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm1d(5), nn.BatchNorm1d(5).eval(), nn.BatchNorm1d(5, affine=False), nn.LayerNorm(5),
        nn.LayerNorm(5, elementwise_affine=False), nn.GroupNorm(5, 5), nn.GroupNorm(1, 5, affine=False),
    ],
    ids=str,
)  # fmt: skip
def test_norms(norm):
    for parameter in norm.parameters():
        nn.init.normal_(parameter, 1.0, 0.3)
    check(lambda h, m: m["norm"](h * 3).tanh(), norm=norm)


def test_norms_of_planes_and_of_several_axes():
    line = torch.linspace(-1, 1, 4).double()
    check(lambda h, m: m["norm"](h[..., None] * line), norm=nn.LayerNorm((5, 4)))
    check(lambda h, m: m["norm"](h[..., None] * line), norm=nn.GroupNorm(5, 5))


@pytest.mark.parametrize("masked", [False, True])
def test_attention_of_one_kernel(masked):
    mask = torch.zeros(5, 5).double().masked_fill_(torch.eye(5).bool(), -torch.inf) if masked else None

    def run(h, m, w):
        x = (h[..., None] * w)[:, None]
        return F.scaled_dot_product_attention(x, x.tanh(), x, attn_mask=mask)

    check(run, (2,))
