"""Calibrate quantised layers when a fit starts, so that a configuration needs no code for it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any, cast

import torch
from torch import nn

from lightning_polystep.host import Callback, pl, rank_zero_info
from lightning_polystep.layers import QuantActivation, calibrate
from lightning_polystep.layers.quantised import QuantisedWeight
from lightning_polystep.randomness import derive_seed


class Calibrate(Callback):
    """Set the scales of quantised layers from the first training batches, before anything else runs.

    A model whose activations all have scales (a checkpoint that is resumed, say) is left as it is, with a message.

    Args:
        max_batches: Training batches to look at.
        percentile: Share of an activation's values, in percent, that are not clipped.
        follow: Whether scales follow the training: those of weights after every step, those of activations at the
            start of every epoch. Within a step they are as frozen as ever. A scale from the initial weights would clip
            the weights that grow.

    Raises:
        ValueError: If ``max_batches`` is below 1 or ``percentile`` is not in (0, 100].

    Example:
        >>> from lightning_polystep.callbacks import Calibrate
        >>> trainer = pl.Trainer(callbacks=[Calibrate()], logger=False, accelerator="cpu")
    """

    def __init__(self, max_batches: int = 4, percentile: float = 99.9, follow: bool = False) -> None:
        if max_batches < 1:
            raise ValueError(f"Calibrate: max_batches must be at least 1, got {max_batches}.")
        if not 0 < percentile <= 100:
            raise ValueError(f"Calibrate: percentile must be above 0 and at most 100, got {percentile}.")
        self.max_batches = max_batches
        self.percentile = percentile
        self.follow = follow

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Calibrate, unless there are scales already."""
        quantisers, weights = _quantisers(pl_module), _weights(pl_module)
        if quantisers and all(quantiser.calibrated for quantiser in quantisers):
            rank_zero_info("Calibrate: every activation has a scale already; it stays.")
        elif quantisers:
            self._calibrate(trainer, pl_module)
            rank_zero_info(
                f"Calibrate: {len(quantisers)} activation and {len(weights)} weight scales set from "
                f"{self.max_batches} training batches at the most."
            )

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the scales of activations follow; not in the first epoch, which has just begun with them."""
        if self.follow and _quantisers(pl_module) and trainer.current_epoch > 0:
            self._calibrate(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let the scales of weights follow the step just made."""
        if self.follow:
            self.follow_weights(pl_module)

    def follow_weights(self, module: nn.Module) -> None:
        """Set every weight scale from the weights as they are now."""
        for layer in _weights(module):
            layer.calibrate_weight()

    def _calibrate(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        with torch.random.fork_rng(devices=[]):
            # Loaders draw their order from the global generator, which has to be found as it was.
            torch.manual_seed(derive_seed(torch.initial_seed(), trainer.current_epoch, 0, "calibrate"))
            loader = cast("Iterable[Any]", trainer.fit_loop._data_source.dataloader())
            batches = list(islice(loader, self.max_batches))
        calibrate(pl_module, batches, percentile=self.percentile, max_batches=self.max_batches, keep_given=True)


def _quantisers(module: nn.Module) -> list[QuantActivation]:
    return [child for child in module.modules() if isinstance(child, QuantActivation) and not child.scale_given]


def _weights(module: nn.Module) -> list[QuantisedWeight]:
    return [child for child in module.modules() if isinstance(child, QuantisedWeight) and not child.scale_given]
