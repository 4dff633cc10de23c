"""Score: whether a step that runs again from where it began gives the same loss; the loop needs that."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from lightning_polystep.scoring.probe import Probe

NOT_REPEATABLE = (
    "The training step gives another loss when it runs again on the same batch, with the same parameters and the same "
    "noise ({:.6g}, then {:.6g}), so differences between candidates that are scored one after the other are in part "
    "those of something that PolyStep cannot put back{}. Keep what changes from run to run in tensors, numbers, lists "
    "or generators that the module or the batch holds."
)
GOES_ON = (
    "Each run of the training step that scores a candidate moves on what PolyStep cannot put back: {}. It is not where "
    "one run of the step would have left it. Keep what changes in tensors, numbers, lists or generators "
    "that the module or the batch holds."
)


def difference(probe: Probe) -> str:
    """Return a warning where two evaluations of the same parameters differ, naming what may be the cause; else nothing.

    So is one that leaves something further on than it was, though the loss is the same.

    Args:
        probe: Of the micro-batch, isolated.
    """
    unknown = {} if probe.before is None else probe.before.unknown
    before = {} if probe.before is None else probe.before.positions()
    # No generator, in which a StopIteration of the user's would be another error.
    first, second = [float(probe.loss()) for _ in range(2)]
    after = {} if probe.before is None else probe.before.positions()
    tensors = torch.tensor(first), torch.tensor(second)
    if not torch.allclose(*tensors, rtol=1e-5, atol=1e-7, equal_nan=True):
        named = _named(unknown, unknown)
        return NOT_REPEATABLE.format(first, second, f", perhaps {named}" if named else "")
    moved = [path for path in unknown if before[path] != after[path]]
    return GOES_ON.format(_named(moved, unknown)) if moved else ""


def _named(paths: Iterable[str], unknown: dict[str, str]) -> str:
    return ", ".join([f"{path or 'the module'} ({unknown[path]})" for path in paths][:3])
