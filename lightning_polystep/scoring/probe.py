"""Score: the isolated evaluation of the user's step that all tiers share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_polystep.isolation import Snapshot, metrics_muted
from lightning_polystep.randomness import noise_frame
from lightning_polystep.sites import not_recording


@dataclass
class Probe:
    """Re-runs the user's step on one micro-batch, at whatever parameters the module holds, and leaves no trace.

    Args:
        module: The user's module.
        evaluate: Runs the step and returns its loss, a scalar tensor.
        noise_key: (seed, step, micro-batch): all evaluations share the noise of the commit pass.
        live_metrics: Whether torchmetrics objects must work, because the loss depends on them.
        mute: Enters further silences around a whole scoring pass (Lightning's logging).
    """

    module: nn.Module
    evaluate: Callable[[], Tensor]
    noise_key: tuple[int, int, int]
    live_metrics: bool = False
    mute: Callable[[], AbstractContextManager[None]] = nullcontext
    _snapshot: Snapshot | None = field(default=None, init=False, repr=False)

    @contextmanager
    def isolated(self) -> Iterator[None]:
        """Silence logging and metrics, and put the module back at the end; all scoring happens inside."""
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(not_recording())
            stack.enter_context(self.mute())
            if not self.live_metrics:
                stack.enter_context(metrics_muted(self.module))
            # Taken after muting: the muted methods are attributes that a restore must keep.
            self._snapshot = Snapshot(self.module, skip=() if self.live_metrics else (Metric,))
            try:
                yield
            finally:
                self._snapshot = None

    def run(self, forward: Callable[[], Tensor]) -> Tensor:
        """Run one evaluation, of one candidate or of a batch of them, on the common noise; undo what it left behind.

        Args:
            forward: Returns the loss or losses.

        Returns:
            The losses, float64, detached.

        Raises:
            RuntimeError: Outside :meth:`isolated`.
        """
        if self._snapshot is None:
            msg = "Probe.run() belongs inside Probe.isolated()."
            raise RuntimeError(msg)
        try:
            with noise_frame(*self.noise_key):
                return forward().detach().double()
        finally:
            self._snapshot.restore()

    def loss(self) -> Tensor:
        """Return the loss at the parameters that the module holds now, a float64 scalar."""
        return self.run(lambda: as_scalar(self.evaluate()))


def as_scalar(loss: Tensor) -> Tensor:
    """Return a loss of one element as a scalar.

    Raises:
        ValueError: When the loss has more than one element.
    """
    if loss.numel() != 1:
        msg = f"The training step returned a loss of shape {tuple(loss.shape)}; return a scalar, for example its mean."
        raise ValueError(msg)
    return loss.reshape(())
