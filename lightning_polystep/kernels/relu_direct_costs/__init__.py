"""Costs of candidates for a layer of ReLU or of linear units, each evaluated on its own."""

import torch
from torch import Tensor

from lightning_polystep.kernels.dispatch import Kernel, Tensors
from lightning_polystep.kernels.feedforward import Behind, Scores, check_behind, check_scores

_NAME = "relu_direct_costs"
_KERNEL = Kernel(_NAME)


@torch.library.custom_op("polystep::relu_direct_costs", mutates_args=())
def relu_direct_costs(
    preactivation: Tensor,
    shifts: Tensor,
    behind_preactivations: Tensors,
    behind_boundaries: Tensors,
    behind_levels: Tensors,
    weights: Tensors,
    scores: Tensor,
    target: Tensor,
    loss: str = "cross_entropy",
    label_smoothing: float = 0.0,
    floor: float = 0.0,
) -> Tensor:
    r"""Sum over the batch how each candidate of one ReLU changes the loss.

    Candidate (u, v) changes the value of unit u by :math:`\max(f, a_{nu} + s_{nv}) - \max(f, a_{nu})` on sample n,
    where f is ``floor``: 0 for ReLU, minus infinity for a linear unit. The change travels through the layers behind as
    in :func:`~lightning_polystep.kernels.step_outcome_costs.step_outcome_costs`, whose other arguments are the same;
    where it is 0, as for a unit that stays silent, nothing is evaluated. Results do not depend on the number of
    threads; memory does not grow with the number of candidates.

    Args:
        preactivation: a, (N, U), float32 or float64, as is every float tensor here unless it says otherwise; finite.
        shifts: s, times the probe radius, (N, V), the same for all units, or (U, N, V).
        behind_preactivations: Of each layer behind, (N, H).
        behind_boundaries: Of each layer behind, (D, P); empty for ReLU.
        behind_levels: Of each layer behind, (D, P + 1); empty for ReLU.
        weights: One more than layers behind: (H, U), and so on; the last is (C, H), or (C, U).
        scores: (N, C).
        target: (N,) int64 classes, or (N, C) in any float dtype.
        loss: ``"cross_entropy"``, or ``"mse"``, the mean over classes.
        label_smoothing: Of a cross-entropy.
        floor: f, the least value of a unit.

    Returns:
        C, (U, V), float64.

    Raises:
        TypeError: If a dtype is wrong.
        ValueError: If a shape, an option, a class or the number of layers is wrong.

    Example:
        A silent unit that the score copies; the score should be 2. The first candidate leaves it silent.

        >>> import torch
        >>> relu_direct_costs(
        ...     torch.tensor([[-1.0]]),
        ...     torch.tensor([[0.5, 2.0]]),
        ...     [],
        ...     [],
        ...     [],
        ...     [torch.ones(1, 1)],
        ...     torch.zeros(1, 1),
        ...     torch.tensor([[2.0]]),
        ...     loss="mse",
        ... )
        tensor([[ 0., -3.]], dtype=torch.float64)
    """
    head = Scores(scores, target, loss, label_smoothing)
    behind = Behind(tuple(behind_preactivations), tuple(behind_boundaries), tuple(behind_levels), tuple(weights))
    check_scores(head, _NAME)
    check_behind(behind, head, preactivation, shifts, _NAME)
    return _KERNEL(preactivation, shifts, behind, floor, *head)


@relu_direct_costs.register_fake
def _fake(preactivation: Tensor, shifts: Tensor, *_: object, **__: object) -> Tensor:
    return preactivation.new_empty((preactivation.shape[1], shifts.shape[-1]), dtype=torch.float64)
