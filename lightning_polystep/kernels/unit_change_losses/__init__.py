"""How the loss of each sample changes with the value of each unit of a layer."""

import torch
from torch import Tensor

from lightning_polystep.kernels.dispatch import Kernel, Tensors
from lightning_polystep.kernels.feedforward import Behind, Scores, check_behind, check_scores

_NAME = "unit_change_losses"
_KERNEL = Kernel(_NAME)


@torch.library.custom_op("polystep::unit_change_losses", mutates_args=())
def unit_change_losses(
    changes: Tensor,
    behind_preactivations: Tensors,
    behind_boundaries: Tensors,
    behind_levels: Tensors,
    weights: Tensors,
    scores: Tensor,
    target: Tensor,
    loss: str = "cross_entropy",
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Change the value of one unit on one sample, and return by how much that sample's loss changes.

    .. math:: T_{nu} = \ell_n(x'_n) - \ell_n(x_n)

    The change :math:`\Delta_{nu} e_u` travels through the layers behind as in
    :func:`~lightning_polystep.kernels.step_outcome_costs.step_outcome_costs`, whose other arguments are the same. Each
    number depends on nothing but its sample and its unit: not on the other units asked for, nor on the threads.

    Args:
        changes: :math:`\Delta`, (N, U), float32 or float64, as is every float tensor here unless it says otherwise.
        behind_preactivations: Of each layer behind, (N, H).
        behind_boundaries: Of each layer behind, (D, P); empty for ReLU.
        behind_levels: Of each layer behind, (D, P + 1); empty for ReLU.
        weights: One more than layers behind: (H, U), and so on; the last is (C, H), or (C, U).
        scores: x, (N, C), of the incumbent.
        target: (N,) int64 classes, or (N, C) in any float dtype.
        loss: ``"cross_entropy"``, or ``"mse"``, the mean over classes.
        label_smoothing: Of a cross-entropy.

    Returns:
        T, (N, U), float64.

    Raises:
        TypeError: If a dtype is wrong.
        ValueError: If a shape, an option, a class or the number of layers is wrong.

    Example:
        Two units that the score adds up; it should be 2.

        >>> import torch
        >>> unit_change_losses(
        ...     torch.tensor([[1.0, 2.0]]),
        ...     [],
        ...     [],
        ...     [],
        ...     [torch.ones(1, 2)],
        ...     torch.zeros(1, 1),
        ...     torch.tensor([[2.0]]),
        ...     loss="mse",
        ... )
        tensor([[-3., -4.]], dtype=torch.float64)
    """
    head = Scores(scores, target, loss, label_smoothing)
    behind = Behind(tuple(behind_preactivations), tuple(behind_boundaries), tuple(behind_levels), tuple(weights))
    check_scores(head, _NAME)
    check_behind(behind, head, changes, changes, _NAME)
    return _KERNEL(changes, behind, *head)


@unit_change_losses.register_fake
def _fake(changes: Tensor, *_: object, **__: object) -> Tensor:
    return changes.new_empty(changes.shape, dtype=torch.float64)
