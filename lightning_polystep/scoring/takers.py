"""Score: what takes in what units pass on, and what that is worth: products, the readout, sums, factors and norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lightning_polystep.scoring.mirror import Mirror
from lightning_polystep.scoring.slopes import precise
from lightning_polystep.tape import Entry, Operation, Tape, slopes_before


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


@dataclass(eq=False)
class Taker:
    """What takes in what units pass on.

    Args:
        sink: The value that they pass on.
    """

    sink: int

    @property
    def mirror(self) -> Mirror | None:
        """What has to be learned of it; None where nothing has."""
        return None

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


@dataclass(eq=False)
class Readout(Taker):
    """The product that makes the scores, whose weights say what its inputs are worth.

    Args:
        sink: The value that units pass on.
        weight: By which it is multiplied, (D, K).
    """

    weight: int

    def worth(self, moment: Moment) -> Tensor:
        """Return the slope of the loss by what is passed on."""
        return moment.slopes @ precise(moment.tape.values[self.weight].tensor).T


@dataclass(eq=False)
class Multiplied(Taker):
    """A product of a later layer: its units answer in their turn, and a mirror says what its inputs do to them.

    Args:
        sink: The value that units pass on.
        product: The product.
        layer: Whose it is.
        of_weights: What is known of its weights.
    """

    product: Entry
    layer: LaterLayer
    of_weights: Mirror

    @property
    def mirror(self) -> Mirror:
        """What has to be learned of it."""
        return self.of_weights

    def worth(self, moment: Moment) -> Tensor:
        """Return the slope of the loss by what is passed on."""
        made = self.layer.slopes_by_made(moment)[self.product.made]
        return self.of_weights.back(moment.tape, self.product, moment.key, made)

    def learn(self, moment: Moment) -> None:
        """See what the product makes of random inputs."""
        self.of_weights.learn(moment.tape, self.product, moment.key)


@dataclass(eq=False)
class Met(Taker):
    """A sum, a difference or a factor, in which units meet what was made elsewhere; or a norm.

    Args:
        sink: The value that units pass on.
        made: What is made of it.
        factor: The value by which it is multiplied; None in a sum.
        sign: -1 where it is taken away.
        norm: By which it is normalised, if it is.
        layer: What lies behind.
    """

    made: int
    factor: int | None
    sign: float
    norm: Operation | None
    layer: LaterLayer

    def worth(self, moment: Moment) -> Tensor:
        """Return the slope of the loss by what is passed on."""
        made = self.sign * self.layer.slopes_by_made(moment)[self.made]
        if self.norm is not None:
            return slopes_before(self.norm, moment.tape, made)
        if self.factor is not None:
            made = made * moment.tape.values[self.factor].tensor
        shape = moment.tape.values[self.sink].tensor.shape
        return torch.broadcast_to(made, torch.broadcast_shapes(made.shape, shape)).sum_to_size(shape)
