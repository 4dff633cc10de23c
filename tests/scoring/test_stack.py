"""What is kept of a pass, and whether it explains the loss of the step."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep.layers import LIF, Sliced, SpikeCount
from lightning_polystep.scoring.importance import Selection
from lightning_polystep.scoring.recognise import recognise
from lightning_polystep.scoring.stack import Capture, capturing, disagreement
from lightning_polystep.sites import not_recording
from tests.helpers.parity import Stacked


def layers(**neurons):
    return [nn.Linear(4, 6), LIF(0.9, num_steps=5, **neurons), nn.Linear(6, 3), LIF(0.9), SpikeCount()]


# What is kept of a pass, and whether it explains the loss.


class Pass:
    """A stack with a batch and its captured pass."""

    def __init__(self, module=None, shape=(40, 4)):
        self.module = module or Stacked(*layers())
        self.stack, self.capture = recognise(self.module), Capture()
        self.inputs, self.targets = torch.randn(shape), torch.randint(3, (40,))

    def problem(self, step=None):
        step = step or (lambda: self.module.criterion(self.module.network(self.inputs), self.targets))
        with torch.no_grad(), capturing(self.stack, self.capture):
            loss = step()
        return disagreement(self.stack, self.capture, loss)


def test_a_pass_is_captured_layer_by_layer():
    run = Pass()
    assert run.problem() is None
    network, capture = run.module.network, run.capture
    with torch.no_grad():
        currents = network[0](run.inputs)
        spikes = network[1](currents)
        assert torch.equal(capture.inputs[0], run.inputs)
        assert torch.equal(capture.currents[0], currents)
        assert torch.equal(capture.inputs[1], spikes)
        assert torch.equal(capture.currents[1], network[2](spikes))
        scores = network(run.inputs)
        assert torch.equal(capture.scored()[0], scores)
        assert capture.scored()[1] is not run.targets
        assert torch.equal(capture.scored()[1], run.targets)
        torch.testing.assert_close(capture.loss(run.stack), F.cross_entropy(scores.double(), run.targets))
    assert run.problem() is None, "the next pass replaces it"
    assert (len(capture.inputs), len(capture.currents), capture.calls) == (2, 2, 1)


def test_hooks_are_gone_afterwards_and_probes_are_not_captured():
    run = Pass()
    run.problem()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in run.module.modules())
    with capturing(run.stack, run.capture), not_recording():
        run.module.criterion(run.module.network(run.inputs), run.targets)
    assert run.capture.calls == 0
    with pytest.raises(RuntimeError, match="criterion has not run"):
        run.capture.scored()


def test_targets_may_be_probabilities():
    run = Pass()
    assert run.problem(lambda: run.module.criterion(run.module.network(run.inputs), torch.rand(40, 3))) is None


def test_arguments_may_be_named():
    run = Pass()
    network, criterion = run.module.network, run.module.criterion
    assert run.problem(lambda: criterion(target=run.targets, input=network(run.inputs))) is None
    assert run.problem(lambda: criterion(network(run.inputs), target=run.targets)) is None


class Renamed(nn.Module):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def with_network(network):
    return Renamed(network=network, criterion=nn.CrossEntropyLoss())


_TWICE = "the criterion ran 2 times, and the network's Linear layers {} times"
_STEPS = {
    "a penalty": (
        lambda m, x, y: m.criterion(m.network(x), y) + m.network[0].weight.square().sum(),
        "the step returned",
    ),
    "a scale": (lambda m, x, y: 0.5 * m.criterion(m.network(x), y), "the step returned a loss of"),
    "the network twice": (
        lambda m, x, y: m.criterion(m.network(x) + m.network(-x), y),
        "the criterion ran 1 times, and the network's Linear layers 4 times",
    ),
    "the criterion twice": (lambda m, x, y: m.criterion(m.network(x), y) + m.criterion(m.network(x), y), "ran 2 times"),
    "mixup": (
        lambda m, x, y: sum(m.criterion(scores, y) for scores in m.network(x).unsqueeze(0).expand(2, -1, -1)),
        _TWICE.format(2),
    ),
    "another loss": (lambda m, x, y: F.cross_entropy(m.network(x), y), "the criterion ran 0 times"),
    "ignored targets": (
        lambda m, x, y: m.criterion(m.network(x), y.where(torch.arange(40) > 3, -100)),
        "some targets are to be ignored",
    ),
    "a temperature": (lambda m, x, y: m.criterion(m.network(x) / 2, y), "something beside LIF layer 2 had a hand"),
    "another order": (lambda m, x, y: m.criterion(m.network(x), y).neg(), "the step returned a loss of -"),
    "work between the layers": (
        lambda m, x, y: m.criterion(m.network[2:](0.5 * m.network[:2](x)), y),
        "something beside LIF layer 1 had a hand in its output",
    ),
}


@pytest.mark.parametrize(("step", "reason"), _STEPS.values(), ids=_STEPS)
def test_a_step_that_does_more_is_found_out(step, reason):
    run = Pass()
    assert reason in run.problem(lambda: step(run.module, run.inputs, run.targets))
    assert run.problem() is None


@pytest.mark.parametrize(
    ("place", "reason"), [(0, "Linear layer 1"), (1, "LIF layer 1"), (2, "Linear layer 2"), (3, "LIF layer 2")]
)
def test_hooks_that_change_an_output_are_found_out(place, reason):
    run = Pass()
    with torch.no_grad():
        run.module.network[2].weight.mul_(5)
    run.module.network[place].register_forward_hook(lambda _module, _args, output: output * 1.5)
    assert run.problem() == f"something beside {reason} had a hand in its output"


def test_hooks_that_look_on_are_no_reason():
    run = Pass()
    seen = []
    run.module.network[0].register_forward_hook(lambda _module, _args, output: seen.append(output.mean()))
    assert run.problem() is None
    assert len(seen) == 1


def test_an_input_that_is_changed_in_place_is_found_out():
    run = Pass()

    def step():
        loss = run.module.criterion(run.module.network(run.inputs), run.targets)
        run.inputs.add_(1)
        return loss

    assert run.problem(step) == "something beside Linear layer 1 had a hand in its output"


def test_lower_precision_is_named():
    run = Pass()
    run.module.bfloat16()
    run.inputs = run.inputs.bfloat16()
    step = lambda: run.module.criterion(run.module.network(run.inputs).float(), run.targets)  # noqa: E731
    assert run.problem(step) == "the network computes in torch.bfloat16"


def test_several_positions_per_sample_are_named():
    run = Pass(Stacked(*layers()), shape=(40, 2, 4))

    def step():
        return run.module.criterion(run.module.network(run.inputs)[:, 0], run.targets)

    assert run.problem(step) == "a layer's output has shape (40, 2, 6): not one position per sample"


# The same of a network that takes the batch in slices.


def sliced(samples=16, steps=5):
    parts = [nn.Linear(4, 6), LIF(0.9, 0.4, num_steps=steps), nn.Linear(6, 3), LIF(0.9, 0.3), SpikeCount()]
    return with_network(Sliced(nn.Flatten(), *parts, samples=samples))


@pytest.mark.parametrize("samples", [40, 41, None])
def test_a_batch_that_fits_is_captured_whole(samples):
    run = Pass(sliced(samples))
    assert run.problem() is None
    (seen,) = run.capture.slices(run.stack)
    assert seen.inputs is run.capture.inputs
    assert seen.currents is run.capture.currents
    assert [tuple(currents.shape) for currents in seen.currents] == [(40, 6), (5, 40, 3)]


@pytest.mark.parametrize("samples", [1, 16, 20, 39])
def test_slices_are_replayed_bit_for_bit(samples):
    run, seen = Pass(sliced(samples)), [[], []]
    for index, layer in enumerate(run.stack.layers):
        layer.linear.register_forward_hook(
            lambda _m, args, out, i=index: seen[i].append((args[0].clone(), out.clone()))
        )
    assert run.problem() is None
    scores, targets = run.capture.scored()
    assert torch.equal(torch.cat([part.scores for part in run.capture.slices(run.stack)]), scores)
    dense = torch.cat([part.targets for part in run.capture.slices(run.stack)])
    assert torch.equal(dense, F.one_hot(targets, 3).double())
    for place, part in enumerate(run.capture.slices(run.stack)):
        for index in range(2):
            inputs, currents = seen[index][place]
            assert torch.equal(part.inputs[index], inputs)
            assert torch.equal(part.currents[index], currents)
    assert len(seen[0]) == place + 1 == -(-40 // samples)


def test_what_fits_a_slice_is_replayed_once_for_all_layers():
    run = Pass(sliced())
    assert run.problem() is None
    run.capture.selection = chosen = Selection(torch.arange(40) < 10, torch.ones(10, dtype=torch.float64))
    (first,), (second,) = run.capture.slices(run.stack), run.capture.slices(run.stack)
    assert first is second
    assert len(first.scores) == 10
    run.capture.selection = Selection(~chosen.chosen, torch.ones(30, dtype=torch.float64))
    assert [len(part.scores) for part in run.capture.slices(run.stack)] == [14, 14, 2]


def test_a_spike_that_rounds_otherwise_on_few_samples_is_no_reason(monkeypatch):
    """A product of fewer rows may round otherwise; then the slice is replayed as it was."""
    run, few = Pass(sliced()), Capture.few
    monkeypatch.setattr(Capture, "few", lambda *args: dataclasses.replace(few(*args), scores=few(*args).scores + 1))
    assert run.problem() is None


def test_a_sliced_pass_keeps_nothing_with_a_time_axis():
    def kept(steps):
        run = Pass(sliced(steps=steps))
        assert run.problem() is None
        return [tuple(tensor.shape) for tensor in (*run.capture.inputs, *run.capture.currents, *run.capture.scored())]

    assert kept(5) == kept(50) == [(14, 4), (14, 4), (12, 4), (14, 6), (14, 6), (12, 6), (40, 3), (40,)]


def test_a_batch_that_fits_again_is_captured_whole_again():
    run = Pass(sliced())
    assert run.problem() is None
    run.inputs, run.targets = run.inputs[:16], run.targets[:16]
    assert run.problem() is None
    assert (run.capture.slice_size, len(run.capture.currents), run.capture.linear_calls) == (None, 2, 2)


_SLICED_STEPS = {
    "twice": (lambda m, x, y: m.criterion(m.network(x) + m.network(-x), y), "ran on 6 slices, and the criterion was"),
    "some samples": (lambda m, x, y: m.criterion(m.network(x)[:28], y[:28]), "ran on 3 slices, and the criterion was"),
    "fewer in a slice": (lambda m, x, y: m.criterion(m.network(x)[:33], y[:33]), "shape (12, 6): not one position"),
    "other slices": (
        lambda m, x, y: m.criterion(torch.cat([m.network(x[:22]), m.network(x[22:])]), y),
        "ran on 4 slices, and the criterion was given 5",
    ),
    "a slice apart": (
        lambda m, x, y: m.criterion(torch.cat([m.network(x[:16]), m.network(x[16:])]), y),
        "Linear layers 6 times",
    ),
    "a temperature": (lambda m, x, y: m.criterion(m.network(x) / 2, y), "something beside LIF layer 2 had a hand"),
    "ignored targets": (
        lambda m, x, y: m.criterion(m.network(x), y.where(torch.arange(40) > 3, -100)),
        "some targets are to be ignored",
    ),
    "an input changed in place": (
        lambda m, x, y: (m.criterion(m.network(x), y), x.add_(1))[0],
        "something beside Linear layer 1 had a hand",
    ),
    "lower precision": (
        lambda m, x, y: m.criterion(m.bfloat16().network(x.bfloat16()).float(), y),
        "the network computes in torch.bfloat16",
    ),
}


@pytest.mark.parametrize(("step", "reason"), _SLICED_STEPS.values(), ids=_SLICED_STEPS)
def test_a_step_that_does_more_with_slices_is_found_out(step, reason):
    run = Pass(sliced())
    assert reason in run.problem(lambda: step(run.module, run.inputs, run.targets))


@pytest.mark.parametrize(("place", "reason"), [(1, "Linear layer 1"), (2, "LIF layer 2"), (3, "LIF layer 2")])
def test_hooks_that_change_an_output_of_a_slice_are_found_out(place, reason):
    """Between the layers they show in the scores only."""
    run = Pass(sliced())
    run.module.network[place].register_forward_hook(lambda _module, _args, output: output.flip(-1) + 0.5)
    assert run.problem() == f"something beside {reason} had a hand in its output"
