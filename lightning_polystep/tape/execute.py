"""Rules for kinds of operations: how an operation runs on values with an axis of instances.

An elementwise operation broadcasts over instances, a reduction counts its axes from the second on, a product takes what
one unit changes as a sum of rank one. Whatever has no rule is batched by ``torch.func.vmap``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional

from lightning_polystep.tape.flow import REDUCTIONS, is_elementwise
from lightning_polystep.tape.frame import Frame
from lightning_polystep.tape.program import Stage
from lightning_polystep.tape.tape import Operation, Ref, substitute

aten = torch.ops.aten

Result = Tensor | tuple[Tensor | None, ...] | list[Tensor]
Replay = Callable[[Frame, Operation], Result | None]

_REPLAYS: dict[Any, Replay] = {}

# Up to here torch is faster over instances side by side than over classes side by side.
_FEW_CLASSES = 32


def replays(*packets: Any) -> Callable[[Replay], Replay]:
    """Register how operators run; a rule that returns None leaves an operation to :func:`batched`."""

    def register(replay: Replay) -> Replay:
        _REPLAYS.update(dict.fromkeys(packets, replay))
        return replay

    return register


def execute(frame: Frame, operation: Operation) -> None:
    """Run an operation for the instances of a frame, and keep what it makes there."""
    packet = getattr(operation.function, "overloadpacket", None)
    replay = _REPLAYS.get(packet)
    result = replay(frame, operation) if replay is not None else None
    if result is None:
        result = elementwise(frame, operation) if is_elementwise(operation.function) else batched(frame, operation)
    outputs = result if isinstance(result, tuple | list) else (result,)
    for index, output in zip(operation.outputs, outputs, strict=False):
        if index is not None and output is not None:
            frame.values[index] = output


def elementwise(frame: Frame, operation: Operation) -> Result:
    """Broadcast: operands have their instances first, and then as many axes as the output."""
    made = operation.outputs[0]
    assert made is not None
    rank = frame.tape.values[made].tensor.ndim

    def aligned(index: int) -> Tensor:
        tensor, has_instances = frame.read(index)
        if has_instances and tensor.ndim <= rank:
            tensor = tensor.reshape(tensor.shape[0], *[1] * (rank + 1 - tensor.ndim), *tensor.shape[1:])
        return tensor

    result: Result = operation.function(
        *substitute(operation.args, aligned), **substitute(without_layout(operation), aligned)
    )
    return result


def without_layout(operation: Operation) -> dict[str, Any]:
    """Return the arguments by name, but for those about the layout of memory."""
    return {name: value for name, value in operation.kwargs.items() if name != "memory_format"}


def batched(frame: Frame, operation: Operation) -> Result:
    """Let torch batch the operation, whatever it is."""
    found = {index: frame.read(index) for index in dict.fromkeys(operation.operands)}
    order, tensors = list(found), [tensor for tensor, _ in found.values()]

    def run(*given: Tensor) -> Any:
        of = dict(zip(order, given, strict=True))
        return operation.function(*substitute(operation.args, of.get), **substitute(operation.kwargs, of.get))

    in_dims = tuple(0 if has_instances else None for _, has_instances in found.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that an operator is looped over: it is, one operation of many
        result: Result = vmap(run, in_dims=in_dims)(*tensors)
    return result


def _has_instances(frame: Frame, operation: Operation) -> bool:
    """Tell whether the first operand has an axis of instances; where only another has, torch batches."""
    return frame.read(operation.operands[0])[1]


# Views and whatever names axes

# Positions of the arguments that name axes, and the rank that negative ones count from, if not that of the operand.
_AXIS_ARGUMENTS: dict[Any, tuple[tuple[int, int], ...]] = {
    aten.select: ((1, 0),),
    aten.slice: ((1, 0),),
    aten.unsqueeze: ((1, 1),),
    aten.transpose: ((1, 0), (2, 0)),
    aten.unbind: ((1, 0),),
    aten.split: ((2, 0),),
    aten.unsafe_split: ((2, 0),),
    aten.split_with_sizes: ((2, 0),),
    aten.unsafe_split_with_sizes: ((2, 0),),
    aten._safe_softmax: ((1, 0),),
    aten.cumsum: ((1, 0),),
    aten.cumprod: ((1, 0),),
    aten.logcumsumexp: ((1, 0),),
    aten.select_scatter: ((2, 0),),
    aten.slice_scatter: ((2, 0),),
}
# Where such an argument may be left out.
_DEFAULT_AXIS = {aten.cumsum: None}


@replays(*_AXIS_ARGUMENTS)
def along_axes(frame: Frame, operation: Operation) -> Result | None:
    """Run an operation whose axes are counted from the second on."""
    packet = operation.function.overloadpacket
    found = [frame.read(index) for index in operation.operands]
    if not found[0][1]:
        if len(found) == 1:
            return None
        tensor, _ = found[0]
        found[0] = tensor.expand(frame.count, *tensor.shape), True
    if not all(has_instances for _, has_instances in found):
        found = [(t, True) if has_instances else (t.expand(frame.count, *t.shape), True) for t, has_instances in found]
    of = dict(zip(operation.operands, [tensor for tensor, _ in found], strict=True))
    args = list(substitute(operation.args, of.get))
    rank = found[0][0].ndim - 1
    for position, more in _AXIS_ARGUMENTS[packet]:
        while len(args) <= position:
            args.append(0)
        args[position] = args[position] % (rank + more) + 1
    result: Result = operation.function(*args, **substitute(operation.kwargs, of.get))
    return result


@replays(aten._softmax, aten._log_softmax)
def softened(frame: Frame, operation: Operation) -> Result:
    """A softmax over few classes, of many instances: classes come first, so that instances lie side by side."""
    tensor, _ = frame.read(operation.operands[0])
    rank = tensor.ndim - 1
    axis = operation.args[1] % max(1, rank) + 1
    if tensor.shape[axis] > _FEW_CLASSES:
        result: Tensor = operation.function(tensor, axis, *operation.args[2:])
        return result
    first = tensor.movedim(axis, 0).contiguous()
    return operation.function(first, 0, *operation.args[2:]).movedim(0, axis)


@replays(aten.t)
def turned(frame: Frame, operation: Operation) -> Result | None:
    """The axes of a matrix change places."""
    tensor, _ = frame.read(operation.operands[0])
    return tensor.transpose(1, 2) if tensor.ndim == 3 else tensor


@replays(aten.permute)
def permuted(frame: Frame, operation: Operation) -> Result:
    """Axes in another order."""
    tensor, _ = frame.read(operation.operands[0])
    return tensor.permute(0, *(place % (tensor.ndim - 1) + 1 for place in operation.args[1]))


@replays(
    aten.view, aten._unsafe_view, aten.reshape, aten._reshape_alias, aten.squeeze, aten.expand,
)  # fmt: skip
def reshaped(frame: Frame, operation: Operation) -> Result:
    """Sizes are written into the operation; those that an instance fixes are 1."""
    tensor, _ = frame.read(operation.operands[0])
    made = operation.outputs[0]
    assert made is not None
    shape = frame.shape(made)
    if operation.function.overloadpacket is aten.expand:
        more = len(shape) - (tensor.ndim - 1)
        return tensor.reshape(tensor.shape[0], *[1] * more, *tensor.shape[1:]).expand(tensor.shape[0], *shape)
    return tensor.reshape(tensor.shape[0], *shape)


@replays(aten.stack, aten.cat)
def joined(frame: Frame, operation: Operation) -> Result:
    """Several become one; what no candidate changes is repeated for each instance."""
    made, rank = operation.outputs[0], 0
    assert made is not None
    parts = []
    for index in operation.operands:
        tensor, has_instances = frame.read(index)
        parts.append(tensor if has_instances else tensor.expand(frame.count, *tensor.shape))
        rank = max(rank, parts[-1].ndim - 1)
    axis = operation.args[1] if len(operation.args) > 1 else operation.kwargs.get("dim", 0)
    if operation.function.overloadpacket is aten.stack:
        return torch.stack(parts, axis % (rank + 1) + 1)
    return torch.cat(parts, axis % rank + 1)


@replays(aten.constant_pad_nd)
def padded(frame: Frame, operation: Operation) -> Result:
    """Padding counts axes from the last."""
    tensor, _ = frame.read(operation.operands[0])
    result: Tensor = operation.function(tensor, *operation.args[1:])
    return result


# Reductions


@replays(*REDUCTIONS)
def reduced(frame: Frame, operation: Operation) -> Result | None:
    """Axes are taken together; a sum over units needs to know only by how much one of them changes."""
    if len(operation.operands) != 1:
        return elementwise(frame, operation)
    index, made = operation.operands[0], operation.outputs[0]
    assert made is not None
    packet = operation.function.overloadpacket
    if frame.enters(index) and packet in {aten.sum, aten.mean}:
        gone = gone_axes(frame, operation)
        if frame.program.position(index, frame.program.unit) in gone:
            change = sum_axes(frame, operation, frame.change(index))
            return from_recorded(frame, made, change)
    tensor, _ = frame.read(index)
    rank = tensor.ndim - 1
    args = [tensor, *operation.args[1:]]
    position = 2 if packet in {aten.linalg_vector_norm, aten.norm} else 1
    given = args[position] if len(args) > position else operation.kwargs.get("dim")
    kwargs = dict(operation.kwargs)
    if given is None or given == []:
        if packet in {aten.var, aten.std, aten.var_mean, aten.linalg_vector_norm, aten.norm, aten.aminmax, aten.median}:
            return None
        flat = tensor.reshape(tensor.shape[0], -1)
        if packet in {aten.max, aten.min, aten.median}:
            return (flat.amax(1) if packet is aten.max else flat.amin(1)).reshape(
                tensor.shape[0], *frame.tape.values[made].tensor.shape
            )
        result: Tensor = packet(flat, dim=1, **{k: v for k, v in kwargs.items() if k == "dtype" and v is not None})
        return result.reshape(tensor.shape[0], *frame.tape.values[made].tensor.shape)
    shifted = (
        [axis % max(1, rank) + 1 for axis in given] if isinstance(given, list | tuple) else given % max(1, rank) + 1
    )
    if len(args) > position:
        args[position] = shifted
    else:
        kwargs["dim"] = shifted
    out: Result = operation.function(*args, **kwargs)
    return out


def gone_axes(frame: Frame, operation: Operation) -> list[int]:
    """Return the axes that a reduction takes together."""
    index, made = operation.operands[0], operation.outputs[0]
    assert made is not None
    rank = frame.tape.values[index].tensor.ndim
    given = operation.args[1] if len(operation.args) > 1 else operation.kwargs.get("dim")
    if given is None or given == [] or isinstance(given, torch.dtype):
        return list(range(rank))
    return sorted(axis % max(1, rank) for axis in (given if isinstance(given, list | tuple) else [given]))


def sum_axes(frame: Frame, operation: Operation, change: Tensor) -> Tensor:
    """Return what a sum or mean makes of a change, (I, ...), whose axes may have a single place where others had more."""
    index, made = operation.operands[0], operation.outputs[0]
    assert made is not None
    gone = gone_axes(frame, operation)
    shape = frame.tape.values[index].tensor.shape
    keeps = frame.tape.values[made].tensor.ndim == len(shape) and bool(shape)
    total = change.sum([axis + 1 for axis in gone], keepdim=keeps) if gone else change
    if operation.function.overloadpacket is aten.mean:
        total = total / math.prod(shape[axis] for axis in gone)
    return total


def from_recorded(frame: Frame, made: int, change: Tensor) -> Tensor:
    """Return what was recorded plus a change of it, (I, ...)."""
    return frame.recorded(made)[0] + change


# Products


@replays(aten.mm, aten.addmm)
def product(frame: Frame, operation: Operation) -> Result | None:
    r"""Multiply: :math:`(X + \Delta X)(W + \Delta W) = XW + \Delta X\, W + (X + \Delta X)\, \Delta W`.

    What comes from stage ``UNIT`` has one column in :math:`\Delta X`, or one column of the output in :math:`\Delta W`.
    """
    made = operation.outputs[0]
    assert made is not None
    scales = operation.kwargs
    added, left, right = (None, *operation.operands)[-3:] if len(operation.operands) == 2 else operation.operands
    if scales.get("alpha", 1) != 1 or scales.get("beta", 1) != 1:
        return None
    home, program = frame.program.home, frame.program
    if frame.stage == Stage.UNIT:
        return _product_of_units(frame, made, added, left, right)
    changes = {index for index in (left, right, added) if index is not None and index in home}
    widths = {index: program.position(index, program.unit) for index in changes}
    narrow = {index for index in changes if index not in frame.values and frame.enters(index)}
    if right in changes and not (right in narrow and widths[right] == 1):
        return None
    weight, has_instances = frame.recorded(right)
    if has_instances:
        return None
    if left in narrow and widths[left] == 1:
        change, rows = frame.change(left), frame.rows_of(left, weight)
        out = from_recorded(frame, made, change * rows if rows.shape[1] == 1 else change @ rows)
    elif left in changes:
        given = frame.read(left)[0]
        out = (given.reshape(-1, given.shape[-1]) @ weight).reshape(*given.shape[:-1], -1)
        if added is not None:
            own, own_instances = frame.recorded(added)
            out = out + (own.reshape(len(own), *[1] * (3 - own.ndim), *own.shape[1:]) if own_instances else own)
    else:
        whole, has_instances = frame.recorded(made)
        out = whole if has_instances else whole.expand(frame.count, *whole.shape)
    if added in changes:
        assert added is not None
        if added in narrow:
            out = frame.put_at_unit(made, out, _as_rows(frame.change(added), out.ndim), add=True)
        else:
            before = frame.recorded(added)[0]
            out = out + _as_rows(frame.read(added)[0] - before, out.ndim)
    if right in changes:
        given, has_instances = frame.read(left)
        out = frame.put_at_unit(made, out, given @ frame.change(right), add=True)
    return out


def _as_rows(change: Tensor, rank: int) -> Tensor:
    return change.reshape(change.shape[0], *[1] * (rank - change.ndim), *change.shape[1:])


def _product_of_units(frame: Frame, made: int, added: int | None, left: int, right: int) -> Result | None:
    """A column of the output for each candidate: what was recorded plus what its change of the column adds."""
    shift = frame.shifts.get(made)
    if shift is None:
        shift = shift_of_units(frame, made, added, left, right)
    return None if shift is None else frame.recorded(made)[0] + shift


def shift_of_units(frame: Frame, made: int, added: int | None, left: int, right: int) -> Tensor | None:
    """Return what candidates add to a product at their units, (K, ..., 1); None where it is no such product.

    Args:
        frame: Of stage ``UNIT``.
        made: The product.
        added: What is added to it, if anything.
        left: What is multiplied.
        right: By this, whose columns are the units.
    """
    home = frame.program.home
    if left in home:
        return None
    given = frame.tape.values[left].tensor
    if any(label in axis for axis in frame.program.axes[left] for label in frame.fixed):
        return None
    shift: Tensor | None = None
    if right in home:
        column = frame.values[right] - frame.recorded(right)[0]  # (K, D, 1)
        shift = frame.cut_to_parts(made, (column[:, :, 0] @ given.T)[:, :, None])
    if added is not None and added in home:
        change = _as_rows(frame.values[added] - frame.recorded(added)[0], 3)
        shift = change if shift is None else shift + change
    return shift if shift is None else shift.expand(frame.count, *frame.shape(made))


@replays(aten.convolution)
def convolved(frame: Frame, operation: Operation) -> Result | None:
    """Convolve: a filter for each candidate, or what one channel of the inputs adds."""
    made, (inputs, weight, *bias) = operation.outputs[0], operation.operands
    assert made is not None
    home, program, options = frame.program.home, frame.program, operation.args[3:]
    if operation.args[8] != 1:
        return None
    if frame.stage == Stage.UNIT:
        given = frame.tape.values[inputs].tensor
        if inputs in home or any(label in axis for axis in program.axes[inputs] for label in frame.fixed):
            return None
        out, _ = frame.recorded(made)
        if weight in home:
            filters = (frame.values[weight] - frame.recorded(weight)[0])[:, 0]
            added = aten.convolution(given, filters, None, *options).transpose(0, 1).unsqueeze(2)
            out = out + frame.cut_to_parts(made, added)
        if bias and bias[0] in home:
            change = frame.values[bias[0]] - frame.recorded(bias[0])[0]
            out = out + change.reshape(frame.count, 1, 1, *[1] * (out.ndim - 3))
        return out
    if weight in home or (bias and bias[0] in home):
        return None
    filters, has_instances = frame.recorded(weight)
    if has_instances:
        return None
    if inputs not in frame.values and frame.enters(inputs) and program.position(inputs, program.unit) == 1:
        change = frame.change(inputs)
        flat = change.reshape(-1, 1, *change.shape[3:])
        repeats = len(flat) // max(1, frame.count)
        units = frame.units.repeat_interleave(repeats)
        shape = frame.shape(made)
        out = change.new_empty(len(flat), *shape[1:])
        for unit in units.unique().tolist():
            chosen = (units == unit).nonzero().squeeze(1)
            out[chosen] = aten.convolution(flat[chosen], filters[:, unit : unit + 1], None, *options)
        return from_recorded(frame, made, out.reshape(frame.count, *shape))
    given = frame.read(inputs)[0]
    flat = given.reshape(-1, *given.shape[2:])
    own_bias = frame.recorded(bias[0])[0] if bias else None
    out = aten.convolution(flat, filters, own_bias, *options)
    return out.reshape(*given.shape[:2], *out.shape[1:])


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


@replays(aten.native_batch_norm, aten._native_batch_norm_legit)
def batch_normalised(frame: Frame, operation: Operation) -> Result | None:
    """Statistics are those of each candidate in training, and the running ones otherwise."""
    args = operation.args
    if not isinstance(args[0], Ref):
        return None
    given, has_instances = frame.read(args[0].index)
    if not has_instances:
        return None
    training, epsilon = args[5], args[7]
    others = [axis for axis in range(1, given.ndim) if axis != 2]

    def per_channel(argument: Any) -> Tensor | None:
        if not isinstance(argument, Ref):
            return None
        tensor, own = frame.read(argument.index)
        lead = tensor.shape[:1] if own else (1,)
        return tensor.reshape(*lead, 1, -1, *[1] * (given.ndim - 3))

    if training:
        variance, mean = torch.var_mean(given, others, correction=0, keepdim=True)
    else:
        mean, variance = per_channel(args[3]), per_channel(args[4])  # type: ignore[assignment]
    out = (given - mean) * (variance + epsilon).rsqrt()
    scale, shift = per_channel(args[1]), per_channel(args[2])
    out = out if scale is None else out * scale
    return (out if shift is None else out + shift, None, None)


@replays(aten.native_layer_norm)
def layer_normalised(frame: Frame, operation: Operation) -> Result | None:
    """The last axes, of every instance."""
    _, shape, weight, bias, epsilon = operation.args
    given, has_instances = frame.read(operation.operands[0])
    if not has_instances or any(index in frame.program.home for index in operation.operands[1:]):
        return None
    own = [None if each is None else frame.recorded(each.index)[0] for each in (weight, bias)]
    return (functional.layer_norm(given, shape, own[0], own[1], epsilon), None, None)


@replays(aten.native_group_norm)
def group_normalised(frame: Frame, operation: Operation) -> Result | None:
    """Samples of all instances behind one another."""
    _, weight, bias, _, _, _, groups, epsilon = operation.args
    given, has_instances = frame.read(operation.operands[0])
    if not has_instances or any(index in frame.program.home for index in operation.operands[1:]):
        return None
    own = [None if each is None else frame.recorded(each.index)[0] for each in (weight, bias)]
    out = functional.group_norm(given.reshape(-1, *given.shape[2:]), groups, own[0], own[1], epsilon)
    return (out.reshape(given.shape), None, None)


# Losses per sample, look-ups


@replays(aten.nll_loss_forward, aten.multi_margin_loss)
def of_each_sample(frame: Frame, operation: Operation) -> Result | None:
    """Scores of all samples of all instances behind one another."""
    given, has_instances = frame.read(operation.operands[0])
    target, own = frame.read(operation.operands[1])
    if not has_instances or given.ndim != 3:
        return None
    target = target if own else target.expand(frame.count, *target.shape)
    rest = [frame.recorded(each.index)[0] if isinstance(each, Ref) else each for each in operation.args[2:]]
    result = operation.function(given.reshape(-1, given.shape[-1]), target.reshape(-1), *rest)
    losses = result[0] if isinstance(result, tuple) else result
    return (losses.reshape(given.shape[:2]),)


@replays(aten.embedding)
def looked_up(frame: Frame, operation: Operation) -> Result | None:
    """Rows of a table: of one that a candidate changes, the places that ask for the changed row."""
    table, asked = operation.operands[:2]
    made = operation.outputs[0]
    assert made is not None
    if table in frame.program.home:
        if not frame.enters(table) or asked in frame.program.home:
            return None
        index, own = frame.recorded(asked)
        units = frame.units.reshape(-1, *[1] * (index.ndim - (1 if own else 0)))
        row = frame.at_unit(table)
        row = row.reshape(row.shape[0], *[1] * (len(frame.program.axes[asked])), row.shape[-1])
        return torch.where((index == units).unsqueeze(-1), row, frame.recorded(made)[0])
    return functional.embedding(frame.read(asked)[0], frame.recorded(table)[0])
