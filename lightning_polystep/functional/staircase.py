"""Activations with a few levels: a bounded squash, quantised."""

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from lightning_polystep.functional.non_differentiable import OnBackward, check_on_backward, non_differentiable

Rounding = Literal["floor", "round"]
Squash = Literal["sigmoid", "clamp", "tanh"]

_RANGE = {"sigmoid": (0, 1), "clamp": (0, 1), "tanh": (-1, 1)}


def staircase(
    x: Tensor,
    levels: int = 5,
    *,
    rounding: Rounding = "floor",
    squash: Squash = "sigmoid",
    on_backward: OnBackward = "raise",
    name: str = "staircase",
) -> Tensor:
    r"""Squash ``x`` into a bounded interval and round it to a multiple of 1 / ``levels``.

    .. math::
        y = \lfloor L \, \phi(x) \rfloor / L

    where :math:`L` is ``levels`` and :math:`\phi` is ``squash``: the logistic sigmoid, ``clamp`` to [0, 1], or tanh.
    With ``rounding="round"`` the nearest multiple, a tie going to the even one. The default is the paper's.
    Both are evaluated in float64 and so do not depend on the place of an element in the tensor, as torch's vectorised
    float32 sigmoid does by a unit in the last place. With ``"floor"`` the top level 1 is reached only where
    :math:`\phi` is 1 in float64: by the sigmoid above about 37, by ``clamp`` from 1 on.

    Args:
        x: Float, any shape.
        levels: Number of steps per unit; outputs are k / L.
        rounding: ``"floor"`` or ``"round"``.
        squash: ``"sigmoid"``, ``"clamp"`` or ``"tanh"``.
        on_backward: Whether a gradient raises :class:`~lightning_polystep.functional.NonDifferentiableError` or is
            zero.
        name: What errors call the operation.

    Returns:
        Multiples of 1 / ``levels`` in the shape and dtype of ``x``; NaN stays NaN.

    Raises:
        TypeError: If ``x`` is not floating point.
        ValueError: If ``levels`` is below 1 or an option is misspelt.
        NonDifferentiableError: In backward, with ``on_backward="raise"``.

    Example:
        >>> import torch
        >>> from lightning_polystep.functional import staircase
        >>> staircase(torch.tensor([-3.0, 0.0, 1.0, 3.0]))
        tensor([0.0000, 0.4000, 0.6000, 0.8000])
        >>> staircase(torch.tensor([-3.0, 0.2, 0.9]), 2, rounding="round", squash="clamp")
        tensor([0., 0., 1.])

    Source:
        arXiv 2605.01928, the staircase network: ``floor(5 * sigmoid(x)) / 5``.
    """
    check_staircase_options(levels, rounding, squash, on_backward, name)
    if not x.is_floating_point():
        raise TypeError(f"{name}: x must be floating point, got {x.dtype}; call .float() on it.")
    forward = partial(_staircase, levels=levels, rounding=rounding, squash=squash)
    return non_differentiable(forward, x, on_backward=on_backward, name=name)


def staircase_levels(levels: int, squash: Squash, dtype: torch.dtype) -> Tensor:
    """Return every value of a staircase, bit for bit, in growing order.

    Args:
        levels: Number of steps per unit.
        squash: ``"sigmoid"``, ``"clamp"`` or ``"tanh"``.
        dtype: Of the input, and so of the output.

    Returns:
        Shape ``(levels + 1,)``, or ``(2 * levels + 1,)`` for ``"tanh"``.

    Example:
        >>> import torch
        >>> from lightning_polystep.functional.staircase import staircase_levels
        >>> staircase_levels(2, "tanh", torch.float32)
        tensor([-1.0000, -0.5000,  0.0000,  0.5000,  1.0000])
    """
    low, high = _RANGE[squash]
    return torch.arange(low * levels, high * levels + 1).to(dtype) / levels


def check_staircase_options(levels: int, rounding: str, squash: str, on_backward: str, name: str) -> None:
    """Refuse what no input could make right.

    Args:
        levels: To be at least 1.
        rounding: To be ``"floor"`` or ``"round"``.
        squash: To be ``"sigmoid"``, ``"clamp"`` or ``"tanh"``.
        on_backward: To be ``"raise"`` or ``"zero"``.
        name: What the error calls the operation.

    Raises:
        ValueError: If one of them is something else.
    """
    if levels < 1 or levels != int(levels):
        raise ValueError(f"{name}: levels must be a whole number of at least 1, got {levels!r}.")
    if rounding not in ("floor", "round"):
        raise ValueError(f'{name}: rounding must be "floor" or "round", got {rounding!r}.')
    if squash not in _RANGE:
        raise ValueError(f'{name}: squash must be "sigmoid", "clamp" or "tanh", got {squash!r}.')
    check_on_backward(on_backward, name)


def _staircase(x: Tensor, levels: int, rounding: Rounding, squash: Squash) -> Tensor:
    wide = x if x.device.type == "mps" else x.double()
    squashed = wide.clamp(0, 1) if squash == "clamp" else getattr(torch, squash)(wide)
    scaled = levels * squashed
    return (scaled.floor() if rounding == "floor" else scaled.round()).to(x.dtype) / levels
