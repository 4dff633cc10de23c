"""Which operations of a step lie between some values and the loss, and whether another candidate can repeat them."""

from __future__ import annotations

import torch

from lightning_polystep.tape.flow import SHAPE_ONLY
from lightning_polystep.tape.program import NotOnTapeError
from lightning_polystep.tape.tape import Operation, Tape, Unknown

aten = torch.ops.aten


def operations_between(tape: Tape, sources: set[int], loss: int) -> tuple[list[int], set[int]]:
    """Return the operations on the way from some values to the loss, and all values that depend on them.

    Args:
        tape: Of a step.
        sources: The values.
        loss: The value of the loss.

    Raises:
        NotOnTapeError: Where one of them does for another candidate what cannot be told.
    """
    changed, forward = set(sources), []
    for number, operation in enumerate(tape.operations):
        if getattr(operation.function, "overloadpacket", None) in SHAPE_ONLY:
            continue
        blind = isinstance(operation.function, Unknown) and operation.function.blind
        if blind or any(index in changed for index in operation.operands):
            made = [o for o in operation.outputs if o is not None and o not in tape.held]
            if made:
                forward.append(number)
                changed.update(made)
    needed, relevant = {loss}, []
    for number in reversed(forward):
        operation = tape.operations[number]
        if any(o in needed for o in operation.outputs):
            relevant.append(number)
            needed.update(operation.operands)
    if loss not in changed:
        return [], changed
    for number in relevant:
        _check_repeatable(tape, tape.operations[number], changed)
    return relevant[::-1], changed


def _check_repeatable(tape: Tape, operation: Operation, changed: set[int]) -> None:
    """Raise where what an operation does for another candidate cannot be told."""
    function = operation.function
    if isinstance(function, Unknown):
        raise NotOnTapeError(function.reason)
    if not any(index in changed for index in operation.operands):
        return
    tags = getattr(function, "tags", ())
    if torch.Tag.nondeterministic_seeded in tags and not _drops_nothing(operation):
        raise NotOnTapeError(f"{function} draws at random what depends on it")
    # Which numbers are picked by an index of numbers changes no shape, which places by a mask does.
    packet = getattr(function, "overloadpacket", None)
    masks = [i for i in operation.operands if tape.values[i].tensor.dtype in {torch.bool, torch.uint8}]
    if packet in {aten.index, aten.index_put, aten.masked_select, aten.masked_scatter}:
        varies = any(index in changed for index in masks)
    else:
        varies = torch.Tag.dynamic_output_shape in tags
    if varies:
        raise NotOnTapeError(f"how many values {function} returns depends on it")


def _drops_nothing(operation: Operation) -> bool:
    """Tell whether an operator of attention is called without dropout, and so draws nothing."""
    arguments = operation.function._schema.arguments
    given = dict(zip((a.name for a in arguments), operation.args, strict=False)) | operation.kwargs
    shares = [given.get(a.name, a.default_value) for a in arguments if a.name in {"dropout_p", "dropout"}]
    return shares == [0.0]
