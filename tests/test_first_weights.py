"""First weights from data reach the steps of every layer, in any library, and leave no other trace."""

import pytest
import torch
from torch import nn

from lightning_polystep import PolyStep, initialise
from lightning_polystep.interop import from_brevitas
from lightning_polystep.layers import (
    LIF,
    HardMoE,
    QuantActivation,
    QuantConv2d,
    QuantLinear,
    Sign,
    SpikeCount,
    Staircase,
    calibrate,
)
from lightning_polystep.silence import listening, silent

X = torch.rand(128, 8)


def outputs(network, x=X):
    """What each Linear and convolution layer gives, units last."""
    seen = {}

    def hook(name):
        def keep(_module, _inputs, output):
            seen.setdefault(name, []).append(output.movedim(1, -1) if output.ndim == 4 else output)

        return keep

    parts = [(n, p) for n, p in network.named_modules() if isinstance(p, nn.Linear | nn.Conv2d)]
    handles = [part.register_forward_hook(hook(name)) for name, part in parts]
    with torch.no_grad():
        network(x)
    for handle in handles:
        handle.remove()
    return {name: torch.cat([each.reshape(-1, each.shape[-1]) for each in calls]) for name, calls in seen.items()}


@pytest.mark.parametrize("target", [1.0, 0.5])
@pytest.mark.parametrize("between", [nn.ReLU, Sign, Staircase, nn.Tanh])
def test_pre_activations_are_centred_with_the_wanted_spread(between, target):
    network = nn.Sequential(nn.Linear(8, 32), between(), nn.Linear(32, 32), between(), nn.Linear(32, 3))
    gains = initialise(network, (X, "labels"), target=target)
    assert list(gains) == ["0", "2", "4"]
    for values in outputs(network).values():
        assert values.mean(0).abs().max() < 1e-4 * target
        assert float(values.square().mean().sqrt()) == pytest.approx(target, rel=1e-3)


def test_without_centring_or_a_bias_the_root_mean_square_is_scaled_alone():
    for network, centre in (
        (nn.Sequential(nn.Linear(8, 16, bias=False)), True),
        (nn.Sequential(nn.Linear(8, 16)), False),
    ):
        before = [parameter.detach().clone() for parameter in network.parameters()]
        gain = initialise(network, X, centre=centre)["0"]
        assert float(outputs(network)["0"].square().mean().sqrt()) == pytest.approx(1, rel=1e-3)
        assert all(torch.allclose(p, gain * b) for p, b in zip(network.parameters(), before, strict=True))


@pytest.mark.parametrize("threshold", [5.0, 10.0, 50.0])
def test_silent_neurons_fire_afterwards(threshold):
    network = nn.Sequential(
        nn.Linear(8, 32), LIF(0.9, threshold, num_steps=10), nn.Linear(32, 3), LIF(0.9, threshold), SpikeCount()
    )
    initialise(network, X)
    with torch.no_grad(), listening(network) as heard:
        network(X)
    assert silent(heard) == []
    assert min(heard["1"].rate, heard["3"].rate) >= 0.02


class Loop(nn.Module):
    """As a library's users write it: step by step, the state in their hands or in the neuron."""

    def __init__(self, neuron, run, restart=lambda _net: None):
        super().__init__()
        self.fc1, self.lif1, self.fc2, self.lif2 = nn.Linear(8, 32), neuron(), nn.Linear(32, 3), neuron()
        self.run, self.restart = run, restart

    def forward(self, x):
        self.restart(self)
        hidden, output, count = None, None, 0
        for _ in range(10):
            spikes, hidden = self.run(self.lif1, self.fc1(x), hidden)
            spikes, output = self.run(self.lif2, self.fc2(spikes), output)
            count = count + spikes
        return count


def snntorch_step(lif, current, membrane):
    return lif(current, torch.zeros_like(current) if membrane is None else membrane)


def leaky():
    snn = pytest.importorskip("snntorch")
    return Loop(lambda: snn.Leaky(0.5, threshold=5.0), snntorch_step)


def lapicque():
    snn = pytest.importorskip("snntorch")
    return Loop(lambda: snn.Lapicque(0.9), snntorch_step)


def norse():
    return Loop(pytest.importorskip("norse.torch").LIFCell, lambda lif, current, state: lif(current, state))


def spikingjelly():
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    functional = pytest.importorskip("spikingjelly.activation_based.functional")
    return Loop(neuron.LIFNode, lambda lif, current, _state: (lif(current), None), functional.reset_net)


@pytest.mark.parametrize("build", [leaky, lapicque, norse, spikingjelly])
def test_networks_of_other_libraries(build):
    torch.manual_seed(1)
    network = build()
    with torch.no_grad(), listening(network) as heard:
        network(X)
    assert silent(heard)
    initialise(network, X)
    with torch.no_grad(), listening(network) as heard:
        network(X)
    assert silent(heard) == []
    assert min(heard["lif1"].rate, heard["lif2"].rate) >= 0.02


def test_one_call_is_deterministic_and_leaves_no_other_trace():
    def network():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 3))
        net[4].eval()
        return net

    nets = [network(), network()]
    for seed, net in enumerate(nets):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        initialise(net, X)
        assert torch.equal(torch.get_rng_state(), state)
        assert int(net[1].num_batches_tracked) == 0
        assert [part.training for part in net] == [True] * 4 + [False]
        assert not any(part._forward_hooks for part in net)
    assert all(
        torch.equal(*pair) for pair in zip(nets[0].state_dict().values(), nets[1].state_dict().values(), strict=True)
    )


def test_what_must_stay_stays():
    network = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3))
    network[0].requires_grad_(False)
    network[3].weight = network[2].weight
    nn.init.zeros_(network[4].weight)
    before = [parameter.detach().clone() for parameter in (network[0].weight, network[2].weight, network[4].weight)]
    with pytest.raises(ValueError, match="no Linear or convolution layer with trainable weights"):
        initialise(network, X)
    after = (network[0].weight, network[2].weight, network[4].weight)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_a_pruned_layer_is_scaled_where_its_mask_cannot_undo_it():
    network = nn.Sequential(nn.Linear(8, 16))
    nn.utils.prune.random_unstructured(network[0], "weight", 0.5)
    initialise(network, X)
    assert float(outputs(network)["0"].square().mean().sqrt()) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("weight_format", ["int8", "int4", "ternary", "binary", "float"])
def test_quantised_layers_keep_their_codes_and_activations_are_calibrated_on_the_way(weight_format):
    network = nn.Sequential(
        QuantConv2d(1, 4, 3, weight_format=weight_format),
        QuantActivation(4),
        nn.Flatten(),
        QuantLinear(16, 5, weight_format=weight_format, input_quant=QuantActivation(8)),
    )
    images = torch.rand(64, 1, 4, 4)
    codes = network[0].weight_codes() if weight_format != "float" else None
    initialise(network, images)
    assert codes is None or torch.equal(network[0].weight_codes(), codes)
    assert not network[1].calibrated, "there is a callback and a function for that"
    calibrate(network, [images])
    for values in outputs(network, images).values():
        assert float(values.square().mean().sqrt()) == pytest.approx(1, rel=0.05)
    scale = network[1].scale.clone()
    with torch.no_grad():
        network[0].weight.mul_(10)
        network[0].weight_scale = None if codes is None else 10 * network[0].weight_scale
    initialise(network, images)
    assert torch.allclose(network[1].scale, scale, rtol=0.05), "it follows the weights, as it had a scale"


def test_a_scale_that_is_a_constant_stays_and_only_the_bias_moves():
    network = nn.Sequential(QuantLinear(8, 16, weight_format="binary"), Sign(), nn.Linear(16, 3))
    network[0].weight_scale, network[0].scale_given = torch.ones(16), True
    before = network[0].weight.detach().clone()
    initialise(network, X)
    assert torch.equal(network[0].weight, before)
    assert torch.equal(network[0].weight_scale, torch.ones(16))
    assert outputs(network)["0"].mean(0).abs().max() < 1e-4


def test_brevitas_before_and_after_conversion():
    qnn = pytest.importorskip("brevitas.nn")
    torch.manual_seed(0)
    network = nn.Sequential(
        qnn.QuantLinear(8, 16, bias=True), qnn.QuantReLU(bit_width=4), qnn.QuantLinear(16, 3, bias=True)
    )
    initialise(network, X)
    assert network[1].act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl.counter == 0
    with torch.no_grad():
        network(X)
    converted = from_brevitas(network)
    for values in outputs(converted).values():
        assert float(values.square().mean().sqrt()) == pytest.approx(1, rel=0.1)
    constant = nn.Sequential(
        qnn.QuantLinear(8, 16, bias=True, weight_scaling_impl_type="const", weight_scaling_init=0.001)
    )
    before = constant[0].weight.detach().clone()
    with pytest.warns(UserWarning, match="'0' does not grow with its weights"):
        initialise(constant, X)
    assert torch.equal(constant[0].weight, before)


def test_a_router_spreads_its_samples():
    torch.manual_seed(0)
    network = nn.Sequential(HardMoE([nn.Linear(8, 3) for _ in range(4)], nn.Linear(8, 4)))
    with torch.no_grad():
        network[0].router.bias[0] = 50
    gains = initialise(network, X)
    assert torch.bincount(network[0].router(X).argmax(-1), minlength=4).min() > 8
    assert set(gains) == {"0.router", *[f"0.experts.{index}" for index in range(4)]}


def test_a_function_runs_what_is_called_otherwise():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 16)

    network = Net()
    assert list(initialise(network, lambda: network.fc(X))) == ["fc"]
    with pytest.raises(ValueError, match="has no forward of its own: give a function"):
        initialise(network, X)
    with pytest.raises(ValueError, match="the batch is a dict"):
        initialise(network, {"x": X})
    with pytest.raises(ValueError, match="reached no Linear"):
        initialise(network, lambda: None)


def test_what_cannot_be_helped_is_said():
    network = nn.Sequential(nn.Linear(8, 16), nn.Hardtanh(1e9, 2e9), nn.Linear(16, 3))
    with pytest.warns(UserWarning, match="initialise: ") as caught:
        initialise(network, X)
    texts = " ".join(str(each.message) for each in caught)
    assert "behind '0' stays silent, however large its inputs are" in texts
    assert "'2' gives every sample the same" in texts


def test_groups_have_radii_in_units_of_each_layers_pre_activations():
    network = nn.Sequential(
        nn.Linear(8, 32),
        LIF(0.5, 50.0, num_steps=10, learn_threshold=True),
        nn.Linear(32, 3),
        LIF(0.9, 1.0),
        SpikeCount(),
    )
    network[0].bias.requires_grad_(False)
    first = initialise(network, X)
    wide = float(outputs(network)["0"].var(0).mean().sqrt())
    assert wide > 4
    (one, two, rest) = first.groups(lr=0.2, probe_radius=0.1)
    assert one["params"] == [network[0].weight]
    assert 0.7 < one["lr"] / (0.2 * wide) < 1.42
    assert one["lr"] / 0.2 == pytest.approx(one["probe_radius"] / 0.1)
    assert two["params"] == list(network[2].parameters())
    assert rest == {"params": [network[1].threshold], "lr": 0.2, "probe_radius": 0.1, "subspace": "inputs"}
    optimizer = PolyStep(first.groups(), seed=0)
    assert {p for group in optimizer.param_groups for p in group["params"]} == {
        p for p in network.parameters() if p.requires_grad
    }


def test_flips_keep_their_rate_and_get_starts_as_wide_as_their_pre_activations():
    network = nn.Sequential(QuantLinear(64, 16, weight_format="binary"), Sign(), nn.Linear(16, 3))
    network[0].weight_scale, network[0].scale_given = torch.ones(16), True
    first = initialise(network, torch.randn(256, 64).sign())
    assert first.radii() == {"0": 8.0, "2": 1.0}
    one, two = first.groups(lr=0.1, probe_radius=0.25, subspace="flips")
    assert (one["lr"], one["probe_radius"], one["subspace"]) == (0.1, 2.0, "flips")
    assert (two["lr"], two["probe_radius"]) == (0.1, 0.25)


def test_neurons_that_fire_too_often_are_calmed():
    """As currents of 1 make a slow leak do: on digits that cost seven points."""
    network = nn.Sequential(nn.Linear(8, 64), LIF(0.95, num_steps=15), nn.Linear(64, 3), LIF(0.95), SpikeCount())
    gains = initialise(network, X)
    with torch.no_grad(), listening(network) as heard:
        network(X)
    assert all(0.02 <= heard[name].rate <= 0.12 for name in ("1", "3"))
    assert gains.radii() == {"0": 1.0, "2": 1.0}, "radii are no smaller than PolyStep's own"
