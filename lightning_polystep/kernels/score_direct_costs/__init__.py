"""Costs of candidates for the linear layer that ends a network: each changes one score."""

import torch
from torch import Tensor

from lightning_polystep.kernels.dispatch import Kernel
from lightning_polystep.kernels.feedforward import Scores, check_scores, check_shifts

_NAME = "score_direct_costs"
_KERNEL = Kernel(_NAME)


@torch.library.custom_op("polystep::score_direct_costs", mutates_args=())
def score_direct_costs(
    shifts: Tensor,
    scores: Tensor,
    target: Tensor,
    loss: str = "cross_entropy",
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Sum over the batch how each candidate of one score changes the loss.

    Candidate (c, v) gives class c the score :math:`x_{nc} + s_{nv}` on sample n:

    .. math:: C_{cv} = \sum_n \ell_n(x_n + s_{nv} e_c) - \ell_n(x_n) .

    Results do not depend on the number of threads; memory does not grow with the number of candidates.

    Args:
        shifts: s, times the probe radius, (N, V), the same for all classes, or (C, N, V).
        scores: x, (N, C), of the incumbent, in the dtype of ``shifts``, float32 or float64. The sum of a score and a
            shift is rounded to it, the rest is computed in float64.
        target: (N,) int64 classes, or (N, C) in any float dtype.
        loss: ``"cross_entropy"``, or ``"mse"``, the mean over classes; see
            :class:`~lightning_polystep.kernels.feedforward.reference.Scores`.
        label_smoothing: Of a cross-entropy.

    Returns:
        C, (C, V), float64.

    Raises:
        TypeError: If a dtype is wrong.
        ValueError: If a shape, an option or a class is wrong.

    Example:
        A score of 0 that should be 2: the first candidate goes half of the way, the second goes the wrong way.

        >>> import torch
        >>> score_direct_costs(torch.tensor([[1.0, -1.0]]), torch.zeros(1, 1), torch.tensor([[2.0]]), loss="mse")
        tensor([[-3.,  5.]], dtype=torch.float64)
    """
    head = Scores(scores, target, loss, label_smoothing)
    check_scores(head, _NAME)
    check_shifts(shifts, scores.shape[1], head, _NAME)
    return _KERNEL(shifts, *head)


@score_direct_costs.register_fake
def _fake(shifts: Tensor, scores: Tensor, *_: object, **__: object) -> Tensor:
    return scores.new_empty((scores.shape[1], shifts.shape[-1]), dtype=torch.float64)
