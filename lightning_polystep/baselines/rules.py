"""How an estimated gradient becomes a step: the update rules of SGD and Adam, in the state of a torch optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

UpdateRule = Callable[[Tensor, dict[str, Any], Mapping[str, Any]], Tensor]


def sgd(gradient: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> Tensor:
    r"""Return :math:`M \leftarrow \mu M + g`, as torch.optim.SGD has it.

    Args:
        gradient: g, of one parameter.
        state: What is kept of that parameter; holds M unless there is no momentum.
        group: Holds ``momentum``, mu.
    """
    if not group["momentum"]:
        return gradient
    memory = state.setdefault("momentum_buffer", torch.zeros_like(gradient))
    return memory.mul_(group["momentum"]).add_(gradient)


def adam(gradient: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> Tensor:
    r"""Return Adam's direction.

    .. math::
        m &\leftarrow \beta_1 m + (1 - \beta_1) g, \qquad v \leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        &\frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + 10^{-8}}

    Args:
        gradient: g, of one parameter.
        state: What is kept of that parameter: m, v and t.
        group: Holds ``betas``.

    References:
        Kingma and Ba 2015, arXiv 1412.6980.
    """
    first, second = group["betas"]
    mean = state.setdefault("exp_avg", torch.zeros_like(gradient))
    square = state.setdefault("exp_avg_sq", torch.zeros_like(gradient))
    state["step"] = state.get("step", 0) + 1
    mean.mul_(first).add_(gradient, alpha=1 - first)
    square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
    size = (square / (1 - second ** state["step"])).sqrt_().add_(1e-8)
    return mean / (1 - first ** state["step"]) / size


RULES: dict[str, UpdateRule] = {"sgd": sgd, "adam": adam}
