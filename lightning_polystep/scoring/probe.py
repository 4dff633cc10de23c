"""Score: the isolated evaluation of the user's step that all tiers share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_polystep.isolation import metrics_muted, unheard
from lightning_polystep.randomness import noise_frame
from lightning_polystep.sites import not_recording
from lightning_polystep.snapshot import Snapshot


@dataclass
class Probe:
    """Re-runs the user's step on one micro-batch, at whatever parameters the module holds, and leaves no trace.

    Args:
        module: The user's module.
        evaluate: Runs the step and returns its loss, a scalar tensor.
        noise_key: (seed, step, micro-batch): all evaluations share the noise of the commit pass.
        live_metrics: Whether torchmetrics objects must work, because the loss depends on them.
        mute: Enters further silences around a whole scoring pass (Lightning's logging).
        before: What everything was when the commit pass began; None to run the step again from where it ended.
    """

    module: nn.Module
    evaluate: Callable[[], Tensor]
    noise_key: tuple[int, int, int]
    live_metrics: bool = False
    mute: Callable[[], AbstractContextManager[None]] = nullcontext
    before: Snapshot | None = None
    _isolated: bool = field(default=False, init=False, repr=False)
    _after: Snapshot | None = field(default=None, init=False, repr=False)

    @contextmanager
    def isolated(self) -> Iterator[None]:
        """Silence logging and metrics; all scoring happens inside."""
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(not_recording())
            stack.enter_context(self.mute())
            if not self.live_metrics:
                stack.enter_context(metrics_muted(self.module))
            self._isolated = True
            try:
                yield
            finally:
                self._isolated = False

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put everything back at the end that evaluations in the body leave behind.

        Raises:
            RuntimeError: Outside :meth:`isolated`.
        """
        if self._after is not None:
            yield
            return
        if not self._isolated:
            raise RuntimeError("Probe.run() belongs inside Probe.isolated().")
        roots = (self.module, self.evaluate) if self.before is None else (*self.before.roots, *self.before.known())
        # Taken after muting: the muted methods are attributes that a restore must keep.
        own = () if self.live_metrics else (Metric,)
        self._after = Snapshot(*roots, skip=own if self.before is None else self.before.skip, parameters=True)
        try:
            yield
        finally:
            after, self._after = self._after, None
            after.restore()

    def run(self, forward: Callable[[], Tensor]) -> Tensor:
        """Run some code where the commit pass has ended, on its noise; undo what it left behind.

        Args:
            forward: Returns the loss or losses.

        Returns:
            The losses, float64, detached.
        """
        with self.evaluating(), noise_frame(*self.noise_key), unheard():
            return forward().detach().double()

    def loss(self, changed: Mapping[nn.Parameter, Tensor] | None = None) -> Tensor:
        """Return the loss of the user's step, a float64 scalar, run again from where the commit pass began.

        Args:
            changed: Parameters with the values that they have in this run; others are as it found them.
        """
        return self.rerun(lambda: as_scalar(self.evaluate()), changed)

    def rerun(self, step: Callable[[], Tensor], changed: Mapping[nn.Parameter, Tensor] | None = None) -> Tensor:
        """Run the user's step again, as :meth:`loss` does, by code that calls it."""
        with self.evaluating():
            start = self.before or self._after
            assert start is not None
            start.restore()
            for parameter, value in (changed or {}).items():
                parameter.copy_(value)
            with noise_frame(*self.noise_key), unheard():
                return step().detach().double()

    def start_of(self, parameter: Tensor) -> Tensor:
        """Return a copy of what a parameter was when the commit pass began, which candidates move."""
        return (parameter.detach() if self.before is None else self.before.value(parameter)).clone()


def as_scalar(loss: Tensor) -> Tensor:
    """Return a loss of one element as a scalar.

    Raises:
        ValueError: When the loss has more than one element.
    """
    if loss.numel() != 1:
        msg = f"The training step returned a loss of shape {tuple(loss.shape)}; return a scalar, for example its mean."
        raise ValueError(msg)
    return loss.reshape(())
