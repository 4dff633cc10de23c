r"""Score: how the loss of each sample answers to its scores, which is what the last products of a step make.

A score k of sample n, the pre-activation of a unit of the readout, may have several places, as the steps of time. Two
replays of the tape move all of them by :math:`\pm\rho`, and

.. math:: e_{nk} = \frac{1}{R} \sum_\rho \frac{f_n(s_k + \rho) - f_n(s_k - \rho)}{2 \rho}

is the slope of the loss by the score, over three radii, so that thresholds near and far are seen. No derivative: the
loss may be any function of the scores. Places that have a loss of their own each, as the tokens of a sequence, are told
apart by these. Where others do not matter alike on the first batch, as tokens of which only the last one counts, they
are moved one after the other, if that is affordable; else each has the same part in what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional

from lightning_polystep.scoring.precision import precise
from lightning_polystep.scoring.script import Script
from lightning_polystep.scoring.slopes import of_samples
from lightning_polystep.scoring.taped import FORWARDS, Recording
from lightning_polystep.tape import (
    Apart,
    NotOnTapeError,
    Program,
    Tape,
    but_for_what_it_undoes,
    compile_program,
    is_norm,
    last_products,
    mixes_changes,
    places_kept_apart,
)

# In parts of the standard deviation of the scores; the one in the middle where three are too dear. Where all of them
# together take longer than so many forward passes, as of a hundred scores over time, each step moves by one, in turn:
# a population code lost nothing by it in 200 steps.
_RADII = (0.1, 0.3, 0.9)
_MOST_FORWARDS = 1.0
# By which scores are moved that answer on no sample. When those that answered on a few were, too, the 0-1 loss of
# docs/no_gradient.md ended at 29.8 % wrong instead of 3.1.
_WIDE_RADII = (2.7, 8.1, 24.3)
# Where it is kept whether places matter alike: no block has such a name.
_PLACES = "places of scores"
# From this cosine on of the slopes of places together with those of each they do.
_ALIKE = 0.95
# From this cosine on of the sums over places with what these do together they add up.
_ADDS_UP = 0.99
# Numbers of one value that are replayed at once, about: the kernel takes its time to hand out more memory.
_AT_ONCE = 2**21
# More are not moved one after the other.
_MOST_PLACES = 128


@dataclass(eq=False)
class Scores:
    """The scores of a step.

    Args:
        made: What the last products make, all of one shape, (N', K).
        script: What lies behind them.
        places: Labels of the places that have a loss of their own each.
        each: Places that may be moved one after the other, (N',); none where there is one, or that is too dear.
        radii: By which these are moved.
    """

    made: list[int]
    script: Script
    places: tuple[int, ...] = ()
    each: list[Tensor] = field(default_factory=list)
    radii: tuple[float, ...] = _RADII

    @property
    def program(self) -> Program:
        """What lies behind them."""
        return self.script.program

    @classmethod
    def of(cls, recording: Recording) -> Scores | None:
        """Find the scores of a step; None where each sample's loss is no function of its own.

        Args:
            recording: The step.
        """
        tape, loss = recording.taken(), recording.loss
        made = [] if loss is None else last_products(tape, loss)
        shapes = {tape.values[index].tensor.shape for index in made}
        if loss is None or len(shapes) != 1 or len(next(iter(shapes))) != 2:
            return None
        program = _program_behind(tape, made, loss)
        if program is None:
            return None
        on_cpu = tape.values[loss].tensor.device.type == "cpu"
        script, count = Script.of("Scores", tape, program, fuse=on_cpu), next(iter(shapes))[1]
        work = script.work
        affordable = FORWARDS * work.forward / (2 * count)
        if len(_RADII) * work.candidate > affordable:
            return None
        places = places_kept_apart(tape, program, made[0])
        found = cls(made, script, places)
        # Processes that divide a batch might see different places matter.
        return found if places or recording.divides_batches else found._with_each_place(affordable / work.candidate)

    def _with_each_place(self, affordable: float) -> Scores:
        """Return the same with the places that may be moved one after the other.

        Args:
            affordable: How many times a score may be moved, up and down.
        """
        # Steps of time that are products of their own learn better from what all of them do together: 784-1000-10 with
        # a loss at each of 25 steps ended at 82.7 % one by one, at 89.4 % together.
        each = _each_place(self.made[0], self.program) if len(self.made) == 1 else []
        if len(each) <= 1 or len(each) > affordable:
            return self
        return replace(self, each=each, radii=_RADII if len(_RADII) * len(each) <= affordable else _RADII[1:2])

    def slopes(self, recording: Recording, step: int = 0) -> dict[int, Tensor]:
        """Return the slope of the loss by each place of a score, (N', K) by what a product makes, once for a tape.

        Args:
            recording: The step.
            step: Its number.
        """
        tape = recording.taken()
        # Every layer has a program of its own, and all of them the same scores.
        key = ("slopes by scores", *self.made)
        if key not in tape.arrays:
            tape.arrays[key] = self._but_for_what_norms_undo(tape, self._measured(recording, step))
        slopes: dict[int, Tensor] = tape.arrays[key]
        return slopes

    def _but_for_what_norms_undo(self, tape: Tape, slopes: dict[int, Tensor]) -> dict[int, Tensor]:
        """Take away what slopes say of moves that a norm right behind scores undoes, whose statistics were kept."""
        for step in self.program.steps if self.program.as_recorded else ():
            operation = self.program.operation(tape, step.number)
            index = operation.operands[0] if is_norm(operation) else None
            if index in slopes:
                slopes[index] = but_for_what_it_undoes(operation, tape.values[index].tensor, slopes[index])
        return slopes

    def _measured(self, recording: Recording, step: int) -> dict[int, Tensor]:
        if not self.each:
            return self._together(recording, step)
        known = recording.learned.setdefault(_PLACES, {})
        if "alike" in known:
            return self._together(recording, step) if bool(known["alike"]) else self._one_by_one(recording, step)
        # As this first batch shows; a checkpoint keeps it.
        together, apart = self._together(recording, step), self._one_by_one(recording, step)
        known["alike"] = torch.tensor(self._are_alike(apart, together))
        return together if bool(known["alike"]) else apart

    def _are_alike(self, apart: Mapping[int, Tensor], together: Mapping[int, Tensor]) -> bool:
        """Tell whether places had better be moved together: they matter alike, or one alone says little.

        What places do alone does not add up to what they do together where a threshold lies behind several of them.
        """
        own, shared = (
            places_of_samples(self.program, *each) for slopes in (apart, together) for each in slopes.items()
        )
        alike = functional.cosine_similarity(own.flatten(), shared.flatten(), dim=0) >= _ALIKE
        own, shared = own.sum(1).flatten(), shared.sum(1).flatten()
        adds_up = functional.cosine_similarity(own, shared, dim=0) >= _ADDS_UP
        return bool(alike) or not bool(adds_up)

    def _together(self, recording: Recording, step: int) -> dict[int, Tensor]:
        """Measure all places of a score at once, but for those that are told apart by their losses."""
        apart = Apart(self.program.samples, self.places, self.program.labels.size(self.places))
        measured = self._moved(recording, step, self._radii_of(recording, step), apart)
        slopes = of_samples(self.program, self.made[0], measured, self.places).T
        sharing = len(self.made) * (len(slopes) / measured.shape[1])  # all these have the same part in it
        return dict.fromkeys(self.made, slopes / sharing)

    def _radii_of(self, recording: Recording, step: int) -> tuple[float, ...]:
        """Return by which radii scores are moved together in a step.

        Args:
            recording: The step.
            step: Its number.
        """
        count, work = recording.taken().values[self.made[0]].tensor.shape[1], self.script.work
        dear = 2 * len(_RADII) * count * work.candidate > _MOST_FORWARDS * work.forward
        turn = step % len(_RADII)
        return _RADII[turn : turn + 1] if dear else _RADII

    def _one_by_one(self, recording: Recording, step: int) -> dict[int, Tensor]:
        """Measure one place of a score after the other."""
        (made,), value, apart = self.made, recording.taken().values[self.made[0]].tensor, Apart(self.program.samples)
        slopes = torch.zeros_like(precise(value))
        for place in self.each:
            where = place.to(value.device)[:, None]
            slopes += of_samples(self.program, made, self._moved(recording, step, self.radii, apart, where)).T * where
        return {made: slopes}

    def _moved(
        self, recording: Recording, step: int, radii: Sequence[float], apart: Apart, where: Tensor | None = None
    ) -> Tensor:
        """Return the slopes of the loss by moves of scores, (K, samples * places), the mean over the radii.

        A score that answers on no sample, as one of a neuron far from firing, is moved by more.

        Args:
            recording: The step.
            step: Its number.
            radii: Of the moves.
            apart: What has a loss of its own.
            where: Which places are moved, (N', 1); by default all.
        """
        count = recording.taken().values[self.made[0]].tensor.shape[1]
        slopes = self._moved_by(recording, step, radii, apart, where, torch.arange(count))
        silent = (slopes == 0).all(1).nonzero().flatten()
        if where is None and len(silent):
            slopes[silent] = self._moved_by(recording, step, _WIDE_RADII, apart, where, silent.cpu(), gains=True)
        return slopes

    def _moved_by(
        self,
        recording: Recording,
        step: int,
        radii: Sequence[float],
        apart: Apart,
        where: Tensor | None,
        scores: Tensor,
        *,
        gains: bool = False,
    ) -> Tensor:
        """Return the same of some scores; of what they may gain alone, if losses can be avoided by staying."""
        tape = recording.taken()
        values = {index: tape.values[index].tensor for index in self.made}
        spread = torch.stack([precise(value).std() for value in values.values()]).mean()
        steps = torch.tensor([*radii, *(-each for each in radii)]).to(spread) * spread

        def differences(some: Tensor) -> Tensor:
            rows = some.to(spread.device).repeat_interleave(len(steps))
            moved = steps.repeat(len(some)).reshape(-1, 1, 1)
            moved = moved if where is None else moved * where
            changed = {index: value.T[rows].unsqueeze(2) + moved.to(value) for index, value in values.items()}
            losses = self.script.losses(tape, step, len(scores) * len(steps), rows, changed, {}, apart)
            if gains and recording.loss is not None:
                losses = losses.clamp(max=float(tape.values[recording.loss].tensor))
            up, down = losses.reshape(len(some), 2, len(radii), -1).unbind(1)
            return up - down

        most = max(1, _AT_ONCE // (len(steps) * self.script.work.widest))
        far = (steps[: len(radii)].double())[:, None].clamp(min=torch.finfo(torch.float64).tiny)
        return (torch.cat([differences(some) for some in scores.split(most)]) / (2 * far)).mean(1).to(spread)

    def of_samples(self, program: Program, value: Tensor) -> Tensor:
        """Return what belongs to the scores of each sample, (N, S).

        Their places are added up where the loss makes no difference between them, as between steps of time.

        Args:
            program: Of a layer, which knows where samples are.
            value: Of the scores, (N', K).
        """
        apart = places_of_samples(program, self.made[0], value)
        has_own_losses = self.places or self.program.samples > len(apart)
        return apart.flatten(1) if has_own_losses else apart.sum(1)

    def mean_of_samples(self, program: Program, values: Mapping[int, Tensor]) -> Tensor:
        """Return the mean over the products of what belongs to the scores of each sample, (N, S).

        Args:
            program: Of a layer, which knows where samples are.
            values: Of the scores, (N', K) by what a product makes.
        """
        return self.changed(program, values) / len(self.made)

    def changed(self, program: Program, values: Mapping[int, Tensor]) -> Tensor:
        """Return how the scores of each sample changed, all products taken together, (N, S).

        Args:
            program: Of a layer, which knows where samples are.
            values: What changed of what each product makes.
        """
        return torch.stack([self.of_samples(program, values[index]) for index in self.made]).sum(0)


def _program_behind(tape: Tape, made: Sequence[int], loss: int) -> Program | None:
    """Return what lies behind scores; norms of whole batches with the statistics of the step, if nothing else does.

    Args:
        tape: Of the step.
        made: The scores.
        loss: The loss.

    Returns:
        None where each sample's loss is no function of its own scores.
    """
    for as_recorded in (False, True):
        try:
            program = compile_program(
                tape, dict.fromkeys(made, 1), loss, as_recorded=as_recorded, keeps_statistics=True
            )
        except NotOnTapeError:
            return None
        if mixes_changes(tape, program) and all(program.position(index, program.sample) == 0 for index in made):
            return program
    return None


def sizes_and_samples(program: Program, index: int) -> tuple[list[int], int]:
    """Return the sizes of a value's labels one by one, and which of them the samples are.

    Args:
        program: Knows the labels.
        index: The value.
    """
    slots = program.slots(index)
    return [1 if label is None else program.labels.size((label,)) for label in slots], slots.index(program.sample)


def places_of_samples(program: Program, index: int, value: Tensor) -> Tensor:
    """Return what a product makes of each sample, (N, places, K).

    Args:
        program: Knows where samples are.
        index: What the product makes.
        value: As large as that, (N', K).
    """
    sizes, at = sizes_and_samples(program, index)
    return value.reshape(sizes).movedim(at, 0).reshape(sizes[at], -1, value.shape[-1])


def _each_place(made: int, program: Program) -> list[Tensor]:
    """Return the places of scores, each with all of its samples, (N',); none where there are too many."""
    axis, size = program.axes[made][0], program.labels.size
    others = [1 if label == program.sample else size((label,)) for label in axis]
    count = math.prod(others)
    if count > _MOST_PLACES:
        return []
    numbers = torch.arange(count).reshape(others).expand([size((label,)) for label in axis]).flatten()
    return [numbers == number for number in range(count)]
