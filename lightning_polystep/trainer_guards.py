"""Every refusal that concerns the Trainer or a LightningModule, with its message."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress

import numba
import torch

from lightning_polystep.host import (
    MisconfigurationException,
    Precision,
    is_overridden,
    is_param_in_hook_signature,
    pl,
    rank_zero_warn,
)
from lightning_polystep.isolation import silenced

RAW_BACKWARD = (
    "loss.backward() was called inside training_step, but there is no autograd graph under PolyStep: call "
    "self.manual_backward(loss), or opt.step(closure) with a closure that returns the loss."
)

COLLECTIVE_IN_PROBE = (
    "training_step called torch.distributed.{name} (self.all_gather, or a strategy's reduce, broadcast or barrier) "
    "while candidates are scored; processes score different candidates at the same time, so it would pair wrong ones: "
    "move it to on_train_batch_end, or set data_parallel_size to the number of processes and candidate_parallel_size=1."
)

STOP_ITERATION = (
    "StopIteration was raised in {where}, which Lightning would take for the end of the data and so stop without a "
    "word: an iterator that it takes from is at its end (candidates run the step again, and so take from it too), so "
    "take what the step needs from the batch."
)

NO_CLIPPING = (
    "clip_gradients has no effect under PolyStep, which has no gradients: the step radius `lr` bounds every step."
)

NO_GRADIENT = (
    "PolyStep trains by forward passes, so that `.grad` of every parameter is None: leave out what reads or changes "
    "gradients, such as clipping and logging of their norms; the step radius `lr` bounds every step."
)

FORK_AFTER_KERNELS = (
    "This process has already run kernels with GNU OpenMP, and forked processes could not run them again: set the "
    "environment variable NUMBA_THREADING_LAYER=workqueue before Python starts, fit in several processes before "
    "anything else runs a kernel, or use strategy='polystep_spawn' or 'polystep'."
)

# What user code could call in a step that only works when all processes do the same.
_COLLECTIVES = (
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_reduce",
    "all_to_all",
    "barrier",
    "broadcast",
    "broadcast_object_list",
    "gather",
    "monitored_barrier",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "scatter",
)


def check_fit(trainer: pl.Trainer, module: pl.LightningModule, *, sync_batchnorm: bool) -> None:
    """Refuse at fit start what cannot work without gradients.

    Raises:
        MisconfigurationException: One sentence that says what to change.
    """
    rules = [
        (
            bool(trainer.gradient_clip_val),
            "Trainer(gradient_clip_val=...) clips gradients, and PolyStep has none: leave it out; the step radius `lr` "
            "bounds every step.",
        ),
        (
            bool(trainer._detect_anomaly),
            "Trainer(detect_anomaly=True) inspects autograd, which PolyStep turns off: leave it out; batches with a "
            "non-finite loss are skipped and counted in polystep/skipped.",
        ),
        (
            sync_batchnorm,
            "Trainer(sync_batchnorm=True) synchronises inside forward, which candidates must not do: leave it out.",
        ),
        (
            is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True),
            "training_step(dataloader_iter) would consume one batch per candidate: take `batch` instead.",
        ),
    ]
    for applies, message in rules:
        if applies:
            raise MisconfigurationException(message)
    for hook in ("backward", "configure_gradient_clipping"):
        if is_overridden(hook, module):
            rank_zero_warn(f"{type(module).__name__}.{hook} has no effect under PolyStep: there are no gradients.")


@contextmanager
def collectives_refused() -> Iterator[None]:
    """Make every collective of torch.distributed raise while the body runs.

    Raises:
        MisconfigurationException: From the collective, saying where to put it.
    """

    def refusal(name: str) -> Callable[..., None]:
        def refuse(*_args: object, **_kwargs: object) -> None:
            raise MisconfigurationException(COLLECTIVE_IN_PROBE.format(name=name))

        return refuse

    with ExitStack() as stack:
        for name in _COLLECTIVES:
            stack.enter_context(silenced([(torch.distributed, name)], refusal(name)))
        yield


class NoStopIteration(AbstractContextManager[None]):
    """Turn a StopIteration of the body into an error: Lightning's loops would end on it as if the data had.

    Args:
        where: What the body runs, for the message.

    Raises:
        RuntimeError: In the place of the StopIteration.

    Example:
        >>> with NoStopIteration("training_step"):
        ...     next(iter([]))
        Traceback (most recent call last):
        RuntimeError: StopIteration was raised in training_step, ...
    """

    def __init__(self, where: str) -> None:
        self._where = where

    # No generator: contextlib takes an error that a StopIteration caused inside one for the StopIteration itself.
    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, *_traceback: object) -> None:
        if isinstance(value, StopIteration):
            raise RuntimeError(STOP_ITERATION.format(where=self._where)) from value


def explain_missing_gradient(error: BaseException) -> None:
    """Add to an error of code that reads `.grad` that there is none, and why.

    Args:
        error: Whatever has ended the fit.

    Example:
        >>> error = AttributeError("'NoneType' object has no attribute 'clamp_'")
        >>> explain_missing_gradient(error)  # raised nowhere, so not by such code
        >>> hasattr(error, "__notes__")
        False
    """
    if isinstance(error, AttributeError | TypeError) and "NoneType" in str(error):
        lines = [frame.line or "" for frame in traceback.extract_tb(error.__traceback__)]
        if any(".grad" in line for line in lines):
            error.add_note(NO_GRADIENT)


@contextmanager
def no_clipping(precision: Precision) -> Iterator[None]:
    """Leave out gradient clipping while the body runs, the user's hook for it too: there is nothing to clip.

    Who clips by hand is told, once.

    Args:
        precision: The Trainer's precision plugin, which clips.
    """
    untold = [NO_CLIPPING]

    def tell(*_args: object, **_kwargs: object) -> None:
        while untold:
            rank_zero_warn(untold.pop())

    def skip(*_args: object, **_kwargs: object) -> None:
        pass

    with silenced([(precision, "_clip_gradients")], skip), silenced([(precision, "clip_gradients")], tell):
        yield


def check_synchronised_norms(module: pl.LightningModule) -> None:
    """Refuse batch normalisation that synchronises inside forward, where processes score different candidates.

    Raises:
        MisconfigurationException: Naming the layer.
    """
    for name, part in module.named_modules():
        if isinstance(part, torch.nn.SyncBatchNorm):
            msg = f"{name} is a SyncBatchNorm, whose forward is a collective: use BatchNorm with several processes."
            raise MisconfigurationException(msg)


def check_loader_lengths(lengths: list[float]) -> None:
    """Refuse loaders that end at different batches: the processes that go on would wait for the others.

    Args:
        lengths: Batches per epoch of each rank; infinite when unknown.

    Raises:
        MisconfigurationException: Naming the ranks.
    """
    if len(set(lengths)) > 1:
        told = ", ".join(f"rank {rank}: {length:.0f}" for rank, length in enumerate(lengths))
        msg = (
            f"The training loaders have different numbers of batches ({told}), so that some processes would wait for "
            "ever: give each the same number, or set Trainer(limit_train_batches=...) to the smallest."
        )
        raise MisconfigurationException(msg)


def check_fork() -> None:
    """Refuse to fork after numba has started GNU OpenMP, which would kill the forked processes.

    Raises:
        MisconfigurationException: Saying what to do instead.
    """
    with suppress(ValueError):  # no kernel has run yet
        if sys.platform == "linux" and numba.threading_layer() == "omp":
            raise MisconfigurationException(FORK_AFTER_KERNELS)


def check_replaceable(optimizer: object) -> None:
    """Refuse optimizers whose step needs gradients in the middle.

    Raises:
        MisconfigurationException: Saying what to return instead.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        msg = (
            "LBFGS evaluates gradients inside its step, which cannot be replaced faithfully: return "
            "lightning_polystep.PolyStep(self.parameters()) from configure_optimizers, or None for its defaults."
        )
        raise MisconfigurationException(msg)
