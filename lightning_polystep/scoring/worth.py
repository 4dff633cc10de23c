"""Score: what it is worth to the loss that a unit passes on more, by the readout's weights or by learned feedback."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from lightning_polystep.scoring.answers import Answers, random_signs
from lightning_polystep.scoring.feedback import MOST_NUMBERS, Feedback
from lightning_polystep.scoring.scores import Scores
from lightning_polystep.scoring.slopes import half_difference, precise
from lightning_polystep.tape import Dense, NotOnTapeError, Stage, Tape


class Taker(NamedTuple):
    """A product of the readout that takes in what units pass on.

    Args:
        sink: The value that they pass on.
        weight: By which it is multiplied.
    """

    sink: int
    weight: int


@dataclass(eq=False)
class Worth:
    """What the answers of units are worth.

    Args:
        answers: Of the units.
    """

    answers: Answers

    learns: ClassVar[bool] = False
    source: ClassVar[str]

    def worth(self, tape: Tape, slopes: Tensor) -> dict[int, Tensor]:
        """Return the slope of the loss by what units pass on, by sink.

        Args:
            tape: Of a step of this structure.
            slopes: Of the loss by the scores, (N', K).
        """
        raise NotImplementedError

    def learn(self, tape: Tape, typical: Mapping[object, Tensor], key: tuple[int, int, int], name: str) -> None:
        """Learn from a micro-batch, where anything has to be learned.

        Args:
            tape: Of a step of this structure.
            typical: By product, how far a candidate shifts each place, (N', places...).
            key: Seed, step and micro-batch.
            name: Of the block.
        """

    def on_trial(self, tape: Tape, typical: Mapping[object, Tensor], key: tuple[int, int, int], name: str) -> Worth:
        """Return this, or where nothing is known yet one that has learned and is not kept.

        Args:
            tape: Of a step of this structure.
            typical: By product, how far a candidate shifts each place, (N', places...).
            key: Seed, step and micro-batch.
            name: Of the block.
        """
        del tape, typical, key, name
        return self


@dataclass(eq=False)
class ByReadout(Worth):
    """Units whose answers the readout takes in: its weights say what they are worth.

    Args:
        answers: Of the units.
        takers: The products of the readout.
    """

    takers: list[Taker]

    source: ClassVar[str] = "the readout"

    def worth(self, tape: Tape, slopes: Tensor) -> dict[int, Tensor]:
        """Return the slope of the loss by what units pass on, by sink."""
        worth = dict[int, Tensor]()
        for taker in self.takers:
            own = slopes @ precise(tape.values[taker.weight].tensor).T
            worth[taker.sink] = worth[taker.sink] + own if taker.sink in worth else own
        return {sink: each.reshape(self.answers.sinks[sink].shape) for sink, each in worth.items()}


@dataclass(eq=False)
class ByFeedback(Worth):
    """Units behind which more layers lie: what they are worth is learned.

    Args:
        answers: Of the units.
        scores: Of the step.
        whole: Leads from the block's products to what the units pass on, and to the scores.
        feedback: What is known.
    """

    scores: Scores
    whole: Dense
    feedback: Feedback
    _widths: list[int] = field(default_factory=list, init=False)

    learns: ClassVar[bool] = True
    source: ClassVar[str] = "learned feedback"

    def __post_init__(self) -> None:
        layouts = self.answers.sinks.values()
        self._widths = [torch.Size(layout.laid_out[1:]).numel() for layout in layouts]

    def worth(self, tape: Tape, slopes: Tensor) -> dict[int, Tensor]:
        """Return the slope of the loss by what units pass on, by sink, as far as is known."""
        del tape
        apart, worth = self.scores.of_samples(self.answers.program, slopes), dict[int, Tensor]()
        for place, (sink, layout) in enumerate(self.answers.sinks.items()):
            known = self.feedback.credit(place, apart)
            worth[sink] = layout.back(known.reshape(1, *layout.laid_out))[0]
        return worth

    def learn(self, tape: Tape, typical: Mapping[object, Tensor], key: tuple[int, int, int], name: str) -> None:
        """Shift all units at random, and see what they and the scores make of it."""
        answers = self.answers
        for draw in self.feedback.draws(key, name):
            signs, shifts = None, dict[object, Tensor]()
            for product, each in typical.items():
                shape = answers.layouts[product].shape
                # What is taken together over time is shifted alike at all times.
                if signs is None or signs.shape != shape or not Feedback.ties(self._widths):
                    signs = random_signs(shape, draw).to(each)
                shifts[product] = signs * each[:, None]
            both = self.whole.run(tape, answers.shifted(tape, shifts))
            changed = {index: half_difference(each) for index, each in both.items()}
            passed_on = [layout.apart(changed[sink][None])[0].flatten(1) for sink, layout in answers.sinks.items()]
            self.feedback.learn(passed_on, self.scores.changed(answers.program, changed))

    def on_trial(self, tape: Tape, typical: Mapping[object, Tensor], key: tuple[int, int, int], name: str) -> Worth:
        """Return what is known, or what this micro-batch alone shows."""
        if not self.feedback.is_new:
            return self
        tried = replace(self, feedback=Feedback({}))
        tried.learn(tape, typical, key, name)
        return tried


def worth_of(tape: Tape, answers: Answers, scores: Scores, feedback: Feedback) -> Worth:
    """Return what says what units' answers are worth.

    Args:
        tape: Of a step.
        answers: Of the units.
        scores: Of the step.
        feedback: What is known of the layers behind.

    Raises:
        NotOnTapeError: Where feedback would be too large.
    """
    program, takers, all_read_out = answers.program, list[Taker](), True
    for step in program.steps:
        operation = program.operation(tape, step.number)
        if step.stage == Stage.UNIT:
            continue
        for place, index in enumerate(operation.operands):
            if index not in answers.sinks:
                continue
            if operation.outputs[0] in scores.made and place == len(operation.operands) - 2:
                takers.append(Taker(index, operation.operands[-1]))
            else:
                all_read_out = False
    if all_read_out:
        return ByReadout(answers, takers)
    products = {entry.made for entry in answers.products}
    whole = Dense.of(tape, program, products, [*answers.sinks, *scores.made])
    if any(index not in program.axes or program.position(index, program.sample) is None for index in scores.made):
        raise NotOnTapeError("it does not reach all scores")
    passed_on = sum(torch.Size(layout.laid_out[1:]).numel() for layout in answers.sinks.values())
    width = tape.values[scores.made[0]].tensor.numel() // max(1, program.samples)
    if passed_on * width > MOST_NUMBERS:
        raise NotOnTapeError("what its units do to the scores has too many numbers to be learned")
    return ByFeedback(answers, scores, whole, feedback)
