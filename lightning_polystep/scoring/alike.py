r"""Score: layers that answer alike, as a gate of a cell at its steps of time: all are looked at in one replay.

Where a sample has one place of each unit, before and behind, the slopes of the loss by what a layer makes are those by
what it passes on, times what a change does to that:

.. math:: o_{nu} = \sum_s w_{snu}\, g_{snu}, \qquad
          g_{snu} = \frac{s_{nu}(x_{nu} + \rho) - s_{nu}(x_{nu} - \rho)}{2 \rho}.

The gains g do not depend on what lies behind. So they are found for all steps of time at once, though the slopes w are
only known one step after the other.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lightning_polystep.scoring.answers import Answers
from lightning_polystep.scoring.precision import half_difference, precise
from lightning_polystep.tape import Dense, Stage, Tape, is_norm, substitute

# What layers of which no candidates are scored are shifted by, in standard deviations of what they make.
_USUAL_SHIFT = 1.0
# Numbers that are replayed at once, about: more of them do not stay in a processor's cache.
_AT_ONCE = 2**17


@dataclass(eq=False, repr=False)
class Alike:
    """Layers whose operations are the same, one for one.

    Args:
        members: How each answers, with the values that its operations read and make, in an order that all share: what
            the layer makes comes first.
    """

    members: dict[Answers, list[int]] = field(default_factory=dict)
    _replayed: Dense | None = field(default=None, init=False)

    def add(self, answers: Answers, values: list[int]) -> None:
        """Take in another layer.

        Args:
            answers: How it answers.
            values: What its operations read and make.
        """
        self.members[answers] = values
        self._replayed = None

    def are_looked_at(self, tape: Tape) -> bool:
        """Tell whether there are several, whose operations are the same on this tape too.

        Args:
            tape: Of a step of the structure that they were found on.
        """
        return len(self.members) > 1 and next(iter(self.members)).program.holds_for(tape)

    def gains(self, tape: Tape, answers: Answers) -> dict[int, Tensor]:
        """Return what a change of what a layer makes does to what it passes on, by sink, each as large as that.

        Args:
            tape: Of a step of the structure that they were found on.
            answers: How the layer answers.
        """
        known: dict[Answers, dict[int, Tensor]] = tape.arrays.get(self, {})
        if answers not in known:
            known = tape.arrays[self] = self._of_all(tape)
        return known[answers]

    @torch.no_grad()
    def _of_all(self, tape: Tape) -> dict[Answers, dict[int, Tensor]]:
        first, values = next(iter(self.members.items()))
        members, differing, gains = list(self.members), self._differing(tape), dict[Answers, dict[int, Tensor]]()
        count = max(1, _AT_ONCE // max(1, 2 * tape.values[values[0]].tensor.numel()))
        for start in range(0, len(members), count):
            some = members[start : start + count]
            made = self._stacked(tape, some, 0)
            radii = usual_shifts(made)
            given = {values[0]: torch.cat([made + radii.to(made), made - radii.to(made)])}
            given |= {values[place]: torch.cat([self._stacked(tape, some, place)] * 2) for place in differing}
            # By operations: torch's sigmoid of many numbers is faster than a compiled loop's of one after the other.
            both = self._of_one(tape, given).run(tape, given)
            for sink in first.sinks:
                place, each = values.index(sink), both[sink].reshape(2, len(some), *made.shape[1:])
                found = half_difference(each) * torch.where(radii > 0, 1 / radii, 0.0)
                for answers, gain in zip(some, found, strict=True):
                    gains.setdefault(answers, {})[self.members[answers][place]] = gain
        return gains

    def _stacked(self, tape: Tape, some: list[Answers], place: int) -> Tensor:
        return torch.stack([tape.values[self.members[answers][place]].tensor for answers in some])

    def _differing(self, tape: Tape) -> list[int]:
        """Return the places of what operations read of the step and what is not the same value for all."""
        first = next(iter(self.members))
        made = {index for step in first.local.steps for index in first.program.operation(tape, step.number).outputs}
        same = enumerate(zip(*self.members.values(), strict=True))
        return [place for place, each in same if place and each[0] not in made and len(set(each)) > 1]

    def _of_one(self, tape: Tape, given: Collection[int]) -> Dense:
        """Return the operations of the first one, for which what all read is given."""
        if self._replayed is None:
            first = next(iter(self.members))
            home = first.program.home | dict.fromkeys(given, (Stage.WHOLE, 0))
            self._replayed = Dense.of(tape, replace(first.program, home=home), given, list(first.sinks))
        return self._replayed


def usual_shifts(made: Tensor) -> Tensor:
    """Return how far layers are shifted of which no candidates are scored.

    Args:
        made: What they make, (count, ...).

    Returns:
        As precise as small differences need, (count, 1, ...).
    """
    made, axes = precise(made), list(range(1, made.ndim))
    # Several times as fast as torch's standard deviation.
    away = torch.linalg.vector_norm(made - made.mean(axes, keepdim=True), dim=axes, keepdim=True)
    return _USUAL_SHIFT * away / max(1, made[0].numel() - 1) ** 0.5


def how_it_answers(tape: Tape, answers: Answers) -> tuple[Hashable, list[int]] | None:
    """Return what layers that answer alike have in common, and what a layer's operations read and make.

    Args:
        tape: Of a step.
        answers: How the layer answers.

    Returns:
        None where it is looked at by itself, as where units have several places in a sample, or norms their statistics.
    """
    layouts = [*answers.layouts.values(), *answers.sinks.values()]
    has_one_place = all(each.shape == each.laid_out and each.order == [0, 1] for each in layouts)
    if len(answers.products) > 1 or not has_one_place or not answers.local.steps:
        return None
    places = {answers.products[0].made: 0}
    described = list[Hashable]()
    for step in answers.local.steps:
        operation = answers.program.operation(tape, step.number)
        if is_norm(operation):
            return None
        own = substitute((operation.args, operation.kwargs), lambda index: (places.setdefault(index, len(places)),))
        made = [None if index is None else places.setdefault(index, len(places)) for index in operation.outputs]
        described.append((operation.function, repr(own), *made))
    read = [tape.values[index].tensor for index in places]
    sinks = tuple(places[index] for index in answers.sinks)
    return (*described, sinks, *((each.shape, each.dtype, each.device) for each in read)), list(places)
