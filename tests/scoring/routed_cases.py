"""Random networks with a choice among experts or slots, and what their tiers have to agree with."""

import dataclasses

import torch
from hypothesis import strategies as st
from torch import nn

from lightning_polystep.layers import HardMoE, QuantActivation, QuantLinear, SlotArgmaxAttention, Staircase
from lightning_polystep.scoring.loop import LoopTier
from lightning_polystep.scoring.stack import NotAStackError
from tests.helpers.parity import Case, Stacked, losses_of, prepare

EXACT = {"rtol": 1e-10, "atol": 1e-11}
CLASSES = 3
ACTIVATIONS = {
    "relu": lambda: [nn.ReLU()],
    "staircase": lambda: [Staircase(5)],
    "int3": lambda: [QuantActivation(3, scale=0.25)],
    "none": list,
}
OPTIONS = {
    "probe_radius": st.sampled_from([0.3, 3.0]),
    "polytope": st.sampled_from(["simplex", "orthoplex"]),
    "cut": st.tuples(st.floats(0, 1), st.floats(0, 1)),
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
    return _case(draw, before, mixture, after)


@st.composite
def slot_networks(draw):
    """A network of one argmax attention over up to five slots, with its batch."""
    torch.manual_seed(draw(st.integers(0, 10**6)))
    width = draw(st.sampled_from([1, 3]))
    before = [*(draw(st.sampled_from([1, 4])) for _ in range(draw(st.integers(0, 2)))), width]
    attention = SlotArgmaxAttention(width, draw(st.sampled_from([1, 2, 5])))
    return _case(draw, before, attention, [width, *draw(st.lists(st.just(4), max_size=1))])


def _case(draw, before, choice, after):
    behind = [*activation(draw), *linears(draw, [*after, CLASSES], last=False)] if after else []
    layers = [nn.Flatten(), *linears(draw, before, last=True), choice, *behind]
    inputs = torch.randn(draw(st.integers(1, 9)), before[0])
    if draw(st.booleans()):
        inputs[...] = inputs[:1]
    if draw(st.booleans()):
        module, targets = Stacked(*layers, criterion=nn.MSELoss()), torch.randn(len(inputs), CLASSES)
    else:
        module, targets = Stacked(*layers, label_smoothing=0.1), torch.randint(CLASSES, (len(inputs),))
    return Case("random", lambda: module, lambda: (inputs, targets), {})


def assert_parity(case, probe_radius, polytope, cut):
    """Compare the tier of every block with the loop, and a part of its candidates with all of them, bit for bit."""
    prepared = prepare(case, probe_radius=probe_radius, polytope=polytope)
    scored = 0
    for name, proposal in prepared.proposals.items():
        try:
            tier = prepared.stack_tier(name)
        except NotAStackError:
            continue
        scored += 1
        losses = losses_of(tier, prepared, proposal)
        assert losses.dtype == torch.float64
        torch.testing.assert_close(losses, losses_of(LoopTier(), prepared, proposal), **EXACT)
        start, stop = sorted(round(place * proposal.candidates) for place in cut)
        if start < stop:
            assert torch.equal(losses_of(tier, prepared, proposal, start, stop), losses[start:stop])
    assert scored >= len(prepared.proposals) - 2  # of up to three layers before the choice, all but the last are left


def prepare_dyadic(choice, behind, features):
    """A network and candidates of numbers of few bits, so that no order of sums rounds, and ties are common."""
    module = Stacked(nn.Linear(features, features), nn.ReLU(), choice, *behind, criterion=nn.MSELoss())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_((parameter * 4).round() / 4)
    classes = behind[-1].out_features
    inputs, targets = torch.randint(-4, 5, (16, features)) / 4, torch.randint(-4, 5, (16, classes)) / 4
    prepared = prepare(Case("dyadic", lambda: module, lambda: (inputs, targets), {}), probe_radius=0.5)
    for name, proposal in prepared.proposals.items():
        directions = torch.randint(-4, 5, proposal.directions.shape).to(proposal.directions) / 4
        reach = torch.ones_like(proposal.reach)
        prepared.proposals[name] = dataclasses.replace(proposal, directions=directions, reach=reach, mirrored=False)
    return prepared
