"""Every tier of a stack gives each candidate the loss of running the network again, whatever its LIF layers."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lightning_polystep.layers import LIF, LastMembrane, Sliced, SpikeCount, SpikeRate
from lightning_polystep.scoring import stack_tier
from lightning_polystep.scoring.fastest import fastest_tier
from lightning_polystep.scoring.loop import LoopTier
from lightning_polystep.scoring.recognise import recognise
from tests.helpers.parity import Case, Stacked, losses_of, prepare, sites

EXACT = {"rtol": 1e-11, "atol": 1e-12}
RESETS = ("zero", "subtract", "none")
CLASSES = 3
READOUTS = {"count": SpikeCount, "membrane": LastMembrane, "rate": SpikeRate}


def neurons(draw, count, dynamics, **options):
    """A LIF layer whose constants are shared, per neuron or learned."""
    per_neuron, learned = draw(st.booleans()), draw(st.booleans())
    beta, threshold = draw(st.sampled_from([0.0, 0.3, 0.9, 1.0])), draw(st.sampled_from([0.2, 1.0, 1.7]))
    if per_neuron:
        beta, threshold = beta * torch.rand(count), threshold * (0.5 + torch.rand(count))
    return LIF(beta, threshold, learn_beta=learned, learn_threshold=learned, **dynamics, **options)


def dynamics(draw):
    return {
        "reset_mechanism": draw(st.sampled_from(RESETS)),
        "reset_delay": draw(st.booleans()),
        "spike_on": draw(st.sampled_from(["ge", "gt"])),
    }


@st.composite
def cases(draw, drives=(False, True)):
    """A network of one to four layers with its batch; ``drives`` says whether the current may change over time."""
    torch.manual_seed(draw(st.integers(0, 10**6)))
    steps, samples, features = draw(st.integers(1, 7)), draw(st.integers(1, 9)), draw(st.integers(1, 5))
    sizes = draw(st.lists(st.sampled_from([1, 2, 7]), max_size=3))
    changing = draw(st.sampled_from(drives))
    readout = draw(st.sampled_from(list(READOUTS)))
    hidden = dynamics(draw)
    layers = [] if changing else [nn.Flatten()]
    for place, size in enumerate([*sizes, CLASSES]):
        last = place == len(sizes)
        layers.append(nn.Linear(([features, *sizes])[place], size, draw(st.booleans())))
        constant = {} if changing or place else {"num_steps": steps}
        membrane = {"return_membrane": True} if last and readout == "membrane" else {}
        layers.append(neurons(draw, size, dynamics(draw) if last else hidden, **constant, **membrane))
    # From silent by way of lively to saturated, each layer for itself.
    for layer in layers:
        if isinstance(layer, nn.Linear):
            with torch.no_grad():
                layer.weight.mul_(draw(st.sampled_from([1e-3, 1.0, 3.0, 100.0])))
    inputs = torch.randn((steps, samples, features) if changing else (samples, 1, features))
    if draw(st.booleans()):
        inputs[...] = inputs[:1] if not changing else inputs[:, :1]  # every sample is the same
    targets = torch.randint(CLASSES, (samples,))
    smoothing = draw(st.sampled_from([0.0, 0.1, 1.0]))
    if readout == "rate":
        module, targets = Stacked(*layers, SpikeRate(), criterion=nn.MSELoss()), torch.rand(samples, CLASSES)
    else:
        module = Stacked(*layers, READOUTS[readout](), criterion=nn.CrossEntropyLoss(label_smoothing=smoothing))
        if draw(st.booleans()):
            targets = torch.rand(samples, CLASSES).softmax(-1)
    return Case("random", lambda: module, lambda: (inputs, targets), {})


@settings(max_examples=40)
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
def test_stack_shifts_and_the_loop_agree(case, group, cut):
    prepared = prepare(case, **group)
    for name, proposal in sites(prepared).items():
        expected = losses_of(LoopTier(), prepared, proposal)
        torch.testing.assert_close(
            losses_of(prepared.tape_tier(proposal.block.name), prepared, proposal), expected, **EXACT
        )
        tier = prepared.stack_tier(name)
        losses = losses_of(tier, prepared, proposal)
        assert losses.dtype == torch.float64
        torch.testing.assert_close(losses, expected, **EXACT)
        # A share may begin and end within a row.
        start, stop = sorted(round(place * proposal.candidates) for place in cut)
        if start < stop:
            part = losses_of(tier, prepared, proposal, start, stop)
            torch.testing.assert_close(part, expected[start:stop], **EXACT)


@settings(max_examples=40)
@given(case=cases(drives=(False,)), samples=st.integers(1, 9), polytope=st.sampled_from(["simplex", "orthoplex"]))
def test_a_sliced_network_gives_the_same_losses(case, samples, polytope):
    whole = prepare(case, polytope=polytope)
    # The same layers, so that the candidates of the one are those of the other.
    module = Stacked(criterion=whole.module.criterion)
    module.network = Sliced(*whole.module.network, samples=samples)
    sliced = prepare(Case("sliced", lambda: module, case.batch, {}), polytope=polytope)
    for name, proposal in sites(whole).items():
        losses = losses_of(fastest_tier(proposal.block, recognise(module), sliced.capture), sliced, proposal)
        torch.testing.assert_close(losses, losses_of(whole.stack_tier(name), whole, proposal), **EXACT)
        torch.testing.assert_close(losses, losses_of(LoopTier(), sliced, proposal), **EXACT)


def dyadic_case(seed, beta, reset, spike_on, delay, readout, layers, changing):
    """Numbers whose products and sums are exact in float32, so that membranes meet thresholds exactly, and often."""
    torch.manual_seed(seed)
    options = {"reset_mechanism": reset, "spike_on": spike_on, "reset_delay": delay}
    parts = []
    for place in range(layers):
        last = place == layers - 1
        constant = {} if place or changing else {"num_steps": 4}
        membrane = {"return_membrane": True} if last and readout == "membrane" else {}
        parts += [nn.Linear(5 if place else 4, 3 if last else 5), LIF(beta, 1.0, **constant, **membrane, **options)]
    criterion = nn.MSELoss() if readout == "rate" else nn.CrossEntropyLoss()
    module = Stacked(*parts, READOUTS[readout](), criterion=criterion)
    for linear in module.network:
        if isinstance(linear, nn.Linear):
            for parameter in linear.parameters():
                parameter.data.copy_(torch.randint(-8, 9, parameter.shape) / 8)
    inputs = torch.randint(-2, 3, (4, 32, 4) if changing else (32, 4)).float()
    targets = torch.randint(3, (32,))
    return Case(
        "dyadic", lambda: module, lambda: (inputs, F.one_hot(targets).float() if readout == "rate" else targets), {}
    )


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    beta=st.sampled_from([0.5, 0.75]),
    reset=st.sampled_from(RESETS),
    spike_on=st.sampled_from(["ge", "gt"]),
    delay=st.booleans(),
    readout=st.sampled_from(list(READOUTS)),
    layers=st.sampled_from([1, 2, 3, 4]),
    changing=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_every_spike_is_the_same_where_rounding_has_no_part(dtype, **options):
    prepared = prepare(dyadic_case(**options), dtype, probe_radius=0.5)
    # A float32 loss is rounded by the loop, and a jump of it by the kernel; one spike more or less costs over 1e-3.
    tolerance = {"rtol": 1e-13, "atol": 1e-13} if dtype == torch.float64 else {"rtol": 0, "atol": 5e-6}
    for name, proposal in sites(prepared).items():
        proposal.directions = (torch.randint(-8, 9, proposal.directions.shape) / 8).to(dtype)
        expected = losses_of(LoopTier(), prepared, proposal)
        torch.testing.assert_close(losses_of(prepared.stack_tier(name), prepared, proposal), expected, **tolerance)


@pytest.mark.parametrize("hidden", [1, 2])
@pytest.mark.parametrize("membranes", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_single_precision_is_accurate_to_five_digits(seed, membranes, hidden):
    torch.manual_seed(seed)
    middle = [nn.Linear(32, 32), LIF(0.95, 1.0)] * (hidden - 1)
    module = Stacked(
        nn.Linear(16, 32),
        LIF(0.95, 1.0, num_steps=15),
        *middle,
        nn.Linear(32, 5),
        LIF(0.95, 1.0, return_membrane=membranes),
        LastMembrane() if membranes else SpikeCount(),
    )
    batch = torch.randn(256, 16), torch.randint(5, (256,))
    prepared = prepare(Case("single", lambda: module, lambda: batch, {}), torch.float32)
    for name, proposal in sites(prepared).items():
        expected = losses_of(LoopTier(), prepared, proposal)
        losses = losses_of(prepared.stack_tier(name), prepared, proposal)
        # One sample of 256 may be pushed over a threshold by rounding; all others agree.
        close = torch.isclose(losses, expected, rtol=1e-5, atol=0)
        assert int((~close).sum()) <= 1
        torch.testing.assert_close(losses, expected, rtol=0, atol=1 / 256)


@pytest.mark.parametrize("sizes", [(4, 6, 3), (4, 6, 5, 3)])
def test_many_shifts_are_taken_in_parts(monkeypatch, sizes):
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), LIF(0.9, 0.5))]
    module = Stacked(*layers, SpikeCount())
    batch = torch.randn(5, 24, 4), torch.randint(3, (24,))
    prepared = prepare(Case("changing", lambda: module, lambda: batch, {}))
    for name, proposal in sites(prepared).items():
        whole = losses_of(prepared.stack_tier(name), prepared, proposal)
        monkeypatch.setattr(stack_tier, "SHIFT_BYTES", 1)
        torch.testing.assert_close(losses_of(prepared.stack_tier(name), prepared, proposal), whole, **EXACT)
        monkeypatch.undo()
