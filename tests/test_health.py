"""What is wrong with layers is said once each, in the first pass or at rare ones later, with the cure."""

import re
import warnings

import pytest
import torch
from torch import nn

from lightning_polystep import Engine, PolyStep
from lightning_polystep.health import Health, clipped_weights
from lightning_polystep.layers import LIF, HardMoE, QuantActivation, QuantConv2d, QuantLinear, SpikeCount

X = torch.rand(64, 8)


def run(module, count, x=X, before=lambda _number: None):
    health, told = Health(module), []
    for number in range(1, count + 1):
        before(number)
        with warnings.catch_warnings(record=True, action="always") as caught, health.looking():
            module(x)
        told += [(number, str(each.message)) for each in caught]
    return told


def spiking(threshold):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), LIF(0.5, threshold, num_steps=5), nn.Linear(16, 3), SpikeCount())


def test_a_silent_layer_is_named_once_in_the_first_pass_with_the_cure():
    told = run(spiking(50.0)[:2], 70)
    assert [number for number, _ in told] == [1]
    assert "'1' (LIF) never fires" in told[0][1]
    assert "lightning_polystep.initialise(module, batch)" in told[0][1]
    assert "InitialiseByData()" in told[0][1]


def test_a_layer_that_falls_silent_is_named_later():
    module = nn.Sequential(nn.Linear(8, 16), nn.ReLU())

    def before(number):
        if number == 10:
            with torch.no_grad():
                module[0].bias.fill_(-50)

    assert [(number, "'1' (ReLU)" in text) for number, text in run(module, 70, before=before)] == [(16, True)]


def test_passes_that_are_not_looked_at_have_no_hooks():
    module, seen = nn.Sequential(nn.ReLU()), []
    health = Health(module)
    for _ in range(33):
        with health.looking():
            seen.append(len(module[0]._forward_hooks))
    assert [number for number, hooks in enumerate(seen, 1) if hooks] == [1, 8, 16, 32]
    assert not module[0]._forward_hooks


@pytest.mark.parametrize(
    "layer",
    [
        QuantLinear(8, 3),
        QuantLinear(8, 3, weight_format="int4", granularity="per_tensor"),
        QuantConv2d(1, 4, 3, weight_format="int3"),
    ],
)
def test_clipped_weights_are_told_during_the_fit(layer):
    module, x = nn.Sequential(layer), torch.rand(64, 8) if isinstance(layer, QuantLinear) else torch.rand(8, 1, 5, 5)

    def before(number):
        if number == 4:
            with torch.no_grad():
                layer.weight.mul_(5)

    (told,) = run(module, 40, x, before)
    assert told[0] == 8
    assert re.search(r"weights have outgrown .*\d+% of '0'\. .*follow=True", told[1])


@pytest.mark.parametrize(
    "layer",
    [
        QuantLinear(8, 3, follow=True),
        QuantLinear(8, 3, weight_format="binary"),
        QuantLinear(8, 3, weight_format="int2"),
        nn.Linear(8, 3),
    ],
)
def test_weights_without_frozen_codes_are_not_clipped(layer):
    with torch.no_grad():
        layer.weight.mul_(5)
    assert run(nn.Sequential(layer), 8) == []


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_clipped_activations_are_told(signed, inside):
    quantiser = QuantActivation(4, signed, scale=0.01)
    module = nn.Sequential(QuantLinear(8, 3, input_quant=quantiser) if inside else quantiser)
    (told,) = run(module, 8)
    assert told[0] == 8
    assert re.search(r"beyond the largest code .*\d+% of '0'\. .*Calibrate\(follow=True\)", told[1])
    quantiser.scale.fill_(1.0)
    assert run(module, 8) == []


def test_experts_without_a_sample_are_told():
    module = nn.Sequential(HardMoE([nn.Linear(8, 3) for _ in range(4)], nn.Linear(8, 4)))
    with torch.no_grad():
        module[0].router.bias.copy_(torch.tensor([50.0, 0, 0, 0]))
    (told,) = run(module, 40)
    assert told[0] == 1
    assert "'0' has given its experts [64, 0, 0, 0]" in told[1]
    assert "initialise(module, batch)" in told[1]


def test_a_frozen_scale_of_brevitas_clips_too():
    qnn = pytest.importorskip("brevitas.nn")
    constant = {"weight_scaling_impl_type": "parameter", "weight_scaling_init": 0.01, "bias": True}
    network = nn.Sequential(qnn.QuantLinear(8, 3, **constant), qnn.QuantLinear(3, 3, bias=True))
    assert list(clipped_weights(network)) == ["0"]


def test_a_step_in_plain_pytorch_warns():
    """Without it, 47 seconds passed in which only the last bias moved."""
    network, y = spiking(50.0), torch.randint(3, (64,))
    engine = Engine(network, PolyStep(network.parameters(), seed=0), max_candidates=20, announce=None)
    with pytest.warns(UserWarning, match=r"At pass 1 these layers are silent: '1' \(LIF\) never fires"):
        engine.step(lambda: nn.functional.cross_entropy(network(X), y))
