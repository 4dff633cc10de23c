"""Outcomes on CUDA: tabulate the loss change of every reachable outcome, then look the candidates up."""

import torch
from torch import Tensor

from lightning_polystep.kernels.feedforward import Behind, Scores
from lightning_polystep.kernels.feedforward.triton import loss_changes
from lightning_polystep.kernels.sweep.triton import look_up

_TABLE_ENTRIES = 2**25  # at most, 256 MB; more units than fit take turns


def step_outcome_costs(
    preactivation: Tensor, shifts: Tensor, boundaries: Tensor, levels: Tensor, behind: Behind, *head_arguments: object
) -> Tensor:
    """See :func:`lightning_polystep.kernels.step_outcome_costs`."""
    head = Scores(*head_arguments)  # type: ignore[arg-type]
    (samples, units), outcomes = preactivation.shape, levels.shape[1]
    at_once = max(1, _TABLE_ENTRIES // (samples * outcomes))
    costs = [shifts.new_empty((0, shifts.shape[-1]), dtype=torch.float64)]
    if shifts.shape[-1] == 0:
        return costs[0].new_empty(units, 0)
    for start in range(0, units, at_once):
        part = slice(start, start + at_once)
        own = part if len(levels) > 1 else slice(None)
        first, *others = behind.weights
        costs.append(
            _score(
                preactivation[:, part].contiguous(),
                (shifts[part] if shifts.ndim == 3 else shifts).contiguous(),
                boundaries[own].contiguous(),
                levels[own].contiguous(),
                behind._replace(weights=(first[:, part], *others)),
                head,
            )
        )
    return torch.cat(costs)


def _score(
    preactivation: Tensor, shifts: Tensor, boundaries: Tensor, levels: Tensor, behind: Behind, head: Scores
) -> Tensor:
    units, outcomes = preactivation.shape[1], levels.shape[1]
    # With a last dimension of 1 where all units have the same shifts.
    lowest, highest = (x.reshape(-1, len(preactivation)).T for x in (shifts.amin(-1), shifts.amax(-1)))
    here, low, high = (_outcome(preactivation + shift, boundaries) for shift in (0, lowest, highest))
    q = torch.arange(outcomes, device=levels.device)
    own = torch.arange(units, device=levels.device) % len(levels)
    change = levels[own] - levels[own, here][..., None]
    reached = (q >= low[..., None]) & (q <= high[..., None]) & (change != 0)
    sample, unit, _ = place = reached.nonzero(as_tuple=True)
    table = torch.zeros(change.shape, dtype=torch.float64, device=change.device)
    if len(sample):
        table[place] = loss_changes(behind, head, sample, unit, change[place])
    return look_up(preactivation, shifts, boundaries, table)


def _outcome(preactivation: Tensor, boundaries: Tensor) -> Tensor:
    """Count the boundaries at or below each pre-activation, (N, U), without an array of all comparisons."""
    outcome = torch.zeros_like(preactivation, dtype=torch.long)
    for boundary in boundaries.T:
        outcome += preactivation >= boundary
    return outcome
