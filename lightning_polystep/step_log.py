"""The figures of a step in the log: ``polystep/...``."""

from __future__ import annotations

from torch import Tensor

from lightning_polystep.engine import Engine
from lightning_polystep.host import pl
from lightning_polystep.metrics.codes import flip_rates, weight_codes


def codes(module: pl.LightningModule, engine: Engine) -> dict[str, Tensor]:
    """Return the weight codes of the quantised layers that an engine trains, by name.

    Args:
        module: The module.
        engine: The engine.
    """
    return weight_codes(module, [p for group in engine.optimizer.param_groups for p in group["params"]])


def log(
    module: pl.LightningModule, engine: Engine, suffix: str, batch_size: int, before: dict[str, Tensor] | None
) -> None:
    """Log what the last step of an engine's optimizer did.

    Args:
        module: Logs the figures.
        engine: The engine.
        suffix: Ends the names, where there are several optimizers.
        batch_size: Samples of the batch.
        before: The weight codes before the step, to log each block's figures as well; None leaves them out.
    """
    binding = engine.optimizer.binding
    if module._trainer is None or module._trainer.barebones or not binding.report:
        return
    figures = {**binding.report, "skipped": float(engine.optimizer.progress.skipped)}
    if before is not None:
        figures |= {f"null_candidates/{name}": share for name, share in binding.null_candidates.items()}
        figures |= {f"changed_pairs/{name}": share for name, share in binding.changed_pairs.items()}
        rates = flip_rates(before, codes(module, engine))
        figures |= {f"flip_rate/{name}": share for name, share in rates.items()}
    named = {f"polystep/{name}{suffix}": value for name, value in figures.items()}
    module.log_dict(named, on_step=True, on_epoch=False, batch_size=batch_size)
