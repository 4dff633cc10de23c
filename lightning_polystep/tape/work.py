"""Score: how much a candidate computes beside a whole step, so that budgets need no clock and runs stay the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from lightning_polystep.tape.fuse import Region
from lightning_polystep.tape.program import Program, Stage
from lightning_polystep.tape.schedule import Segment
from lightning_polystep.tape.tape import Operation, Tape

aten = torch.ops.aten

# Multiplications that take as long as one element of an elementwise operation, which waits for memory.
_PRODUCTS_PER_ELEMENT = 16
# Elements that take as long as the call of an operation.
_CALL = 4_000
# Share of pairs of a candidate and a sample that change: what was seen in networks of neurons.
_CHANGED = 0.4
_TYPICAL_CHUNK = 256
_TRANSCENDENTAL = {aten.exp, aten.log, aten.sigmoid, aten.tanh, aten._softmax, aten._log_softmax, aten.erf, aten.gelu}
_PER_TRANSCENDENTAL = 10
# A norm is several of them: moments, what is recorded beside what a unit adds, scale and shift.
_NORMS, _PER_NORM = {aten.native_layer_norm, aten.native_group_norm, aten.native_batch_norm}, 10
# Elementwise operations of a loop that take as long as one of torch, and the share of pairs that differ from others.
_FUSED, _CHANGED_KINDS = 1.4, 0.35


class Work(NamedTuple):
    """What things cost, in elements of elementwise operations.

    Args:
        forward: The step.
        candidate: One candidate.
        plain: One candidate without compiled loops.
        widest: The most numbers that one value of a candidate holds.
    """

    forward: float
    candidate: float
    plain: float
    widest: int

    @classmethod
    def of(cls, tape: Tape, program: Program, segments: Sequence[Segment]) -> Work:
        """Estimate the work of a program.

        Args:
            tape: Of a step.
            program: Read off it.
            segments: The same as it runs.
        """
        forward = sum(_elements(tape, operation) + _CALL for operation in tape.operations)
        candidate, plain, widest = 0.0, 0.0, 1
        units = program.labels.size((program.unit,)) if program.unit is not None else 1
        for segment in segments:
            fused = isinstance(segment.work, Region)
            candidate += _CALL / _TYPICAL_CHUNK
            if isinstance(segment.work, Region):
                widest = max(widest, _written(program, segment.work))
            for step in segment.work.steps if isinstance(segment.work, Region) else [segment.work]:
                operation = tape.operations[step.number]
                elements = _elements(tape, operation)
                largest = max((tape.values[o].tensor.numel() for o in operation.outputs if o is not None), default=1)
                if segment.stage == Stage.UNIT:
                    elements, largest = elements / units, largest // units
                elif segment.stage == Stage.SAMPLE and step.thinned:
                    elements = elements * (_CHANGED_KINDS if fused else _CHANGED)
                    largest = int(largest * _CHANGED_KINDS)
                candidate += elements / (_FUSED if fused else 1)
                plain += elements + _CALL / _TYPICAL_CHUNK
                widest = max(widest, largest)
        return cls(forward, candidate, plain, widest)


def _written(program: Program, region: Region) -> int:
    """Return the most numbers that a loop writes of one value of a candidate: of axes that do not meet, all pairs."""
    lanes = math.prod(program.labels.size((label,)) for label in region.lanes)
    samples = max(1, program.samples) if region.stage == Stage.SAMPLE else 1
    return max((len(symbols) * lanes * samples for symbols in region.outputs.values()), default=1)


def _elements(tape: Tape, operation: Operation) -> float:
    outputs = [tape.values[o].tensor.numel() for o in operation.outputs if o is not None]
    elements = float(max(outputs, default=0))
    packet = getattr(operation.function, "overloadpacket", None)
    if packet in {aten.mm, aten.addmm, aten.bmm}:
        elements += elements * tape.values[operation.operands[-2]].tensor.shape[-1] / _PRODUCTS_PER_ELEMENT
    elif packet in _TRANSCENDENTAL:
        elements *= _PER_TRANSCENDENTAL
    elif packet in _NORMS:
        elements *= _PER_NORM
    elif packet is aten.convolution:
        weight = tape.values[operation.operands[1]].tensor
        elements += elements * math.prod(weight.shape[1:]) / _PRODUCTS_PER_ELEMENT
    return elements
