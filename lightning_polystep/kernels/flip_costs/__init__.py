"""What flipping each variable of a formula would cost, all at once."""

import torch
from torch import Tensor

from lightning_polystep.kernels.dispatch import Kernel

_NAME = "flip_costs"
_KERNEL = Kernel(_NAME)


@torch.library.custom_op("polystep::flip_costs", mutates_args=())
def flip_costs(values: Tensor, literals: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    r"""Return by how much the weight of the unsatisfied clauses changes when one variable is flipped, for each of them.

    With :math:`t_c` the number of true literals of clause c,

    .. math:: \Delta_v = \sum_{c \ni v} w_c \left( [t_c = 1,\ v \text{ makes it true}] - [t_c = 0] \right),

    the *break* less the *make* of local search: exact, and one pass over all literals whatever the number of variables.

    Args:
        values: The assignment x, shape (n,), bool.
        literals: Twice a variable (from 0), plus 1 where it is negated; shape (L,), int32; in no clause twice.
        starts: First literal of each clause, and L; shape (m + 1,), int64.
        weights: w, shape (m,), int64.

    Returns:
        :math:`\Delta`, shape (n + 1,), int64; last the weight of the clauses that are unsatisfied now.

    Raises:
        TypeError: If a dtype is another.
        ValueError: If a shape does not fit.

    Example:
        x1 or x2 (weight 2), not x1 (weight 5), with both false: to flip x1 gains 2 and loses 5.

        >>> literals, starts = torch.tensor([0, 2, 1], dtype=torch.int32), torch.tensor([0, 2, 3])
        >>> flip_costs(torch.zeros(2, dtype=torch.bool), literals, starts, torch.tensor([2, 5]))
        tensor([ 3, -2,  2])

    References:
        Selman, Kautz and Cohen 1994, "Noise strategies for improving local search" (break and make).
    """
    expected = (("values", values, torch.bool), ("literals", literals, torch.int32))
    for name, tensor, dtype in (*expected, ("starts", starts, torch.int64), ("weights", weights, torch.int64)):
        if tensor.dtype != dtype:
            raise TypeError(f"{_NAME}: {name} must be {dtype}, got {tensor.dtype}.")
        if tensor.ndim != 1:
            raise ValueError(f"{_NAME}: {name} must have one axis, got shape {tuple(tensor.shape)}.")
    if len(starts) != len(weights) + 1:
        raise ValueError(f"{_NAME}: starts must have {len(weights) + 1} entries, one more than weights.")
    return _KERNEL(values, literals, starts, weights)


@flip_costs.register_fake
def _fake(values: Tensor, literals: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    del literals, starts
    return weights.new_empty(len(values) + 1)
