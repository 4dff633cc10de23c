"""The hard step from which every spike is made."""

from functools import partial
from typing import Literal

from torch import Tensor

from lightning_polystep.functional.non_differentiable import OnBackward, check_on_backward, non_differentiable

SpikeOn = Literal["ge", "gt"]


def heaviside(
    x: Tensor, *, spike_on: SpikeOn = "ge", on_backward: OnBackward = "raise", name: str = "heaviside"
) -> Tensor:
    r"""Return 1 where ``x`` reaches 0, else 0.

    .. math::
        H(x) = \begin{cases} 1 & x \ge 0 \\ 0 & \text{otherwise} \end{cases}

    or, with ``spike_on="gt"``, 1 only where :math:`x > 0`. The two differ at exact ties, which are common when weights
    and inputs are integers or dyadic fractions. NaN never reaches 0.

    Args:
        x: Any shape, any real dtype.
        spike_on: ``"ge"`` counts a tie as reached, ``"gt"`` does not.
        on_backward: ``"raise"`` refuses a gradient with :class:`NonDifferentiableError`; ``"zero"`` passes zeros.
        name: What the error calls the operation.

    Returns:
        Zeros and ones in the shape and dtype of ``x``.

    Raises:
        ValueError: If ``spike_on`` or ``on_backward`` is not one of its names.
        NonDifferentiableError: Not here but in backward, with ``on_backward="raise"``.

    Example:
        >>> import torch
        >>> from lightning_polystep.functional import heaviside
        >>> heaviside(torch.tensor([-1.0, 0.0, 2.0]))
        tensor([0., 1., 1.])
        >>> heaviside(torch.tensor([-1.0, 0.0, 2.0]), spike_on="gt")
        tensor([0., 0., 1.])
    """
    check_step_options(spike_on, on_backward, name)
    return non_differentiable(partial(step, spike_on=spike_on), x, on_backward=on_backward, name=name)


def check_step_options(spike_on: str, on_backward: str, name: str, option: str = "spike_on") -> None:
    """Refuse a misspelt option, which would otherwise silently act as the other one.

    Args:
        spike_on: To be ``"ge"`` or ``"gt"``.
        on_backward: To be ``"raise"`` or ``"zero"``.
        name: What the error calls the operation.
        option: What the operation calls ``spike_on``.

    Raises:
        ValueError: If either is something else.
    """
    if spike_on not in ("ge", "gt"):
        raise ValueError(f'{name}: {option} must be "ge" (>=) or "gt" (>), got {spike_on!r}.')
    check_on_backward(on_backward, name)


def step(x: Tensor, spike_on: SpikeOn) -> Tensor:
    """Return what :func:`heaviside` does, without its checks and its guard."""
    return (x >= 0 if spike_on == "ge" else x > 0).to(x.dtype)
