"""The LIF module is its function, plus constants that it owns and nothing that a call could change."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn

from lightning_polystep.functional import NonDifferentiableError, lif
from lightning_polystep.layers import LIF, RLIF, Synaptic
from tests.helpers.layers import losses_of_training


def fingerprint(layer):
    own = {name: value for name, value in vars(layer).items() if name not in ("_parameters", "_buffers")}
    return repr(own), {name: value.clone() for name, value in layer.state_dict().items()}


@pytest.mark.parametrize("reset_mechanism", ["zero", "subtract", "none"])
@pytest.mark.parametrize("reset_delay", [False, True])
@pytest.mark.parametrize("spike_on", ["ge", "gt"])
def test_equals_its_function(reset_mechanism, reset_delay, spike_on):
    options = {
        "num_steps": 6,
        "reset_mechanism": reset_mechanism,
        "reset_delay": reset_delay,
        "spike_on": spike_on,
        "return_membrane": True,
    }
    current, beta, threshold = torch.rand(3, 4), torch.rand(4), torch.rand(4)
    module, function = LIF(beta, threshold, **options)(current), lif(current, beta, threshold, **options)
    assert torch.equal(module.spikes, function.spikes)
    assert torch.equal(module.membrane, function.membrane)


def test_every_option_of_the_function_is_one_of_the_module():
    function, module = (set(inspect.signature(callable_).parameters) for callable_ in (lif, LIF))
    assert function - {"current", "name"} == module - {"learn_beta", "learn_threshold"}


def test_learned_constants_are_parameters_and_others_buffers():
    assert dict(LIF().named_parameters()) == {}
    assert set(dict(LIF().named_buffers())) == {"beta", "threshold"}
    assert set(dict(LIF(learn_beta=True).named_parameters())) == {"beta"}
    assert set(dict(LIF(learn_threshold=True).named_parameters())) == {"threshold"}
    assert set(LIF.search_scale) == set(dict(LIF(learn_beta=True, learn_threshold=True).named_parameters()))


def test_a_given_tensor_is_not_shared():
    beta = torch.full((3,), 0.5)
    layer = LIF(beta, learn_beta=True)
    beta.zero_()
    assert torch.equal(layer.beta.detach(), torch.full((3,), 0.5))


def test_a_call_changes_nothing():
    layer = LIF(learn_beta=True, reset_mechanism="subtract", reset_delay=True)
    attributes, state = fingerprint(layer)
    current = torch.rand(5, 3)
    first = layer(current)
    torch.func.vmap(lambda beta: torch.func.functional_call(layer, {"beta": beta}, (current,)))(torch.rand(4))
    layer(torch.rand(2, 7))
    attributes_after, state_after = fingerprint(layer)
    assert attributes_after == attributes
    assert all(torch.equal(state_after[name], value) for name, value in state.items())
    assert torch.equal(layer(current), first)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_after_use_behave_alike(copied):
    layer, current = LIF(torch.rand(3), num_steps=5, learn_beta=True), torch.rand(4, 3)
    expected = layer(current)
    assert torch.equal(copied(layer)(current), expected)


def test_state_dict_round_trip_carries_the_constants():
    source, target = LIF(torch.rand(3), torch.rand(3), learn_beta=True), LIF(torch.rand(3), torch.rand(3))
    target.load_state_dict(source.state_dict())
    current = torch.rand(9, 2, 3)
    assert torch.equal(target(current), source(current))


def test_vmap_over_learned_constants_equals_the_loop():
    layer = LIF(torch.rand(3), torch.rand(3), num_steps=6, learn_beta=True, learn_threshold=True)
    current = torch.rand(4, 3)
    candidates = {"beta": torch.rand(5, 3), "threshold": torch.rand(5, 3)}

    def run(constants):
        return torch.func.functional_call(layer, constants, (current,))

    together = torch.func.vmap(run)(candidates)
    alone = [run({name: value[index] for name, value in candidates.items()}) for index in range(5)]
    assert torch.equal(together, torch.stack(alone))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_follows_the_dtype_of_the_network(dtype):
    network = torch.nn.Sequential(torch.nn.Linear(4, 3), LIF(num_steps=5, learn_beta=True)).to(dtype)
    assert network(torch.rand(2, 4, dtype=dtype)).dtype == dtype


def test_autocast_keeps_the_dtype_of_the_current():
    network = torch.nn.Sequential(torch.nn.Linear(4, 3), LIF(num_steps=5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network(torch.rand(2, 4)).dtype == torch.bfloat16


def test_backward_names_the_layer_or_gives_zeros():
    current = torch.rand(4, 3)
    with pytest.raises(NonDifferentiableError, match=r"LIF\(beta=0\.9 \(learned\), .*num_steps=5.*polystep"):
        LIF(0.9, num_steps=5, learn_beta=True)(current).sum().backward()
    layer = LIF(0.9, num_steps=5, learn_beta=True, on_backward="zero")
    layer(current).sum().backward()
    assert layer.beta.grad.item() == 0


def test_repr_shows_constants_as_given_and_unusual_options():
    assert repr(LIF()) == "LIF(beta=0.95, threshold=1.0, reset_mechanism='zero', spike_on='ge')"
    layer = LIF(torch.rand(7), torch.tensor(0.5), num_steps=3, reset_delay=True, learn_beta=True, return_membrane=True)
    assert repr(layer) == (
        "LIF(beta=tensor[7] (learned), threshold=0.5, num_steps=3, reset_mechanism='zero', reset_delay=True, "
        "spike_on='ge', return_membrane=True)"
    )


@pytest.mark.parametrize(
    "option", [{"num_steps": 0}, {"reset_mechanism": "hard"}, {"spike_on": "eq"}, {"on_backward": "surrogate"}]
)
def test_bad_options_are_refused_when_built(option):
    with pytest.raises(ValueError, match=f"LIF: {next(iter(option))} must be"):
        LIF(**option)


def test_constants_per_channel_of_an_image():
    """As after a convolution: (T, N, C, H, W) with one constant per channel, or (N, C, H, W) at every step."""
    beta, threshold = torch.rand(3, 1, 1), torch.rand(3, 1, 1) + 0.5
    layer, images = LIF(beta, threshold, learn_beta=True, learn_threshold=True), torch.rand(5, 2, 3, 4, 4)
    constant = LIF(beta, threshold, num_steps=5)
    for channel in range(3):
        alone = LIF(beta[channel].item(), threshold[channel].item())(images[:, :, channel])
        assert torch.equal(layer(images)[:, :, channel], alone)
    assert torch.equal(constant(images[0]), layer(images[0].expand(5, 2, 3, 4, 4)))
    candidates = {"beta": torch.rand(6, 3, 1, 1), "threshold": torch.rand(6, 3, 1, 1)}

    def run(constants):
        return torch.func.functional_call(layer, constants, (images,))

    alone = [run({name: value[index] for name, value in candidates.items()}) for index in range(6)]
    assert torch.equal(torch.func.vmap(run)(candidates), torch.stack(alone))


class SpikingConvolutions(torch.nn.Module):
    """A convolution under LIF neurons with one leak per channel, then their counts."""

    def __init__(self):
        super().__init__()
        self.conv, self.classify = torch.nn.Conv2d(1, 4, 2), torch.nn.Linear(8, 3)
        self.neurons = LIF(torch.full((4, 1, 1), 0.9), num_steps=6, learn_beta=True)

    def forward(self, x):
        return self.classify(self.neurons(self.conv(x.view(-1, 1, 2, 3))).sum(0).flatten(1))


def test_a_network_of_spiking_convolutions_learns():
    losses = losses_of_training(SpikingConvolutions())
    assert sum(losses[-5:]) / 5 < 0.7 * losses[0]


@pytest.mark.parametrize("build", [LIF, Synaptic, lambda **given: RLIF(3, **given)])
def test_a_parameter_that_is_given_stays_the_parameter_that_it_is(build):
    beta, threshold = nn.Parameter(torch.full((3,), 0.9)), nn.Parameter(torch.ones(3), requires_grad=False)
    layer = build(beta=beta, threshold=threshold)
    assert layer.beta is beta
    assert layer.threshold is threshold
    assert "beta=tensor[3] (learned)" in repr(layer)
    assert [name for name, _ in layer.named_parameters() if "recurrent" not in name] == ["beta", "threshold"]
    # Two layers of one leak share it, as they would in torch.
    assert build(beta=beta).beta is beta
