"""Score: normalisations with the statistics of the recorded step, by which they act place by place.

What is shifted at all places of a group alike, or in proportion to what they are, a normalisation takes away again. So
of slopes by what goes in, what they say of these two is taken away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_polystep.tape.apart import PRODUCTS
from lightning_polystep.tape.flow import Axes, Flow
from lightning_polystep.tape.flow_rules import REDUCTIONS
from lightning_polystep.tape.tape import Operation, Ref, Tape

if TYPE_CHECKING:
    from lightning_polystep.tape.frame import Frame
    from lightning_polystep.tape.program import Program

aten = torch.ops.aten

_BATCH_NORMS = {aten.native_batch_norm, aten.cudnn_batch_norm}
NORMS = {*_BATCH_NORMS, aten.native_layer_norm, aten.native_group_norm}


def _packet(operation: Operation) -> Any:
    return getattr(operation.function, "overloadpacket", None)


def is_batch_norm(operation: Operation) -> bool:
    """Tell whether an operation normalises by statistics of the batch.

    Args:
        operation: The operation.
    """
    return _packet(operation) in _BATCH_NORMS and bool(operation.args[5])


def is_norm(operation: Operation) -> bool:
    """Tell whether an operation normalises by statistics of what goes in.

    Args:
        operation: The operation.
    """
    packet = _packet(operation)
    return is_batch_norm(operation) if packet in _BATCH_NORMS else packet in NORMS


def kept_apart(flow: Flow, axes: Axes) -> Flow:
    """Return how axes go through a normalisation whose statistics are those that were recorded: all stay apart.

    Args:
        flow: How they go through it otherwise.
        axes: Of what goes in.
    """
    return Flow((axes, *flow.outputs[1:]), (frozenset(), *flow.mixed[1:]))


def normalised_as_recorded(frame: Frame, operation: Operation) -> Tensor:
    """Return what a normalisation makes of instances by the statistics of the step, (I, ...).

    Args:
        frame: The instances.
        operation: The normalisation.
    """
    weight, bias, eps = _affine(operation)
    index = operation.operands[0]
    recorded, (value, _) = frame.tape.values[index].tensor, frame.read(index)
    grouped = _grouped(operation, recorded)
    variance, mean = torch.var_mean(grouped, -1, correction=0, keepdim=True)

    def of_instances(numbers: Tensor) -> Tensor:
        return frame.of_instances(index, numbers.expand(recorded.shape))[0]

    mean, scale = (
        of_instances(_ungrouped(operation, each.expand(grouped.shape), recorded))
        for each in (mean, torch.rsqrt(variance + eps))
    )
    out = (value - mean) * scale
    for place, ref in enumerate((weight, bias)):
        if isinstance(ref, Ref):
            each = of_instances(_beside(operation, frame.tape.values[ref.index].tensor, recorded))
            out = out * each if place == 0 else out + each
    return out


def but_for_what_it_undoes(operation: Operation, recorded: Tensor, slopes: Tensor) -> Tensor:
    """Take away what slopes say of shifts and scalings that a normalisation undoes.

    Args:
        operation: The normalisation.
        recorded: What went in.
        slopes: By what goes in, as large as that.
    """
    flat, made = _grouped(operation, slopes), _grouped(operation, recorded).to(slopes)
    centred = made - made.mean(-1, keepdim=True)
    scale = centred / centred.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(flat.dtype).tiny)
    flat = flat - flat.mean(-1, keepdim=True)
    return _ungrouped(operation, flat - (flat * scale).sum(-1, keepdim=True) * scale, recorded)


def slopes_before(operation: Operation, tape: Tape, slopes: Tensor) -> Tensor:
    """Return the slopes by what goes into a normalisation.

    Args:
        operation: The normalisation.
        tape: Of the step.
        slopes: By what comes out, as large as that.
    """
    weight, _, eps = _affine(operation)
    recorded = tape.values[operation.operands[0]].tensor
    grouped = _grouped(operation, recorded)
    scale = torch.rsqrt(grouped.var(-1, correction=0, keepdim=True) + eps).expand(grouped.shape)
    slopes = slopes * _ungrouped(operation, scale, recorded)
    if isinstance(weight, Ref):
        slopes = slopes * _beside(operation, tape.values[weight.index].tensor, recorded)
    return but_for_what_it_undoes(operation, recorded, slopes)


def slopes_by_affine(operation: Operation, tape: Tape, place: int, slopes: Tensor) -> Tensor:
    """Return the slopes by the scale or the shift of a normalisation, as large as that.

    Args:
        operation: The normalisation.
        tape: Of the step.
        place: Of the scale or the shift among the operands.
        slopes: By what comes out.
    """
    weight, _, eps = _affine(operation)
    recorded, index = tape.values[operation.operands[0]].tensor, operation.operands[place]
    if isinstance(weight, Ref) and weight.index == index:
        grouped = _grouped(operation, recorded).to(slopes)
        variance, mean = torch.var_mean(grouped, -1, correction=0, keepdim=True)
        slopes = slopes * _ungrouped(operation, (grouped - mean) * torch.rsqrt(variance + eps), recorded)
    parameter = tape.values[index].tensor
    return slopes.sum_to_size(_beside(operation, parameter, recorded).shape).reshape(parameter.shape)


def _beside(operation: Operation, parameter: Tensor, value: Tensor) -> Tensor:
    """Return a scale or a shift so that it broadcasts to a value."""
    behind = 0 if _packet(operation) is aten.native_layer_norm else value.ndim - 2
    return parameter.reshape(*parameter.shape, *[1] * behind)


def _affine(operation: Operation) -> tuple[Any, Any, float]:
    """Return scale, shift, and the small number that is added to the variance."""
    args = operation.args
    if _packet(operation) in _BATCH_NORMS:
        return args[1], args[2], args[-1]
    if _packet(operation) is aten.native_layer_norm:
        return args[2], args[3], args[4]
    return args[1], args[2], args[7]


def _grouped(operation: Operation, value: Tensor) -> Tensor:
    """Return a value with what is normalised together along its last axis."""
    if _packet(operation) in _BATCH_NORMS:
        return value.movedim(1, 0).flatten(1)
    if _packet(operation) is aten.native_layer_norm:
        return value.flatten(-len(operation.args[1]))
    return value.reshape(len(value), operation.args[6], -1)


def _ungrouped(operation: Operation, grouped: Tensor, like: Tensor) -> Tensor:
    if _packet(operation) in _BATCH_NORMS:
        return grouped.reshape(like.movedim(1, 0).shape).movedim(0, 1)
    return grouped.reshape(like.shape)


def batch_statistics(tape: Tape, program: Program) -> set[int]:
    """Return what a norm that is written by hand takes of all samples together and then applies to each of them.

    That is a sum, a mean or a variance over samples that meets values of single samples later, as no loss does.

    Args:
        tape: Of the structure that the program was read off.
        program: The program.
    """
    label = _likely_samples(program, tape)
    if label is None:
        return set()
    found, carried = set[int](), dict[int, set[int]]()  # which statistics a value is made of
    for step in program.steps:
        operation = program.operation(tape, step.number)
        of_samples = [i for i in operation.operands if i in program.axes and program.position(i, label) is not None]
        taken = set[int]().union(*(carried[index] for index in operation.operands if index in carried))
        if of_samples:
            found |= taken
        for made in operation.outputs:
            if made is None or made not in program.axes or program.position(made, label) is not None:
                continue
            own = _packet(operation) in REDUCTIONS and of_samples
            carried[made] = taken | ({made} if own else set())
    return found


def _likely_samples(program: Program, tape: Tape) -> int | None:
    """Return the label of the first axis of what units make: at the first product, or where the program begins."""
    operations = [program.operation(tape, step.number) for step in program.steps]
    products = [index for each in operations if _packet(each) in PRODUCTS for index in each.outputs]
    for index in (*products[:1], *(index for each in operations for index in each.operands)):
        if index is not None and index in program.axes and program.position(index, program.unit) not in {None, 0}:
            labels = program.axes[index][0]
            return labels[0] if labels else None
    return None
