"""Score: recognise a network whose outcomes can be scored, and keep what its layers saw in the commit pass.

A LightningModule says what its network and loss are by two attributes, ``network`` and ``criterion``; nothing else is
asked of it. The stack is a sequence of Linear and hard LIF layers in ``nn.Sequential`` order with a readout at its end.
A network that is :class:`~lightning_polystep.layers.Sliced` keeps of a large batch only what is constant in time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_polystep.layers import LIF, LastMembrane, Sliced, SpikeCount, SpikeRate
from lightning_polystep.sites import is_recording

# Samples of a pass that are recomputed to see that nothing but the layers made it, and how far a product may be off.
_CHECKED_SAMPLES = 32
_LINEAR_ROUNDING = 1e-3


class NotAStackError(Exception):
    """Says why a module, or a layer of it, cannot be scored as a stack."""


@dataclass(frozen=True)
class SpikingLayer:
    """A Linear layer and the neurons that it drives."""

    linear: nn.Linear
    neurons: LIF


Readout = SpikeCount | SpikeRate | LastMembrane
Criterion = nn.CrossEntropyLoss | nn.MSELoss

# What the kernels call a criterion of a readout.
_LOSSES: dict[tuple[type[nn.Module], type[nn.Module]], str] = {
    (SpikeCount, nn.CrossEntropyLoss): "cross_entropy_count",
    (LastMembrane, nn.CrossEntropyLoss): "cross_entropy_membrane",
    (SpikeRate, nn.MSELoss): "mse_rate",
}


@dataclass(frozen=True)
class Stack:
    """A recognised network with its loss.

    Args:
        network: The whole network.
        layers: Its spiking layers, first to last.
        readout: The layer that turns the last spikes or membranes into scores.
        criterion: The loss.
    """

    network: nn.Module
    layers: tuple[SpikingLayer, ...]
    readout: Readout
    criterion: Criterion

    @property
    def loss(self) -> str:
        """What the kernels call readout and criterion together."""
        return _LOSSES[type(self.readout), type(self.criterion)]

    @property
    def label_smoothing(self) -> float:
        """Of a cross-entropy; else 0."""
        return float(getattr(self.criterion, "label_smoothing", 0.0))

    def loss_of(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of scores (N, C) in float64."""
        if isinstance(self.criterion, nn.MSELoss):
            return functional.mse_loss(scores.double(), targets.double())
        targets = targets.double() if targets.is_floating_point() else targets
        return functional.cross_entropy(scores.double(), targets, label_smoothing=self.label_smoothing)


def recognise(module: nn.Module) -> Stack:
    """Read a module's ``network`` and ``criterion``.

    Args:
        module: A LightningModule, or any module with these two attributes.

    Returns:
        The stack.

    Raises:
        NotAStackError: Naming what is missing or unknown.
    """
    network, criterion = getattr(module, "network", None), getattr(module, "criterion", None)
    if not isinstance(network, nn.Module) or not isinstance(criterion, nn.Module):
        raise NotAStackError("the module has no attributes network and criterion")
    children = [child for child in _in_order(network) if type(child) not in {nn.Flatten, nn.Identity}]
    readout, pairs = children[-1] if children else None, children[:-1]
    if not isinstance(readout, Readout) or type(readout) not in {SpikeCount, SpikeRate, LastMembrane}:
        raise NotAStackError("the network does not end in SpikeCount, SpikeRate or LastMembrane")
    layers = []
    for linear, neurons in zip(pairs[::2], pairs[1::2], strict=False):
        if type(linear) is not nn.Linear or type(neurons) is not LIF:
            raise NotAStackError(
                f"{type(linear).__name__} followed by {type(neurons).__name__} is not Linear followed by LIF"
            )
        layers.append(SpikingLayer(linear, neurons))
    if not layers or len(pairs) % 2:
        raise NotAStackError("the network is not a sequence of Linear and LIF layers")
    _check_slices(network, layers[0])
    return Stack(network, tuple(layers), readout, _known_criterion(criterion, readout))


def _in_order(network: nn.Module) -> Iterator[nn.Module]:
    """The leaves of nested Sequentials, in the order in which they run."""
    if not isinstance(network, nn.Sequential):
        yield network
        return
    if type(network).forward not in {nn.Sequential.forward, Sliced.forward}:
        raise NotAStackError(f"{type(network).__name__} has a forward of its own")
    for child in network:
        yield from _in_order(child)


def _check_slices(network: nn.Module, first: SpikingLayer) -> None:
    """Refuse slices that a pass could not be replayed from."""
    if any(isinstance(part, Sliced) for part in network.modules() if part is not network):
        raise NotAStackError("a part of the network is Sliced, not the whole of it")
    if isinstance(network, Sliced) and first.neurons.num_steps is None:
        raise NotAStackError("the network is Sliced, but what drives its first LIF layer has time first, not the batch")


def _known_criterion(criterion: nn.Module, readout: Readout) -> Criterion:
    if not isinstance(criterion, Criterion) or type(criterion) not in {nn.CrossEntropyLoss, nn.MSELoss}:
        raise NotAStackError(f"{type(criterion).__name__} is neither CrossEntropyLoss nor MSELoss")
    if (type(readout), type(criterion)) not in _LOSSES:
        raise NotAStackError(f"{type(criterion).__name__} of {type(readout).__name__} is not among the known losses")
    if criterion.reduction != "mean":
        raise NotAStackError("the criterion has another reduction than the mean")
    if isinstance(criterion, nn.CrossEntropyLoss) and (criterion.weight is not None or criterion.ignore_index != -100):
        raise NotAStackError("CrossEntropyLoss with class weights or ignore_index")
    return criterion


@dataclass
class Pass:
    """What the layers of a stack saw of some samples.

    Args:
        inputs: Input of each Linear layer, (N, D) or (T, N, D).
        currents: Input of each LIF layer, the Linear layer's output.
        scores: What the criterion was given first, (N, C).
        targets: What it was given second: class indices (N,), or one number per sample and class, (N, C).
    """

    inputs: list[Tensor]
    currents: list[Tensor]
    scores: Tensor
    targets: Tensor


@dataclass
class Capture:
    """What is kept of the latest commit pass: enough to know what every layer saw.

    Args:
        inputs: Input of each Linear layer, (N, D) or (T, N, D); with slices, of the first one only, slice by slice.
        currents: Input of each LIF layer, the Linear layer's output; with slices likewise.
        scores: What the criterion was given first, (N, C).
        targets: What it was given second: class indices (N,), or one number per sample and class, (N, C).
        calls: How often the criterion ran.
        linear_calls: How often Linear layers ran.
        slice_size: Samples of a slice, if the network took the batch in slices.
    """

    inputs: list[Tensor] = field(default_factory=list)
    currents: list[Tensor] = field(default_factory=list)
    scores: Tensor | None = None
    targets: Tensor | None = None
    calls: int = 0
    linear_calls: int = 0
    slice_size: int | None = None

    def clear(self) -> None:
        """Forget the last pass."""
        self.inputs, self.currents, self.scores, self.targets, self.calls = [], [], None, None, 0
        self.linear_calls, self.slice_size = 0, None

    def scored(self) -> tuple[Tensor, Tensor]:
        """Return the scores and the targets.

        Raises:
            RuntimeError: When the criterion has not run.
        """
        if self.scores is None or self.targets is None:
            raise RuntimeError("The criterion has not run in this commit pass.")
        return self.scores, self.targets

    @property
    def samples(self) -> int:
        """Samples of the pass."""
        return len(self.scored()[0])

    def loss(self, stack: Stack) -> Tensor:
        """Return the incumbent's loss in float64."""
        return stack.loss_of(*self.scored())

    def slices(self, stack: Stack) -> Iterator[Pass]:
        """Yield what every layer saw, slice by slice; the whole batch at once unless the network took it in slices.

        Args:
            stack: The stack.
        """
        scores, targets = self.scored()
        if self.slice_size is None:
            yield Pass(self.inputs, self.currents, scores, targets)
            return
        outcomes = zip(scores.split(self.slice_size), targets.split(self.slice_size), strict=True)
        for inputs, currents, outcome in zip(self.inputs, self.currents, outcomes, strict=True):
            yield _replayed(stack, inputs, currents, *outcome)


def _replayed(stack: Stack, inputs: Tensor, currents: Tensor, scores: Tensor, targets: Tensor) -> Pass:
    """Run the layers behind the first current again: on the shapes of the commit pass, so with the same results."""
    seen = Pass([inputs], [currents], scores, targets)
    for before, after in pairwise(stack.layers):
        spikes = cast("Tensor", LIF.forward(before.neurons, seen.currents[-1]))
        seen.inputs.append(spikes)
        seen.currents.append(functional.linear(spikes, after.linear.weight, after.linear.bias).detach())
    return seen


@contextmanager
def capturing(stack: Stack, into: Capture) -> Iterator[None]:
    """Fill a capture while the body runs the commit pass.

    Args:
        stack: The stack.
        into: Where to keep what its layers see; emptied first.
    """
    into.clear()

    def on_network(network: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        if is_recording() and isinstance(network, Sliced):
            into.slice_size = network.slice_size(*args, **named)

    def on_linear(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if is_recording():
            into.linear_calls += 1
            if into.slice_size is None or module is stack.layers[0].linear:
                into.inputs.append(args[0].detach())
                into.currents.append(output.detach())

    def on_criterion(_module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        if is_recording():
            arguments = dict(zip(("input", "target"), args, strict=False)) | named
            into.scores, into.targets = arguments["input"].detach(), arguments["target"].detach()
            into.calls += 1

    with ExitStack() as hooks:
        hooks.callback(stack.network.register_forward_pre_hook(on_network, with_kwargs=True).remove)
        for layer in stack.layers:
            hooks.callback(layer.linear.register_forward_hook(on_linear).remove)
        hooks.callback(stack.criterion.register_forward_pre_hook(on_criterion, with_kwargs=True).remove)
        yield


def disagreement(stack: Stack, capture: Capture, loss: Tensor) -> str | None:
    """Return why the captured pass does not explain the loss that the step returned; None when it does.

    Args:
        stack: The stack.
        capture: What its layers saw.
        loss: The loss of the commit pass.
    """
    expected = len(stack.layers) * (1 if capture.slice_size is None else len(capture.currents))
    if capture.calls != 1 or capture.linear_calls != expected:
        return f"the criterion ran {capture.calls} times, and the network's Linear layers {capture.linear_calls} times"
    if capture.scores is None or capture.targets is None:
        return "the criterion was given no scores or no targets"
    problem = _unknown_targets(capture.scores, capture.targets)
    if problem is not None:
        return problem
    own = capture.loss(stack)
    if not torch.isclose(own, loss.double(), rtol=1e-4, atol=1e-6):
        return f"the step returned a loss of {float(loss):.6g}, criterion(network(x), y) is {float(own):.6g}"
    # A slice stands for all: to replay them all would take as long as the pass.
    return _unknown_slices(stack, capture, capture.scores) or _intervention(stack, next(capture.slices(stack)))


def _unknown_slices(stack: Stack, capture: Capture, scores: Tensor) -> str | None:
    """Return why the slices cannot be replayed; None when they can, or when there are none."""
    if capture.slice_size is None:
        return None
    parts = scores.split(capture.slice_size)
    if len(parts) != len(capture.currents):
        return f"the network ran on {len(capture.currents)} slices, and the criterion was given {len(parts)}"
    for inputs, currents, part in zip(capture.inputs, capture.currents, parts, strict=True):
        problem = _unknown_current(stack.layers[0], inputs, currents, len(part))
        if problem is not None:
            return problem
    return None


def _unknown_current(layer: SpikingLayer, inputs: Tensor, currents: Tensor, samples: int) -> str | None:
    if currents.dtype not in {torch.float32, torch.float64} or inputs.dtype != currents.dtype:
        return f"the network computes in {currents.dtype}"
    expected = 2 if layer.neurons.num_steps is not None else 3
    if currents.ndim != expected or currents.shape[-2] != samples:
        return f"a layer's current has shape {tuple(currents.shape)}: not one position per sample"
    return None


def _unknown_targets(scores: Tensor, targets: Tensor) -> str | None:
    if targets.is_floating_point():
        return None if targets.shape == scores.shape else f"the targets have shape {tuple(targets.shape)}"
    if targets.dtype != torch.int64 or targets.shape != scores.shape[:1]:
        return "the targets are neither class indices nor one number per class"
    return "some targets are to be ignored" if bool((targets < 0).any()) else None


def _intervention(stack: Stack, seen: Pass) -> str | None:
    """Return where something beside the layers had a hand in the pass (a hook, a change in place); None if nowhere.

    Recomputes a few samples layer by layer. Without it such a change would go unseen when it comes after the plan.
    """
    scores = seen.scores
    every = slice(None, None, max(1, len(scores) // _CHECKED_SAMPLES))
    last = len(stack.layers) - 1
    for index, (layer, inputs, currents) in enumerate(zip(stack.layers, seen.inputs, seen.currents, strict=True)):
        problem = _unknown_current(layer, inputs, currents, len(scores))
        if problem is not None:
            return problem
        if scores.ndim != 2:
            return f"the criterion was given scores of shape {tuple(scores.shape)}"
        current = currents[..., every, :]
        own = functional.linear(inputs[..., every, :], layer.linear.weight, layer.linear.bias)
        if not bool((own - current).abs().max() <= _LINEAR_ROUNDING * current.abs().max()):
            return f"something beside Linear layer {index + 1} had a hand in its output"
        output = LIF.forward(layer.neurons, current)
        after = stack.readout.forward(output) if index == last else output  # type: ignore[arg-type]
        following = scores[every] if index == last else seen.inputs[index + 1][..., every, :]
        if not torch.equal(cast("Tensor", after), following):
            return f"something beside LIF layer {index + 1} had a hand in its output"
    return None
