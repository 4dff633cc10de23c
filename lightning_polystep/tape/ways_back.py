"""Score: what slopes by what an operation makes say of what it takes in, where that is known without looking.

It is of sums, means and poolings, of products with what was recorded, of normalisations and of a softmax; not of what
answers by thresholds, which is looked at, nor of products with weights, of which mirrors are learned. A package with
operators of its own registers rules for them::

    from lightning_polystep.tape import goes_back


    @goes_back(torch.ops.mine.double)
    def doubled(tape, operation, place, slopes):
        return 2 * slopes
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_polystep.tape.norms import NORMS, but_for_what_it_undoes, is_norm, slopes_before, slopes_by_affine
from lightning_polystep.tape.tape import Operation, Ref, Tape, substitute

aten = torch.ops.aten

WayBack = Callable[[Tape, Operation, int, Tensor], Tensor]

_WAYS_BACK: dict[Any, WayBack] = {}

# What takes places of a unit together.
_GATHERS = {
    aten.sum, aten.mean, aten.avg_pool2d, aten._adaptive_avg_pool2d, aten.max_pool2d_with_indices, aten.bmm,
    aten._softmax, aten._safe_softmax, aten._scaled_dot_product_flash_attention_for_cpu,
}  # fmt: skip


_POOLINGS = {aten.avg_pool2d, aten.max_pool2d_with_indices}


def goes_back(*packets: Any) -> Callable[[WayBack], WayBack]:
    """Register a rule for operators.

    It gets the tape, the operation, which of its operands is asked for, and the slopes by its first output; it returns
    the slopes by that operand, as large as that or so that they broadcast to it, or that it broadcasts to them.
    """

    def register(rule: WayBack) -> WayBack:
        _WAYS_BACK.update(dict.fromkeys(packets, rule))
        return rule

    return register


def _packet(operation: Operation) -> Any:
    return getattr(operation.function, "overloadpacket", None)


def has_way_back(operation: Operation) -> bool:
    """Tell whether slopes go back through an operation.

    Args:
        operation: The operation.
    """
    packet, plain = _packet(operation), not operation.kwargs
    if packet is aten._scaled_dot_product_flash_attention_for_cpu:
        plain = not any(operation.args[3:4])  # nothing is dropped
    return packet in _WAYS_BACK and plain and operation.outputs[0] is not None


def never_answers(operation: Operation) -> bool:
    """Tell whether no finite change of what an operation takes does anything, as where it is compared with infinity.

    Args:
        operation: The operation.
    """
    if _packet(operation) not in {aten.eq, aten.ne, aten.isinf}:
        return False
    other = operation.args[1] if len(operation.args) > 1 else math.inf
    return isinstance(other, int | float) and math.isinf(other)


def way_back(tape: Tape, operation: Operation, place: int, slopes: Tensor) -> Tensor:
    """Return the slopes by an operand, as large as that.

    Args:
        tape: Of the step.
        operation: The operation.
        place: Of the operand.
        slopes: By what it makes first.
    """
    own = _WAYS_BACK[_packet(operation)](tape, operation, place, slopes)
    shape = tape.values[operation.operands[place]].tensor.shape
    if own.shape == shape:
        return own
    return own.broadcast_to(torch.broadcast_shapes(own.shape, shape)).sum_to_size(shape)


_MOVES = {
    aten.view, aten._unsafe_view, aten.reshape, aten.transpose, aten.permute, aten.t, aten.squeeze, aten.unsqueeze,
    aten.select, aten.slice, aten.clone, aten.split, aten.split_with_sizes, aten.unsafe_split, aten.chunk, aten.unbind,
    aten.alias, aten.detach, aten.expand, aten.unsafe_chunk, aten.flatten, aten.narrow,
}  # fmt: skip


def moves(tape: Tape, operation: Operation, numbers: Tensor) -> dict[int, Tensor] | None:
    """Return where an operation puts numbers, by output; None where it does more than to move them or to add others.

    Args:
        tape: Of the step.
        operation: The operation.
        numbers: What stands for what it takes.
    """
    packet = _packet(operation)
    if packet is aten.add and len(operation.operands) == 2 and len(operation.args) == 2:
        made, shape = (
            operation.outputs[0],
            torch.broadcast_shapes(*(tape.values[i].tensor.shape for i in operation.operands)),
        )
        return {made: numbers} if made is not None and shape == numbers.shape else None
    if packet not in _MOVES:
        return None
    result = operation.function(*substitute(operation.args, lambda _: numbers), **operation.kwargs)
    outputs = result if isinstance(result, tuple | list) else (result,)
    return {made: each for made, each in zip(operation.outputs, outputs, strict=True) if made is not None}


def is_looked_at_apart(operation: Operation, *, is_first: bool) -> bool:
    """Tell whether units are to be looked at up to an operation, though it does not mix them.

    Args:
        operation: The operation.
        is_first: Whether it is all that products go into: then what it does is told afterwards.
    """
    if is_norm(operation):
        return not is_first
    gathers = _packet(operation) in _GATHERS and has_way_back(operation)
    return gathers and not (is_first and _packet(operation) in _POOLINGS and not _overlaps(operation))


def told_afterwards(tape: Tape, operation: Operation, slopes: Tensor) -> Tensor:
    """Return slopes by all that goes into the first thing that products go into, as large as that.

    Args:
        tape: Of the step.
        operation: A normalisation or a pooling.
        slopes: As if a normalisation kept its statistics, and all places of a window of a pooling were alike.
    """
    if is_norm(operation):
        from_recorded = tape.values[operation.operands[0]].tensor
        return but_for_what_it_undoes(operation, from_recorded, slopes)
    if _packet(operation) is not aten.max_pool2d_with_indices:
        return slopes
    size, stride, padding, _ = _window(operation)
    of_windows = torch.nn.functional.avg_pool2d(slopes, size, stride, padding) * math.prod(size)
    return _to_winners(tape, operation, 0, of_windows)


@goes_back(aten.add)
def _added(tape: Tape, operation: Operation, place: int, slopes: Tensor) -> Tensor:
    del tape
    scale = operation.args[2] if len(operation.args) > 2 and place == 1 else 1
    return scale * slopes


@goes_back(aten.sub)
def _taken_away(tape: Tape, operation: Operation, place: int, slopes: Tensor) -> Tensor:
    return slopes if place == 0 else -_added(tape, operation, place, slopes)


@goes_back(aten.mul)
def _multiplied(tape: Tape, operation: Operation, place: int, slopes: Tensor) -> Tensor:
    if len(operation.operands) == 1:
        return slopes * operation.args[1]
    return slopes * tape.values[operation.operands[1 - place]].tensor.to(slopes)


@goes_back(aten.embedding)
def _looked_up(tape: Tape, operation: Operation, place: int, slopes: Tensor) -> Tensor:
    table, asked = (tape.values[index].tensor for index in operation.operands[:2])
    if place != 0:
        return slopes.new_zeros(asked.shape)
    return slopes.new_zeros(table.shape).index_add_(0, asked.flatten(), slopes.reshape(-1, table.shape[1]))


@goes_back(aten.stack)
def _stacked(tape: Tape, operation: Operation, place: int, slopes: Tensor) -> Tensor:
    del tape
    return slopes.select(operation.args[1] if len(operation.args) > 1 else 0, place)


@goes_back(aten.cat)
def _joined(tape: Tape, operation: Operation, place: int, slopes: Tensor) -> Tensor:
    axis = operation.args[1] if len(operation.args) > 1 else 0
    sizes = [tape.values[index].tensor.shape[axis] for index in operation.operands]
    return slopes.narrow(axis, sum(sizes[:place]), sizes[place])


@goes_back(aten.bmm)
def _met(tape: Tape, operation: Operation, place: int, slopes: Tensor) -> Tensor:
    other = tape.values[operation.operands[1 - place]].tensor.to(slopes)
    return slopes @ other.mT if place == 0 else other.mT @ slopes


@goes_back(aten._softmax, aten._safe_softmax)
def _competed(tape: Tape, operation: Operation, place: int, slopes: Tensor) -> Tensor:
    del place
    made = operation.outputs[0]
    assert made is not None
    shares = tape.values[made].tensor.to(slopes)
    return shares * (slopes - (shares * slopes).sum(operation.args[1], keepdim=True))


@goes_back(aten._scaled_dot_product_flash_attention_for_cpu)
def _attended(tape: Tape, operation: Operation, place: int, slopes: Tensor) -> Tensor:
    """Attention that one operator makes: as a product, a softmax and a product."""
    query, key, value = (tape.values[index].tensor.to(slopes) for index in operation.operands[:3])
    given, mask = operation.kwargs.get("scale"), operation.kwargs.get("attn_mask")
    scale = query.shape[-1] ** -0.5 if given is None else given
    scores = scale * query @ key.mT
    if isinstance(mask, Ref):
        scores = scores + tape.values[mask.index].tensor
    if any(operation.args[4:5]):
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -math.inf)
    shares = scores.softmax(-1)
    if place == 2:
        return shares.mT @ slopes
    of_shares = slopes @ value.mT
    of_scores = scale * shares * (of_shares - (shares * of_shares).sum(-1, keepdim=True))
    return of_scores @ key if place == 0 else of_scores.mT @ query


@goes_back(*NORMS)
def _normalised(tape: Tape, operation: Operation, place: int, slopes: Tensor) -> Tensor:
    return slopes_before(operation, tape, slopes) if place == 0 else slopes_by_affine(operation, tape, place, slopes)


@goes_back(aten.sum, aten.mean)
def _summed(tape: Tape, operation: Operation, place: int, slopes: Tensor) -> Tensor:
    del place
    given, args = tape.values[operation.operands[0]].tensor, operation.args
    named = args[1] if len(args) > 1 and args[1] else list(range(given.ndim))
    axes = sorted(axis % given.ndim for axis in ([named] if isinstance(named, int) else named))
    if not (len(args) > 2 and args[2]):
        for axis in axes:
            slopes = slopes.unsqueeze(axis)
    count = math.prod(given.shape[axis] for axis in axes) if _packet(operation) is aten.mean else 1
    return slopes.expand(given.shape) / count


@goes_back(aten.avg_pool2d)
def _averaged(tape: Tape, operation: Operation, place: int, slopes: Tensor) -> Tensor:
    del place
    given = tape.values[operation.operands[0]].tensor
    size, stride, padding, _ = _window(operation)
    given_rest = list(operation.args[4:])
    rest = given_rest + [False, True, None][len(given_rest) :]
    return aten.avg_pool2d_backward(slopes.contiguous(), given.to(slopes), size, stride, padding, *rest)


@goes_back(aten._adaptive_avg_pool2d)
def _averaged_to_size(tape: Tape, operation: Operation, place: int, slopes: Tensor) -> Tensor:
    del place
    return aten._adaptive_avg_pool2d_backward(slopes.contiguous(), tape.values[operation.operands[0]].tensor.to(slopes))


@goes_back(aten.max_pool2d_with_indices)
def _to_winners(tape: Tape, operation: Operation, place: int, slopes: Tensor) -> Tensor:
    """Only the largest of a window counts, as it was in the step."""
    del place
    given = tape.values[operation.operands[0]].tensor
    size, stride, padding, rest = _window(operation)
    dilation, ceil = rest[0] if rest else [1, 1], rest[1] if len(rest) > 1 else False
    winners = operation.outputs[1]
    if winners is None:
        indices = aten.max_pool2d_with_indices(given, size, stride, padding, dilation, ceil)[1]
    else:
        indices = tape.values[winners].tensor
    return aten.max_pool2d_with_indices_backward(
        slopes.contiguous(), given.to(slopes), size, stride, padding, dilation, ceil, indices
    )


def _window(operation: Operation) -> tuple[list[int], list[int], list[int], list[Any]]:
    """Return size, stride and padding of a pooling, and what else it is given."""
    size = list(operation.args[1])
    stride = list(operation.args[2]) if len(operation.args) > 2 and operation.args[2] else size
    padding = operation.args[3] if len(operation.args) > 3 else 0
    padding = [padding, padding] if isinstance(padding, int) else list(padding)
    return size, stride, padding, list(operation.args[4:])


def _overlaps(operation: Operation) -> bool:
    """Tell whether windows share places, or leave some out."""
    size, stride, padding, rest = _window(operation)
    return size != stride or any(padding) or bool(rest)
