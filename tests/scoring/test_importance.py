"""Candidates are scored on some samples, drawn by how much they are off, and cost on average what they cost on all."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_polystep.layers import (
    LIF,
    HardMoE,
    LastMembrane,
    QuantLinear,
    Sign,
    Sliced,
    SlotArgmaxAttention,
    SpikeCount,
    Staircase,
)
from lightning_polystep.scoring.importance import Selection, output_errors, select_samples
from tests.helpers.parity import Case, Prepared, Stacked, losses_of, prepare, reference_losses

EXACT = {"rtol": 1e-9, "atol": 1e-10}
SAMPLES = 9


def draw(seed):
    return torch.Generator().manual_seed(seed)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0.05, 2.0), st.integers(0, 10**6))
def test_the_number_of_samples_is_the_sum_of_their_chances(errors, certain, seed):
    errors = torch.tensor(errors, dtype=torch.float64)
    chosen, weights = select_samples(errors, certain, draw(seed))
    chances = (0.03 + errors / certain).clamp(max=1)
    assert abs(int(chosen.sum()) - float(chances.sum())) < 1 + 1e-9
    assert bool(chosen[errors >= certain].all())
    torch.testing.assert_close(weights, 1 / chances[chosen])


def test_each_sample_comes_with_its_chance():
    errors = torch.tensor([0.0, 0.02, 0.3, 0.1, 0.5, 1.0])
    chances = (0.03 + errors.double() / 0.5).clamp(max=1)
    often = torch.stack([select_samples(errors, 0.5, draw(seed)).chosen for seed in range(4000)]).double().mean(0)
    torch.testing.assert_close(often, chances, rtol=0, atol=0.03)


def test_the_error_is_what_the_network_says_wrongly():
    scores = torch.tensor([[0.0, 0.0, 0.0], [50.0, 0.0, 0.0], [0.0, 50.0, 0.0]])
    targets = nn.functional.one_hot(torch.tensor([0, 0, 0]), 3).double()
    torch.testing.assert_close(output_errors(scores, targets), torch.tensor([2 / 3, 0.0, 1.0], dtype=torch.float64))


def binary(features_in, features_out):
    return QuantLinear(features_in, features_out, weight_format="binary")


NETWORKS = {
    "spiking": lambda: [nn.Linear(4, 6), LIF(0.9, num_steps=5), nn.Linear(6, 3), LIF(0.9, 0.3), SpikeCount()],
    "membranes": lambda: [
        nn.Linear(4, 6),
        LIF(0.9, num_steps=5),
        nn.Linear(6, 5),
        LIF(0.9),
        nn.Linear(5, 3),
        LIF(0.9, return_membrane=True),
        LastMembrane(),
    ],
    "staircase": lambda: [nn.Linear(4, 6), Staircase(5), nn.Linear(6, 5), Staircase(5), nn.Linear(5, 3)],
    "int8": lambda: [nn.Linear(4, 6), nn.ReLU(), QuantLinear(6, 5), nn.ReLU(), nn.Linear(5, 3)],
    "mixture": lambda: [
        nn.Linear(4, 6),
        nn.ReLU(),
        HardMoE([nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)) for _ in range(2)], router=6),
    ],
    "slots": lambda: [nn.Linear(4, 6), nn.ReLU(), SlotArgmaxAttention(6, 3), nn.ReLU(), nn.Linear(6, 3)],
}


def case_of(name, smoothing=0.1, slices=None):
    torch.manual_seed(1)
    layers = [Sign(), binary(4, 5), Sign(), binary(5, 3)] if name == "flips" else NETWORKS[name]()
    module = Stacked(*layers, label_smoothing=smoothing)
    if slices is not None:
        module.network = Sliced(*module.network, samples=slices)
    batch = torch.randn(SAMPLES, 4), torch.randint(3, (SAMPLES,))
    return Case(name, lambda: module, lambda: batch, {})


def weighted(case: Case, prepared: Prepared, proposal, selection: Selection):
    """The losses on the whole batch, with each change on a chosen sample as often as the sample counts."""
    inputs, targets = (t.double() if t.is_floating_point() else t for t in case.batch())
    total = prepared.commit_loss.double() * SAMPLES
    for sample, weight in zip(selection.chosen.nonzero()[:, 0].tolist(), selection.weights.tolist(), strict=True):
        only = slice(sample, sample + 1)

        def evaluate(network, only=only):
            return case.loss_of(network, inputs[only], targets[only])

        alone = replace(prepared, evaluate=evaluate)
        with torch.no_grad():
            total = total + weight * (reference_losses(alone, proposal) - evaluate(prepared.module).double())
    return total / SAMPLES


@pytest.mark.parametrize("slices", [None, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_tier_scores_chosen_samples_as_often_as_they_count(name, slices):
    case = case_of(name, slices=slices if name in {"spiking", "staircase"} else None)
    prepared = prepare(case)
    selection = Selection(torch.arange(SAMPLES) % 3 != 1, torch.arange(1, 7).double() / 2)
    for proposal in prepared.proposals.values():
        if proposal.block.site is None and name != "slots":
            continue
        tier = prepared.stack_tier(proposal.block.name)
        prepared.capture.selection = None
        everything = losses_of(tier, prepared, proposal)
        prepared.capture.selection = selection
        assert prepared.capture.scored_samples == 6
        losses = losses_of(tier, prepared, proposal)
        torch.testing.assert_close(losses, weighted(case, prepared, proposal, selection), **EXACT)
        # All samples, once each, are the batch.
        prepared.capture.selection = Selection(torch.ones(SAMPLES, dtype=torch.bool), torch.ones(SAMPLES).double())
        torch.testing.assert_close(losses_of(tier, prepared, proposal), everything, **EXACT)


@pytest.mark.parametrize("slices", [None, 2])
@pytest.mark.parametrize("name", NETWORKS)
def test_where_no_sample_is_drawn_no_candidate_changes_anything(name, slices):
    prepared = prepare(case_of(name, slices=slices if name in {"spiking", "staircase"} else None))
    prepared.capture.selection = Selection(torch.zeros(SAMPLES, dtype=torch.bool), torch.empty(0).double())
    for proposal in prepared.proposals.values():
        if proposal.block.site is not None or name == "slots":
            tier = prepared.stack_tier(proposal.block.name)
            losses = losses_of(tier, prepared, proposal)
            assert bool((losses == losses[0]).all())
            torch.testing.assert_close(losses[0], prepared.commit_loss.double())
            assert tier.changed_pairs(proposal) == 0.0


@settings(max_examples=15)
@given(smoothing=st.sampled_from([0.0, 0.1, 1.0]), seed=st.integers(0, 10**6))
def test_flips_are_scored_on_chosen_samples_too(smoothing, seed):
    case = case_of("flips", smoothing)
    prepared = prepare(case, subspace="flips")
    torch.manual_seed(seed)
    chosen = torch.rand(SAMPLES) < 0.7
    selection = Selection(chosen, torch.rand(int(chosen.sum())).double() + 0.5)
    for name, proposal in prepared.proposals.items():
        single = replace(proposal, starts=None, centre=None)
        prepared.capture.selection = selection
        losses = losses_of(prepared.stack_tier(name), prepared, single)
        expected = weighted(case, prepared, single, selection)
        torch.testing.assert_close(losses, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", ["spiking", "staircase"])
def test_costs_are_right_on_average(name):
    case = case_of(name, smoothing=0.0)
    prepared = prepare(case)
    name, proposal = next(iter(prepared.proposals.items()))
    tier, stack = prepared.stack_tier(name), prepared.stack_tier(name).stack
    exact = losses_of(tier, prepared, proposal)
    estimates = []
    for seed in range(600):
        prepared.capture.select(stack, 0.9, draw(seed))
        assert prepared.capture.scored_samples < SAMPLES
        estimates.append(losses_of(tier, prepared, proposal))
    estimates = torch.stack(estimates)
    error = 4 * estimates.std(0) / 600**0.5 + 1e-9
    assert bool(((estimates.mean(0) - exact).abs() <= error).all())
    prepared.capture.clear()
    assert prepared.capture.selection is None, "the next pass has other samples"
