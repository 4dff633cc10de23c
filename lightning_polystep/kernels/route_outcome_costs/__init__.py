"""Costs of candidates that make a choice among few: which of the experts, or slots, each sample takes."""

import torch
from torch import Tensor

from lightning_polystep.kernels.dispatch import Kernel
from lightning_polystep.kernels.readout.reference import check_tensor

_NAME = "route_outcome_costs"
_KERNEL = Kernel(_NAME)


@torch.library.custom_op("polystep::route_outcome_costs", mutates_args=())
def route_outcome_costs(logits: Tensor, changes: Tensor, weight: Tensor, losses: Tensor) -> Tensor:
    r"""Sum over the batch how each candidate's choice changes the loss.

    A choice has as many outcomes as there is to choose from, so that the loss of each of them is given, and a candidate
    (u, v) costs a look-up:

    .. math:: r_{nuv} = \min \arg\max_e \; g_{ne} + \Delta_{nuv} R_{eu}, \qquad
              C_{uv} = \sum_n \ell_{n r_{nuv}} - \ell_{n r_n}, \qquad r_n = \min \arg\max_e \; g_{ne} .

    Candidates of the router itself shift one logit: R is the identity. Those of a unit before it shift them all.
    Results do not depend on the number of threads, and those of a unit not on the others; memory does not grow.

    Args:
        logits: g, (N, E), float32 or float64, as are ``changes`` and ``weight``.
        changes: :math:`\Delta`, of what unit u sends, (N, V), the same for all units, or (U, N, V).
        weight: R, from the units to the logits, (E, U).
        losses: :math:`\ell`, of each sample under each outcome, (N, E), float64.

    Returns:
        C, (U, V), float64.

    Raises:
        TypeError: If a dtype is wrong.
        ValueError: If a shape is wrong.

    Example:
        The second expert would be better. The first candidate only reaches a tie, of which the lower index wins.

        >>> import torch
        >>> logits, losses = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 1.0]], dtype=torch.float64)
        >>> route_outcome_costs(logits, torch.tensor([[1.0, 1.5]]), torch.tensor([[0.0], [1.0]]), losses)
        tensor([[ 0., -2.]], dtype=torch.float64)
    """
    if logits.ndim != 2 or 0 in logits.shape:
        raise ValueError(f"{_NAME}: logits must be (N, E), neither of them 0, got {tuple(logits.shape)}.")
    if logits.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{_NAME}: logits must be float32 or float64, got {logits.dtype}.")
    samples, outcomes = logits.shape
    check_tensor(weight, (outcomes, weight.shape[-1]), logits.dtype, f"{_NAME}: weight")
    leading = (weight.shape[1],) if changes.ndim == 3 else ()
    check_tensor(changes, (*leading, samples, changes.shape[-1]), logits.dtype, f"{_NAME}: changes")
    check_tensor(losses, (samples, outcomes), torch.float64, f"{_NAME}: losses")
    return _KERNEL(logits, changes, weight, losses)


@route_outcome_costs.register_fake
def _fake(logits: Tensor, changes: Tensor, weight: Tensor, losses: Tensor) -> Tensor:
    return losses.new_empty((weight.shape[1], changes.shape[-1]))
