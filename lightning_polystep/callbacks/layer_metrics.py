"""Log how the hard layers of a model behave, at every validation and test."""

from __future__ import annotations

import warnings
from typing import Any

from lightning_polystep.constants import is_foreign_neuron
from lightning_polystep.host import Callback, pl
from lightning_polystep.metrics.watch import MEASURED, LayerWatch
from lightning_polystep.samples import samples_in


class LayerMetrics(Callback):
    """Log the metrics that fit each hard layer, such as ``val/spike_rate/network.2``, over a whole validation or test.

    What is measured for which layer: :class:`~lightning_polystep.metrics.LayerWatch`; what it means and what to do
    about it: ``docs/metrics.md``. Layers go by their names in the LightningModule. Hooks are there only while a
    validation or test runs, so training is neither slowed down nor measured, and neither are candidates. The sanity
    check before training is left alone. Several data loaders are measured as one.

    In YAML::

        trainer:
          callbacks:
            - class_path: lightning_polystep.callbacks.LayerMetrics

    Args:
        on_validation: Whether to measure validation, logged under ``val/``.
        on_test: Whether to measure tests, logged under ``test/``.
        synaptic_operations: Whether to count operations, the dearest of the metrics. They are per sample and left out
            where Lightning cannot tell the size of a batch.

    Example:
        >>> import pytorch_lightning as pl
        >>> from lightning_polystep.callbacks import LayerMetrics
        >>> trainer = pl.Trainer(callbacks=[LayerMetrics()], accelerator="cpu", logger=False)
    """

    def __init__(self, on_validation: bool = True, on_test: bool = True, *, synaptic_operations: bool = True) -> None:
        self.on_validation = on_validation
        self.on_test = on_test
        self.synaptic_operations = synaptic_operations
        self._watch: LayerWatch | None = None
        self._warned = False

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the hooks."""
        if self.on_validation and not trainer.sanity_checking:
            self._start(pl_module)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Count the samples."""
        self._count(batch)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log."""
        self._log(pl_module, "val")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove the hooks."""
        self._stop()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the hooks."""
        if self.on_test:
            self._start(pl_module)

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Count the samples."""
        self._count(batch)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log."""
        self._log(pl_module, "test")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove the hooks."""
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Remove the hooks: a run that was interrupted may go on."""
        self._stop()

    def _start(self, pl_module: pl.LightningModule) -> None:
        self._stop()
        if not self._warned:
            self._warned = True
            _warn_of_unmeasured(pl_module)
        self._watch = LayerWatch(pl_module, synaptic_operations=self.synaptic_operations)
        self._watch.__enter__()

    def _count(self, batch: Any) -> None:
        if self._watch is not None:
            self._watch.count_samples(samples_in(batch))

    def _log(self, pl_module: pl.LightningModule, stage: str) -> None:
        if self._watch is not None:
            figures = {f"{stage}/{name}": value.float() for name, value in self._watch.compute().items()}
            # Already over all processes; said so that Lightning does not ask for it.
            pl_module.log_dict(figures, sync_dist=True)

    def _stop(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.__exit__()


def _warn_of_unmeasured(pl_module: pl.LightningModule) -> None:
    """Say which layers of neurons are not measured, or that none is."""
    foreign = [f"{name} ({type(part).__name__})" for name, part in pl_module.named_modules() if is_foreign_neuron(part)]
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        warnings.warn(
            f"LayerMetrics logs no spikes of {', '.join(foreign[:3])}{more}, because it knows the layers of this "
            "package alone: convert the network, as with lightning_polystep.interop.from_snntorch, or log them in your "
            "module.",
            stacklevel=3,
        )
    elif not any(isinstance(part, MEASURED) for part in pl_module.modules()):
        warnings.warn(
            "LayerMetrics finds no hard layer of this package in the model, so it logs no more than operations.",
            stacklevel=3,
        )
