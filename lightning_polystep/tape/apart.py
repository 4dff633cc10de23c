"""Which axes of a step stay apart: that of units while changes stay within one, and that of samples behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from lightning_polystep.tape.axes import Labels
from lightning_polystep.tape.flow import Axes, Flow, is_elementwise
from lightning_polystep.tape.program import mixes
from lightning_polystep.tape.tape import Operation, Tape

aten = torch.ops.aten

PRODUCTS = {aten.mm, aten.addmm, aten.bmm, aten.mv, aten.convolution}
# A sum over samples: changes of samples add up.
SUMS = {aten.sum, aten.mean}


def unit_of(labels: Labels, axes: Mapping[int, Axes], rows: Mapping[int, int | None]) -> int | None:
    """Return the one label of the rows' axes; None where there is none, or several.

    Args:
        labels: Of all axes.
        axes: Of values.
        rows: The values that a candidate changes, each with the axis along which it changes one place only, or None.
    """
    found = {axes[index][axis] if axis is not None else () for index, axis in rows.items()}
    if len(found) != 1:
        return None
    axis = labels.resolve(next(iter(found)))
    # A square weight that meets its transpose has one axis twice: a row is then no place of it.
    return axis[0] if len(axis) == 1 and not any(_twice(axes[index], axis[0]) for index in rows) else None


def _twice(own: Axes, label: int) -> bool:
    return sum(axis.count(label) for axis in own) > 1


def within_unit(
    tape: Tape,
    relevant: Sequence[int],
    needed: set[int],
    axes: Mapping[int, Axes],
    flows: Mapping[int, Flow],
    unit: int | None,
) -> set[int]:
    """Return the operations whose outputs change at one unit only, the candidate's.

    Args:
        tape: Of a step.
        relevant: Numbers of the operations that depend on the candidate.
        needed: Values that are read, or the loss.
        axes: Of values.
        flows: Of the operations.
        unit: The label of units; None where there is none.
    """
    if unit is None:
        return set()
    spread: set[int] = set()
    local: set[int] = set()
    for number in relevant:
        operation, flow = tape.operations[number], flows[number]
        outputs = [o for o in operation.outputs if o is not None]
        stays = not any(index in spread for index in operation.operands)
        if mixes(axes, operation, flow, unit) or any(_twice(axes[index], unit) for index in operation.operands):
            stays = False
        read = [o for o in outputs if o in needed]
        stays = stays and all(not _twice(axes[o], unit) and any(unit in axis for axis in axes[o]) for o in read)
        if stays:
            local.add(number)
        else:
            spread.update(outputs)
    return local


def is_sum_over_samples(operation: Operation) -> bool:
    """Tell whether an operation takes samples together so that their changes add up."""
    return getattr(operation.function, "overloadpacket", None) in SUMS


@dataclass
class Outside:
    """What of a program is not within a unit.

    Args:
        tape: Of the step.
        outside: The operations.
        rows: What candidates change.
        changed: What depends on it.
        wide: Values that change at more than one unit.
        needed: Values that are read, or the loss.
        axes: Of values.
        flows: Of the operations.
    """

    tape: Tape
    outside: list[int]
    rows: set[int]
    changed: set[int]
    wide: set[int]
    needed: set[int]
    axes: Mapping[int, Axes]
    flows: Mapping[int, Flow]

    def sample(self, labels: Labels, unit: int) -> int | None:
        """Return the label of the samples: the largest that nothing mixes but sums whose results meet none again.

        Args:
            labels: Of all axes.
            unit: That of units, which is none.
        """
        candidates = {
            label
            for number in self.outside
            for index in self.tape.operations[number].operands
            if index in self.changed
            for axis in self.axes[index]
            for label in axis
        } - {unit}
        ranked = sorted(candidates, key=lambda label: (-labels.size((label,)), label))
        return next((label for label in ranked if self._keeps_apart(label)), None)

    def _holds(self, index: int, label: int) -> bool:
        return any(label in axis for axis in self.axes[index])

    def _keeps_apart(self, label: int) -> bool:
        summed = False
        for number in self.outside:
            operation, flow = self.tape.operations[number], self.flows[number]
            outputs = [o for o in operation.outputs if o is not None and o in self.needed]
            if any(_twice(self.axes[index], label) for index in (*operation.operands, *outputs)):
                return False
            together = mixes(self.axes, operation, flow, label)
            enters, leaves = self._enters(operation, label), [self._holds(o, label) for o in outputs]
            if together and (not is_sum_over_samples(operation) or any(leaves)):
                return False
            if not together and (enters or any(leaves)) and not (all(leaves) and self._meets(operation, label, enters)):
                return False
            summed = summed or together
        return summed

    def _enters(self, operation: Operation, label: int) -> bool:
        return any(self._holds(index, label) for index in operation.operands)

    def _meets(self, operation: Operation, label: int, enters: bool) -> bool:
        """Tell whether an operation with samples in its output can run on one of them."""
        packet, within = getattr(operation.function, "overloadpacket", None), set[int]()
        by_place = is_elementwise(operation.function)
        if not any(index in self.changed and self._holds(index, label) for index in operation.operands):
            # Samples begin here: with data that meet what has changed, or where a value is repeated along them.
            begins = by_place or packet in PRODUCTS or packet in {aten.embedding, aten.gather}
            if not (begins if enters else packet is aten.expand):
                return False
        # What has no sample, but changes as a whole, would have to be copied for each sample that it meets.
        if packet in {aten.addmm, aten.embedding} or by_place:
            within = self.rows & set(operation.operands[:1] if packet is aten.addmm else operation.operands)
        return not any(i in self.wide and i not in within and not self._holds(i, label) for i in operation.operands)
