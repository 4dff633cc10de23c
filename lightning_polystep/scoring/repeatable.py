"""Score: whether a step that runs again from where it began gives the same loss; the loop needs that."""

from __future__ import annotations

from typing import Any

import torch

from lightning_polystep.positions import effects_outside
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
    "that the module or the batch holds, or change it in on_train_batch_end, which runs once."
)


def difference(probe: Probe) -> str:
    """Return a warning where two evaluations of the same parameters differ, naming what may be the cause; else nothing.

    So is one that leaves something further on than it was, or writes files, though the loss is the same.

    Args:
        probe: Of the micro-batch, isolated.
    """
    before = _positions(probe)
    # No generator, in which a StopIteration of the user's would be another error.
    first = float(probe.loss())
    with effects_outside() as effects:  # of the second run: the first one may still compile or load something
        second = float(probe.loss())
    after = _positions(probe)
    moved = [_named(path, probe) for path in before if path in after and before[path] != after[path]] + list(effects)
    tensors = torch.tensor(first), torch.tensor(second)
    if not torch.allclose(*tensors, rtol=1e-5, atol=1e-7, equal_nan=True):
        known = {} if probe.before is None else probe.before.unknown
        suspects = dict.fromkeys([*moved, *(_named(path, probe) for path in known)])
        named = ", ".join(list(suspects)[:3])
        return NOT_REPEATABLE.format(first, second, f", perhaps {named}" if named else "")
    return GOES_ON.format(", ".join(moved[:3])) if moved else ""


def _positions(probe: Probe) -> dict[str, Any]:
    return {} if probe.before is None else probe.before.positions()


def _named(path: str, probe: Probe) -> str:
    assert probe.before is not None
    return f"{path or 'the module'} ({probe.before.what_is(path)})"
