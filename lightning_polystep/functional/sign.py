"""The sign with two values, as in binary networks."""

from functools import partial

from torch import Tensor

from lightning_polystep.functional.heaviside import SpikeOn, check_step_options, step
from lightning_polystep.functional.non_differentiable import OnBackward, non_differentiable


def sign(x: Tensor, *, positive_on: SpikeOn = "ge", on_backward: OnBackward = "raise", name: str = "sign") -> Tensor:
    r"""Return 1 where ``x`` reaches 0, else -1.

    .. math::
        \operatorname{sign}(x) = 2 H(x) - 1 = \begin{cases} 1 & x \ge 0 \\ -1 & \text{otherwise} \end{cases}

    or, with ``positive_on="gt"``, 1 only where :math:`x > 0`. Unlike ``torch.sign`` it is never 0. NaN gives -1.

    Args:
        x: Any shape, any signed dtype.
        positive_on: ``"ge"`` gives 1 at a tie, ``"gt"`` gives -1.
        on_backward: ``"raise"`` refuses a gradient with
            :class:`~lightning_polystep.functional.NonDifferentiableError`; ``"zero"`` passes zeros.
        name: What the error calls the operation.

    Returns:
        Ones and minus ones in the shape and dtype of ``x``.

    Raises:
        ValueError: If ``positive_on`` or ``on_backward`` is not one of its names.
        NonDifferentiableError: Not here but in backward, with ``on_backward="raise"``.

    Example:
        >>> import torch
        >>> from lightning_polystep.functional import sign
        >>> sign(torch.tensor([-2.0, 0.0, 3.0]))
        tensor([-1.,  1.,  1.])

    Source:
        Courbariaux et al. 2016, *Binarized neural networks*, arXiv 1602.02830, eq. 1.
    """
    check_step_options(positive_on, on_backward, name, option="positive_on")
    return non_differentiable(partial(_sign, positive_on=positive_on), x, on_backward=on_backward, name=name)


def _sign(x: Tensor, positive_on: SpikeOn) -> Tensor:
    return 2 * step(x, positive_on) - 1
