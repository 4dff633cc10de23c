"""Score: whether a step that runs again from where it began gives the same loss; the loop needs that."""

from __future__ import annotations

import torch

from lightning_polystep.scoring.probe import Probe

NOT_REPEATABLE = (
    "The training step gives another loss when it runs again on the same batch, with the same parameters and the same "
    "noise ({:.6g}, then {:.6g}), so differences between candidates that are scored one after the other are in part "
    "those of something that PolyStep cannot put back{}. Keep what changes from run to run in tensors, numbers, lists "
    "or generators that the module or the batch holds."
)


def difference(probe: Probe) -> str:
    """Return a warning where two evaluations of the same parameters differ, naming what may be the cause; else nothing.

    Args:
        probe: Of the micro-batch, isolated.
    """
    # No generator, in which a StopIteration of the user's would be another error.
    first, second = [float(probe.loss()) for _ in range(2)]
    tensors = torch.tensor(first), torch.tensor(second)
    if torch.allclose(*tensors, rtol=1e-5, atol=1e-7, equal_nan=True):
        return ""
    unknown = {} if probe.before is None else probe.before.unknown
    named = [f"{path or 'the module'} ({what})" for path, what in unknown.items()][:3]
    return NOT_REPEATABLE.format(first, second, f", perhaps {', '.join(named)}" if named else "")
