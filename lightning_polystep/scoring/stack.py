"""Score: what a recognised network is, and what its layers saw in the commit pass.

Families of networks are read by ``spiking.py`` and ``feedforward.py``, which one it is by ``recognise.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_polystep.sites import is_recording

# Samples of a pass that are recomputed to see that nothing but the layers made it, and how far a product may be off.
_CHECKED_SAMPLES = 32
_LINEAR_ROUNDING = 1e-3
# A vectorised function may round the same number otherwise at another place of a tensor, and step there.
_ROUNDED_STEPS = 2


class NotAStackError(Exception):
    """Says why a module, or a layer of it, cannot be scored as a stack."""


Criterion = nn.CrossEntropyLoss | nn.MSELoss


@dataclass(frozen=True)
class Stack:
    """A recognised network with its loss; a subclass for each family of networks.

    Args:
        network: The whole network.
        criterion: The loss.
    """

    network: nn.Module
    criterion: Criterion

    @property
    def linears(self) -> tuple[nn.Linear, ...]:
        """The Linear layers, first to last."""
        raise NotImplementedError

    @property
    def loss(self) -> str:
        """What the kernels call the loss."""
        raise NotImplementedError

    def intervention(self, capture: Capture) -> str | None:
        """Return where something beside the layers had a hand in a pass (a hook, a change in place); None if nowhere.

        Recomputes a few samples layer by layer. Without it such a change would go unseen when it comes after the plan.

        Args:
            capture: What the layers saw.
        """
        raise NotImplementedError

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
class Capture:
    """What the layers of a stack saw in the latest commit pass.

    Args:
        inputs: Input of each Linear layer, (N, D) or (T, N, D).
        currents: Input of each LIF layer, the Linear layer's output.
        scores: What the criterion was given first, (N, C).
        targets: What it was given second: class indices (N,), or one number per sample and class, (N, C).
        calls: How often the criterion ran.
    """

    inputs: list[Tensor] = field(default_factory=list)
    currents: list[Tensor] = field(default_factory=list)
    scores: Tensor | None = None
    targets: Tensor | None = None
    calls: int = 0

    def clear(self) -> None:
        """Forget the last pass."""
        self.inputs, self.currents, self.scores, self.targets, self.calls = [], [], None, None, 0

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


@contextmanager
def capturing(stack: Stack, into: Capture) -> Iterator[None]:
    """Fill a capture while the body runs the commit pass.

    Args:
        stack: The stack.
        into: Where to keep what its layers see; emptied first.
    """
    into.clear()

    def on_linear(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if is_recording():
            into.inputs.append(args[0].detach())
            into.currents.append(output.detach())

    def on_criterion(_module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        if is_recording():
            arguments = dict(zip(("input", "target"), args, strict=False)) | named
            into.scores, into.targets = arguments["input"].detach(), arguments["target"].detach()
            into.calls += 1

    with ExitStack() as hooks:
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
    if capture.calls != 1 or len(capture.currents) != len(stack.linears):
        return f"the criterion ran {capture.calls} times, and the network's Linear layers {len(capture.currents)} times"
    if capture.scores is None or capture.targets is None:
        return "the criterion was given no scores or no targets"
    problem = _unknown_targets(capture.scores, capture.targets)
    if problem is not None:
        return problem
    own = capture.loss(stack)
    if not torch.isclose(own, loss.double(), rtol=1e-4, atol=1e-6):
        return f"the step returned a loss of {float(loss):.6g}, criterion(network(x), y) is {float(own):.6g}"
    return stack.intervention(capture)


def _unknown_targets(scores: Tensor, targets: Tensor) -> str | None:
    if targets.is_floating_point():
        return None if targets.shape == scores.shape else f"the targets have shape {tuple(targets.shape)}"
    if targets.dtype != torch.int64 or targets.shape != scores.shape[:1]:
        return "the targets are neither class indices nor one number per class"
    return "some targets are to be ignored" if bool((targets < 0).any()) else None


def every_few(scores: Tensor) -> slice:
    """Choose the few samples of a pass that are recomputed."""
    return slice(None, None, max(1, len(scores) // _CHECKED_SAMPLES))


def differ(own: Tensor, seen: Tensor) -> bool:
    """Tell whether levels differ in more places than rounding before a step can explain."""
    return int((own != seen).sum()) > _ROUNDED_STEPS


def off_by_rounding(own: Tensor, seen: Tensor) -> bool:
    """Tell whether two tensors differ by more than rounding does, or either is not a number."""
    return not bool((own - seen).abs().max() <= _LINEAR_ROUNDING * seen.abs().max())
