"""Score: which tier takes which block, and why; printed once so that nobody wonders why a run is slow."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from rich.table import Table
from torch import Tensor

from lightning_polystep import guards
from lightning_polystep.particles import Block, InputStatistics, Proposal
from lightning_polystep.scoring.assignment import Assignment, first_line, score_by
from lightning_polystep.scoring.budget import share_candidates
from lightning_polystep.scoring.loop import LoopTier
from lightning_polystep.scoring.plan_table import plan_table, plan_text
from lightning_polystep.scoring.probe import Probe
from lightning_polystep.scoring.repeatable import difference
from lightning_polystep.scoring.slopes import NOTHING
from lightning_polystep.scoring.tier import NotOfferedError, Provider, Tier

# A candidate scored in two ways may differ by rounding, and by a sample that rounding pushed over a threshold.
_AGREEMENT = (1e-3, 1e-5)
# In numbers of few digits it may differ by some roundings.
_ROUNDINGS = 2.0
# Far away, a term that a tier overlooks (a penalty on the weights that the step reads) outgrows that tolerance.
_FAR = 100.0
# Directions and rows on which the error of an approximation is measured; fewer directions where candidates are dear.
_TRIAL_RANK, _TRIAL_ROWS, _DEAR_TRIAL_RANK, _DEAR_TRIAL_ROWS = 16, 8, 4, 4
# Likewise those that are compared with the loop where a tier may have overlooked something.
_DOUBTFUL_RANK, _DOUBTFUL_ROWS = 4, 8
# Share of candidates in which rounding may decide a step otherwise.
_MOST_FLIPPED = 0.25
_FLIPPED = "rounding decides steps otherwise than a re-run in {:.0f} % of the candidates that change the loss"


_NO_REFERENCE = "not compared with the loop: the step gives another loss when it is run again"


@dataclass
class Plan:
    """The assignments of all blocks.

    Args:
        assignments: One per block.
        live_metrics: Whether the loss depends on a torchmetrics object.
        last_candidates: Candidates of each block in a step that probes it, as planned for the first one, by name.
        held: Trainable parameters that are not probed, each with the reason.
        sampling: On which samples candidates are scored; empty for all.
        unrepeatable: That the step gives another loss when it runs again, or moves something on; empty usually.
        pace: What a step takes, once that was measured.
        deciding: How the loss decides on moves by estimated costs; empty where there are none.
    """

    assignments: list[Assignment]
    live_metrics: bool = False
    last_candidates: dict[str, int] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)
    sampling: str = ""
    unrepeatable: str = ""
    pace: str = ""
    deciding: str = ""

    @property
    def reruns_step(self) -> bool:
        """Whether the user's step is run again to score some block, or was in a step so far."""
        return any(assignment.tier.reruns_step or assignment.stumbled for assignment in self.assignments)

    @property
    def candidates(self) -> int:
        """Candidates of a step, of all blocks; on average where blocks take turns."""
        return self.per_step(self.assignments)

    @property
    def takes_turns(self) -> bool:
        """Whether some block is not probed at each step."""
        return any(assignment.period > 1 for assignment in self.assignments)

    def due(self, step: int, scored: Callable[[Block], bool]) -> list[Assignment]:
        """Return what a step probes.

        Args:
            step: How many steps have scored candidates before it.
            scored: Tells of which blocks candidates are scored in it.
        """
        return [each for each in self.assignments if scored(each.block) and each.is_due(step)]

    def per_step(self, assignments: Iterable[Assignment]) -> int:
        """Return the candidates of a step, of some blocks; on average where they take turns.

        Args:
            assignments: Those of the blocks.
        """
        return round(sum(self.last_candidates.get(a.block.name, 0) / a.period for a in assignments))

    def count_candidates(self, statistics: Mapping[str, InputStatistics]) -> None:
        """Count what a step proposes.

        Args:
            statistics: What is known of each block's inputs, by name.
        """
        probed = [a for a in self.assignments if a.block.trainable]
        self.last_candidates = {a.block.name: a.candidates(statistics.get(a.block.name)) for a in probed}

    def changed_pairs(self, proposals: list[Proposal]) -> dict[str, float]:
        """Estimate the share of pairs of candidate and sample that candidates change, of the blocks that can tell.

        Args:
            proposals: Those of a step, as they have just been scored.
        """
        tiers = {assignment.block: assignment.tier for assignment in self.assignments}
        shares = {proposal.block.name: tiers[proposal.block].changed_pairs(proposal) for proposal in proposals}
        return {name: share for name, share in shares.items() if share is not None}

    def note_sampling(self, *, squares: bool) -> None:
        """Say on which samples candidates are scored where importance sampling is asked for; warn where it is all.

        Args:
            squares: Whether the loss is one of squares, of which no sample is learnt for good.
        """
        others = [a.block.name for a in self.assignments if not a.tier.samples_by_importance]
        if squares or len(others) == len(self.assignments):
            reason = "the loss is no cross-entropy" if squares else "no block is scored as part of a stack"
            warnings.warn(guards.NO_IMPORTANCE_SAMPLING.format(reason), stacklevel=5)
            self.sampling = f"importance sampling: none, {reason}"
        else:
            self.sampling = "samples: by importance" + (f"; all of them for {', '.join(others)}" if others else "")

    def table(self) -> Table:
        """Return the plan as a table; see :func:`~lightning_polystep.scoring.plan_table.plan_table`."""
        return plan_table(self)

    def __str__(self) -> str:
        """Return the table as plain text."""
        return plan_text(self)


ProposeTrial = Callable[[Block, int, int], Proposal]


def make_plan(
    blocks: list[Block],
    probe: Probe,
    propose_trial: ProposeTrial,
    providers: Sequence[Provider],
    *,
    memory_budget: int,
    max_candidates: int | None = None,
    known_tiers: Mapping[str, str] | None = None,
    agree: Callable[[list[int]], list[int]] = lambda choices: choices,
) -> Plan:
    """Try the tiers on a few candidates of each block, fastest first, and keep the first that agrees with the loop.

    Args:
        blocks: All blocks.
        probe: Probe of the first micro-batch.
        propose_trial: Makes a small proposal for a block, from (block, rank, rows).
        providers: Ways of scoring, fastest first; the last takes everything, unless some are to be refused.
        memory_budget: Bytes that a chunk of candidates may take.
        max_candidates: Candidates per step for blocks of a group without ``rank``; by default what each tier affords.
        known_tiers: Names of the tiers by block that the run used before it was resumed: tiers agree only to rounding,
            and another batch might lead to another choice.
        agree: Turns this process's choices, larger for slower tiers, into those of all processes.

    Returns:
        The plan.

    Raises:
        RuntimeError: When no provider takes a block.
    """
    plan = Plan([], _loss_needs_metrics(probe))
    probe.live_metrics = plan.live_metrics
    with probe.isolated():
        chosen = [
            _choose_tier(block, probe, propose_trial, providers, (known_tiers or {}).get(block.name))
            for block in blocks
        ]
    agreed = agree([int(plan.live_metrics), *(choice.slowness for choice in chosen)])
    plan.live_metrics = bool(agreed[0])
    for place, (block, choice, slowness) in enumerate(zip(blocks, chosen, agreed[1:], strict=True)):
        if slowness > choice.slowness:
            reason = "another process can score it in no faster way"
            choice = _Choice(providers[slowness].offer(block), reason, slowness)  # noqa: PLW2901
        block.competes = choice.tier.competes()
        chunking = choice.tier.chunking(memory_budget)
        plan.assignments.append(
            Assignment(block, choice.tier, chunking, choice.reason, error=choice.error, place=place)
        )
    approximated = any(a.tier.approximation() for a in plan.assignments)
    if any(block.group["response_grid"] for block in blocks) and not approximated:
        warnings.warn(guards.NO_RESPONSE_GRID, stacklevel=4)
    share_candidates(plan.assignments, max_candidates)
    for assignment in plan.assignments:
        assignment.peers = plan.assignments
        assignment.planned = math.ceil(assignment.most_candidates / assignment.period)
    with probe.isolated():  # on a tape too, whose plan and trials run the step again
        plan.unrepeatable = difference(probe)
    if plan.unrepeatable:
        warnings.warn(plan.unrepeatable, stacklevel=4)
    return plan


def _loss_needs_metrics(probe: Probe) -> bool:
    """A loss that is NaN with muted metrics and a number with live ones depends on them."""
    try:
        with probe.isolated():
            if not bool(torch.isnan(probe.loss())):
                return False
    except Exception:
        # The step takes a metric's value apart, which a muted one does not have; other errors come again in the loop.
        probe.live_metrics = True
        return True
    probe.live_metrics = True
    with probe.isolated():
        return not bool(torch.isnan(probe.loss()))


class _Choice(NamedTuple):
    """How a block is scored, why in no faster way, its place among the providers, and how far costs are off."""

    tier: Tier
    reason: str
    slowness: int
    error: float | None = None


def _choose_tier(
    block: Block, probe: Probe, propose_trial: ProposeTrial, providers: Sequence[Provider], known: str | None
) -> _Choice:
    """Return the fastest tier that takes a block."""
    if probe.live_metrics:
        return _Choice(LoopTier(), "the loss depends on a torchmetrics object", len(providers) - 1)
    offers, reasons = _offers(block, providers)
    for slowness, tier in offers:
        if tier.name == known:
            return _Choice(tier, "; ".join([*reasons, "as before the resume"]), slowness)
    for slowness, tier in offers:
        if tier.name == LoopTier.name:
            return _Choice(tier, "; ".join(reasons), slowness)
        problem, notes = _compared(tier, block, probe, propose_trial)
        off, failed = None, False
        if problem is None and tier.approximation():
            try:
                off, problem = _approximation(tier, block, propose_trial, probe)
            except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
                # An estimate that fails is no reason for a run to end: there are slower ways to score.
                problem, failed = first_line(error), True
            notes = [tier.approximation()]
        if problem is None:
            return _Choice(tier, "; ".join([*reasons, *notes]), slowness, off)
        if problem not in reasons and (failed or not providers[slowness].optional):
            reasons.append(f"not {providers[slowness].name}: {problem}")
    raise RuntimeError(f"{block.name} cannot be scored as asked ({'; '.join(reasons)}): use evaluation='auto'.")


def _offers(block: Block, providers: Sequence[Provider]) -> tuple[list[tuple[int, Tier]], list[str]]:
    """Return the tiers that are offered for a block, each with its place, and why others are not."""
    reasons: list[str] = []
    offers = list[tuple[int, Tier]]()
    for slowness, provider in enumerate(providers):
        try:
            offers.append((slowness, provider.offer(block)))
        except NotOfferedError as error:
            reasons += [] if provider.optional else [f"not {provider.name}: {error}"]
    return offers, reasons


def _compared(tier: Tier, block: Block, probe: Probe, propose_trial: ProposeTrial) -> tuple[str | None, Sequence[str]]:
    """Return why a tier cannot take a block, by a few candidates, None when it can; and what is to be said of it."""
    doubt = tier.doubt()
    near = propose_trial(block, _DOUBTFUL_RANK, _DOUBTFUL_ROWS) if doubt else propose_trial(block, 1, 2)
    far = replace(near, probe_radius=_FAR * near.probe_radius)
    problem = _disagreement(tier, near, probe) or _disagreement(tier, far, probe)
    if problem is None:
        return None, ()
    if not _repeats(tier, probe):
        return None, [_NO_REFERENCE]
    flipped = None if doubt or not tier.reads_tape else _flipped(tier, block, probe, propose_trial)
    if flipped is not None:
        return None, [_FLIPPED.format(100 * flipped)]
    return f"{problem}; {doubt}" if doubt else problem, ()


def _flipped(tier: Tier, block: Block, probe: Probe, propose_trial: ProposeTrial) -> float | None:
    """Return the share of candidates whose loss is another, where few are and the rest agrees; None otherwise.

    Sums of binary or quantised numbers often lie right on a step. Which side they fall on is decided by the order in
    which they are added, in a forward pass as well: a tier that adds in another order flips a step now and then. What
    it overlooked would show in nearly every candidate.
    """
    near = propose_trial(block, _DOUBTFUL_RANK, _DOUBTFUL_ROWS)
    relative, absolute = _agreement(tier)
    worst, loss = 0.0, probe.loss()
    for trial in (near, replace(near, probe_radius=_FAR * near.probe_radius)):
        try:
            fast, slow = (_all_losses(each, trial, probe) for each in (tier.exact(), LoopTier()))
        except Exception:
            return None
        moved = ~torch.isclose(slow, loss, rtol=relative, atol=absolute)
        off = ~torch.isclose(fast, slow, rtol=relative, atol=absolute, equal_nan=True)
        worst = max(worst, float(off.sum()) / max(1, int((moved | off).sum())))
    return worst if worst <= _MOST_FLIPPED else None


def _repeats(tier: Tier, probe: Probe) -> bool:
    """Tell whether a run of the step for the same parameters gives the loss that a tier knows of the commit pass.

    Where it does not, as a step that changes its batch in place, the loop scores another problem: it is no reference
    for a tier that runs no code of the user's, unless that may have overlooked something.
    """
    known = tier.known_loss()
    if known is None or tier.doubt():
        return True
    try:
        again = probe.loss()
    except Exception:
        return False
    if not bool(torch.isfinite(again)):
        return True  # no loss at all may be what the step says of a candidate
    relative, absolute = _agreement(tier)
    return torch.allclose(again.to(known), known, rtol=0.1 * relative, atol=absolute)


def _disagreement(tier: Tier, trial: Proposal, probe: Probe) -> str | None:
    """Return why a tier cannot take a block: its error, or its distance from the loop; None when it can.

    Of an approximation it is what is approximated that has to agree.
    """
    exact = tier.exact()
    relative, absolute = _agreement(tier)
    try:
        fast, slow = (_all_losses(each, trial, probe) for each in (exact, LoopTier()))
    except Exception as error:
        return first_line(error)
    if torch.allclose(fast, slow, rtol=relative, atol=absolute, equal_nan=True):
        return None
    return f"differs from a re-run by {float((fast - slow).abs().max()):.2g}"


def _agreement(tier: Tier) -> tuple[float, float]:
    """Return how far a tier may be from the loop, as a relative and an absolute tolerance."""
    relative, absolute = _AGREEMENT
    return max(relative, _ROUNDINGS * tier.rounding()), absolute


def _all_losses(tier: Tier, trial: Proposal, probe: Probe) -> Tensor:
    return score_by(tier, trial, probe, 0, trial.candidates)


def _approximation(tier: Tier, block: Block, propose_trial: ProposeTrial, probe: Probe) -> tuple[float, str | None]:
    """Return how far approximated costs are off, as a share of their spread, and why they are not worth having."""
    affordable = tier.exact().affordable() or math.inf
    rank = _DEAR_TRIAL_RANK if affordable < _TRIAL_RANK * _TRIAL_ROWS else _TRIAL_RANK
    rows = _DEAR_TRIAL_ROWS if affordable < rank * _TRIAL_ROWS else _TRIAL_ROWS
    # Rows of one direction, as those of a bias, tell as little each.
    trial = propose_trial(block, rank, max(rows, _DEAR_TRIAL_RANK * _DEAR_TRIAL_ROWS // min(rank, block.dim)))
    loss = tier.incumbent(probe.loss())
    costs, exact = (_all_losses(each, trial, probe) - loss for each in (tier, tier.exact()))
    off = (costs - exact).std() / exact.std().clamp(min=NOTHING)
    return float(off), tier.verdict(trial, costs, exact) or None
