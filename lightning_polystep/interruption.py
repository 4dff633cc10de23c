"""Save when a fit is interrupted, at a point from which it can go on exactly."""

from __future__ import annotations

import signal
import threading
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from lightning_polystep.host import (
    Callback,
    ModelCheckpoint,
    SIGTERMException,
    TrainerFn,
    pl,
    rank_zero_info,
    rank_zero_warn,
)
from lightning_polystep.processes import Processes

FILE_NAME = "interrupted.ckpt"
# What shells report of a process that SIGTERM ended; Lightning 2.6 would exit with 0, as if the run were finished.
_SIGTERM_EXIT_CODE = 128 + signal.SIGTERM


class FinishBatchFirst(Callback):
    """The strategy's own callback: Ctrl+C during a batch waits for its end, so that no half-made step is saved.

    So it does between batches, where loaders draw from generators and schedulers step. In a validation it stops at
    once, as does a second Ctrl+C. On one process SIGTERM needs no such care: Lightning notes it and stops between
    batches. On several Lightning broadcasts from within the handler, which pairs with whatever the others are at, so
    there the signal is passed on by the next step's own collective, and all stop after the same batch.
    """

    def __init__(self) -> None:
        self._interrupted = self._waiting = False
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over Ctrl+C, where it is Python's own."""
        self.on_sanity_check_start(trainer, pl_module)
        self._interrupted = False
        if _gets_signals() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._handlers[signal.SIGINT] = signal.signal(signal.SIGINT, self._note)

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over SIGTERM where there are others to tell."""
        del pl_module
        if _gets_signals() and trainer.world_size > 1 and signal.SIGTERM not in self._handlers:
            self._handlers[signal.SIGTERM] = signal.signal(signal.SIGTERM, partial(_pass_on, _processes(trainer)))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wait for the end of the first batch: from an epoch that has begun without one, Lightning does not resume."""
        del trainer, pl_module
        self._waiting = True

    def on_train_batch_end(self, trainer: pl.Trainer, *_batch: Any) -> None:
        """Stop now if Ctrl+C was pressed, and soon if a process got SIGTERM."""
        self._stop_if_asked()
        if _processes(trainer).stopping:
            vars(trainer)["_signal_connector"].received_sigterm = True

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wait for nothing until the validation is over."""
        del trainer, pl_module
        self._stop_if_asked()
        self._waiting = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wait again: schedulers that watch the metric step now."""
        del trainer, pl_module
        self._waiting = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let nothing that was asked for get lost where no batch comes any more."""
        self.on_validation_start(trainer, pl_module)

    def release(self) -> None:
        """Give the signals back."""
        self._interrupted = self._waiting = False
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def _stop_if_asked(self) -> None:
        if self._interrupted:
            self.release()
            raise KeyboardInterrupt

    def _note(self, signum: int, frame: FrameType | None) -> None:
        del signum, frame
        if self._interrupted or not self._waiting:
            self.release()
            raise KeyboardInterrupt
        self._interrupted = True
        rank_zero_info("Ctrl+C: stopping after this batch; press it again to stop at once.")


def _gets_signals() -> bool:
    return threading.current_thread() is threading.main_thread()


def _processes(trainer: pl.Trainer) -> Processes:
    return vars(trainer.strategy)["processes"]


def _pass_on(processes: Processes, signum: int, frame: FrameType | None) -> None:
    del signum, frame
    processes.asked_to_stop = True


def in_mid_batch(trainer: pl.Trainer) -> bool:
    """Tell whether a training batch was begun and not ended: its state is neither before nor after the step."""
    current: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return bool(current.started > current.processed)


def all_save(trainer: pl.Trainer) -> bool:
    """Tell whether all processes come to a checkpoint that is being made: an exception may be that of one alone."""
    return not trainer.interrupted or trainer.received_sigterm


def on_exception(trainer: pl.Trainer, exception: BaseException) -> None:
    """Save ``interrupted.ckpt`` beside the other checkpoints, and let SIGTERM end the process with code 143.

    Nothing is saved where the user wants no checkpoints, before the first batch, or in the middle of a batch; a
    ``ModelCheckpoint(save_on_exception=True)`` has saved already.

    Args:
        trainer: The trainer.
        exception: What ended the fit.
    """
    if isinstance(exception, SIGTERMException):
        exception.code = _SIGTERM_EXIT_CODE
    savers = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
    trained: Any = trainer.fit_loop.epoch_loop.batch_progress.total
    if not savers or not fitting or trained.processed == 0 or any(saver.save_on_exception for saver in savers):
        return
    # Saving waits for all processes, of which only a signal stops every one.
    alone = trainer.world_size > 1 and not isinstance(exception, SIGTERMException)
    if alone or in_mid_batch(trainer):
        return
    folder = savers[0].dirpath or str(Path(trainer.default_root_dir) / "checkpoints")
    path = Path(folder) / FILE_NAME
    try:
        trainer.save_checkpoint(path)
    except OSError as error:
        rank_zero_warn(f"{path} could not be saved ({error}): the last checkpoint before it is still there.")
    else:
        rank_zero_info(
            f"Saved {path}: resume with fit(..., ckpt_path={str(path)!r}), or --ckpt_path of the command line."
        )


def refuse_half_a_step(trainer: pl.Trainer, path: str | Path) -> bool:
    """Tell, and say, that a callback wants to save while an exception has just cut a batch in two."""
    if not (trainer.interrupted and trainer.state.fn == TrainerFn.FITTING and in_mid_batch(trainer)):
        return False
    rank_zero_warn(
        f"{Path(path).name} was not saved: the exception came in the middle of a batch, whose state is neither before "
        "nor after the step; resume from the last checkpoint before it."
    )
    return True
