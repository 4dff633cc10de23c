"""Tiers of networks with a choice give every candidate the loss of running the network again."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_polystep import Engine, PolyStep
from lightning_polystep.layers import HardMoE, QuantActivation, QuantLinear, Staircase
from lightning_polystep.scoring import routed_tiers
from lightning_polystep.scoring.feedforward_tiers import LinearTier, ReLUTier, ScoreTier, StepOutcomeTier
from lightning_polystep.scoring.loop import LoopTier
from lightning_polystep.scoring.routed_tiers import BeforeChoiceTier, RouterTier
from lightning_polystep.scoring.stack import NotAStackError
from tests.helpers.parity import Case, Stacked, losses_of, prepare, sites

EXACT = {"rtol": 1e-10, "atol": 1e-11}
CLASSES = 3
ACTIVATIONS = {
    "relu": lambda: [nn.ReLU()],
    "staircase": lambda: [Staircase(5)],
    "int3": lambda: [QuantActivation(3, scale=0.25)],
    "none": list,
}


def activation(draw):
    return ACTIVATIONS[draw(st.sampled_from(list(ACTIVATIONS)))]()


def linears(draw, sizes, *, last):
    """Linear layers with activations behind them, behind the last one only if asked for."""
    layers = []
    for place in range(len(sizes) - 1):
        quantised = draw(st.integers(0, 4)) == 0
        make = QuantLinear if quantised else nn.Linear
        layers.append(make(sizes[place], sizes[place + 1]))
        if last or place < len(sizes) - 2:
            layers += activation(draw)
    return layers


def batch_of(draw, features):
    samples = draw(st.integers(1, 9))
    inputs = torch.randn(samples, features)
    if draw(st.booleans()):
        inputs[...] = inputs[:1]
    return inputs


def dyadic_(module):
    """Give every parameter a few bits, so that no sum of these small networks rounds and ties are common."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_((parameter * 2).round() / 2)


def with_loss(draw, layers, inputs):
    samples = len(inputs)
    if draw(st.booleans()):
        module, targets = Stacked(*layers, criterion=nn.MSELoss()), torch.randn(samples, CLASSES)
    else:
        module, targets = Stacked(*layers, label_smoothing=0.1), torch.randint(CLASSES, (samples,))
    return Case("random", lambda: module, lambda: (inputs, targets), {})


@st.composite
def mixtures(draw):
    """A network of one mixture of up to four experts, which may differ in depth, with its batch."""
    torch.manual_seed(draw(st.integers(0, 10**6)))
    before = [draw(st.sampled_from([1, 3])) for _ in range(draw(st.integers(1, 3)))]
    after = draw(st.lists(st.sampled_from([1, 5]), max_size=2))
    into, out = before[-1], after[0] if after else CLASSES
    experts = []
    for _ in range(draw(st.sampled_from([1, 2, 4]))):
        hidden = draw(st.lists(st.sampled_from([1, 7]), max_size=2))
        experts.append(nn.Sequential(*linears(draw, [into, *hidden, out], last=False)))
    mixture = HardMoE(experts, router=into)
    if draw(st.booleans()):  # an expert that no sample reaches
        with torch.no_grad():
            mixture.router.bias[draw(st.integers(0, len(experts) - 1))] = -100
    behind = [*activation(draw), *linears(draw, [*after, CLASSES], last=False)] if after else []
    layers = [nn.Flatten(), *linears(draw, before, last=True), mixture, *behind]
    if draw(st.booleans()):
        dyadic_(nn.ModuleList(layers))
    return with_loss(draw, layers, batch_of(draw, before[0]))


def assert_parity(case, probe_radius, polytope, cut):
    prepared = prepare(case, probe_radius=probe_radius, polytope=polytope)
    for name, proposal in sites(prepared).items():
        try:
            tier = prepared.stack_tier(name)
        except NotAStackError as error:
            assert "another layer lies between" in str(error)
            continue
        expected = losses_of(LoopTier(), prepared, proposal)
        losses = losses_of(tier, prepared, proposal)
        assert losses.dtype == torch.float64
        torch.testing.assert_close(losses, expected, **EXACT)
        start, stop = sorted(round(place * proposal.candidates) for place in cut)
        if start < stop:
            part = losses_of(tier, prepared, proposal, start, stop)
            assert torch.equal(part, losses[start:stop])


@settings(max_examples=80)
@given(
    case=mixtures(),
    probe_radius=st.sampled_from([0.3, 3.0]),
    polytope=st.sampled_from(["simplex", "orthoplex"]),
    cut=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_mixtures_and_the_loop_agree(case, probe_radius, polytope, cut):
    assert_parity(case, probe_radius, polytope, cut)
