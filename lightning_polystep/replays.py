"""The user code of a step, run again for each candidate up to the loss that is wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from lightning_polystep.host import do_nothing_closure

TOO_FEW_BACKWARDS = "A replay of training_step made fewer manual_backward calls than before: make them unconditional."

BACKWARD_OUTSIDE = (
    "manual_backward was called outside training_step, in a hook such as on_train_batch_end, where PolyStep does not "
    "know which code computes the loss and so cannot score candidates: call it in training_step, or give "
    "opt.step(closure) a closure that computes and returns the loss."
)


class _ReachedBackward(BaseException):
    """Stops a replay of user code at the backward call whose loss is wanted; no ``except Exception`` may catch it."""

    def __init__(self, loss: Tensor) -> None:
        self.loss = loss


class Replays:
    """What probes run again: a training step, or a closure inside it, and how many backward calls it has made.

    Example:
        >>> import torch
        >>> replays = Replays()
        >>> with replays.step(lambda: {"loss": torch.tensor(3.0)}):
        ...     output = replays.run()
        >>> replays.returned()()
        tensor(3.)
    """

    def __init__(self) -> None:
        self._code: Callable[[], Any] = do_nothing_closure
        self._backwards = 0
        self._stop_at: int | None = None
        self._reached = self._missed = 0
        self.running = False

    @contextmanager
    def step(self, code: Callable[[], Any]) -> Iterator[None]:
        """Take a training step as the code; it stays so after its end, when Lightning calls backward.

        Args:
            code: Runs the step.
        """
        self._code, self._backwards, self.running = code, 0, True
        try:
            yield
        finally:
            self.running = False

    @contextmanager
    def closure(self, code: Callable[[], Any]) -> Iterator[None]:
        """Take a closure given to ``opt.step`` as the code while the body runs.

        Args:
            code: Runs the closure.
        """
        outer = self._code, self._backwards, self.running
        self._code, self._backwards, self.running = code, 0, True
        try:
            yield
        finally:
            self._code, self._backwards, self.running = outer

    @property
    def backwards(self) -> int:
        """How many backward calls the code has made."""
        return self._backwards

    def run(self) -> Any:
        """Run the code for real."""
        return self._code()

    def passes(self, loss: Tensor) -> bool:
        """Tell whether a backward call belongs to a replay; the one that is looked for ends it.

        Args:
            loss: What the call was given.
        """
        if self._stop_at is None:
            return False
        if self._backwards == self._stop_at:
            raise _ReachedBackward(loss)
        self._backwards += 1
        return True

    def next_backward(self) -> int:
        """Count a backward call of the real run, and return its number."""
        self._backwards += 1
        return self._backwards - 1

    def returned(self) -> Callable[[], Tensor | None]:
        """Return what runs the code again and gives the loss that it returns; None is no loss."""
        code = self._code
        return lambda: loss_of(code())

    def at_backward(self, index: int) -> Callable[[], Tensor | None]:
        """Return what runs the code again and gives the loss of its backward call; None where it does not get there.

        Args:
            index: Number of the call.
        """
        code = self._code
        self._reached = self._missed = 0

        def loss() -> Tensor | None:
            made, self._backwards, self._stop_at = self._backwards, 0, index
            try:
                code()
            except _ReachedBackward as reached:
                self._reached += 1
                return reached.loss
            finally:
                self._backwards, self._stop_at = made, None
            self._missed += 1
            return None

        return loss

    def check_reached(self) -> None:
        """Refuse code that did not come to its backward call in any replay.

        Raises:
            RuntimeError: Saying so.
        """
        missed, reached, self._missed, self._reached = self._missed, self._reached, 0, 0
        if missed and not reached:
            raise RuntimeError(TOO_FEW_BACKWARDS)


def loss_of(output: Any) -> Any:
    """Return the loss in what a training step or a closure returned, None if there is none."""
    return output.get("loss") if isinstance(output, Mapping) else output
