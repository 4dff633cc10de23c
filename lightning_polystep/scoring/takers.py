"""Score: what takes in what units pass on, and what that is worth: the readout, later products, and others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from torch import Tensor

from lightning_polystep.scoring.mirror import Mirror
from lightning_polystep.scoring.precision import precise
from lightning_polystep.tape import Entry, Operation, Tape, way_back

Found = TypeVar("Found")

# Where a tape keeps what was seen of layers.
_SEEN = "slopes of layers"


def forget_slopes(tape: Tape) -> None:
    """Forget what was seen of layers on a tape, as when a plan was made: more is known since.

    Args:
        tape: Of the step.
    """
    tape.arrays.pop(_SEEN, None)


class Moment(NamedTuple):
    """What a layer is looked at with.

    Args:
        tape: Of the step.
        slopes: Of the loss by the scores, (N', K) by the product that makes them.
        key: Seed, step and micro-batch.
    """

    tape: Tape
    slopes: dict[int, Tensor]
    key: tuple[int, int, int]

    def once(self, of: object, find: Callable[[], Found]) -> Found:
        """Return what is found once a step, until all is forgotten; see :func:`forget_slopes`.

        Args:
            of: What it is found of.
            find: Finds it.
        """
        seen: dict[object, Any] = self.tape.arrays.setdefault(_SEEN, {})
        if of not in seen:
            seen[of] = find()
        found: Found = seen[of]
        return found


class LaterLayer(Protocol):
    """A layer that takes in what an earlier one passes on."""

    @property
    def learns(self) -> bool:
        """Whether what lies behind it is learned."""
        ...

    def learn(self, moment: Moment) -> None:
        """Learn what lies behind it, once a step.

        Args:
            moment: What it is looked at with.
        """

    def slopes_by_made(self, moment: Moment) -> dict[int, Tensor]:
        """Return the slopes of the loss by what its products make, each as large as that.

        Args:
            moment: What it is looked at with.
        """
        ...


@dataclass(eq=False, repr=False)
class Taker:
    """What takes in what units pass on.

    Args:
        sink: The value that they pass on.
    """

    sink: int

    @property
    def learns(self) -> bool:
        """Whether what it does has to be learned."""
        return False

    def worth(self, moment: Moment) -> Tensor:
        """Return the slope of the loss by what is passed on, as far as it is taken in here, as large as that.

        Args:
            moment: What it is looked at with.
        """
        raise NotImplementedError

    def learn(self, moment: Moment) -> None:
        """Learn what it does.

        Args:
            moment: What it is looked at with.
        """


@dataclass(eq=False, repr=False)
class Readout(Taker):
    """The product that makes the scores, whose weights say what its inputs are worth.

    Args:
        sink: The value that units pass on.
        made: The scores that it makes.
        weight: By which it is multiplied, (D, K).
    """

    made: int
    weight: int

    def worth(self, moment: Moment) -> Tensor:
        """Return the slope of the loss by what is passed on."""
        return moment.slopes[self.made] @ precise(moment.tape.values[self.weight].tensor).T


@dataclass(eq=False, repr=False)
class Multiplied(Taker):
    """A product of a later layer: its units answer in their turn, and a mirror says what its inputs do to them.

    Args:
        sink: The value that units pass on.
        product: The product.
        layer: Whose it is.
        mirror: What is known of its weights.
    """

    product: Entry
    layer: LaterLayer
    mirror: Mirror

    @property
    def learns(self) -> bool:
        """That its mirror is learned."""
        return True

    def worth(self, moment: Moment) -> Tensor:
        """Return the slope of the loss by what is passed on."""
        made = self.layer.slopes_by_made(moment)[self.product.made]
        return self.mirror.back(moment.tape, self.product, moment.key, made)

    def learn(self, moment: Moment) -> None:
        """See what the product makes of random inputs."""
        self.mirror.learn(moment.tape, self.product, moment.key)
        self.layer.learn(moment)


@dataclass(eq=False, repr=False)
class Operating(Taker):
    """An operation other than a product, behind which a layer lies.

    Args:
        sink: The value that units pass on.
        operation: What takes it.
        layer: What lies behind.
    """

    operation: Operation
    layer: LaterLayer

    @property
    def learns(self) -> bool:
        """Whether what lies behind is learned."""
        return self.layer.learns

    def learn(self, moment: Moment) -> None:
        """Learn what lies behind."""
        self.layer.learn(moment)


@dataclass(eq=False, repr=False)
class Met(Operating):
    """Something that slopes go back through: a sum, a mean, a pooling, a factor, a norm, a softmax."""

    def worth(self, moment: Moment) -> Tensor:
        """Return the slope of the loss by what is passed on."""
        made = self.operation.outputs[0]
        assert made is not None
        slopes = self.layer.slopes_by_made(moment)[made]
        places = [place for place, index in enumerate(self.operation.operands) if index == self.sink]
        first, *others = [way_back(moment.tape, self.operation, place, slopes) for place in places]
        return sum(others, start=first)
