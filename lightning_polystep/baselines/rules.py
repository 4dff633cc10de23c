"""How an estimated gradient becomes a step: by torch's own SGD and Adam, in the state of its optimizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam as torch_adam
from torch.optim.sgd import sgd as torch_sgd

UpdateRule = Callable[[Tensor, dict[str, Any], Mapping[str, Any]], Tensor]


def sgd(gradient: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> Tensor:
    r"""Return :math:`M \leftarrow \mu M + g`, the direction of torch.optim.SGD.

    Args:
        gradient: g, of one parameter.
        state: What is kept of that parameter; holds M unless there is no momentum.
        group: Holds ``momentum``, mu.
    """
    buffers: list[Tensor | None] = [state.get("momentum_buffer")]
    moved = torch.zeros_like(gradient)
    torch_sgd(
        [moved],
        [gradient],
        buffers,
        foreach=False,
        momentum=group["momentum"],
        lr=1.0,
        weight_decay=0.0,
        dampening=0.0,
        nesterov=False,
        maximize=False,
    )
    if group["momentum"]:
        state["momentum_buffer"] = buffers[0]
    return -moved  # a step of size 1 from 0


def adam(gradient: Tensor, state: dict[str, Any], group: Mapping[str, Any]) -> Tensor:
    r"""Return the direction of torch.optim.Adam.

    .. math::
        m &\leftarrow \beta_1 m + (1 - \beta_1) g, \qquad v \leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        &\frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + 10^{-8}}

    Args:
        gradient: g, of one parameter.
        state: What is kept of that parameter: m, v and t, under the names that torch gives them.
        group: Holds ``betas``.

    References:
        Kingma and Ba 2015, arXiv 1412.6980.
    """
    first, second = group["betas"]
    moved = torch.zeros_like(gradient)
    torch_adam(
        [moved],
        [gradient],
        [state.setdefault("exp_avg", torch.zeros_like(gradient))],
        [state.setdefault("exp_avg_sq", torch.zeros_like(gradient))],
        [],
        [state.setdefault("step", torch.zeros(()))],
        foreach=False,
        amsgrad=False,
        beta1=first,
        beta2=second,
        lr=1.0,
        weight_decay=0.0,
        eps=1e-8,
        maximize=False,
    )
    return -moved  # a step of size 1 from 0


RULES: dict[str, UpdateRule] = {"sgd": sgd, "adam": adam}
