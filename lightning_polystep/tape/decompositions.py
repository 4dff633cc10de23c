"""Observe: operations that are recorded as several simpler ones, so that fewer kinds need rules.

Losses are recorded as one number per sample and its mean, so that what a sample costs is on the tape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

_MEAN, _SUM = 1, 2


def _per_sample(function: Any, position: int) -> Callable[..., Any]:
    """Say a loss with a ``reduction`` as the loss of each element, followed by the reduction."""

    def decomposed(*args: Any, **kwargs: Any) -> Any:
        reduction = args[position] if len(args) > position else kwargs.get("reduction", _MEAN)
        if reduction not in {_MEAN, _SUM}:
            return NotImplemented
        if len(args) > position:
            args = (*args[:position], 0, *args[position + 1 :])
        else:
            kwargs = {**kwargs, "reduction": 0}
        losses = function(*args, **kwargs)
        return losses.mean() if reduction == _MEAN else losses.sum()

    return decomposed


def _nll(scores: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignored: int) -> Any:
    """Say a negative log-likelihood as that of each sample, divided by what all samples weigh."""
    if reduction not in {_MEAN, _SUM}:
        return NotImplemented
    losses, _ = aten.nll_loss_forward.default(scores, target, weight, 0, ignored)
    counted = target != ignored
    weights = counted.to(scores.dtype) if weight is None else weight[target.where(counted, 0)] * counted
    total = weights.sum()
    loss = losses.sum() / total if reduction == _MEAN else losses.sum()
    return loss, total


def _lstm_layer(
    inputs: Tensor,
    input_weight: Tensor,
    hidden_weight: Tensor,
    input_bias: Tensor,
    hidden_bias: Tensor,
    hidden: Tensor,
    cell: Tensor,
    reverse: bool,
    *_options: Any,
    **_named: Any,
) -> Any:
    """Say oneDNN's fused LSTM layer step by step."""
    steps = inputs.unbind(0)
    driven = [inputs_at @ input_weight.t() + input_bias for inputs_at in steps]
    h, c, outputs = hidden.reshape(steps[0].shape[0], -1), cell.reshape(steps[0].shape[0], -1), []
    for current in reversed(driven) if reverse else driven:
        gates = current + (h @ hidden_weight.t() + hidden_bias)
        entering, kept, new, shown = gates.chunk(4, 1)
        c = kept.sigmoid() * c + entering.sigmoid() * new.tanh()
        h = shown.sigmoid() * c.tanh()
        outputs.append(h)
    sequence = torch.stack(outputs[::-1] if reverse else outputs)
    return sequence, h.reshape(hidden.shape), c.reshape(cell.shape), inputs.new_empty(0)


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    aten.mse_loss.default: _per_sample(aten.mse_loss.default, 2),
    aten.smooth_l1_loss.default: _per_sample(aten.smooth_l1_loss.default, 2),
    aten.huber_loss.default: _per_sample(aten.huber_loss.default, 2),
    aten.binary_cross_entropy.default: _per_sample(aten.binary_cross_entropy.default, 3),
    aten.binary_cross_entropy_with_logits.default: _per_sample(aten.binary_cross_entropy_with_logits.default, 4),
    aten.soft_margin_loss.default: _per_sample(aten.soft_margin_loss.default, 2),
    aten.multi_margin_loss.default: _per_sample(aten.multi_margin_loss.default, 5),
    aten.multilabel_margin_loss_forward.default: lambda *_args, **_named: NotImplemented,
    aten.nll_loss_forward.default: _nll,
}
if hasattr(aten, "mkldnn_rnn_layer"):
    DECOMPOSITIONS[aten.mkldnn_rnn_layer.default] = _lstm_layer
