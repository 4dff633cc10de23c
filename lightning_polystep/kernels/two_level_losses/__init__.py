"""How the loss of each sample changes when a unit of two levels shifts, summed over starts."""

import torch
from torch import Tensor

from lightning_polystep.kernels.dispatch import Kernel

_NAME = "two_level_losses"
_KERNEL = Kernel(_NAME)


@torch.library.custom_op("polystep::two_level_losses", mutates_args=())
def two_level_losses(lacking: Tensor, other: Tensor, starts: Tensor, shifts: Tensor) -> Tensor:
    r"""Sum over starts what it costs each sample that a unit comes to its other level.

    A unit is at its upper level where its pre-activation reaches a boundary, and :math:`\lambda` is what it lacks to
    that. From start k, shift p brings it to

    .. math:: T_{upn} = o_{un} \, |\{k : [\theta_{uk} + s_{up} \ge \lambda_{un}] \ne [0 \ge \lambda_{un}]\}|,

    with o the loss change at the other level. Only products of a number with a count are rounded.

    Args:
        lacking: :math:`\lambda`, (U, N), float64, as are all others; 0 or less where the unit is at its upper level.
        other: o, (U, N).
        starts: :math:`\theta`, (U, K).
        shifts: s, (U, P).

    Returns:
        T, (U, P, N). Compared are :math:`\lambda - s`, rounded, and :math:`\theta`.

    Raises:
        TypeError: If a dtype is not float64.
        ValueError: If a shape does not fit.

    Example:
        A unit that lacks 1 gets there from one of two starts, and by a shift of 2 from both.

        >>> import torch
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> two_level_losses(one, 3 * one, torch.tensor([[0.0, 1.0]]).double(), torch.tensor([[0.0, 2.0]]).double())
        tensor([[[3.],
                 [6.]]], dtype=torch.float64)
    """
    for name, tensor, shape in (
        ("lacking", lacking, lacking.shape[:2]),
        ("other", other, lacking.shape),
        ("starts", starts, (len(lacking), *starts.shape[1:2])),
        ("shifts", shifts, (len(lacking), *shifts.shape[1:2])),
    ):
        if tensor.dtype != torch.float64:
            raise TypeError(f"{_NAME}: {name} must be float64, got {tensor.dtype}.")
        if tensor.ndim != 2 or tensor.shape != torch.Size(shape):
            raise ValueError(f"{_NAME}: {name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}.")
    return _KERNEL(lacking, other, starts, shifts)


@two_level_losses.register_fake
def _fake(lacking: Tensor, other: Tensor, starts: Tensor, shifts: Tensor) -> Tensor:
    del other, starts
    return lacking.new_empty((len(lacking), shifts.shape[1], lacking.shape[1]))
