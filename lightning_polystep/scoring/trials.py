"""Score: try the tiers of a block on a few candidates, and keep the fastest that agrees with the loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_polystep.particles import Block, Proposal
from lightning_polystep.scoring.assignment import first_line, score_by
from lightning_polystep.scoring.loop import LoopTier
from lightning_polystep.scoring.probe import Probe
from lightning_polystep.scoring.slopes import NOTHING
from lightning_polystep.scoring.tier import NotOfferedError, Provider, Tier

# A candidate scored in two ways may differ by rounding, and by a sample that rounding pushed over a threshold.
_AGREEMENT = (1e-3, 1e-5)
# In numbers of few digits it may differ by some roundings.
_ROUNDINGS = 2.0
# Far away, a term that a tier overlooks (a penalty on the weights that the step reads) outgrows that tolerance.
_FAR = 100.0
# Directions and rows on which the error of an approximation is measured; fewer where candidates are dear, and again
# where a step affords no more than so many of them: the plan of a residual block took 42 seconds, a step less than one.
_TRIAL_RANK, _TRIAL_ROWS, _DEAR_TRIAL_RANK, _DEAR_TRIAL_ROWS = 16, 8, 4, 4
_DEAREST, _DEAREST_TRIAL_RANK = 16, 2
# Those that are compared with the loop: usually, and where a tier may have overlooked something.
_COMPARED_ROWS, _DOUBTFUL_RANK, _DOUBTFUL_ROWS = 2, 4, 8
# Share of candidates in which rounding may decide a step otherwise.
_MOST_FLIPPED = 0.25
_FLIPPED = "rounding decides steps otherwise than a re-run in {:.0f} % of the candidates that change the loss"
_NO_REFERENCE = "not compared with the loop: the step gives another loss when it is run again"

ProposeTrial = Callable[[Block, int, int], Proposal]


class Choice(NamedTuple):
    """How a block is scored, why in no faster way, its place among the providers, and how far costs are off."""

    tier: Tier
    reason: str
    slowness: int
    error: float | None = None


@dataclass(frozen=True)
class Trials:
    """What the plan tries tiers on.

    Args:
        probe: Probe of the first micro-batch.
        propose: Makes a small proposal for a block, from (block, rank, rows).
        providers: Ways of scoring, fastest first; the last takes everything, unless some are to be refused.
        memory_budget: Bytes that a chunk of candidates may take.
    """

    probe: Probe
    propose: ProposeTrial
    providers: Sequence[Provider]
    memory_budget: int

    def choose(self, block: Block, known: str | None) -> Choice:
        """Return the fastest tier that takes a block.

        Args:
            block: The block.
            known: Name of the tier that the run used before it was resumed.

        Raises:
            RuntimeError: When no provider takes the block.
        """
        if self.probe.live_metrics:
            return Choice(LoopTier(), "the loss depends on a torchmetrics object", len(self.providers) - 1)
        offers, reasons = self._offers(block)
        for slowness, tier in offers:
            if tier.name == known:
                return Choice(tier, "; ".join([*reasons, "as before the resume"]), slowness)
        for slowness, tier in offers:
            if tier.name == LoopTier.name:
                return Choice(tier, "; ".join(reasons), slowness)
            problem, notes = self._compared(tier, block)
            off, failed = None, False
            if problem is None and tier.approximation():
                try:
                    off, problem = self._approximation(tier, block)
                except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
                    # An estimate that fails is no reason for a run to end: there are slower ways to score.
                    problem, failed = first_line(error), True
                notes = [tier.approximation()]
            if problem is None:
                return Choice(tier, "; ".join([*reasons, *notes]), slowness, off)
            if problem not in reasons and (failed or not self.providers[slowness].optional):
                reasons.append(f"not {self.providers[slowness].name}: {problem}")
        raise RuntimeError(f"{block.name} cannot be scored as asked ({'; '.join(reasons)}): use evaluation='auto'.")

    def _offers(self, block: Block) -> tuple[list[tuple[int, Tier]], list[str]]:
        """Return the tiers that are offered for a block, each with its place, and why others are not."""
        reasons: list[str] = []
        offers = list[tuple[int, Tier]]()
        for slowness, provider in enumerate(self.providers):
            try:
                offers.append((slowness, provider.offer(block)))
            except NotOfferedError as error:
                reasons += [] if provider.optional else [f"not {provider.name}: {error}"]
        return offers, reasons

    def _compared(self, tier: Tier, block: Block) -> tuple[str | None, Sequence[str]]:
        """Return why a tier cannot take a block by a few candidates, None when it can, and what is to be said of it."""
        doubt = tier.doubt()
        rows = 1 if _affordable(tier) <= _DEAREST else _COMPARED_ROWS
        near = self.propose(block, _DOUBTFUL_RANK, _DOUBTFUL_ROWS) if doubt else self.propose(block, 1, rows)
        far = replace(near, probe_radius=_FAR * near.probe_radius)
        problem = self._disagreement(tier, near) or self._disagreement(tier, far)
        if problem is None:
            return None, ()
        if not self._repeats(tier):
            return None, [_NO_REFERENCE]
        flipped = None if doubt or not tier.reads_tape else self._flipped(tier, block)
        if flipped is not None:
            return None, [_FLIPPED.format(100 * flipped)]
        return f"{problem}; {doubt}" if doubt else problem, ()

    def _flipped(self, tier: Tier, block: Block) -> float | None:
        """Return the share of candidates whose loss is another, where few are and the rest agrees; None otherwise.

        Sums of binary or quantised numbers often lie right on a step. Which side they fall on is decided by the order
        in which they are added, in a forward pass as well: a tier that adds in another order flips a step now and then.
        What it overlooked would show in nearly every candidate.
        """
        near = self.propose(block, _DOUBTFUL_RANK, _DOUBTFUL_ROWS)
        relative, absolute = _agreement(tier)
        worst, loss = 0.0, self.probe.loss()
        for trial in (near, replace(near, probe_radius=_FAR * near.probe_radius)):
            try:
                fast, slow = (self._losses(each, trial) for each in (tier.exact(), LoopTier()))
            except Exception:
                return None
            moved = ~torch.isclose(slow, loss, rtol=relative, atol=absolute)
            off = ~torch.isclose(fast, slow, rtol=relative, atol=absolute, equal_nan=True)
            worst = max(worst, float(off.sum()) / max(1, int((moved | off).sum())))
        return worst if worst <= _MOST_FLIPPED else None

    def _repeats(self, tier: Tier) -> bool:
        """Tell whether a run of the step for the same parameters gives the loss that a tier knows of the commit pass.

        Where it does not, as a step that changes its batch in place, the loop scores another problem: it is no
        reference for a tier that runs no code of the user's, unless that may have overlooked something.
        """
        known = tier.known_loss()
        if known is None or tier.doubt():
            return True
        try:
            again = self.probe.loss()
        except Exception:
            return False
        if not bool(torch.isfinite(again)):
            return True  # no loss at all may be what the step says of a candidate
        relative, absolute = _agreement(tier)
        return torch.allclose(again.to(known), known, rtol=0.1 * relative, atol=absolute)

    def _disagreement(self, tier: Tier, trial: Proposal) -> str | None:
        """Return why a tier cannot take a block: its error, or its distance from the loop; None when it can.

        Of an approximation it is what is approximated that has to agree.
        """
        exact = tier.exact()
        relative, absolute = _agreement(tier)
        try:
            fast, slow = (self._losses(each, trial) for each in (exact, LoopTier()))
        except Exception as error:
            return first_line(error)
        if torch.allclose(fast, slow, rtol=relative, atol=absolute, equal_nan=True):
            return None
        return f"differs from a re-run by {float((fast - slow).abs().max()):.2g}"

    def _approximation(self, tier: Tier, block: Block) -> tuple[float, str | None]:
        """Return how far approximated costs are off, as a share of their spread, and why they are not worth having."""
        affordable = _affordable(tier)
        rank = _DEAR_TRIAL_RANK if affordable < _TRIAL_RANK * _TRIAL_ROWS else _TRIAL_RANK
        rows = _DEAR_TRIAL_ROWS if affordable < rank * _TRIAL_ROWS else _TRIAL_ROWS
        rank = _DEAREST_TRIAL_RANK if affordable <= _DEAREST else rank
        # Rows of one direction, as those of a bias, tell as little each.
        rows = max(rows, min(rank, _DEAR_TRIAL_RANK) * _DEAR_TRIAL_ROWS // min(rank, block.dim))
        trial = self.propose(block, rank, rows)
        loss = tier.incumbent(self.probe.loss())
        costs, exact = (self._losses(each, trial) - loss for each in (tier, tier.exact()))
        off = (costs - exact).std() / exact.std().clamp(min=NOTHING)
        return float(off), tier.verdict(trial, costs, exact) or None

    def _losses(self, tier: Tier, trial: Proposal) -> Tensor:
        """Return the losses of all candidates, no more of them at once than in a step."""
        chunking = tier.chunking(self.memory_budget)
        return chunking.run(lambda start, stop: score_by(tier, trial, self.probe, start, stop), range(trial.candidates))


def _affordable(tier: Tier) -> float:
    """Return how many exact candidates of a tier a step affords."""
    return tier.exact().affordable() or math.inf


def _agreement(tier: Tier) -> tuple[float, float]:
    """Return how far a tier may be from the loop, as a relative and an absolute tolerance."""
    relative, absolute = _AGREEMENT
    return max(relative, _ROUNDINGS * tier.rounding()), absolute
