"""Score: a layer of a step, looked at once a step: what a change of what it makes is worth to the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_polystep.scoring.alike import Alike, usual_shifts
from lightning_polystep.scoring.answers import Answers
from lightning_polystep.scoring.precision import precise
from lightning_polystep.scoring.takers import Moment, forget_slopes
from lightning_polystep.scoring.worth import Worth
from lightning_polystep.tape import Entry, Tape


class Radii(dict[object, Tensor]):
    """How far a layer is shifted: by product, at each place, (N', places...).

    Args:
        typical: By product, how far a candidate of reach 1 shifts each place.
        reach: How many times as far each unit is shifted, (U,).
    """

    def __init__(self, typical: Mapping[object, Tensor], reach: Tensor) -> None:
        super().__init__(typical)
        self.reach = reach


class Layer:
    """A layer; a subclass knows how it is looked at."""

    @property
    def products(self) -> list[Entry]:
        """What begins it."""
        raise NotImplementedError

    @property
    def learns(self) -> bool:
        """Whether what lies behind is learned."""
        raise NotImplementedError

    @property
    def needs_samples(self) -> bool:
        """Whether it is learned from samples, and so from others where other processes see others."""
        return False

    @property
    def source(self) -> str:
        """Where it is known from, in words."""
        return "mirrors that are learned of the layers behind" if self.learns else "what takes it in, up to the readout"

    def learn(self, moment: Moment, radii: Radii | None = None) -> None:
        """Learn what lies behind, once a micro-batch.

        Args:
            moment: What it is looked at with.
            radii: How far its units are shifted; None where no candidates of it are scored.
        """
        known = (self, "learned", moment.key)
        if known not in moment.tape.arrays:
            moment.tape.arrays[known] = True
            self._learn(moment, radii)

    def _learn(self, moment: Moment, radii: Radii | None) -> None:
        raise NotImplementedError

    def look_at(self, tape: Tape, radii: Radii) -> None:
        """Say how far its units are shifted in this step, for whoever asks.

        Args:
            tape: Of the step.
            radii: By how much.
        """
        tape.arrays[self, "radii"] = radii
        forget_slopes(tape)

    def slopes_by_made(self, moment: Moment) -> dict[int, Tensor]:
        """Return the slopes of the loss by what its products make, each as large as that, found once a step.

        Args:
            moment: What it is looked at with.
        """

        def find() -> dict[int, Tensor]:
            radii = moment.tape.arrays.get((self, "radii"))
            return self._usual_slopes(moment) if radii is None else self.slopes_at(moment, radii)

        return moment.once(self, find)

    def _usual_slopes(self, moment: Moment) -> dict[int, Tensor]:
        return self.slopes_at(moment, self._usual(moment.tape))

    def slopes_at(self, moment: Moment, radii: Radii) -> dict[int, Tensor]:
        """Return the same for shifts of one's own.

        Args:
            moment: What it is looked at with.
            radii: How far its units are shifted.
        """
        raise NotImplementedError

    def _usual(self, tape: Tape) -> Radii:
        shifts, units = dict[object, Tensor](), torch.ones(1)
        for entry in self.products:
            made = precise(tape.values[entry.made].tensor)
            shifts[entry.key] = usual_shifts(made[None]).reshape(()).expand(len(made), *made.shape[2:])
            units = made.new_ones(made.shape[1])
        return Radii(shifts, units)


@dataclass(eq=False, repr=False)
class Answering(Layer):
    """A layer whose units answer each by itself.

    Args:
        answers: How they do.
        worth: What that is worth.
        alike: The layers that answer as this one does, itself among them; None where it is looked at by itself.
    """

    answers: Answers
    worth: Worth
    alike: Alike | None = None

    @property
    def products(self) -> list[Entry]:
        """What begins it."""
        return self.answers.products

    @property
    def learns(self) -> bool:
        """Whether what lies behind is learned."""
        return self.worth.learns

    @property
    def needs_samples(self) -> bool:
        """Whether it is learned from samples, and so from others where other processes see others."""
        return self.worth.needs_samples

    @property
    def source(self) -> str:
        """Where it is known from, in words."""
        if self.worth.needs_samples:
            return "learned feedback"
        left_out = f" (left out: {'; '.join(self.worth.left_out)})" if self.worth.left_out else ""
        return super().source + left_out

    def _learn(self, moment: Moment, radii: Radii | None) -> None:
        self.worth.learn(moment, radii)

    def slopes_at(self, moment: Moment, radii: Radii) -> dict[int, Tensor]:
        """Return the slopes of the loss by what its products make, for shifts of one's own."""
        answers, worth = self.answers, self.worth.on_trial(moment, radii).worth(moment)
        if not answers.local.steps and answers.sinks.keys() >= {each.made for each in answers.products}:
            return worth  # what it makes is what it passes on
        slopes = answers.slopes(moment.tape, radii, radii.reach, worth, moment.key[1])
        shapes = {entry.made: moment.tape.values[entry.made].tensor.shape for entry, _ in slopes}
        return {entry.made: each.movedim(1, 0).reshape(shapes[entry.made]) for entry, each in slopes}

    def _usual_slopes(self, moment: Moment) -> dict[int, Tensor]:
        if self.alike is None or not self.alike.are_looked_at(moment.tape):
            return super()._usual_slopes(moment)
        gains, worth = self.alike.gains(moment.tape, self.answers), self.worth.worth(moment)
        (first, gain), *others = gains.items()
        slopes = gain * worth[first]
        for sink, gain in others:
            slopes.addcmul_(gain, worth[sink])
        return {self.products[0].made: slopes}


@dataclass(eq=False, repr=False)
class Part:
    """A part of what a product makes, as the gates of a cell and the heads of attention are.

    Args:
        made: What the product makes.
        whole: The shape of that.
        value: The part.
        places: Which number of the whole each of its numbers is, as large as the part.
        layer: What lies behind it.

    Attributes:
        cut: The piece of the whole that it is, along each axis, if it is one.
    """

    made: int
    whole: torch.Size
    value: int
    places: Tensor
    layer: Layer
    cut: tuple[slice, ...] | None = field(init=False)

    def __post_init__(self) -> None:
        self.cut = _cut(self.whole, self.places)

    def add(self, slopes: Tensor, own: Tensor) -> None:
        """Add slopes by the part to those by the whole.

        Args:
            slopes: By the whole; written into.
            own: By the part.
        """
        if self.cut is not None:
            slopes[self.cut].add_(own)
        else:
            slopes.view(-1).index_add_(0, self.places.flatten().to(own.device), own.flatten().to(slopes))


def _cut(whole: torch.Size, places: Tensor) -> tuple[slice, ...] | None:
    """Return the piece of a whole whose numbers are these, if they are one."""
    if len(whole) != places.ndim or not places.numel():
        return None
    start = torch.unravel_index(places.min(), whole)
    cut = tuple(slice(int(first), int(first) + size) for first, size in zip(start, places.shape, strict=True))
    piece = torch.arange(whole.numel()).reshape(whole)[cut]
    return cut if piece.shape == places.shape and bool((piece == places).all()) else None


@dataclass(eq=False, repr=False)
class Parted(Layer):
    """A layer whose units are parted at once, each part for another use.

    Args:
        made_by: Its products.
        parts: Of what they make.
    """

    made_by: list[Entry]
    parts: list[Part]

    @property
    def products(self) -> list[Entry]:
        """What begins it."""
        return self.made_by

    @property
    def learns(self) -> bool:
        """Whether what lies behind is learned."""
        return any(part.layer.learns for part in self.parts)

    def _learn(self, moment: Moment, radii: Radii | None) -> None:
        del radii
        for part in self.parts:
            part.layer.learn(moment)

    def slopes_at(self, moment: Moment, radii: Radii) -> dict[int, Tensor]:
        """Return the slopes of the loss by what its products make; parts are shifted as usual."""
        del radii
        slopes = dict[int, Tensor]()
        for entry in self.made_by:
            slopes[entry.made] = torch.zeros_like(precise(moment.tape.values[entry.made].tensor))
        for part in self.parts:
            part.add(slopes[part.made], part.layer.slopes_by_made(moment)[part.value])
        return slopes


@dataclass(eq=False, repr=False)
class Together(Layer):
    """A layer that goes into itself, as over time: each of its products is looked at by itself.

    Args:
        layers: Of the products, the last ones first.
    """

    layers: list[Layer]

    @property
    def products(self) -> list[Entry]:
        """What begins it."""
        return [product for layer in reversed(self.layers) for product in layer.products]

    @property
    def learns(self) -> bool:
        """Whether what lies behind is learned."""
        return any(layer.learns for layer in self.layers)

    def _learn(self, moment: Moment, radii: Radii | None) -> None:
        del radii
        for layer in self.layers:
            layer.learn(moment)

    def slopes_at(self, moment: Moment, radii: Radii) -> dict[int, Tensor]:
        """Return the slopes of the loss by what its products make; these are shifted as usual."""
        del radii
        return {made: each for layer in self.layers for made, each in layer.slopes_by_made(moment).items()}
