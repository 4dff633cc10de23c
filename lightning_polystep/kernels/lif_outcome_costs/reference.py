"""Costs by brute force: every candidate's spike train goes through the readout from the first step."""

import torch
from torch import Tensor

from lightning_polystep.kernels.readout import Readout, readout_losses


def lif_outcome_costs(
    preactivation: Tensor,
    shifts: Tensor,
    boundaries: Tensor,
    trains: Tensor,
    weight: Tensor,
    *readout_arguments: object,
) -> Tensor:
    """See :func:`lightning_polystep.kernels.lif_outcome_costs`."""
    readout = Readout(*readout_arguments)  # type: ignore[arg-type]
    before = readout_losses(readout, readout.currents)
    rows = []
    for unit in range(preactivation.shape[1]):
        row = min(unit, len(boundaries) - 1)
        current = preactivation[:, unit]
        incumbent = _trains_of(current, boundaries[row], trains[row])
        candidates = _trains_of(current + shifts.T, boundaries[row], trains[row])
        change = (candidates - incumbent).to(weight.dtype)
        after = readout_losses(readout, readout.currents + change[..., None] * weight[:, unit])
        rows.append((after - before).sum(-1))
    return torch.stack(rows)


def _trains_of(current: Tensor, boundaries: Tensor, trains: Tensor) -> Tensor:
    return trains[torch.bucketize(current.contiguous(), boundaries, right=True)].to(torch.int8)
