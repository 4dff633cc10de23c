"""Score: what it is worth to the loss that a unit passes on more: by the products that take it in, or by feedback."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from lightning_polystep.scoring.answers import Answers, random_signs
from lightning_polystep.scoring.feedback import Feedback
from lightning_polystep.scoring.mirror import Mirror
from lightning_polystep.scoring.scores import Scores
from lightning_polystep.scoring.slopes import half_difference, precise
from lightning_polystep.tape import Dense, Entry, Tape


class Moment(NamedTuple):
    """What a layer is looked at with.

    Args:
        tape: Of the step.
        slopes: Of the loss by the scores, (N', K).
        key: Seed, step and micro-batch.
    """

    tape: Tape
    slopes: Tensor
    key: tuple[int, int, int]


class LaterLayer(Protocol):
    """A layer that takes in what an earlier one passes on."""

    def slopes_by_made(self, moment: Moment) -> dict[int, Tensor]:
        """Return the slopes of the loss by what its products make, each as large as that.

        Args:
            moment: What it is looked at with.
        """


class Taker(NamedTuple):
    """A product that takes in what units pass on.

    Args:
        product: The product; its inputs are what they pass on.
        layer: Whose it is; None of the readout.
        mirror: What it does to changes, as far as is known; None of the readout, whose weights say so.
    """

    product: Entry
    layer: LaterLayer | None = None
    mirror: Mirror | None = None


@dataclass(eq=False)
class Worth:
    """What the answers of units are worth.

    Args:
        answers: Of the units.
    """

    answers: Answers

    needs_samples: ClassVar[bool] = False

    @property
    def source(self) -> str:
        """Where it is known from, in words."""
        raise NotImplementedError

    @property
    def learns(self) -> bool:
        """Whether it is learned."""
        raise NotImplementedError

    def worth(self, moment: Moment) -> dict[int, Tensor]:
        """Return the slope of the loss by what units pass on, by sink.

        Args:
            moment: What they are looked at with.
        """
        raise NotImplementedError

    def learn(self, moment: Moment, typical: Mapping[object, Tensor]) -> None:
        """Learn from a micro-batch, where anything has to be learned.

        Args:
            moment: What the layer is looked at with.
            typical: By product, how far a candidate shifts each place, (N', places...).
        """

    def on_trial(self, moment: Moment, typical: Mapping[object, Tensor]) -> Worth:
        """Return this, or where nothing is known yet one that has learned and is not kept.

        Args:
            moment: What the layer is looked at with.
            typical: By product, how far a candidate shifts each place, (N', places...).
        """
        del moment, typical
        return self


@dataclass(eq=False)
class ByTakers(Worth):
    """Units whose answers go into products alone.

    What they are worth to the readout is told by its weights; to a hidden layer by how that answers in its turn, and by
    a mirror of what its products do, which is learned.

    Args:
        answers: Of the units.
        takers: All products that take them in.
    """

    takers: list[Taker]

    @property
    def source(self) -> str:
        """Where it is known from, in words."""
        return "mirrors that are learned of the layers behind" if self.learns else "the readout"

    @property
    def learns(self) -> bool:
        """Whether it is learned."""
        return any(taker.mirror is not None for taker in self.takers)

    def worth(self, moment: Moment) -> dict[int, Tensor]:
        """Return the slope of the loss by what units pass on, by sink."""
        worth = dict[int, Tensor]()
        for product, layer, mirror in self.takers:
            if layer is None or mirror is None:
                assert product.weight is not None
                own = moment.slopes @ precise(moment.tape.values[product.weight].tensor).T
            else:
                own = mirror.back(moment.tape, product, moment.key, layer.slopes_by_made(moment)[product.made])
            sink = product.inputs
            worth[sink] = worth[sink] + own if sink in worth else own
        return {sink: each.reshape(self.answers.sinks[sink].shape) for sink, each in worth.items()}

    def learn(self, moment: Moment, typical: Mapping[object, Tensor]) -> None:
        """See what the products of later layers make of random inputs."""
        del typical
        for product, _, mirror in self.takers:
            if mirror is not None:
                mirror.learn(moment.tape, product, moment.key)


@dataclass(eq=False)
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
    def source(self) -> str:
        """Where it is known from, in words."""
        return "learned feedback"

    @property
    def learns(self) -> bool:
        """That it is learned."""
        return True

    def worth(self, moment: Moment) -> dict[int, Tensor]:
        """Return the slope of the loss by what units pass on, by sink, as far as is known."""
        apart, worth = self.scores.of_samples(self.answers.program, moment.slopes), dict[int, Tensor]()
        for place, (sink, layout) in enumerate(self.answers.sinks.items()):
            known = self.feedback.credit(place, apart)
            worth[sink] = layout.back(known.reshape(1, *layout.laid_out))[0]
        return worth

    def learn(self, moment: Moment, typical: Mapping[object, Tensor]) -> None:
        """Shift all units at random, and see what they and the scores make of it."""
        answers = self.answers
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
