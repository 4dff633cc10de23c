"""Calls to optimizer objects that user code holds: a replaced one steps PolyStep, one that nobody knows is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lightning_polystep.adoption import Adoption
from lightning_polystep.host import MisconfigurationException
from lightning_polystep.hosted import HostedOptimizer

UNKNOWN_OPTIMIZER = (
    "{name}.step() was called in a fit, but configure_optimizers did not return this optimizer, so that PolyStep does "
    "not train in its place and without gradients it would move nothing: return it from configure_optimizers."
)

NO_SUCH_METHOD = (
    "{name}.{method}() is not among the methods of PolyStep, which trains in its place by forward passes alone: call "
    "manual_backward and opt.step(), or opt.step(closure), and nothing else of {name}."
)

# What torch itself gives every optimizer.
_KNOWN = frozenset(dir(torch.optim.Optimizer))


class Stepping:
    """The optimizer objects of one fit, those that were replaced among them.

    Args:
        module: The module that they train.
        step: Makes a step of one of our optimizers, with a closure or None.
    """

    def __init__(self, module: nn.Module, step: Callable[[HostedOptimizer, Callable[[], Any] | None], Any]) -> None:
        self._module = module
        self._step = step
        self._redirected: list[tuple[dict[str, Any], str, Any]] = []
        self._known: list[HostedOptimizer] = []
        self._foreign: list[torch.optim.Optimizer] = []
        self._hook = register_optimizer_step_pre_hook(self._check)

    def follow(self, adoptions: Sequence[Adoption]) -> None:
        """Redirect the replaced optimizers' methods to those that train in their place.

        Args:
            adoptions: All of the fit.
        """
        self._put_back()
        self._known = [adoption.optimizer for adoption in adoptions]
        self._foreign = [adoption.foreign for adoption in adoptions if adoption.foreign is not None]
        for adoption in adoptions:
            if adoption.foreign is not None:
                self._redirect(adoption.foreign, adoption.optimizer)

    def targets(self) -> list[tuple[Any, str]]:
        """Return the methods that probes must not call, as pairs of object and name."""
        return [(each, name) for each in (*self._known, *self._foreign) for name in ("step", "zero_grad")]

    def close(self) -> None:
        """Give the optimizers their own methods back."""
        self._hook.remove()
        self._put_back()

    def _redirect(self, foreign: torch.optim.Optimizer, ours: HostedOptimizer) -> None:
        def step(_self: Any, closure: Callable[[], Any] | None = None) -> Any:
            return self._step(ours, closure)

        # Else schedulers warn that the step which they count was overridden.
        step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]

        def zero_grad(_self: Any, set_to_none: bool = True) -> None:
            ours.zero_grad(set_to_none)

        for name, method in (("step", step), ("zero_grad", zero_grad)):
            self._set(foreign, name, MethodType(method, foreign))
        for name in own_methods(foreign):
            refuse = _refusal(type(foreign).__name__, name)
            self._set(ours, name, refuse)
            if "step" in name:  # others, such as the modes of a schedule-free optimizer, do no harm
                self._set(foreign, name, refuse)

    def _set(self, optimizer: torch.optim.Optimizer, name: str, method: Any) -> None:
        table = vars(optimizer)
        self._redirected.append((table, name, table.get(name, _MISSING)))
        table[name] = method

    def _put_back(self) -> None:
        while self._redirected:
            table, name, original = self._redirected.pop()
            if original is _MISSING:
                table.pop(name, None)
            else:
                table[name] = original

    def _check(self, optimizer: torch.optim.Optimizer, *_call: Any) -> None:
        """Refuse a step that moves nothing; one with gradients is the user's own business."""
        if any(optimizer is known for known in self._known):
            return
        if isinstance(optimizer, HostedOptimizer):
            moves = optimizer.binding.attached
        else:
            moves = any(p.grad is not None for group in optimizer.param_groups for p in group["params"])
        own = set(self._module.parameters())
        if not moves and any(p in own for group in optimizer.param_groups for p in group["params"]):
            raise MisconfigurationException(UNKNOWN_OPTIMIZER.format(name=type(optimizer).__name__))


def own_methods(optimizer: Any) -> list[str]:
    """Return the public methods that an optimizer's class has beside those of every torch optimizer.

    Args:
        optimizer: Any optimizer.

    Example:
        >>> class Twice(torch.optim.SGD):
        ...     def first_step(self): ...
        >>> own_methods(Twice([torch.zeros(1)]))
        ['first_step']
    """
    kind = type(optimizer)
    names = (name for name in dir(kind) if not name.startswith("_") and name not in _KNOWN)
    return [name for name in names if callable(getattr(kind, name))]


def _refusal(name: str, method: str) -> Callable[..., Any]:
    def refuse(*_args: Any, **_kwargs: Any) -> Any:
        raise MisconfigurationException(NO_SUCH_METHOD.format(name=name, method=method))

    return refuse


_MISSING = object()
