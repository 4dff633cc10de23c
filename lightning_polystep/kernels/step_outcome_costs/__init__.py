"""Costs of candidates for a layer of step functions, by the levels that they can reach."""

import torch
from torch import Tensor

from lightning_polystep.kernels.dispatch import Kernel, Tensors
from lightning_polystep.kernels.feedforward import Behind, Scores, check_behind, check_dictionary, check_scores

_NAME = "step_outcome_costs"
_KERNEL = Kernel(_NAME)


@torch.library.custom_op("polystep::step_outcome_costs", mutates_args=())
def step_outcome_costs(
    preactivation: Tensor,
    shifts: Tensor,
    boundaries: Tensor,
    levels: Tensor,
    behind_preactivations: Tensors,
    behind_boundaries: Tensors,
    behind_levels: Tensors,
    weights: Tensors,
    scores: Tensor,
    target: Tensor,
    loss: str = "cross_entropy",
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Sum over the batch how each candidate of one unit changes the loss.

    Candidate (u, v) gives unit u the pre-activation :math:`x = a_{nu} + s_{nv}` on sample n, of which only the outcome
    :math:`q(x) = \#\{p : x \ge b_p\}` matters, that is, the level :math:`l_q`. The changes :math:`\Delta` of the
    values, at first :math:`(l_{q(x)} - l_{q(a_{nu})}) \, e_u`, travel through the layers behind:

    .. math:: h^{k\prime}_n = h^k_n + W^k \Delta^{k-1}_n, \qquad
              \Delta^k_n = f^k(h^{k\prime}_n) - f^k(h^k_n), \qquad
              C_{uv} = \sum_n \ell_n(x'_n) - \ell_n(x_n) ,

    where the scores x are the last h. The loss is a step function of the shift: it is evaluated once per outcome that
    some candidate may reach, and its jumps are added to all candidates beyond them. Results do not depend on the number
    of threads; memory does not grow with the number of candidates.

    Args:
        preactivation: a, (N, U), float32 or float64, as is every float tensor here unless it says otherwise; finite.
        shifts: s, times the probe radius, (N, V), the same for all units, or (U, N, V).
        boundaries: b, (D, P), ascending; D is 1, or U with boundaries for each unit. Infinite ones are never reached.
        levels: l, (D, P + 1), in any order.
        behind_preactivations: :math:`h^k`, (N, H), of each layer of units behind, none to any number; all of the
            incumbent, as are the scores.
        behind_boundaries: Of each layer behind, (D, P), with D = 1 or H.
        behind_levels: Of each layer behind, (D, P + 1). **A layer of ReLU** has empty boundaries and empty levels:
            ``torch.empty(1, 0)`` for both. (A step function has at least one level.)
        weights: :math:`W^k`, one more than layers behind: (H, U), and so on; the last is (C, H), or (C, U).
        scores: x, (N, C), of the incumbent.
        target: (N,) int64 classes, or (N, C) in any float dtype.
        loss: ``"cross_entropy"``, or ``"mse"``, the mean over classes; see
            :class:`~lightning_polystep.kernels.feedforward.reference.Scores`.
        label_smoothing: Of a cross-entropy.

    Returns:
        C, (U, V), float64. From float32 inputs its error is about 1e-6 of the sum of the absolute jumps.

    Raises:
        TypeError: If a dtype is wrong.
        ValueError: If a shape, an option, a class or the number of layers is wrong.

    Example:
        A unit steps from 0 to 1 at 0.5 and to 2 at 1; a ReLU halves it. The score should be 0.5, which the first
        candidate reaches and the second overshoots.

        >>> import torch
        >>> step_outcome_costs(
        ...     torch.tensor([[0.25]]),
        ...     torch.tensor([[0.25, 1.0]]),
        ...     torch.tensor([[0.5, 1.0]]),
        ...     torch.tensor([[0.0, 1.0, 2.0]]),
        ...     [torch.zeros(1, 1)],
        ...     [torch.empty(1, 0)],
        ...     [torch.empty(1, 0)],
        ...     [torch.tensor([[0.5]]), torch.ones(1, 1)],
        ...     torch.zeros(1, 1),
        ...     torch.tensor([[0.5]]),
        ...     loss="mse",
        ... )
        tensor([[-0.2500,  0.0000]], dtype=torch.float64)
    """
    head = Scores(scores, target, loss, label_smoothing)
    behind = Behind(tuple(behind_preactivations), tuple(behind_boundaries), tuple(behind_levels), tuple(weights))
    check_scores(head, _NAME)
    check_behind(behind, head, preactivation, shifts, _NAME)
    roles = f"{_NAME}: boundaries", f"{_NAME}: levels"
    check_dictionary(boundaries, levels, preactivation.shape[1], scores.dtype, roles)
    return _KERNEL(preactivation, shifts, boundaries, levels, behind, *head)


@step_outcome_costs.register_fake
def _fake(preactivation: Tensor, shifts: Tensor, *_: object, **__: object) -> Tensor:
    return preactivation.new_empty((preactivation.shape[1], shifts.shape[-1]), dtype=torch.float64)
