"""Observe: operations that are recorded as several simpler ones, so that fewer kinds need rules.

Losses are recorded as one number per sample and its mean, so that what a sample costs is on the tape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_polystep.tape.pause import unrecorded

aten = torch.ops.aten

_MEAN, _SUM = 1, 2
# How oneDNN numbers the kinds of recurrent layers.
_LSTM = 2


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


def _nll_of_positions(scores: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignored: int) -> Any:
    """Say that of scores with positions, (N, C, H, W), likewise."""
    if reduction not in {_MEAN, _SUM}:
        return NotImplemented
    classes = scores.shape[1]
    flat = scores.permute(0, 2, 3, 1).reshape(-1, classes)
    return _nll(flat, target.reshape(-1), weight, reduction, ignored)


def _dropout(inputs: Tensor, p: float, train: bool | None) -> Any:
    """Say dropout of one kernel as a product with its mask, which is noise that all candidates share."""
    if train is False:
        return NotImplemented
    with unrecorded():
        _, mask = aten.native_dropout.default(inputs, p, train)
    return inputs * mask * (1 / (1 - p) if p < 1 else 0.0), mask


def _lstm_layer(inputs: Tensor, *arguments: Any) -> Any:
    """Say oneDNN's fused LSTM layer step by step."""
    input_weight, hidden_weight, input_bias, hidden_bias, hidden, cell = arguments[:6]
    reverse, batch_sizes, mode, _size, _layers, has_biases = arguments[6:12]
    if batch_sizes or mode != _LSTM:
        return NotImplemented
    steps, samples, _ = inputs.shape
    if not has_biases:
        input_bias = hidden_bias = inputs.new_zeros(())
    driven = torch.addmm(input_bias, inputs.reshape(steps * samples, -1), input_weight.t())
    each = driven.reshape(steps, samples, -1).unbind(0)
    turned = hidden_weight.t()
    h, c, outputs = hidden.reshape(samples, -1), cell.reshape(samples, -1), []
    for current in reversed(each) if reverse else each:
        gates = current + torch.addmm(hidden_bias, h, turned)
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
    aten.native_dropout.default: _dropout,
    aten.nll_loss_forward.default: _nll,
    aten.nll_loss2d_forward.default: _nll_of_positions,
}
if hasattr(aten, "mkldnn_rnn_layer"):
    DECOMPOSITIONS[aten.mkldnn_rnn_layer.default] = _lstm_layer


# Decompositions that do not give the last bit of what they stand for, which then is what the step goes on with.
ROUNDS = frozenset(DECOMPOSITIONS) - {aten.native_dropout.default}


def decomposition_of(function: Any) -> Callable[..., Any] | None:
    """Return how an operation is said by simpler ones; None where it is recorded as it is."""
    known = DECOMPOSITIONS.get(function) or _one_by_one(function)
    # From below autograd, as in what is written above, torch does not take these apart by itself.
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), "CompositeImplicitAutograd")
    return function.decompose if known is None and composite else known


def _one_by_one(function: Any) -> Callable[..., Any] | None:
    """Say an operation on lists of tensors, ``torch._foreach_add_``, as one on each of them."""
    namespace, name = function._schema.name.split("::")
    single = getattr(aten, name.removeprefix("_foreach_"), None)
    if namespace != "aten" or not name.startswith("_foreach_") or single is None:
        return None
    # Where an argument of each may be a number: the only one that is not positional of a single operation.
    by_name = {"addcmul": "value", "addcdiv": "value"}.get(name.removeprefix("_foreach_").rstrip("_"))

    def decomposed(*args: Any, **kwargs: Any) -> Any:
        made = []
        for number in range(len(args[0])):
            own = [argument[number] if isinstance(argument, list | tuple) else argument for argument in args]
            named = dict(kwargs)
            if by_name is not None and len(own) > 3:
                named[by_name] = own.pop()
            made.append(single(*own, **named))
        return None if name.endswith("_") else made

    return decomposed


class Hidden(NamedTuple):
    """What an operator writes though it does not declare it.

    Args:
        targets: The tensors.
        functional: Computes what it writes, from its arguments.
    """

    targets: tuple[Tensor, ...]
    functional: Callable[..., Any]


def _running(args: tuple[Any, ...]) -> Hidden | None:
    """Return the running statistics, which batch normalisation writes in training."""
    return Hidden((args[3], args[4]), running_statistics) if args[5] and args[3] is not None else None


def running_statistics(
    inputs: Tensor,
    _weight: Tensor | None,
    _bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    _training: bool,
    momentum: float,
    _epsilon: float,
) -> tuple[Tensor, Tensor]:
    """Return the running mean and variance of batch normalisation after a batch."""
    axes = [axis for axis in range(inputs.ndim) if axis != 1]
    of_batch, own = torch.var_mean(inputs, axes)
    return torch.lerp(mean, own.to(mean), momentum), torch.lerp(variance, of_batch.to(variance), momentum)


# Of the arguments of a call, what it writes without declaring it; None where it writes nothing.
HIDDEN_WRITES: dict[Any, Callable[[tuple[Any, ...]], Hidden | None]] = {
    aten.native_batch_norm.default: _running,
    aten.cudnn_batch_norm.default: _running,
    aten.miopen_batch_norm.default: _running,
}
