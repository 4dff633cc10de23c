"""The guard around every operation without a useful gradient, and the error that keeps it from being trained by one."""

from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.autograd import Function

OnBackward = Literal["raise", "zero"]


class NonDifferentiableError(RuntimeError):
    """Backward reached an operation that has no useful gradient."""


def non_differentiable(
    forward: Callable[..., Tensor], *inputs: Tensor, on_backward: OnBackward = "raise", name: str
) -> Tensor:
    """Return ``forward(*inputs)``, with a guard where a gradient would pass.

    Args:
        forward: Computes the output from the inputs alone; it runs without autograd.
        inputs: Tensors of any shape and dtype. Those that ``forward`` ignores are guarded as well.
        on_backward: ``"raise"`` refuses a gradient with :class:`NonDifferentiableError`; ``"zero"`` passes zeros to
            every floating-point input.
        name: What the error calls the operation.

    Returns:
        The output, in whatever shape and dtype ``forward`` gave it.

    Raises:
        ValueError: If ``on_backward`` is not one of its names.
        NonDifferentiableError: Not here but in backward, with ``on_backward="raise"``.

    Example:
        >>> import torch
        >>> from lightning_polystep.functional import non_differentiable
        >>> weight = torch.tensor([0.4, 1.6], requires_grad=True)
        >>> non_differentiable(torch.round, weight, on_backward="zero", name="round").sum().backward()
        >>> weight.grad
        tensor([0., 0.])
    """
    check_on_backward(on_backward, name)
    if torch.is_grad_enabled():
        # Not only where an input requires a gradient: inside vmap none does, also where the tensor outside requires it.
        return cast("Tensor", _Guarded.apply(forward, on_backward, name, *inputs))
    return forward(*inputs)


def check_on_backward(on_backward: str, name: str) -> None:
    """Refuse a misspelt option, which would otherwise silently act as the other one.

    Args:
        on_backward: To be ``"raise"`` or ``"zero"``.
        name: What the error calls the operation.

    Raises:
        ValueError: If it is something else.
    """
    if on_backward not in ("raise", "zero"):
        raise ValueError(f'{name}: on_backward must be "raise" or "zero", got {on_backward!r}.')


class _Guarded(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(forward: Callable[..., Tensor], on_backward: OnBackward, name: str, *inputs: Tensor) -> Tensor:
        return forward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.on_backward, ctx.name, *tensors = inputs
        if ctx.on_backward == "zero":
            ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.on_backward == "raise":
            raise NonDifferentiableError(
                f"{ctx.name} has no gradient: "
                'train it with PolyStep (Trainer(strategy="polystep")) or pass on_backward="zero".'
            )
        zeros = (torch.zeros_like(tensor) if tensor.is_floating_point() else None for tensor in ctx.saved_tensors)
        return None, None, None, *zeros
