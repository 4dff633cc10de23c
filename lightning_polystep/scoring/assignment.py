"""Score: how one block is scored, and what happens when its tier fails."""

from __future__ import annotations

import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from lightning_polystep.parallel import Work
from lightning_polystep.particles import Block, InputStatistics, Proposal
from lightning_polystep.scoring.budget import share_candidates
from lightning_polystep.scoring.chunks import Chunking, is_out_of_memory
from lightning_polystep.scoring.loop import LoopTier
from lightning_polystep.scoring.probe import Probe
from lightning_polystep.scoring.tier import Tier
from lightning_polystep.subspaces import SUBSPACES, Subspace, vertices_of_row
from lightning_polystep.tape import NotOnTapeError

# Candidates of a step that the loop affords.
_LOOP_BUDGET = LoopTier().affordable() or 1


def score_by(tier: Tier, proposal: Proposal, probe: Probe, start: int, stop: int) -> Tensor:
    """Return the losses of the candidates [start, stop): those of each start in turn where the tier knows but one.

    Args:
        tier: The tier.
        proposal: The candidates.
        probe: Of the micro-batch.
        start: First candidate.
        stop: The one behind the last.
    """
    if tier.takes_starts:
        return tier.score(proposal, probe, start, stop)
    losses = [tier.score(each, probe, start, stop) for each in proposal.from_each_start()]
    return torch.stack(losses).mean(0) if len(losses) > 1 else losses[0]


@dataclass
class Assignment:
    """How one block is scored.

    Args:
        block: The block.
        tier: The tier in use.
        chunking: Candidates at once.
        reason: Why it is not a faster tier; empty when there is none.
        rank: Directions probed per step (the subspace may have fewer).
        rotations: Independently rotated polytopes per particle.
        most_rows: Rows probed per step, or None for all.
        period: It is probed once in so many steps.
        failed: Whether the tier that the plan chose has failed for good.
        error: By how much costs are off that are approximated, as a share of their spread.
        place: Among the blocks of the plan.
        stumbled: Whether it could not take some batch, which was scored one candidate at a time.
        peers: All assignments of the plan, which share the budget.
        planned: Candidates per step that the plan gave it, on average where it takes turns.
    """

    block: Block
    tier: Tier
    chunking: Chunking
    reason: str = ""
    rank: int = Subspace.full_rank
    rotations: int = 1
    most_rows: int | None = None
    period: int = 1
    failed: bool = False
    error: float | None = None
    place: int = 0
    stumbled: bool = False
    peers: list[Assignment] = field(default_factory=list, repr=False)
    planned: int = 0

    def __post_init__(self) -> None:
        # Memory that runs out on one process halves its chunks, but not the pieces that all processes count in.
        self._piece = self.chunking.size
        self._seconds: float | None = None

    def is_due(self, step: int) -> bool:
        """Tell whether a step probes it; blocks of the same period take turns."""
        return (step + self.place) % self.period == 0

    @property
    def note(self) -> str:
        """What a reader of the plan should know about the block."""
        return "; ".join(text for text in (self.block.remark, self.reason) if text)

    @property
    def most_candidates(self) -> int:
        """What a step may propose at the most: as many when the subspace has all the directions asked for."""
        return self._candidates(self.block.dim)

    def candidates(self, statistics: InputStatistics | None) -> int:
        """Return how many a step proposes that knows this of the block's inputs."""
        if self.block.population is not None:
            return self.block.population
        subspace = SUBSPACES[self.block.subspace]
        return self._candidates(subspace.rank(self.block, self.block.group, statistics))

    def _candidates(self, directions: int) -> int:
        if self.block.population is not None:
            return self.block.population
        return (self.most_rows or self.block.rows) * vertices_of_row(
            self.block, min(self.rank, directions), self.rotations
        )

    def work(self, proposal: Proposal) -> Work:
        """Return the proposal's candidates in pieces, each as dear as it was in the last step."""
        piece = self.tier.piece(proposal, self._piece)
        return Work(proposal.candidates, piece, self._seconds or float(piece))

    def learn_seconds(self, seconds: float, proposal: Proposal) -> None:
        """Remember what all pieces of a proposal have taken together, over all processes."""
        self._seconds = max(seconds / self.work(proposal).pieces, 1e-9)

    def step_down(self, reason: str) -> None:
        """From now on score one candidate after the other, and no more than that can afford."""
        if self.tier.name != LoopTier.name:
            self.reason, self.tier, self.failed = reason, LoopTier(), True
            # What the plan gave to those that have failed is the most that they get; with the loop, they share less.
            failed = [each for each in self.peers or [self] if each.failed]
            share_candidates(failed, min(_LOOP_BUDGET, sum(each.planned for each in failed) or _LOOP_BUDGET))

    def look(self, proposal: Proposal, probe: Probe) -> None:
        """Let the tier learn from a micro-batch; what it cannot take, scoring will tell."""
        with suppress(NotOnTapeError):
            self.tier.look(proposal, probe)

    def score(self, proposal: Proposal, probe: Probe, share: range) -> Tensor:
        """Score a share of the candidates; step down to the loop, once and with a warning, when the tier fails."""
        if not share:
            return torch.zeros(0, dtype=torch.float64, device=proposal.rows.device)
        try:
            return self._run(proposal, probe, share)
        except Exception as error:
            if self.tier.name == LoopTier.name or is_out_of_memory(error):
                raise
            return self._stumble(error, proposal, probe, share)

    def _stumble(self, error: Exception, proposal: Proposal, probe: Probe, share: range) -> Tensor:
        """Score by the loop what the tier cannot take: this batch, where that is cheap, else all from now on."""
        reason = f"{self.tier.name} failed: {first_line(error)}"
        is_cheap = sum(each.planned for each in self.peers) <= _LOOP_BUDGET
        for_now = isinstance(error, NotOnTapeError) and is_cheap
        if not (for_now and self.stumbled):
            how_long = "on this batch and on others like it" if for_now else "from now on"
            warnings.warn(
                f"{self.block.name}: {reason}. Scoring it one candidate at a time {how_long}; docs/design.md, "
                "section 2, says what the tape cannot carry.",
                stacklevel=4,
            )
        self.stumbled = True
        if for_now:
            return score_by(LoopTier(), proposal, probe, share.start, share.stop)
        self.step_down(reason)
        return self._run(proposal, probe, share)

    def incumbent(self, loss: Tensor) -> Tensor:
        """Return the incumbent's loss as the tier computes losses, a scalar.

        Args:
            loss: That of the commit pass.
        """
        return self.tier.incumbent(loss)

    def _run(self, proposal: Proposal, probe: Probe, share: range) -> Tensor:
        return self.chunking.run(partial(score_by, self.tier, proposal, probe), share)


def first_line(error: BaseException) -> str:
    """Return the kind of an error and the first line that it says.

    Args:
        error: The error.
    """
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
