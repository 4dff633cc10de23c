"""Rules for kinds of operations: how an operation runs on values with an axis of instances.

An elementwise operation broadcasts over instances, a reduction counts its axes from the second on; ``products.py`` has
the rules of products and norms. Whatever has no rule is batched by ``torch.func.vmap``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional

from lightning_polystep.tape.flow import is_elementwise
from lightning_polystep.tape.flow_rules import REDUCTIONS
from lightning_polystep.tape.frame import Frame
from lightning_polystep.tape.norms import is_norm, normalised_as_recorded
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
    if frame.program.as_recorded and is_norm(operation) and operation.outputs[0] is not None:
        frame.values[operation.outputs[0]] = normalised_as_recorded(frame, operation)
        return
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
    recorded = frame.tape.values[made].tensor

    def find(index: int) -> Tensor:
        return aligned(frame, index, recorded.ndim)

    result: Result = operation.function(
        *substitute(operation.args, find), **substitute(without_layout(operation), find)
    )
    # A number that has become one of each instance takes more part in the choice of a type than it did.
    if isinstance(result, Tensor) and result.dtype != recorded.dtype:
        result = result.to(recorded.dtype)
    return result


@replays(
    aten.mse_loss, aten.smooth_l1_loss, aten.huber_loss, aten.soft_margin_loss, aten.binary_cross_entropy,
    aten.binary_cross_entropy_with_logits,
)  # fmt: skip
def compared(frame: Frame, operation: Operation) -> Result:
    """Losses of each place: they write into what one of their operands has made, so all are as large."""
    made = operation.outputs[0]
    assert made is not None
    shape = frame.shape(made)

    def find(index: int) -> Tensor:
        return aligned(frame, index, len(shape)).expand(frame.count, *shape)

    result: Result = operation.function(*substitute(operation.args, find), **substitute(operation.kwargs, find))
    return result


def aligned(frame: Frame, index: int, rank: int) -> Tensor:
    """Return a value with an axis of instances in front of as many axes as others have that it meets."""
    tensor, has_instances = frame.read(index)
    if has_instances and tensor.ndim <= rank:
        tensor = tensor.reshape(tensor.shape[0], *[1] * (rank + 1 - tensor.ndim), *tensor.shape[1:])
    return tensor


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
    with _no_advice():
        result: Result = vmap(run, in_dims=in_dims)(*tensors)
    return result


@contextmanager
def _no_advice() -> Iterator[None]:
    """Keep torch from warning that an operator is run in a loop: it is, one operation of many."""
    functorch: Any = torch._C._functorch
    functorch._set_vmap_fallback_warning_enabled(False)
    try:
        yield
    finally:
        functorch._set_vmap_fallback_warning_enabled(True)


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
    axis = operation.args[1] % max(1, tensor.ndim - 1) + 1
    if tensor.ndim == 1 or tensor.shape[axis] > _FEW_CLASSES:
        shape = tensor.shape if tensor.ndim > 1 else (len(tensor), 1)
        result: Tensor = operation.function(tensor.reshape(shape), axis, *operation.args[2:]).reshape(tensor.shape)
        return result
    first = tensor.movedim(axis, 0).contiguous()
    spread: Tensor = operation.function(first, 0, *operation.args[2:])
    return spread.movedim(0, axis)


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
    if operation.function is aten.view.dtype:
        return tensor.contiguous().view(operation.args[1])
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
    values, made = frame.tape.values, operation.outputs[0]
    assert made is not None
    parts = []
    for index in operation.operands:
        if values[index].tensor.ndim < values[made].tensor.ndim and operation.function.overloadpacket is aten.cat:
            continue  # of all tensors only an empty one of a single axis may have fewer axes than the others
        tensor, has_instances = frame.read(index)
        parts.append(tensor if has_instances else tensor.expand(frame.count, *tensor.shape))
    axis = operation.args[1] if len(operation.args) > 1 else operation.kwargs.get("dim", 0)
    if operation.function.overloadpacket is aten.stack:
        return torch.stack(parts, axis % parts[0].ndim + 1)
    return torch.cat(parts, axis % (parts[0].ndim - 1) + 1)


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


def sum_axes(frame: Frame, operation: Operation, change: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return what a sum or mean makes of a change, (I, ...), whose axes may have one place where others had more."""
    index, made = operation.operands[0], operation.outputs[0]
    assert made is not None
    gone = gone_axes(frame, operation)
    shape = frame.tape.values[index].tensor.shape
    keeps = frame.tape.values[made].tensor.ndim == len(shape) and bool(shape)
    total = change.sum([axis + 1 for axis in gone], keepdim=keeps, dtype=dtype) if gone else change
    if operation.function.overloadpacket is aten.mean:
        total = total / math.prod(shape[axis] for axis in gone)
    return total


def from_recorded(frame: Frame, made: int, change: Tensor) -> Tensor:
    """Return what was recorded plus a change of it, (I, ...)."""
    return frame.recorded(made)[0] + change


# Losses per sample, look-ups


@replays(aten.nll_loss_forward, aten.multi_margin_loss)
def of_each_sample(frame: Frame, operation: Operation) -> Result | None:
    """Scores of all samples of all instances behind one another."""
    given, has_instances = frame.read(operation.operands[0])
    target, own = frame.read(operation.operands[1])
    if not has_instances or given.ndim != 3 or any(index in frame.program.home for index in operation.operands[2:]):
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
        of_rows = frame.program.position(table, frame.program.unit) == 0
        if not frame.enters(table) or not of_rows or asked in frame.program.home:
            return None
        index, own = frame.recorded(asked)
        units = frame.units.reshape(-1, *[1] * (index.ndim - (1 if own else 0)))
        row = frame.at_unit(table)
        row = row.reshape(row.shape[0], *[1] * (len(frame.program.axes[asked])), row.shape[-1])
        return torch.where((index == units).unsqueeze(-1), row, frame.recorded(made)[0])
    return functional.embedding(frame.read(asked)[0], frame.recorded(table)[0])
