"""Outcomes give every candidate the loss of running the network again, whatever the network of hard LIF layers."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_polystep.layers import LIF, LastMembrane, SpikeCount
from lightning_polystep.scoring import outcome
from lightning_polystep.scoring.loop import LoopTier
from lightning_polystep.scoring.outcome import HiddenOutcomeTier, ReadoutOutcomeTier
from lightning_polystep.scoring.stack import NotAStackError
from lightning_polystep.scoring.vmapped import ShiftTier
from tests.helpers.parity import Case, Stacked, prepare, reference_losses

EXACT = {"rtol": 1e-11, "atol": 1e-12}
RESETS = ("zero", "subtract", "none")
CLASSES = 3


def neurons(draw, count, **options):
    """A LIF layer whose constants are shared, per neuron or learned."""
    per_neuron, learned = draw(st.booleans()), draw(st.booleans())
    beta, threshold = draw(st.sampled_from([0.0, 0.3, 0.9, 1.0])), draw(st.sampled_from([0.2, 1.0, 1.7]))
    if per_neuron:
        beta, threshold = beta * torch.rand(count), threshold * (0.5 + torch.rand(count))
    return LIF(
        beta,
        threshold,
        reset_mechanism=draw(st.sampled_from(RESETS)),
        reset_delay=draw(st.booleans()),
        spike_on=draw(st.sampled_from(["ge", "gt"])),
        learn_beta=learned,
        learn_threshold=learned,
        **options,
    )


@st.composite
def cases(draw):
    """A network of one or two layers with its batch."""
    torch.manual_seed(draw(st.integers(0, 10**6)))
    steps, samples, features = draw(st.integers(1, 7)), draw(st.integers(1, 9)), draw(st.integers(1, 5))
    hidden = draw(st.sampled_from([None, 1, 2, 7]))
    changing = hidden is None and draw(st.booleans())
    membranes = draw(st.booleans())
    bias = draw(st.booleans())
    layers = [] if changing else [nn.Flatten()]
    if hidden:
        layers += [nn.Linear(features, hidden, bias), neurons(draw, hidden, num_steps=steps)]
    layers.append(nn.Linear(hidden or features, CLASSES, draw(st.booleans())))
    layers.append(neurons(draw, CLASSES, num_steps=None if hidden or changing else steps, return_membrane=membranes))
    # From silent by way of lively to saturated, each layer for itself.
    for layer in layers:
        if isinstance(layer, nn.Linear):
            with torch.no_grad():
                layer.weight.mul_(draw(st.sampled_from([1e-3, 1.0, 3.0, 100.0])))
    shape = (steps, samples, features) if changing else (samples, 1, features)
    inputs = torch.randn(shape)
    if draw(st.booleans()):
        inputs[...] = inputs[:1] if not changing else inputs[:, :1]  # every sample is the same
    module = Stacked(
        *layers, LastMembrane() if membranes else SpikeCount(), label_smoothing=draw(st.sampled_from([0.0, 0.1, 1.0]))
    )
    targets = torch.randint(CLASSES, (samples,))
    return Case("random", lambda: module, lambda: (inputs.double(), targets), {})


def losses_of(tier, prepared, proposal, start=0, stop=None):
    with prepared.probe.isolated():
        return tier.score(proposal, prepared.probe, start, proposal.candidates if stop is None else stop)


def sites(prepared):
    return {name: p for name, p in prepared.proposals.items() if p.block.site is not None}


@settings(max_examples=35)
@given(
    case=cases(),
    group=st.fixed_dictionaries(
        {
            "probe_radius": st.sampled_from([0.3, 3.0]),
            "polytope": st.sampled_from(["simplex", "orthoplex"]),
        }
    ),
    cut=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_outcomes_shifts_and_the_loop_agree(case, group, cut):
    prepared = prepare(case, **group)
    for name, proposal in sites(prepared).items():
        expected = losses_of(LoopTier(), prepared, proposal)
        torch.testing.assert_close(losses_of(ShiftTier(), prepared, proposal), expected, **EXACT)
        tier = prepared.outcome_tier(name)
        losses = losses_of(tier, prepared, proposal)
        assert losses.dtype == torch.float64
        torch.testing.assert_close(losses, expected, **EXACT)
        # A share may begin and end within a row.
        start, stop = sorted(round(place * proposal.candidates) for place in cut)
        if start < stop:
            part = losses_of(tier, prepared, proposal, start, stop)
            torch.testing.assert_close(part, expected[start:stop], **EXACT)


def dyadic_case(seed, beta, reset, spike_on, delay, membranes, layers):
    """Numbers whose products and sums are exact in float32, so that membranes meet thresholds exactly, and often."""
    torch.manual_seed(seed)
    options = {"reset_mechanism": reset, "spike_on": spike_on, "reset_delay": delay}
    first = [nn.Linear(4, 5), LIF(beta, 1.0, num_steps=4, **options)] if layers == 2 else []
    last = LIF(beta, 1.0, num_steps=None if first else 4, return_membrane=membranes, **options)
    module = Stacked(*first, nn.Linear(5 if first else 4, 3), last, LastMembrane() if membranes else SpikeCount())
    for linear in module.network:
        if isinstance(linear, nn.Linear):
            for parameter in linear.parameters():
                parameter.data.copy_(torch.randint(-8, 9, parameter.shape) / 8)
    inputs = torch.randint(-2, 3, (32, 4)).float()
    return Case("dyadic", lambda: module, lambda: (inputs, torch.randint(3, (32,))), {})


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    beta=st.sampled_from([0.5, 0.75]),
    reset=st.sampled_from(RESETS),
    spike_on=st.sampled_from(["ge", "gt"]),
    delay=st.booleans(),
    membranes=st.booleans(),
    layers=st.sampled_from([1, 2]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_every_spike_is_the_same_where_rounding_has_no_part(dtype, **options):
    prepared = prepare(dyadic_case(**options), dtype, probe_radius=0.5)
    # A float32 loss is rounded by the loop, and a jump of it by the kernel; one spike more or less costs over 1e-3.
    tolerance = {"rtol": 1e-13, "atol": 1e-13} if dtype == torch.float64 else {"rtol": 0, "atol": 5e-6}
    for name, proposal in sites(prepared).items():
        proposal.directions = (torch.randint(-8, 9, proposal.directions.shape) / 8).to(dtype)
        expected = losses_of(LoopTier(), prepared, proposal)
        torch.testing.assert_close(losses_of(prepared.outcome_tier(name), prepared, proposal), expected, **tolerance)


@pytest.mark.parametrize("membranes", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_single_precision_is_accurate_to_five_digits(seed, membranes):
    torch.manual_seed(seed)
    module = Stacked(
        nn.Linear(16, 32),
        LIF(0.95, 1.0, num_steps=15),
        nn.Linear(32, 5),
        LIF(0.95, 1.0, return_membrane=membranes),
        LastMembrane() if membranes else SpikeCount(),
    )
    batch = torch.randn(256, 16), torch.randint(5, (256,))
    prepared = prepare(Case("single", lambda: module, lambda: batch, {}), torch.float32)
    for name, proposal in sites(prepared).items():
        expected = losses_of(LoopTier(), prepared, proposal)
        losses = losses_of(prepared.outcome_tier(name), prepared, proposal)
        # One sample of 256 may be pushed over a threshold by rounding; all others agree.
        close = torch.isclose(losses, expected, rtol=1e-5, atol=0)
        assert int((~close).sum()) <= 1
        torch.testing.assert_close(losses, expected, rtol=0, atol=1 / 256)


# Networks that are special.


def spiking(hidden=6, **options):
    first = LIF(options.pop("beta", 0.9), options.pop("threshold", 1.0), num_steps=8, **options)
    return Stacked(nn.Linear(4, hidden), first, nn.Linear(hidden, 3), LIF(0.9, 0.5), SpikeCount())


def batch():
    return torch.randn(24, 4), torch.randint(3, (24,))


def prepared_spiking(**options):
    return prepare(Case("spiking", lambda: spiking(**options), batch, {}))


def test_a_silent_layer_costs_exactly_the_same_wherever_it_is_moved():
    prepared = prepared_spiking(threshold=1e3)
    losses = losses_of(prepared.outcome_tier("network.0"), prepared, prepared.proposals["network.0"])
    assert losses.unique().numel() == 1
    assert torch.equal(losses[0], prepared.commit_loss.double())


def test_directions_of_length_zero_cost_nothing():
    prepared = prepared_spiking()
    for name, proposal in sites(prepared).items():
        proposal.directions = torch.zeros_like(proposal.directions)
        losses = losses_of(prepared.outcome_tier(name), prepared, proposal)
        torch.testing.assert_close(losses, prepared.commit_loss.expand_as(losses), **EXACT)


def test_a_frozen_bias_stays_out_of_the_candidates():
    module = spiking()
    module.network[0].bias.requires_grad_(False)
    module.network[2].bias.requires_grad_(False)
    prepared = prepare(Case("frozen", lambda: module, batch, {}))
    assert not any(proposal.block.has_bias for proposal in prepared.proposals.values())
    for name, proposal in prepared.proposals.items():
        losses = losses_of(prepared.outcome_tier(name), prepared, proposal)
        torch.testing.assert_close(losses, reference_losses(prepared, proposal), **EXACT)


def test_a_moved_leak_threshold_or_option_is_followed():
    """The table of outcomes is kept between steps, and must not outlive what it was made of."""
    prepared = prepared_spiking()
    tier, first = prepared.outcome_tier("network.0"), prepared.module.network[1]
    proposal, tables = prepared.proposals["network.0"], []

    def check():
        again = prepare(Case("moved", lambda: prepared.module, batch, {}))
        tier.capture = again.capture
        expected = losses_of(LoopTier(), again, replace(proposal, block=again.proposals["network.0"].block))
        torch.testing.assert_close(losses_of(tier, again, proposal), expected, **EXACT)
        if not tables or tier._dictionary[0] is not tables[-1]:
            tables.append(tier._dictionary[0])

    for change in (
        lambda: None,
        lambda: first.beta.fill_(0.4),
        lambda: first.threshold.fill_(0.7),
        lambda: setattr(first, "reset_mechanism", "subtract"),
        lambda: setattr(first, "reset_delay", True),
        lambda: setattr(first, "num_steps", 3),
    ):
        change()
        check()
        count = len(tables)
        check()
        assert len(tables) == count, "and is made once"
    assert len(tables) == 6


def test_many_shifts_are_taken_in_parts(monkeypatch):
    prepared = prepared_spiking()
    proposal, tier = prepared.proposals["network.2"], prepared.outcome_tier("network.2")
    whole = losses_of(tier, prepared, proposal)
    monkeypatch.setattr(outcome, "_SHIFT_BYTES", 1)
    torch.testing.assert_close(losses_of(tier, prepared, proposal), whole, **EXACT)


# Which tier takes which block.


def test_each_place_has_its_tier():
    prepared = prepared_spiking(learn_beta=True)
    assert isinstance(prepared.outcome_tier("network.0"), HiddenOutcomeTier)
    assert isinstance(prepared.outcome_tier("network.2"), ReadoutOutcomeTier)
    with pytest.raises(NotAStackError, match="it is no Linear weight of the recognised network"):
        prepared.outcome_tier("network.1.beta")


def test_a_layer_before_the_last_but_one_is_refused():
    deep = Stacked(*_deep(8), SpikeCount())
    prepared = prepare(Case("deep", lambda: deep, batch, {}))
    with pytest.raises(NotAStackError, match="through one layer of neurons so far"):
        prepared.outcome_tier("network.0")
    with pytest.raises(NotAStackError, match="driven by a current that changes over time"):
        prepared.outcome_tier("network.2")
    assert isinstance(prepared.outcome_tier("network.4"), ReadoutOutcomeTier)


def _deep(steps):
    return [nn.Linear(4, 6), LIF(num_steps=steps), nn.Linear(6, 6), LIF(), nn.Linear(6, 3), LIF()]


def test_a_current_that_changes_over_time_is_refused_for_hidden_neurons():
    module = Stacked(nn.Linear(4, 6), LIF(0.9), nn.Linear(6, 3), LIF(0.9), SpikeCount())
    changing = torch.randn(5, 24, 4), torch.randint(3, (24,))
    prepared = prepare(Case("changing", lambda: module, lambda: changing, {}))
    with pytest.raises(NotAStackError, match="driven by a current that changes over time"):
        prepared.outcome_tier("network.0")
    assert isinstance(prepared.outcome_tier("network.2"), ReadoutOutcomeTier)


def test_a_shared_weight_is_refused():
    module = Stacked(nn.Linear(4, 4), LIF(num_steps=5), nn.Linear(4, 4), LIF(), SpikeCount())
    module.network[2].weight = module.network[0].weight
    prepared = prepare(Case("tied", lambda: module, batch, {}))
    with pytest.raises(NotAStackError, match="its weight belongs to several layers"):
        prepared.outcome_tier("network.0")
