"""Costs of choices by brute force, and the choices themselves."""

import torch
from torch import Tensor


def routes(logits: Tensor, changes: Tensor, weight: Tensor) -> Tensor:
    """Return which outcome each candidate has on each sample, the lowest index of equal ones.

    Args:
        logits: (N, E).
        changes: (U, N, V).
        weight: (E, U).

    Returns:
        (U, N, V), uint8 or, with more than 256 outcomes, int64.
    """
    best = logits[:, 0, None] + changes * weight[0, :, None, None]
    dtype = torch.uint8 if logits.shape[1] <= 256 else torch.int64
    route = torch.zeros(best.shape, dtype=dtype, device=best.device)
    for outcome in range(1, logits.shape[1]):
        logit = logits[:, outcome, None] + changes * weight[outcome, :, None, None]
        route.masked_fill_(logit > best, outcome)
        best = torch.maximum(best, logit)
    return route


def route_outcome_costs(logits: Tensor, changes: Tensor, weight: Tensor, losses: Tensor) -> Tensor:
    """See :func:`lightning_polystep.kernels.route_outcome_costs`."""
    before = losses.gather(1, logits.argmax(1, keepdim=True))
    costs = [(losses.gather(1, route.long()) - before).sum(0) for route in _each(logits, changes, weight)]
    return torch.stack(costs) if costs else losses.new_empty(0, changes.shape[-1])


def _each(logits: Tensor, changes: Tensor, weight: Tensor) -> Tensor:
    return routes(logits, changes.expand(weight.shape[1], -1, -1), weight)
