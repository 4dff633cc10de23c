"""Observe: operations that a step does several times with the same operands are done once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lightning_polystep.tape.pieces import Pieces
from lightning_polystep.tape.tape import Operation, Ref, Tape, substitute

_EQUAL = "equal values"


def merge_equal(tape: Tape) -> tuple[dict[int, int], list[tuple[int, int]]]:
    """Find operations that do again what one before them has done, as a layer on the same inputs at each time.

    Args:
        tape: Of a step.

    Returns:
        Values that are equal, each with the first of them; and the operations, each with the one that it repeats.
    """
    known = tape.arrays.get(_EQUAL)
    if known is not None and known[0] == len(tape.operations):
        return known[1]
    same, merged, seen, pieces = dict[int, int](), list[tuple[int, int]](), dict[Any, int](), Pieces(tape)
    for number, operation in enumerate(tape.operations):
        tags = getattr(operation.function, "tags", ())
        same.update(pieces.equal(renamed(operation, same)))
        if torch.Tag.nondeterministic_seeded in tags or None in operation.outputs:
            continue
        own = renamed(operation, same)
        key = (operation.function, _frozen(own.args), _frozen(own.kwargs), len(operation.outputs))
        before = seen.setdefault(key, number)
        if before != number:
            merged.append((number, before))
            same.update(
                (mine, same.get(theirs, theirs))
                for mine, theirs in zip(operation.outputs, tape.operations[before].outputs, strict=True)
                if mine is not None and theirs is not None
            )
    tape.arrays[_EQUAL] = len(tape.operations), (same, merged)
    return same, merged


def operations_towards(tape: Tape, loss: int) -> list[Operation]:
    """Return the operations that lead to a value, equal ones once, each reading the first of equal values.

    Args:
        tape: Of a step.
        loss: The value.
    """
    same, merged = merge_equal(tape)
    again, needed, found = {number for number, _ in merged}, {same.get(loss, loss)}, list[Operation]()
    for number in reversed(range(len(tape.operations))):
        operation = renamed(tape.operations[number], same)
        if number not in again and not needed.isdisjoint(operation.outputs):
            found.append(operation)
            needed.update(operation.operands)
    return found[::-1]


def renamed(operation: Operation, same: Mapping[int, int]) -> Operation:
    """Return an operation that reads, of equal values, always the first.

    Args:
        operation: The operation.
        same: Values, each with the first of those that equal it.
    """
    if not any(index in same for index in operation.operands):
        return operation

    def first(index: int) -> Ref:
        return Ref(same.get(index, index))

    return Operation(
        operation.function,
        substitute(operation.args, first),
        substitute(operation.kwargs, first),
        operation.outputs,
        tuple(same.get(index, index) for index in operation.operands),
    )


def _frozen(arguments: Any) -> Any:
    if isinstance(arguments, Ref):
        return ("value", arguments.index)
    if isinstance(arguments, tuple | list):
        return tuple(map(_frozen, arguments))
    if isinstance(arguments, dict):
        return tuple((name, _frozen(argument)) for name, argument in sorted(arguments.items()))
    return (type(arguments), str(arguments))
