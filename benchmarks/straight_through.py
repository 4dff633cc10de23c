"""The gradient-based opponent of hard networks: the same forward pass, a derivative put in for each step.

* A rounding, of weights or activations, passes the gradient straight through, where nothing is clipped.
* A sign passes it where its input lies in [-1, 1]; a binary weight always, in units of its scale.
* A staircase has the derivative of its squash; a Heaviside step that of a fast sigmoid.
* A choice (of an expert, a slot, a key) has the true gradient of what it took, and that of the softmax of its scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_polystep.functional import gradient_rule
from lightning_polystep.functional.attention import _gate, _take
from lightning_polystep.functional.heaviside import step
from lightning_polystep.functional.moe import _first
from lightning_polystep.functional.quantisers import _codes, _weight_codes, largest_code, per_output
from lightning_polystep.functional.sign import _sign
from lightning_polystep.functional.staircase import _staircase

_SLOPE = 25.0


@contextmanager
def straight_through() -> Iterator[None]:
    """Give every hard layer a straight-through gradient while autograd records; the values are the hard ones.

    Raises:
        TypeError: In the context, for an operation without an agreed straight-through gradient.

    Example:
        >>> from lightning_polystep.functional import sign
        >>> x = torch.tensor([0.5, -2.0], requires_grad=True)
        >>> with straight_through():
        ...     sign(x).sum().backward()
        >>> x.grad
        tensor([1., 0.])
    """
    with gradient_rule(_hard_forward_soft_backward):
        yield


def _hard_forward_soft_backward(forward: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    function, options = (forward.func, forward.keywords) if isinstance(forward, partial) else (forward, {})
    if function not in _SOFT:
        raise TypeError(f"{function} has no straight-through gradient here.")
    with torch.no_grad():
        hard = forward(*inputs)
    soft = _SOFT[function](*inputs, **options)
    return hard + (soft - soft.detach())


def _soft_step(x: Tensor, **_: Any) -> Tensor:
    return x / (1 + _SLOPE * x.abs())


def _soft_sign(x: Tensor, **_: Any) -> Tensor:
    return x.clamp(-1, 1)


def _soft_staircase(x: Tensor, squash: str, **_: Any) -> Tensor:
    squashed: Tensor = x.clamp(0, 1) if squash == "clamp" else getattr(torch, squash)(x)
    return squashed


def _soft_weight_codes(weight: Tensor, scale: Tensor, weight_format: Any) -> Tensor:
    codes = weight / per_output(scale.detach(), weight.ndim, weight.dtype)
    # A binary weight that had no gradient outside of [-1, 1] could never come back.
    return (
        codes if weight_format == "binary" else codes.clamp(-largest_code(weight_format), largest_code(weight_format))
    )


def _soft_codes(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    return (x / scale.detach().to(x.dtype)).clamp(low, high)


def _soft_expert(output: Tensor, scores: Tensor) -> Tensor:
    chosen = scores.softmax(-1).amax(-1)
    return output + output.detach() * chosen.view(*chosen.shape, *[1] * (output.ndim - chosen.ndim))


def _soft_slot(value: Tensor, keys: Tensor, indices: Tensor, x: Tensor) -> Tensor:
    mixed = (x @ keys.T).softmax(-1) @ torch.sigmoid(keys).detach()
    return value * torch.sigmoid(keys[indices]) + value.detach() * mixed


def _soft_take(value: Tensor, indices: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return _take(value, indices) + (query @ key.transpose(-2, -1)).softmax(-1) @ value.detach()


_SOFT: dict[Callable[..., Any], Callable[..., Tensor]] = {
    step: _soft_step,
    _sign: _soft_sign,
    _staircase: _soft_staircase,
    _weight_codes: _soft_weight_codes,
    _codes: _soft_codes,
    _first: _soft_expert,
    _gate: _soft_slot,
    _take: _soft_take,
}
