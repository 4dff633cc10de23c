"""The guard around every operation without a useful gradient, and the error that keeps it from being trained by one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.autograd import Function

OnBackward = Literal["raise", "zero"]
Operation = Callable[..., Tensor]
GradientRule = Callable[..., Tensor]

_rule: ContextVar[GradientRule | None] = ContextVar("gradient_rule", default=None)


class NonDifferentiableError(RuntimeError):
    """Backward reached an operation that has no useful gradient."""


def non_differentiable(forward: Operation, *inputs: Tensor, on_backward: OnBackward = "raise", name: str) -> Tensor:
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
        rule = _rule.get()
        if rule is not None:
            return rule(forward, *inputs)
        # Not only where an input requires a gradient: inside vmap none does, also where the tensor outside requires it.
        return cast("Tensor", _Guarded.apply(forward, on_backward, name, *inputs))
    return forward(*inputs)


@contextmanager
def gradient_rule(rule: GradientRule) -> Iterator[None]:
    """Let a rule stand in for the guard of every hard layer, whatever its ``on_backward``: for audits and baselines.

    It acts where a layer runs while autograd records; a backward pass may come after the context.

    Args:
        rule: Called as ``rule(forward, *inputs)`` with the arguments of :func:`non_differentiable`. It returns what
            ``forward(*inputs)`` would, with the gradient that it likes.

    Example:
        >>> import torch
        >>> from lightning_polystep.functional import gradient_rule, sign
        >>> x = torch.tensor([0.5, -2.0], requires_grad=True)
        >>> with gradient_rule(lambda forward, x: x + (forward(x) - x).detach()):
        ...     sign(x).sum().backward()
        >>> x.grad
        tensor([1., 1.])
    """
    token = _rule.set(rule)
    try:
        yield
    finally:
        _rule.reset(token)


@contextmanager
def true_gradients() -> Iterator[None]:
    """Take the guards away: autograd finds the true gradient, which is zero through every step and choice.

    The guard of a layer shields all that stands behind it. Without it, parts that do have a gradient (the values of an
    attention, the experts of a mixture) get theirs, and the others zeros, or None.

    Example:
        >>> import torch
        >>> from lightning_polystep.functional import staircase, true_gradients
        >>> x = torch.tensor([0.5, -2.0], requires_grad=True)
        >>> with true_gradients():
        ...     (staircase(x) * x).sum().backward()
        >>> x.grad
        tensor([0.6000, 0.0000])
    """
    with gradient_rule(_unguarded):
        yield


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


def _unguarded(forward: Operation, *inputs: Tensor) -> Tensor:
    return forward(*inputs)


class _Guarded(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(forward: Operation, on_backward: OnBackward, name: str, *inputs: Tensor) -> Tensor:
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
