"""First weights from the first training batch, so that a configuration needs no code for it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from lightning_polystep.first_weights import initialise
from lightning_polystep.host import Callback, pl, rank_zero_info, rank_zero_warn
from lightning_polystep.isolation import silenced

# From this width on, radii are worth a group of their own: at 4, 150 steps reached 45 instead of 9 % of the digits.
_WIDE = 4.0


class InitialiseByData(Callback):
    """Scale and centre a model's first weights on the first batch, by :func:`~lightning_polystep.initialise`.

    The model's ``training_step`` runs for that, muted; what it logs, counts or draws leaves no trace. A run that is
    resumed keeps its weights, and so does a second fit of the same trainer. Of several processes all get the weights of
    rank 0. In YAML::

        trainer:
          callbacks:
            - class_path: lightning_polystep.callbacks.InitialiseByData

    Args:
        target: Root mean square of pre-activations.
        centre: Whether biases make the mean of each unit 0.

    Raises:
        ValueError: If ``target`` is not above 0.

    Example:
        >>> from lightning_polystep.callbacks import InitialiseByData
        >>> trainer = pl.Trainer(callbacks=[InitialiseByData()], logger=False, accelerator="cpu")
    """

    def __init__(self, target: float = 1.0, centre: bool = True) -> None:
        if not target > 0:
            raise ValueError(f"InitialiseByData: target must be above 0, got {target}.")
        self.target = target
        self.centre = centre

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Initialise, before the first step."""
        loop = trainer.fit_loop.epoch_loop
        if trainer.global_step > 0 or trainer.current_epoch > 0 or loop.batch_progress.current.ready > 1:
            return
        muted: Any = getattr(trainer.strategy, "_muted", None)
        if muted is None:
            warnings.warn(
                'InitialiseByData works with Trainer(strategy="polystep"), and does nothing with another strategy: '
                "call lightning_polystep.initialise(model, batch) before the fit.",
                stacklevel=2,
            )
            return
        manual = [(optimizer, "step") for optimizer in vars(trainer.strategy)["_lightning_optimizers"]]
        with (
            muted(trainer),
            silenced([(pl_module, "manual_backward")], _do_nothing),
            silenced(manual, _run_closure),
            trainer.precision_plugin.train_step_context(),
        ):
            gains = initialise(
                pl_module, lambda: pl_module.training_step(batch, batch_idx), target=self.target, centre=self.centre
            )
        if trainer.world_size > 1:
            with torch.no_grad():
                for tensor in (*pl_module.parameters(), *pl_module.buffers()):
                    tensor.copy_(trainer.strategy.broadcast(tensor))
        wide = {name: width for name, width in gains.radii().items() if width >= _WIDE}
        if wide:
            shown = ", ".join(f"{name} ({width:g})" for name, width in wide.items())
            rank_zero_warn(
                "InitialiseByData: these layers need pre-activations much wider than 1 to be heard, beside which the "
                f"radii of PolyStep are small: {shown}. Give them lr and probe_radius of as many times as much, in "
                "parameter groups of their own: first = lightning_polystep.initialise(model, batch) before the fit, "
                "and PolyStep(first.groups(lr=0.1)) in configure_optimizers; or lower the thresholds."
            )
        rank_zero_info(f"InitialiseByData: the first weights of {len(gains)} layers set from the first batch.")


def _do_nothing(*_args: Any, **_kwargs: Any) -> None:
    """Stand in for a muted method."""


def _run_closure(closure: Callable[[], Any] | None = None, **_kwargs: Any) -> Any:
    """Stand in for an optimizer's step of a manual module: the network may run in its closure alone."""
    return None if closure is None else closure()
