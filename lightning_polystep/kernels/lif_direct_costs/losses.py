"""The loss of a sample as a function of one spike count, or one logit, the others staying as they are."""

import torch
from torch import Tensor

from lightning_polystep.kernels.one_logit import OneLogit, one_logit
from lightning_polystep.kernels.readout import Readout, readout_scores, target_weights


def change_by_logit(readout: Readout) -> OneLogit:
    """Return the pieces of a cross-entropy in which one score varies."""
    return one_logit(readout_scores(readout, readout.currents), target_weights(readout))


def change_by_count(readout: Readout) -> Tensor:
    """Tabulate the change of the loss for every spike count of every neuron, (N, C, T + 1), float64."""
    steps = readout.currents.shape[1]
    count = torch.arange(steps + 1, dtype=torch.float64, device=readout.currents.device)
    if readout.loss == "mse_rate":
        rate, target = readout_scores(readout, readout.currents)[..., None] / steps, target_weights(readout)[..., None]
        return ((count / steps - target) ** 2 - (rate - target) ** 2) / readout.currents.shape[2]
    rest, weight, total, base = (part[..., None] for part in change_by_logit(readout))
    return total * torch.logaddexp(rest, count) - weight * count - base
