"""Score: what it is worth to the loss that a unit passes on more: by the products that take it in, or by feedback."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from lightning_polystep.scoring.answers import Answers, random_signs
from lightning_polystep.scoring.feedback import Feedback
from lightning_polystep.scoring.precision import half_difference, precise
from lightning_polystep.scoring.scores import Scores
from lightning_polystep.scoring.takers import Moment, Taker
from lightning_polystep.tape import Dense


@dataclass(eq=False, repr=False)
class Worth:
    """What the answers of units are worth.

    Args:
        answers: Of the units.
    """

    answers: Answers

    needs_samples: ClassVar[bool] = False

    @property
    def learns(self) -> bool:
        """Whether it is learned."""
        raise NotImplementedError

    @property
    def left_out(self) -> Sequence[str]:
        """What takes units in, but is not known, in words."""
        return ()

    def worth(self, moment: Moment) -> dict[int, Tensor]:
        """Return the slope of the loss by what units pass on, by sink.

        Args:
            moment: What they are looked at with.
        """
        raise NotImplementedError

    def learn(self, moment: Moment, typical: Mapping[object, Tensor] | None) -> None:
        """Learn from a micro-batch, where anything has to be learned.

        Args:
            moment: What the layer is looked at with.
            typical: By product, how far a candidate shifts each place, (N', places...); None where none is scored.
        """

    def on_trial(self, moment: Moment, typical: Mapping[object, Tensor]) -> Worth:
        """Return this, or where nothing is known yet one that has learned and is not kept.

        Args:
            moment: What the layer is looked at with.
            typical: By product, how far a candidate shifts each place, (N', places...).
        """
        del moment, typical
        return self


@dataclass(eq=False, repr=False)
class ByTakers(Worth):
    """Units of which it is known what takes their answers in.

    Args:
        answers: Of the units.
        takers: All that take them in, as far as known.
        unknown: What else does, in words.
    """

    takers: list[Taker]
    unknown: list[str] = field(default_factory=list)

    @property
    def left_out(self) -> Sequence[str]:
        """What takes units in, but is not known, in words."""
        return self.unknown

    @property
    def learns(self) -> bool:
        """Whether it is learned."""
        return any(taker.learns for taker in self.takers)

    def worth(self, moment: Moment) -> dict[int, Tensor]:
        """Return the slope of the loss by what units pass on, by sink."""
        worth = dict[int, Tensor]()
        for taker in self.takers:
            own = moment.once(taker, partial(self._of_taker, taker, moment))
            worth[taker.sink] = worth[taker.sink] + own if taker.sink in worth else own
        for sink in self.answers.sinks.keys() - worth.keys():
            worth[sink] = torch.zeros_like(precise(moment.tape.values[sink].tensor))
        return worth

    @staticmethod
    def _of_taker(taker: Taker, moment: Moment) -> Tensor:
        return taker.worth(moment).reshape(moment.tape.values[taker.sink].tensor.shape)

    def learn(self, moment: Moment, typical: Mapping[object, Tensor] | None) -> None:
        """Learn what the products of later layers do."""
        del typical
        for taker in self.takers:
            taker.learn(moment)


@dataclass(eq=False, repr=False)
class ByFeedback(Worth):
    """Units behind which something else lies than products: what they are worth is learned, on average over samples.

    Args:
        answers: Of the units.
        scores: Of the step.
        whole: Leads from the block's products to what the units pass on, and to the scores.
        feedback: What is known.
        name: Of the block.
    """

    scores: Scores
    whole: Dense
    feedback: Feedback
    name: str
    _widths: list[int] = field(default_factory=list, init=False)

    needs_samples: ClassVar[bool] = True

    def __post_init__(self) -> None:
        layouts = self.answers.sinks.values()
        self._widths = [torch.Size(layout.laid_out[1:]).numel() for layout in layouts]

    @property
    def learns(self) -> bool:
        """That it is learned."""
        return True

    def worth(self, moment: Moment) -> dict[int, Tensor]:
        """Return the slope of the loss by what units pass on, by sink, as far as is known."""
        apart, worth = self.scores.mean_of_samples(self.answers.program, moment.slopes), dict[int, Tensor]()
        for place, (sink, layout) in enumerate(self.answers.sinks.items()):
            known = self.feedback.credit(place, apart)
            worth[sink] = layout.back(known.reshape(1, *layout.laid_out))[0]
        return worth

    def learn(self, moment: Moment, typical: Mapping[object, Tensor] | None) -> None:
        """Shift all units at random, and see what they and the scores make of it."""
        answers, typical = self.answers, typical or {}
        for draw in self.feedback.draws(moment.key, self.name):
            signs, shifts = None, dict[object, Tensor]()
            for product, each in typical.items():
                shape = answers.layouts[product].shape
                # What is taken together over time is shifted alike at all times.
                if signs is None or signs.shape != shape or not Feedback.ties(self._widths):
                    signs = random_signs(shape, draw).to(each)
                shifts[product] = signs * each[:, None]
            both = self.whole.run(moment.tape, answers.shifted(moment.tape, shifts))
            changed = {index: half_difference(each) for index, each in both.items()}
            passed_on = [layout.apart(changed[sink][None])[0].flatten(1) for sink, layout in answers.sinks.items()]
            self.feedback.learn(passed_on, self.scores.changed(answers.program, changed))

    def on_trial(self, moment: Moment, typical: Mapping[object, Tensor]) -> Worth:
        """Return what is known, or what this micro-batch alone shows."""
        if not self.feedback.is_new:
            return self
        tried = replace(self, feedback=Feedback({}))
        tried.learn(moment, typical)
        return tried
