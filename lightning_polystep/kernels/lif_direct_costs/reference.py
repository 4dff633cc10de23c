"""Costs by brute force: the whole readout runs for every candidate of every class."""

import torch
from torch import Tensor

from lightning_polystep.kernels.readout import Readout, readout_losses


def lif_direct_costs(shifts: Tensor, *readout_arguments: object) -> Tensor:
    """See :func:`lightning_polystep.kernels.lif_direct_costs`."""
    readout = Readout(*readout_arguments)  # type: ignore[arg-type]
    currents = readout.currents
    before = readout_losses(readout, currents)
    rows = []
    for c in range(currents.shape[2]):
        candidates = currents.expand(shifts.shape[2], *currents.shape).clone()
        candidates[..., c] += shifts.movedim(2, 0)
        rows.append((readout_losses(readout, candidates) - before).sum(-1))
    return torch.stack(rows)
