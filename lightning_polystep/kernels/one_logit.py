"""Cross-entropy as a function of one logit, the others staying as they are."""

from typing import NamedTuple

import torch
from torch import Tensor


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


def one_logit(logits: Tensor, weight: Tensor) -> OneLogit:
    """Return the pieces for logits and targets (N, C), both float64."""
    # The classes before and the classes after, so that nothing is subtracted from the sum over all of them.
    nothing = torch.full_like(logits[:, :1], -torch.inf)
    before = torch.cat([nothing, logits.logcumsumexp(1)[:, :-1]], 1)
    after = torch.cat([logits.flip(1).logcumsumexp(1).flip(1)[:, 1:], nothing], 1)
    rest, total = torch.logaddexp(before, after), weight.sum(1, keepdim=True)
    return OneLogit(rest, weight, total, total * torch.logaddexp(rest, logits) - weight * logits)
