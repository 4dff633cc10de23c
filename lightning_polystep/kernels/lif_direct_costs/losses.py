"""The loss of a sample as a function of one logit, the others staying as they are."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_polystep.kernels.readout import Readout, readout_scores, target_weights


class OneLogit(NamedTuple):
    r"""Cross-entropy with one logit replaced: :math:`W \log(e^{r} + e^{x}) - w x - b`; all float64, on any device.

    Args:
        rest: r, log of the sum of the other classes' exponentials, (N, C).
        weight: w, the target, (N, C).
        total: W, the sum of the targets, (N, 1).
        base: b, which makes the change 0 at the incumbent's logit, (N, C).
    """

    rest: Tensor
    weight: Tensor
    total: Tensor
    base: Tensor


def one_logit(readout: Readout) -> OneLogit:
    """Return the pieces of a cross-entropy in which one logit varies."""
    logits, weight = readout_scores(readout, readout.currents), target_weights(readout)
    # The classes before and the classes after, so that nothing is subtracted from the sum over all of them.
    nothing = torch.full_like(logits[:, :1], -torch.inf)
    before = torch.cat([nothing, logits.logcumsumexp(1)[:, :-1]], 1)
    after = torch.cat([logits.flip(1).logcumsumexp(1).flip(1)[:, 1:], nothing], 1)
    rest, total = torch.logaddexp(before, after), weight.sum(1, keepdim=True)
    return OneLogit(rest, weight, total, total * torch.logaddexp(rest, logits) - weight * logits)


def change_by_count(readout: Readout) -> Tensor:
    """Tabulate the change of the loss for every spike count of every neuron, (N, C, T + 1), float64."""
    steps = readout.currents.shape[1]
    count = torch.arange(steps + 1, dtype=torch.float64, device=readout.currents.device)
    if readout.loss == "mse_rate":
        rate, target = readout_scores(readout, readout.currents)[..., None] / steps, target_weights(readout)[..., None]
        return ((count / steps - target) ** 2 - (rate - target) ** 2) / readout.currents.shape[2]
    rest, weight, total, base = (part[..., None] for part in one_logit(readout))
    return total * torch.logaddexp(rest, count) - weight * count - base
