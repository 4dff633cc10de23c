"""Score: which tier takes which block, and why; printed once so that nobody wonders why a run is slow."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from rich.table import Table

from lightning_polystep import guards
from lightning_polystep.particles import Block, InputStatistics, Proposal
from lightning_polystep.scoring.assignment import Assignment
from lightning_polystep.scoring.budget import share_candidates
from lightning_polystep.scoring.plan_table import plan_table, plan_text
from lightning_polystep.scoring.probe import Probe
from lightning_polystep.scoring.repeatable import difference
from lightning_polystep.scoring.tier import Provider
from lightning_polystep.scoring.trials import Choice, ProposeTrial, Trials


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
        trials = Trials(probe, propose_trial, providers, memory_budget)
        chosen = [trials.choose(block, (known_tiers or {}).get(block.name)) for block in blocks]
    agreed = agree([int(plan.live_metrics), *(choice.slowness for choice in chosen)])
    plan.live_metrics = bool(agreed[0])
    for place, (block, choice, slowness) in enumerate(zip(blocks, chosen, agreed[1:], strict=True)):
        if slowness > choice.slowness:
            reason = "another process can score it in no faster way"
            choice = Choice(providers[slowness].offer(block), reason, slowness)  # noqa: PLW2901
        block.competes, block.estimated = choice.tier.competes(), choice.tier.follows_estimates
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
