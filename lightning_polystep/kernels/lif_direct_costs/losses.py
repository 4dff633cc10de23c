"""The loss of a sample as a function of one spike count, or one logit, the others staying as they are."""

import torch
from torch import Tensor

from lightning_polystep.kernels.one_logit import OneLogit, one_logit
from lightning_polystep.kernels.readout import Readout, target_weights


def change_by_logit(readout: Readout, scores: Tensor) -> OneLogit:
    """Return the pieces of a cross-entropy in which one of the incumbent's scores, (N, C) float64, varies."""
    return one_logit(scores, target_weights(readout))


def change_by_count(readout: Readout, scores: Tensor) -> Tensor:
    """Tabulate the change of the loss for every spike count of every neuron, (N, C, T + 1), float64.

    Args:
        readout: The readout.
        scores: The incumbent's spike counts, (N, C), float64.
    """
    steps = readout.currents.shape[1]
    count = torch.arange(steps + 1, dtype=torch.float64, device=readout.currents.device)
    if readout.loss == "mse_rate":
        rate, target = scores[..., None] / steps, target_weights(readout)[..., None]
        return ((count / steps - target) ** 2 - (rate - target) ** 2) / readout.currents.shape[2]
    rest, weight, total, base = (part[..., None] for part in change_by_logit(readout, scores))
    return total * torch.logaddexp(rest, count) - weight * count - base
