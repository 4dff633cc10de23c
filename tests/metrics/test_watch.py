"""Watched layers give the figures of their metrics, fed by hand."""

import pytest
import torch
from torch import nn

from lightning_polystep import Engine, PolyStep
from lightning_polystep.layers import (
    LIF,
    RLIF,
    ArgmaxAttention,
    HardMoE,
    Heaviside,
    QuantActivation,
    QuantLinear,
    Sign,
    Sliced,
    SlotArgmaxAttention,
    SpikeCount,
    Staircase,
)
from lightning_polystep.metrics import (
    AttentionCoverage,
    ClipFraction,
    CodeUtilisation,
    DeadNeuronFraction,
    ExpertLoad,
    LayerWatch,
    LevelOccupancy,
    SpikeRate,
    SynapticOperations,
    TieRate,
)
from lightning_polystep.sites import not_recording


def watched(model, *batches, **options):
    with LayerWatch(model, **options) as watch:
        for batch in batches:
            model(batch)
            watch.count_samples(len(batch))
    return {name: float(value) for name, value in watch.compute().items()}


def by_hand(metric, *updates):
    for arguments in updates:
        metric.update(*arguments)
    value = metric.compute()
    return {name: v.tolist() for name, v in value.items()} if isinstance(value, dict) else float(value)


@torch.no_grad()
@pytest.mark.parametrize("samples", [None, 2])
def test_a_spiking_network_whole_and_in_slices(samples):
    layers = [nn.Linear(4, 6), LIF(num_steps=5), nn.Linear(6, 3), LIF(return_membrane=True)]
    plain = nn.Sequential(*layers)
    model = Sliced(*layers, Spikes(), SpikeCount(), samples=samples)
    batches = [torch.rand(3, 4), torch.rand(5, 4)]
    figures = watched(model, *batches)
    hidden = [plain[:2](batch) for batch in batches]
    output = [plain(batch).spikes for batch in batches]
    assert figures["spike_rate/1"] == by_hand(SpikeRate(), *((spikes,) for spikes in hidden))
    assert figures["dead_neurons/1"] == by_hand(DeadNeuronFraction(6), *((spikes,) for spikes in hidden))
    assert figures["spike_rate/3"] == by_hand(SpikeRate(), *((spikes,) for spikes in output))
    first = by_hand(SynapticOperations(), *((x, layers[0], len(x)) for x in batches))
    second = by_hand(SynapticOperations(), *((s, layers[2], s.shape[1]) for s in hidden))
    assert figures["synaptic_operations/0"] == pytest.approx(first["multiply_accumulates"])
    assert figures["synaptic_operations/2"] == pytest.approx(second["accumulates"])
    assert figures["synaptic_operations"] == pytest.approx(first["multiply_accumulates"] + second["accumulates"])
    assert figures["accumulates"] == pytest.approx(second["accumulates"])
    assert figures["multiply_accumulates"] == pytest.approx(first["multiply_accumulates"])
    assert figures["dense_operations"] == pytest.approx(first["dense"] + second["dense"])


class Spikes(nn.Module):
    def forward(self, output):
        return output.spikes


@torch.no_grad()
def test_recurrent_spikes_are_additions():
    figures = watched(nn.Sequential(RLIF(3, num_steps=4)), torch.rand(5, 3))
    assert figures["multiply_accumulates"] == 0.0
    assert figures["dense_operations"] == 4 * 9
    assert set(figures) >= {"spike_rate/0", "dead_neurons/0", "saturated_neurons/0", "synaptic_operations/0.recurrent"}


@torch.no_grad()
@pytest.mark.parametrize("layer", [Staircase(), Sign(), Heaviside()], ids=repr)
def test_levels(layer):
    x = torch.randn(20, 3)
    expected = by_hand(LevelOccupancy(layer.levels(x.dtype)), (layer(x),))
    assert watched(nn.Sequential(layer), x) == pytest.approx(
        {"levels_used/0": expected["used"], "level_entropy/0": expected["entropy"]}
    )


@torch.no_grad()
def test_quantised_layers_with_a_quantiser_before_and_inside():
    x = 3 * torch.randn(9, 4)
    model = nn.Sequential(
        QuantActivation(4, True, scale=0.5),
        QuantLinear(4, 3, input_quant=QuantActivation(3, scale=0.25)),
        QuantLinear(3, 2, weight_format="binary"),
    )
    figures = watched(model, x, synaptic_operations=False)
    coded = model[0](x)
    assert figures == pytest.approx(
        {
            "code_utilisation/0": by_hand(CodeUtilisation(range(-7, 8)), (model[0].codes(x),)),
            "clip_fraction/0": by_hand(ClipFraction(-7, 7), (x, torch.tensor(0.5))),
            "code_utilisation/1.input_quant": by_hand(CodeUtilisation(range(8)), (model[1].input_quant.codes(coded),)),
            "clip_fraction/1.input_quant": by_hand(ClipFraction(0, 7), (coded, torch.tensor(0.25))),
            "weight_code_utilisation/1": len(set(model[1].weight_codes().flatten().tolist())) / 255,
            "weight_clip_fraction/1": 0.0,
            "weight_code_utilisation/2": len(set(model[2].weight_codes().flatten().tolist())) / 2,
        }
    )


@torch.no_grad()
def test_attention_measures_what_the_layer_takes():
    layer, tokens = ArgmaxAttention(8, 2, is_causal=True, return_indices=True), torch.randn(3, 5, 8)
    padding = torch.tensor([[False] * 5, [True, True, False, False, False], [False] * 4 + [True]])
    with LayerWatch(layer, synaptic_operations=False) as watch:
        indices = layer(tokens, key_padding_mask=padding).indices
    figures = {name: float(value) for name, value in watch.compute().items()}
    chosen = [{key for key in row.tolist() if key >= 0} for row in indices.flatten(0, 1)]
    available = 2 * int((~padding).sum())
    assert figures["attention_coverage/ArgmaxAttention"] == pytest.approx(sum(map(len, chosen)) / available)
    assert figures["tie_rate/ArgmaxAttention"] == 0.0
    with LayerWatch(layer) as watch:
        layer(torch.ones(2, 4, 8))
    expected = by_hand(
        TieRate(), (torch.ones(2, 2, 4, 4).tril().masked_fill(~torch.ones(4, 4).bool().tril(), -torch.inf),)
    )
    assert float(watch.compute()["tie_rate/ArgmaxAttention"]) == pytest.approx(expected) == pytest.approx(0.75)
    assert by_hand(AttentionCoverage(), (torch.zeros(2, 2, 4).long(), 4)) == pytest.approx(
        float(watch.compute()["attention_coverage/ArgmaxAttention"])
    )


@torch.no_grad()
def test_slots_and_experts():
    x = torch.randn(11, 4)
    slots, experts = (
        SlotArgmaxAttention(4, 5, return_indices=True),
        HardMoE([nn.Linear(4, 2) for _ in range(3)], router=4),
    )
    figures = watched(nn.Sequential(slots), x, synaptic_operations=False)
    assert figures == pytest.approx({"slot_utilisation/0": len(set(slots(x).indices.tolist())) / 5, "tie_rate/0": 0.0})
    figures = watched(nn.Sequential(experts), x)
    route = experts.router(x).argmax(-1)
    load = by_hand(ExpertLoad(3), (route,))
    assert figures["expert_imbalance/0"] == pytest.approx(load["imbalance"])
    assert figures["expert_entropy/0"] == pytest.approx(load["entropy"])
    assert figures["dead_experts/0"] == 3 - len(set(route.tolist()))
    assert {"router_margin/0", "tie_rate/0"} <= set(figures)
    # Each sample runs through the router and through one expert.
    assert figures["dense_operations"] == pytest.approx(4 * 3 + 4 * 2)


@torch.no_grad()
def test_an_expert_that_starts_late_is_divided_by_all_samples():
    experts = HardMoE([nn.Linear(1, 1, bias=False) for _ in range(2)], router=nn.Linear(1, 2, bias=False))
    experts.router.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    figures = watched(nn.Sequential(experts), torch.ones(3, 1), -torch.ones(1, 1))
    assert figures["synaptic_operations/0.experts.0"] == 3 / 4
    assert figures["synaptic_operations/0.experts.1"] == 1 / 4


@torch.no_grad()
def test_neurons_of_no_fixed_number_have_a_rate_only():
    model = nn.Sequential(LIF(num_steps=3))
    figures = watched(model, torch.rand(2, 4), torch.rand(2, 5), torch.rand(2, 4), torch.rand(2, 5))
    assert set(figures) == {"spike_rate/0"}


@torch.no_grad()
def test_operations_per_sample_need_samples_and_hooks_go():
    model, x = nn.Sequential(nn.Linear(3, 2), Sign()), torch.randn(4, 3)
    with LayerWatch(model) as watch:
        model(x)
        assert not any("operations" in name for name in watch.compute())
    watch.count_samples(4)
    before = watch.compute()
    assert float(before["synaptic_operations"]) == 6.0
    model(x)
    assert watch.compute() == before
    assert not any(module._forward_hooks for module in model.modules())


def test_probes_are_not_measured():
    model, x = nn.Sequential(nn.Linear(3, 6), LIF(num_steps=4), nn.Linear(6, 2), LIF(), SpikeCount()), torch.randn(4, 3)
    with LayerWatch(model) as watch, not_recording():
        model(x)
    assert watch.compute() == {}
    engine = Engine(model, PolyStep(model.parameters(), seed=0, rank=2), evaluation="tape", announce=None)
    with torch.no_grad():
        expected = watched(model, x)
    with LayerWatch(model) as watch:
        engine.step(lambda: nn.functional.cross_entropy(model(x), torch.tensor([0, 1, 0, 1])))
    watch.count_samples(4)
    assert {name: float(value) for name, value in watch.compute().items()} == expected
