"""Score: what a recognised network is, and what its layers saw in the commit pass.

Families of networks are read by ``spiking.py`` and ``feedforward.py``, which one it is by ``recognise.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_polystep.kernels.readout.reference import dense_targets
from lightning_polystep.layers import Sliced
from lightning_polystep.layers.sliced import Rows
from lightning_polystep.scoring.importance import Selection, output_errors, select_samples
from lightning_polystep.scoring.tier import NotOfferedError
from lightning_polystep.sites import looking_on

# Samples of a pass that are recomputed to see that nothing but the layers made it, and how far a product may be off.
_CHECKED_SAMPLES = 32
_LINEAR_ROUNDING = 1e-3


class NotAStackError(NotOfferedError):
    """Says why a module, or a layer of it, cannot be scored as a stack."""


Criterion = nn.CrossEntropyLoss | nn.MSELoss


@dataclass(frozen=True)
class Layer:
    """A Linear layer; a subclass for each family adds what follows it."""

    linear: nn.Linear


@dataclass(frozen=True)
class Stack:
    """A recognised network with its loss; a subclass for each family of networks.

    Args:
        network: The whole network.
        criterion: The loss.
        layers: Its layers, first to last.
    """

    network: nn.Module
    criterion: Criterion
    layers: tuple[Layer, ...]

    # What stands between two Linear layers, for messages, and how many of its outputs rounding may change.
    between: ClassVar[str]
    rounded: ClassVar[int]

    @property
    def linears(self) -> tuple[nn.Linear, ...]:
        """The Linear layers, first to last."""
        return tuple(layer.linear for layer in self.layers)

    @property
    def loss(self) -> str:
        """What the kernels call the loss."""
        raise NotImplementedError

    def passed_on(self, place: int, inputs: Tensor, currents: Tensor) -> Tensor:
        """Return what follows a Linear layer: the next one's inputs, or the scores.

        Args:
            place: Of the Linear layer.
            inputs: Its inputs.
            currents: Its output.
        """
        raise NotImplementedError

    def agree(self, place: int, own: Tensor, seen: Tensor) -> bool:
        """Tell whether what follows a Linear layer, computed again, is what was seen.

        Args:
            place: Of the Linear layer.
            own: As :meth:`passed_on` returns it.
            seen: The same of the commit pass.
        """
        del place
        return int((own != seen).sum()) <= self.rounded

    def has_time(self, place: int) -> bool:
        """Tell whether a Linear layer's output is one per time step, (T, N, H), or one, (N, H)."""
        raise NotImplementedError

    @property
    def squares(self) -> bool:
        """Whether the loss is one of squares, not a cross-entropy."""
        return isinstance(self.criterion, nn.MSELoss)

    @property
    def label_smoothing(self) -> float:
        """Of a cross-entropy; else 0."""
        return float(getattr(self.criterion, "label_smoothing", 0.0))

    def loss_of(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of scores (N, C) in float64."""
        if self.squares:
            return functional.mse_loss(scores.double(), targets.double())
        targets = targets.double() if targets.is_floating_point() else targets
        return functional.cross_entropy(scores.double(), targets, label_smoothing=self.label_smoothing)

    def replayed(self, inputs: Tensor, currents: Tensor, scores: Tensor, targets: Tensor) -> Pass:
        """Run the layers behind the first Linear again: on the shapes of the commit pass, so with the same results.

        Args:
            inputs: Of the first Linear layer.
            currents: Its output.
            scores: What the criterion was given first for these samples.
            targets: What they should be, (N, C).
        """
        seen = Pass([inputs], [currents], scores, targets)
        for place, following in enumerate(self.linears[1:]):
            seen.inputs.append(self.passed_on(place, seen.inputs[-1], seen.currents[-1]))
            seen.currents.append(type(following).forward(following, seen.inputs[-1]).detach())
        return seen


def known_criterion(criterion: nn.Module) -> Criterion:
    """Return a criterion whose changes the kernels can score.

    Raises:
        NotAStackError: When they cannot.
    """
    if not isinstance(criterion, Criterion) or type(criterion) not in {nn.CrossEntropyLoss, nn.MSELoss}:
        raise NotAStackError(f"{type(criterion).__name__} is neither CrossEntropyLoss nor MSELoss")
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
        currents: Output of each Linear layer.
        scores: What the criterion was given first, (N, C).
        targets: What the scores should be, one number per sample and class, (N, C), float64, smoothed where the
            criterion does; of a cross-entropy times what the sample counts.
    """

    inputs: list[Tensor]
    currents: list[Tensor]
    scores: Tensor
    targets: Tensor

    def of(self, samples: slice) -> Pass:
        """Return what the layers saw of some samples."""
        inputs, currents = ([seen[..., samples, :] for seen in part] for part in (self.inputs, self.currents))
        return Pass(inputs, currents, self.scores[samples], self.targets[samples])


@dataclass
class Capture:
    """What is kept of the latest commit pass: enough to know what every layer saw.

    Args:
        inputs: Input of each Linear layer, (N, D) or (T, N, D); with slices, of the first one only, slice by slice.
        currents: Output of each Linear layer; with slices likewise.
        scores: What the criterion was given first, (N, C).
        targets: What it was given second: class indices (N,), or one number per sample and class, (N, C).
        calls: How often the criterion ran.
        linear_calls: How often Linear layers ran.
        slice_size: Samples of a slice, if the network took the batch in slices.
        rows: Where the currents of slices are kept.
        selection: The samples that are scored; None for all.
    """

    inputs: list[Tensor] = field(default_factory=list)
    currents: list[Tensor] = field(default_factory=list)
    scores: Tensor | None = None
    targets: Tensor | None = None
    calls: int = 0
    linear_calls: int = 0
    slice_size: int | None = None
    rows: Rows = field(default_factory=lambda: Rows(0))
    selection: Selection | None = None
    _loss: Tensor | None = field(default=None, init=False, repr=False)
    _targets: Tensor | None = field(default=None, init=False, repr=False)
    _whole: tuple[Selection | None, Pass] | None = field(default=None, init=False, repr=False)

    def clear(self) -> None:
        """Forget the last pass."""
        self.inputs, self.currents, self.scores, self.targets, self.calls = [], [], None, None, 0
        self.linear_calls, self.slice_size, self.rows = 0, None, Rows(0)
        self.selection, self._loss, self._targets, self._whole = None, None, None, None

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
        """Return the incumbent's loss in float64; computed once, although every layer asks for it."""
        if self._loss is None:
            self._loss = stack.loss_of(*self.scored())
        return self._loss

    @property
    def scored_samples(self) -> int:
        """Samples on which candidates are scored."""
        return self.samples if self.selection is None else len(self.selection.weights)

    def select(self, stack: Stack, certain_error: float, draw: torch.Generator) -> None:
        """Score candidates on some samples only, by how much they are off; see ``importance.py``.

        Args:
            stack: The stack, with a cross-entropy.
            certain_error: Samples whose error is at least that are always scored.
            draw: For the others.
        """
        errors = output_errors(self.scored()[0], self.targets_of(stack))
        self.selection = select_samples(errors, certain_error, draw)

    def targets_of(self, stack: Stack) -> Tensor:
        """Return what the scores should be, one number per sample and class, (N, C), float64; computed once."""
        if self._targets is None:
            scores, targets = self.scored()
            self._targets = dense_targets(targets, scores.shape[-1], stack.label_smoothing)
        return self._targets

    def few(self, stack: Stack) -> Pass:
        """Replay few samples of the first slice, on other shapes than the pass: its results may differ by rounding."""
        every = slice(None, self.slice_size, _every(len(self.inputs[0])))
        given = (self.inputs[0], self.currents[0], self.scored()[0], self.targets_of(stack))
        return stack.replayed(*(seen[every] for seen in given))

    def slices(self, stack: Stack) -> Iterator[Pass]:
        """Yield what every layer saw of the samples that are scored: slice by slice if the network took them so.

        What fits one slice is made once, and kept for the next layer that asks.

        Args:
            stack: The stack.
        """
        if self._whole is not None and self._whole[0] is self.selection:
            yield self._whole[1]
            return
        inputs, currents, size = self.inputs, self.currents, self.slice_size
        (scores, _), targets = self.scored(), self.targets_of(stack)
        if self.selection is not None:
            chosen, weights = self.selection
            if not len(weights):
                return  # of a small batch that is learnt, it may be none
            scores, targets = scores[chosen], weights[:, None] * targets[chosen]
            if size is None:
                inputs, currents = ([seen[..., chosen, :] for seen in part] for part in (inputs, currents))
            else:
                of_slices = chosen.split(size)
                inputs, currents = (
                    torch.cat([seen[own] for seen, own in zip(part, of_slices, strict=True)]).split(size)
                    for part in (inputs, currents)
                )
        if size is None or len(scores) <= size:
            if size is None:
                seen = Pass(inputs, currents, scores, targets)
            else:
                seen = stack.replayed(inputs[0], currents[0], scores, targets)
            self._whole = self.selection, seen
            yield seen
            return
        for of_slice in zip(inputs, currents, scores.split(size), targets.split(size), strict=True):
            yield stack.replayed(*of_slice)


class Captured(Protocol):
    """What tiers ask of a pass: of the whole batch, or of the samples that reach a part of the network."""

    @property
    def samples(self) -> int:
        """Samples of the pass, over which the loss is the mean."""
        ...

    @property
    def scored_samples(self) -> int:
        """Samples on which candidates are scored."""
        ...

    def loss(self, stack: Stack) -> Tensor:
        """Return the incumbent's loss in float64."""
        ...

    def slices(self, stack: Stack) -> Iterator[Pass]:
        """Yield what every layer saw, slice by slice; nothing where no sample comes."""
        ...


@contextmanager
def capturing(stack: Stack, into: Capture) -> Iterator[None]:
    """Fill a capture while the body runs the commit pass.

    Args:
        stack: The stack.
        into: Where to keep what its layers see; emptied first.
    """
    into.clear()

    @looking_on
    def on_network(network: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        if isinstance(network, Sliced):
            into.slice_size = network.slice_size(*args, **named)
            into.rows = Rows(0 if into.slice_size is None else len((*args, *named.values())[0]))

    @looking_on
    def on_linear(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        into.linear_calls += 1
        if into.slice_size is None or module is stack.linears[0]:
            # Currents that change from step to step, (T, N, D), are large themselves.
            reserved = output.ndim == 2 and len(output) <= into.rows.room
            into.inputs.append(args[0].detach())
            into.currents.append(into.rows.add(output) if reserved else output.detach())

    @looking_on
    def on_criterion(_module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        arguments = dict(zip(("input", "target"), args, strict=False)) | named
        into.scores, into.targets = arguments["input"].detach(), arguments["target"].detach()
        into.calls += 1

    with ExitStack() as hooks:
        hooks.callback(stack.network.register_forward_pre_hook(on_network, with_kwargs=True).remove)
        for linear in stack.linears:
            hooks.callback(linear.register_forward_hook(on_linear).remove)
        hooks.callback(stack.criterion.register_forward_pre_hook(on_criterion, with_kwargs=True).remove)
        yield


def disagreement(stack: Stack, capture: Capture, loss: Tensor) -> str | None:
    """Return why the captured pass does not explain the loss that the step returned; None when it does.

    Args:
        stack: The stack.
        capture: What its layers saw.
        loss: The loss of the commit pass.
    """
    expected = len(stack.linears) * (1 if capture.slice_size is None else len(capture.currents))
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
    problem = _unknown_slices(stack, capture, capture.scores)
    if problem is not None or (capture.slice_size is not None and _intervention(stack, capture.few(stack)) is None):
        return problem
    # Only the whole slice replays to the bits of the pass. It stands for all, which would take as long as the pass.
    return _intervention(stack, next(capture.slices(stack)))


def _unknown_slices(stack: Stack, capture: Capture, scores: Tensor) -> str | None:
    """Return why the slices cannot be replayed; None when they can, or when there are none."""
    if capture.slice_size is None:
        return None
    parts = scores.split(capture.slice_size)
    if len(parts) != len(capture.currents):
        return f"the network ran on {len(capture.currents)} slices, and the criterion was given {len(parts)}"
    for inputs, currents, part in zip(capture.inputs, capture.currents, parts, strict=True):
        problem = _unknown_current(stack, 0, inputs, currents, len(part))
        if problem is not None:
            return problem
    return None


def _unknown_current(stack: Stack, place: int, inputs: Tensor, currents: Tensor, samples: int) -> str | None:
    if currents.dtype not in {torch.float32, torch.float64} or inputs.dtype != currents.dtype:
        return f"the network computes in {currents.dtype}"
    if currents.ndim != (3 if stack.has_time(place) else 2) or currents.shape[-2] != samples:
        return f"a layer's output has shape {tuple(currents.shape)}: not one position per sample"
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
    every = slice(None, None, _every(len(seen.scores)))
    last = len(stack.linears) - 1
    for place, (linear, inputs, currents) in enumerate(zip(stack.linears, seen.inputs, seen.currents, strict=True)):
        problem = _unknown_current(stack, place, inputs, currents, len(seen.scores))
        if problem is not None:
            return problem
        if seen.scores.ndim != 2:
            return f"the criterion was given scores of shape {tuple(seen.scores.shape)}"
        given, current = inputs[..., every, :], currents[..., every, :]
        own = type(linear).forward(linear, given)
        if not bool((own - current).abs().max() <= _LINEAR_ROUNDING * current.abs().max()):
            return f"something beside Linear layer {place + 1} had a hand in its output"
        following = seen.scores[every] if place == last else seen.inputs[place + 1][..., every, :]
        if not stack.agree(place, stack.passed_on(place, given, current), following):
            return f"something beside {stack.between} {place + 1} had a hand in its output"
    return None


def _every(samples: int) -> int:
    """Return the distance of the samples that are checked."""
    return max(1, samples // _CHECKED_SAMPLES)
