"""Write what a run achieved, and what it took, to ``results.json`` in its log folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_polystep.__about__ import __version__
from lightning_polystep.host import pl
from lightning_polystep.process_costs import process_costs
from lightning_polystep.strategy import PolyStepStrategy

_PACKAGES = ("torch", "pytorch-lightning", "torchmetrics", "numba", "numpy")


def parameters_sha256(module: nn.Module) -> str:
    """Return a hash of every parameter and buffer, bit for bit: equal hashes are equal training runs.

    Args:
        module: The module, on any device.

    Example:
        >>> a, b = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> _ = b.load_state_dict(a.state_dict())
        >>> parameters_sha256(a) == parameters_sha256(b)
        True
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def fit_record(trainer: pl.Trainer) -> dict[str, Any]:
    """Collect the figures of a finished fit; call it before a checkpoint is loaded for testing.

    Args:
        trainer: The trainer, after ``fit``.

    Returns:
        Steps, seed, parameters' hash, what the process has cost and, under PolyStep, candidates, samples per candidate,
        seconds by verb.
    """
    record: dict[str, Any] = {
        "seed": int(os.environ["PL_GLOBAL_SEED"]) if "PL_GLOBAL_SEED" in os.environ else None,
        "steps": trainer.global_step,
        "epochs": trainer.current_epoch,
        "parameters_sha256": parameters_sha256(trainer.lightning_module),
        "fit_metrics": _numbers(trainer.callback_metrics),
        "threads": torch.get_num_threads(),
        **process_costs(),
        "packages": {"lightning-polystep": __version__, **{name: _version(name) for name in _PACKAGES}},
    }
    if isinstance(trainer.strategy, PolyStepStrategy) and trainer.strategy.engines:
        record.update(_polystep_record(trainer.strategy))
    return record


def _polystep_record(strategy: PolyStepStrategy) -> dict[str, Any]:
    progress = [engine.optimizer.progress for engine in strategy.engines]
    candidates = sum(p.candidates for p in progress)
    samples = sum(p.samples for p in progress)
    by_verb = [engine.clock.seconds for engine in strategy.engines]
    return {
        "candidates": candidates,
        "candidate_samples": samples,
        "samples_per_candidate": samples / candidates if candidates else 0.0,
        "skipped_batches": sum(p.skipped for p in progress),
        "wall_seconds": strategy.fit_seconds,
        "seconds_by_verb": {verb: sum(seconds[verb] for seconds in by_verb) for verb in by_verb[0]},
        "plan": [
            {
                "block": assignment.block.name,
                "rows": assignment.block.rows,
                "rank": min(assignment.rank, assignment.block.dim),
                "tier": assignment.tier.name,
                "note": assignment.note,
                "error": assignment.error,
            }
            for engine in strategy.engines
            if engine.plan is not None
            for assignment in engine.plan.assignments
        ],
    }


def write_results(folder: str | Path, record: Mapping[str, Any]) -> Path:
    """Write the record as ``results.json``.

    Args:
        folder: The run's log folder; made when missing.
        record: JSON-serialisable figures.

    Returns:
        Path of the file.
    """
    path = Path(folder) / "results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return path


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
