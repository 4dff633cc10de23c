r"""Score: a choice of the best of several, as of a key by hard attention, takes in what units pass on.

A number :math:`s_j` that competes does nothing until the choice is another. The tape is run on with each choice in
turn, up to the numbers that it brings; with what these are worth to the loss, :math:`g_j` is what it gains to choose j
instead of what was chosen, c. Then, with r the second best,

.. math:: \frac{f(s_j + \rho) - f(s_j - \rho)}{2 \rho} \approx \frac{g_j\,[s_c - s_j < \rho]}{2 \rho}, \qquad
    \frac{f(s_c + \rho) - f(s_c - \rho)}{2 \rho} \approx \frac{-g_r\,[s_c - s_r < \rho]}{2 \rho},

the mean over three radii. No derivative, which is zero: differences of what was computed forwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_polystep.scoring.precision import precise
from lightning_polystep.scoring.takers import LaterLayer, Moment, Operating
from lightning_polystep.tape import NotOnTapeError, Operation, Rerun, Tape

aten = torch.ops.aten

# In standard deviations of what competes.
_RADII = (0.3, 1.0, 3.0)
# Each is run on in turn.
_MOST_CHOICES = 128


def is_choice(operation: Operation) -> bool:
    """Tell whether an operation chooses the best along an axis.

    Args:
        operation: The operation.
    """
    return operation.function is aten.argmax.default and len(operation.args) > 1 and operation.args[1] is not None


@dataclass(eq=False, repr=False)
class Choosing(Operating):
    """A choice of the best; what competes is the sink, and the layer lies behind the numbers that are chosen.

    Args:
        leading: Runs the step on from the choice to these numbers.
    """

    leading: Rerun

    @classmethod
    def of(
        cls, tape: Tape, operations: Sequence[Operation], operation: Operation, behind: Callable[[int], LaterLayer]
    ) -> Choosing:
        """Find what a choice brings.

        Args:
            tape: Of the step.
            operations: Those that lead to the loss, in their order.
            operation: The choice.
            behind: Returns what lies behind a value.

        Raises:
            NotOnTapeError: Where it brings no numbers, or numbers of several kinds, or is one of too many.
        """
        (sink,) = operation.operands
        if tape.values[sink].tensor.shape[int(operation.args[1])] > _MOST_CHOICES:
            raise NotOnTapeError(f"it is a choice of one of more than {_MOST_CHOICES}")
        (made,) = operation.outputs
        brought = _brought(tape, operations, made)
        if made is None or len(brought) != 1:
            raise NotOnTapeError("a choice brings numbers in several ways, or none")
        found = cls(sink, operation, behind(brought[0]), Rerun.of(tape, {made}, brought[0]))
        found._gain(tape, 0, tape.values[brought[0]].tensor)  # refuses shapes that do not fit
        return found

    def worth(self, moment: Moment) -> Tensor:
        """Return the slope of the loss by what competes, as large as that."""
        tape, axis = moment.tape, int(self.operation.args[1])
        competing = precise(tape.values[self.sink].tensor).movedim(axis, -1)
        worth = self.layer.slopes_by_made(moment)[self.leading.wanted]
        gains = torch.stack([self._gain(tape, each, worth) for each in range(competing.shape[-1])], -1)
        gains = gains.reshape(competing.shape)
        chosen = competing.argmax(-1, keepdim=True)
        behind = competing.gather(-1, chosen) - competing
        second = behind.scatter(-1, chosen, torch.inf).argmin(-1, keepdim=True)
        gains = gains.scatter(-1, chosen, -gains.gather(-1, second))
        behind = behind.scatter(-1, chosen, behind.gather(-1, second))
        spread, slopes = competing[competing.isfinite()].std(), torch.zeros_like(competing)
        for radius in _RADII:
            far = (radius * spread).clamp(min=torch.finfo(competing.dtype).tiny)
            slopes += torch.where(behind < far, gains / (2 * far * len(_RADII)), 0.0)
        return slopes.movedim(-1, axis)

    def _gain(self, tape: Tape, each: int, worth: Tensor) -> Tensor:
        """Return what it gains to choose the same everywhere instead of what was chosen, as large as the choice."""
        made = self.operation.outputs[0]
        assert made is not None
        choice = tape.values[made].tensor
        recorded = tape.values[self.leading.wanted].tensor
        change = (precise(self.leading.run(tape, {made: torch.full_like(choice, each)})) - precise(recorded)) * worth
        if change.ndim < choice.ndim or any(n not in {1, m} for n, m in zip(choice.shape, change.shape, strict=False)):
            raise NotOnTapeError("what a choice brings is not laid out as the choice")
        change = change.flatten(choice.ndim).sum(-1) if change.ndim > choice.ndim else change
        return change.sum_to_size(choice.shape)


def _brought(tape: Tape, operations: Sequence[Operation], choice: int | None) -> list[int]:
    """Return the first numbers that depend on a choice."""
    whole, beyond, brought = {choice}, set[int | None](), list[int]()
    for operation in operations:
        if not beyond.isdisjoint(operation.operands):
            beyond.update(operation.outputs)
        elif not whole.isdisjoint(operation.operands):
            made = [index for index in operation.outputs if index is not None]
            numbers = [index for index in made if tape.values[index].tensor.is_floating_point()]
            brought += numbers
            beyond.update(numbers)
            whole.update(index for index in made if index not in numbers)
    return brought
