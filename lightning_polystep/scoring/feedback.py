r"""Score: learned feedback, what a change of each unit does to each score, learned from forward passes alone.

All units of a layer are shifted at random at once, each by its own sign, in two mirrored replays. What a unit q passed
on changed by :math:`a_{nq}`, the scores by :math:`s_{nk}`, and over steps the regression of one on the other,

.. math:: J_{qk} = \frac{\overline{a_q s_k}}{\overline{a_q^2}},

is what q does to score k, averaged over samples and over what the others do: running sums that forget. With the slopes
e of the loss by the scores, :math:`\sum_k J_{qk} e_{nk}` estimates the slope by what the unit passes on. No weight of
a layer behind is read. Lansdell, Prakash and Kording (2020, "Learning to solve the credit assignment problem") learn
feedback by node perturbation likewise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_polystep.randomness import generator

# Rounds of random shifts from which feedback is learned at first; one at each later step.
_FIRST_ROUNDS = 8
# Numbers that feedback may have: a layer of more is too large.
MOST_NUMBERS = 2**24
# What is left of what was learned after another step.
_KEEP = 0.98
# Of units that hardly answer less is believed: this share of a typical unit's change counts as noise.
_FAINT = 0.01
# More numbers that units pass on are taken together over time: each by itself would take too long to learn.
_MOST_APART = 6_000


@dataclass
class Feedback:
    """What was learned of a layer.

    Args:
        memory: Running sums, which a checkpoint keeps: it is written into.
    """

    memory: dict[str, Tensor]

    @property
    def is_new(self) -> bool:
        """Whether nothing has been learned yet."""
        return not self.memory

    def draws(self, key: tuple[int, int, int], name: str) -> list[torch.Generator]:
        """Return the sources of the random shifts of a micro-batch, one for each round.

        Args:
            key: Seed, step and micro-batch.
            name: Of the layer.
        """
        (seed, step, micro_batch), rounds = key, _FIRST_ROUNDS if self.is_new else 1
        return [generator(seed, step, f"feedback/{name}/{turn}", micro_batch) for turn in range(rounds)]

    @staticmethod
    def ties(widths: Sequence[int]) -> bool:
        """Tell whether what units pass on at several times is taken together.

        Args:
            widths: How many numbers each time has.
        """
        return len(widths) > 1 and len(set(widths)) == 1 and sum(widths) > _MOST_APART

    def learn(self, passed_on: Sequence[Tensor], scores: Tensor) -> None:
        """Take in how scores changed with what units passed on.

        Args:
            passed_on: For each time, or other value, what changed of it, (N, Q).
            scores: What changed of the scores, (N, S).
        """
        if self.ties([each.shape[1] for each in passed_on]):
            passed_on = [torch.stack(list(passed_on)).sum(0)]
        for place, changed in enumerate(passed_on):
            for name, seen in ((f"met/{place}", changed.T @ scores), (f"own/{place}", changed.square().sum(0))):
                known = self.memory.get(name)
                self.memory[name] = seen if known is None else known.to(seen) * _KEEP + seen

    def credit(self, place: int, slopes: Tensor) -> Tensor:
        """Return the slope of the loss by what units pass on, (N, Q), as far as is known.

        Args:
            place: Of the value among those that were learned.
            slopes: Of the loss by the scores, (N, S).
        """
        if f"own/{place}" not in self.memory:  # taken together
            place = 0
        met, own = self.memory[f"met/{place}"].to(slopes), self.memory[f"own/{place}"].to(slopes)
        faint = _FAINT * own.mean() + torch.finfo(own.dtype).tiny
        return slopes @ (met / (own + faint)[:, None]).T
