"""Rules for kinds of operations: how products and norms run on values with an axis of instances.

A product takes what one unit changes as a sum of rank one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lightning_polystep.tape.execute import Result, aligned, from_recorded, replays
from lightning_polystep.tape.frame import Frame, pick
from lightning_polystep.tape.program import Stage
from lightning_polystep.tape.tape import Operation, Ref

aten = torch.ops.aten


@replays(aten.mm, aten.addmm)
def product(frame: Frame, operation: Operation) -> Result | None:
    r"""Multiply: :math:`(X + \Delta X)(W + \Delta W) = XW + \Delta X\, W + (X + \Delta X)\, \Delta W`.

    What comes from stage ``UNIT`` has one column in :math:`\Delta X`, or one column of the output in :math:`\Delta W`.
    """
    made = operation.outputs[0]
    assert made is not None
    added, left, right = (None, *operation.operands)[-3:] if len(operation.operands) == 2 else operation.operands
    if operation.kwargs.get("alpha", 1) != 1 or operation.kwargs.get("beta", 1) != 1:
        return None
    home = frame.program.home
    if frame.stage == Stage.UNIT:
        return _product_of_units(frame, made, added, left, right)
    # The columns of a weight of which one changes; of another weight all may.
    if right in home and not (_is_narrow(frame, right) and frame.program.position(right, frame.program.unit) == 1):
        return None
    weight, has_instances = frame.recorded(right)
    if has_instances or sum(axis.count(frame.program.unit) for axis in frame.program.axes[made]) > 1:
        return None
    out = _with_recorded_weight(frame, made, added, left, weight)
    if added is not None and added in home:
        if _is_narrow(frame, added):
            out = frame.put_at_unit(made, out, _as_rows(frame.change(added), out.ndim), add=True)
        else:
            out = out + _as_rows(frame.read(added)[0] - frame.recorded(added)[0], out.ndim)
    if right in home:
        out = frame.put_at_unit(made, out, frame.read(left)[0] @ frame.change(right), add=True)
    return out


def _is_narrow(frame: Frame, index: int) -> bool:
    """Tell whether a value that changes at one unit has not been spread over all units yet."""
    return index not in frame.values and frame.enters(index)


def _with_recorded_weight(frame: Frame, made: int, added: int | None, left: int, weight: Tensor) -> Tensor:
    """Return the product of what the left factor is now and what the right one and the sum were, (I, ...)."""
    if left not in frame.program.home:
        whole, has_instances = frame.recorded(made)
        return whole if has_instances else whole.expand(frame.count, *whole.shape)
    if _is_narrow(frame, left) and frame.program.position(left, frame.program.unit) == 1:
        change, rows = frame.change(left), frame.rows_of(left, weight)
        change = change.to(rows)
        return from_recorded(frame, made, change * rows if rows.shape[1] == 1 else change @ rows)
    given = frame.read(left)[0]
    out = (given.reshape(-1, given.shape[-1]) @ weight).reshape(*given.shape[:-1], -1)
    if added is not None:
        own, has_instances = frame.recorded(added)
        out = out + (own.reshape(len(own), *[1] * (3 - own.ndim), *own.shape[1:]) if has_instances else own)
    return out


def _as_rows(change: Tensor, rank: int) -> Tensor:
    return change.reshape(change.shape[0], *[1] * (rank - change.ndim), *change.shape[1:])


def _product_of_units(frame: Frame, made: int, added: int | None, left: int, right: int) -> Result | None:
    """Columns of the output for each candidate: what was recorded plus what its change of the columns adds."""
    shift = frame.shifts.get(made)
    if shift is not None:
        return frame.recorded(made)[0] + shift
    # As a forward pass multiplies, because sums of quantised numbers often lie right on a step.
    return _columns(frame, made, added, left, right)


def _columns(frame: Frame, made: int, added: int | None, left: int, right: int) -> Tensor | None:
    """Return a product at the units of candidates, (K, ..., columns); None where it is no such product."""
    home, given = frame.program.home, frame.tape.values[left].tensor
    if left in home or frame.program.position(left, frame.program.unit) is not None:
        return None
    if right not in home:
        shift = shift_of_units(frame, made, added, left, right)
        return None if shift is None else frame.recorded(made)[0] + shift
    columns = frame.values[right]  # (K, D, columns)
    flat = given @ columns.transpose(0, 1).reshape(given.shape[1], -1)
    out = flat.reshape(len(given), frame.count, -1).transpose(0, 1)
    same = (columns == frame.recorded(right)[0]).flatten(1).all(1)
    if added is not None:
        own, has_instances = frame.read(added)
        out = out + (_as_rows(own, 3) if has_instances else own)
        if added in home:
            same = same & (own == frame.recorded(added)[0]).flatten(1).all(1)
    # What changes nothing costs what the step did, to the bit.
    return torch.where(same[:, None, None], frame.recorded(made)[0], out)


def shift_of_units(frame: Frame, made: int, added: int | None, left: int, right: int) -> Tensor | None:
    """Return what candidates add to a product at their units, (K, ..., columns); None where it is no such product.

    Args:
        frame: Of stage ``UNIT``.
        made: The product.
        added: What is added to it, if anything.
        left: What is multiplied.
        right: By this, whose columns are the units: a single one for each candidate, but for merged axes.
    """
    home, given = frame.program.home, frame.tape.values[left].tensor
    if left in home or frame.program.position(left, frame.program.unit) is not None:
        return None
    shift: Tensor | None = None
    if right in home:
        columns = frame.values[right] - frame.recorded(right)[0]  # (K, D, columns)
        flat = given @ columns.transpose(0, 1).reshape(given.shape[1], -1)
        shift = flat.reshape(len(given), frame.count, -1).transpose(0, 1)
    if added is not None and added in home:
        change = _as_rows(frame.values[added] - frame.recorded(added)[0], 3)
        shift = change if shift is None else shift + change
    return None if shift is None else shift.expand(frame.count, *frame.shape(made))


@replays(aten.convolution)
def convolved(frame: Frame, operation: Operation) -> Result | None:
    """Convolve: a filter for each candidate, or what one channel of the inputs adds."""
    inputs, weight, *bias = operation.operands
    home, program = frame.program.home, frame.program
    if operation.args[8] != 1:
        channel = program.axes[inputs][1]
        return _channels_apart(frame, operation) if set(channel) & set(frame.fixed) else None
    if frame.stage == Stage.UNIT:
        return _filters(frame, operation)
    if weight in home or (bias and bias[0] in home):
        return None
    filters, has_instances = frame.recorded(weight)
    if has_instances:
        return None
    narrow = inputs not in frame.values and frame.enters(inputs)
    if narrow and program.axes[inputs][1] == (program.unit,):
        return _one_channel(frame, operation, filters)
    given = frame.read(inputs)[0]
    flat = given.reshape(-1, *given.shape[2:])
    own_bias = frame.recorded(bias[0])[0] if bias else None
    out = aten.convolution(flat, filters, own_bias, *operation.args[3:])
    return out.reshape(*given.shape[:2], *out.shape[1:])


def _filters(frame: Frame, operation: Operation) -> Result | None:
    """A channel of the output for each candidate."""
    made, (inputs, weight, *bias) = operation.outputs[0], operation.operands
    assert made is not None
    home = frame.program.home
    given = frame.tape.values[inputs].tensor
    if inputs in home or frame.program.position(inputs, frame.program.unit) is not None:
        return None
    out, _ = frame.recorded(made)
    shift = frame.shifts.get(made)
    if shift is not None:
        return out + shift
    if weight in home:
        change = frame.values[weight] - frame.recorded(weight)[0]
        if change.shape[1] != 1:
            return None
        moved = aten.convolution(given, change[:, 0], None, *operation.args[3:]).transpose(0, 1).unsqueeze(2)
        out = out + moved
    if bias and bias[0] in home:
        change = frame.values[bias[0]] - frame.recorded(bias[0])[0]
        out = out + change.reshape(frame.count, 1, -1, *[1] * (out.ndim - 3))
    return out


def _channels_apart(frame: Frame, operation: Operation) -> Result:
    """Of a convolution of each channel by itself one channel for each instance: as many groups as instances."""
    inputs, weight, *bias = (frame.read(index)[0] for index in operation.operands)  # (I, N, 1, ...), (I, 1, 1, ...)
    if inputs.shape[2] != 1 or weight.shape[1] != 1:
        raise NotImplementedError("channels that were merged with another axis")
    own_bias = bias[0].flatten() if bias else None
    out = aten.convolution(inputs[:, :, 0].transpose(0, 1), weight[:, 0], own_bias, *operation.args[3:8], frame.count)
    return out.transpose(0, 1).unsqueeze(2)


def _one_channel(frame: Frame, operation: Operation, filters: Tensor) -> Result:
    """Add what the change of one channel of the inputs makes to what was recorded."""
    made, inputs = operation.outputs[0], operation.operands[0]
    assert made is not None
    transposed, change = operation.args[6], frame.change(inputs).to(filters)
    flat = change.reshape(-1, 1, *change.shape[3:])
    units = frame.units.repeat_interleave(len(flat) // max(1, frame.count))
    shape = frame.shape(made)
    out = change.new_empty(len(flat), *shape[1:])
    for unit in units.unique().tolist():
        chosen = (units == unit).nonzero().squeeze(1)
        own = filters[unit : unit + 1] if transposed else filters[:, unit : unit + 1]
        out[chosen] = aten.convolution(flat[chosen], own, None, *operation.args[3:])
    return from_recorded(frame, made, out.reshape(frame.count, *shape))


@replays(
    aten.max_pool2d_with_indices, aten.max_pool2d, aten.avg_pool2d, aten._adaptive_avg_pool2d, aten.upsample_nearest2d
)
def pooled(frame: Frame, operation: Operation) -> Result:
    """Positions are the last two axes; all others are samples."""
    given, _ = frame.read(operation.operands[0])
    result = operation.function(given.reshape(1, -1, *given.shape[-2:]), *operation.args[1:], **operation.kwargs)
    outputs = result if isinstance(result, tuple | list) else (result,)
    return tuple(out.reshape(*given.shape[:-2], *out.shape[-2:]) for out in outputs)


# Normalisation


@replays(aten.native_batch_norm, aten.cudnn_batch_norm)
def batch_normalised(frame: Frame, operation: Operation) -> Result | None:
    """Channels of all instances beside one another, by the operator itself, whose last bits a step behind may ask."""
    args = operation.args
    given, has_instances = frame.read(args[0].index)
    if not has_instances:
        return None
    count, samples, channels = given.shape[:3]

    def per_channel(argument: Any) -> Tensor | None:
        if not isinstance(argument, Ref):
            return None
        tensor, own = frame.read(argument.index)
        return tensor.reshape(count if own else 1, -1).expand(count, channels).reshape(-1)

    statistics = (None, None) if args[5] else (per_channel(args[3]), per_channel(args[4]))
    flat = given.transpose(0, 1).reshape(samples, count * channels, *given.shape[3:]).contiguous()
    scale, shift = per_channel(args[1]), per_channel(args[2])
    out = aten.native_batch_norm.default(flat, scale, shift, *statistics, bool(args[5]), 0.0, args[7])[0]
    return out.reshape(samples, count, channels, *given.shape[3:]).transpose(0, 1), None, None


@replays(aten.native_layer_norm)
def layer_normalised(frame: Frame, operation: Operation) -> Result | None:
    """The last axes, of every instance."""
    given, _ = frame.read(operation.operands[0])
    plain = functional.layer_norm(given, operation.args[1], eps=operation.args[4])
    return _rescaled(frame, operation, plain, operation.args[2:4], 0)


@replays(aten.native_group_norm)
def group_normalised(frame: Frame, operation: Operation) -> Result | None:
    """Samples of all instances behind one another."""
    given, has_instances = frame.read(operation.operands[0])
    flat = given.reshape(-1, *given.shape[2:]) if has_instances else given
    plain = functional.group_norm(flat, operation.args[6], eps=operation.args[7]).reshape(given.shape)
    return _rescaled(frame, operation, plain, operation.args[1:3], plain.ndim - (3 if has_instances else 2))


def _rescaled(frame: Frame, operation: Operation, plain: Tensor, affine: Any, behind: int) -> Result:
    """Scale and shift what has been normalised; where a candidate changes but one scale, that unit is left.

    Args:
        frame: The instances.
        operation: The normalisation.
        plain: Its result without scale and shift.
        affine: Scale and shift, or None.
        behind: How many axes come behind those of the scale.
    """
    made, program = operation.outputs[0], frame.program
    assert made is not None
    rank = frame.tape.values[made].tensor.ndim
    if frame.stage == Stage.UNIT and operation.operands[0] not in program.home:
        plain = pick(program, made, plain, {program.unit: frame.units})
    for place, ref in enumerate(affine):
        if isinstance(ref, Ref):
            each = aligned(frame, ref.index, rank - behind)
            each = each.reshape(*each.shape, *[1] * behind)
            plain = plain * each if place == 0 else plain + each
    return plain, None, None


@replays(aten._scaled_dot_product_flash_attention_for_cpu)
def attended(frame: Frame, operation: Operation) -> Result | None:
    """Attention of all instances, as that of so many more samples."""
    mask = operation.kwargs.get("attn_mask")
    if isinstance(mask, Ref) and (mask.index in frame.program.home or frame.tape.values[mask.index].tensor.ndim != 2):
        return None
    given = []
    for index in operation.operands[:3]:
        tensor, has_instances = frame.read(index)
        tensor = tensor if has_instances else tensor.expand(frame.count, *tensor.shape)
        # The kernel takes for granted that the numbers of a head lie side by side.
        given.append(tensor.reshape(-1, *tensor.shape[2:]).contiguous())
    options = dict(operation.kwargs)
    if isinstance(mask, Ref):
        options["attn_mask"] = frame.tape.values[mask.index].tensor
    made = operation.function(*given, *operation.args[3:], **options)
    return tuple(each.reshape(frame.count, -1, *each.shape[1:]) for each in made)
