"""Score: what a way of scoring candidates is, and what the engine and the plan may ask of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple

from torch import Tensor

from lightning_polystep.particles import Block, Proposal
from lightning_polystep.scoring.chunks import Chunking
from lightning_polystep.scoring.probe import Probe


class NotOfferedError(Exception):
    """Says why candidates of a block cannot be scored in some way."""


class Tier:
    """A way of scoring candidates; a subclass says how, and overrides what is not as usual.

    Args:
        name: What the plan calls it.
        takes_starts: Whether it scores candidates of several starts at once.
        reads_tape: Whether the commit pass has to be recorded for it.
        reruns_step: Whether it runs the user's step again, from where the commit pass began.
        samples_by_importance: Whether it scores on the samples that importance sampling has chosen.
        fills_budget: Whether what it affords is the budget of a whole step, which blocks divide by what they cost.
        follows_estimates: Whether costs come from no forward pass of a candidate, so that the loss has yet to decide.
    """

    name: ClassVar[str]
    takes_starts: ClassVar[bool] = False
    reads_tape: ClassVar[bool] = False
    reruns_step: ClassVar[bool] = False
    samples_by_importance: ClassVar[bool] = False
    fills_budget: ClassVar[bool] = False
    follows_estimates: ClassVar[bool] = False

    def look(self, proposal: Proposal, probe: Probe) -> None:
        """Learn what a micro-batch shows, before its candidates are scored: on all processes, whoever scores them.

        Args:
            proposal: The candidates.
            probe: Of the micro-batch.
        """

    def score(self, proposal: Proposal, probe: Probe, start: int, stop: int) -> Tensor:
        """Return the losses of the candidates [start, stop), shape (stop - start,), float64."""
        raise NotImplementedError

    def affordable(self) -> int | None:
        """Return how many candidates a step scores where no rank is asked for; None where they are nearly free."""
        raise NotImplementedError

    def work_of_budget(self) -> float:
        """Return how many numbers are computed for what a step affords, where that is known; else 0."""
        return 0.0

    def affordable_rows(self) -> int | None:
        """Return how many rows a step probes where candidates of a row are nearly free; None for all of them."""
        return None

    def most_directions(self) -> int | None:
        """Return how many directions of a row are nearly free; None for all of them."""
        return None

    @property
    def most_repeats(self) -> int:
        """How many times a row is worth looking at in a step, where each look says something else."""
        return 1

    def repeat(self, most: float) -> int:
        """Look at each row as many times as can be paid for; return how many that is.

        Args:
            most: What can be paid for.
        """
        del most
        return 1

    def chunking(self, memory_budget: int) -> Chunking:
        """Return how many candidates are scored at once.

        Args:
            memory_budget: Bytes that they may take.
        """
        raise NotImplementedError

    def piece(self, proposal: Proposal, chunk: int) -> int:
        """Return how many candidates one process scores at the least, so that no bit depends on how many there are.

        Args:
            proposal: The candidates.
            chunk: Candidates at once, as planned.
        """
        del proposal
        return chunk

    def incumbent(self, loss: Tensor) -> Tensor:
        """Return the incumbent's loss as the tier computes losses, a scalar.

        Args:
            loss: That of the commit pass.
        """
        return loss.detach().reshape(())

    def exact(self) -> Tier:
        """Return the tier of which this one is an approximation; itself where it is none."""
        return self

    def approximation(self) -> str:
        """Say what is approximated; nothing where nothing is."""
        return ""

    def verdict(self, trial: Proposal, costs: Tensor, exact: Tensor) -> str:
        """Say why what it approximates is worth more than the approximation; nothing where it is not.

        Args:
            trial: Some candidates.
            costs: By how much they change the loss, as approximated.
            exact: The same exactly.
        """
        del trial, costs, exact
        return ""

    def known_loss(self) -> Tensor | None:
        """Return the loss of the commit pass where it is known without running the step again; None elsewhere."""
        return None

    def rounding(self) -> float:
        """Return the relative error of the coarsest numbers that the step computes with; 0 if unknown."""
        return 0.0

    def competes(self) -> bool:
        """Tell whether the rows are known to be the scores of a softmax, in which what all do alike cancels."""
        return False

    def doubt(self) -> str:
        """Say what it may have overlooked, so that the plan compares more candidates with the loop; nothing usually."""
        return ""

    def scored_samples(self, samples: int) -> int:
        """Return on how many samples of a micro-batch candidates are scored."""
        return samples

    def changed_pairs(self, proposal: Proposal) -> float | None:
        """Estimate the share of pairs of a candidate and a sample that the candidate changes; None where it cannot."""
        del proposal
        return None


class Provider(NamedTuple):
    """Offers a tier for blocks; the plan asks one after the other, fastest first.

    Args:
        name: For the plan's notes.
        offer: Returns the tier that scores a block, or raises :class:`NotOfferedError`.
        optional: Whether it is no news that it is not offered.
    """

    name: str
    offer: Callable[[Block], Tier]
    optional: bool = False
