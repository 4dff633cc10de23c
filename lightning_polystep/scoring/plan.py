"""Score: which tier takes which block, and why; printed once so that nobody wonders why a run is slow."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, Literal, Protocol

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_polystep import guards
from lightning_polystep.parallel import Work
from lightning_polystep.particles import Block, InputStatistics, Proposal
from lightning_polystep.polytopes import POLYTOPES
from lightning_polystep.scoring.chunks import Chunking, is_out_of_memory
from lightning_polystep.scoring.flips import FlipTier
from lightning_polystep.scoring.loop import LoopTier
from lightning_polystep.scoring.probe import Probe
from lightning_polystep.scoring.stack import NotAStackError
from lightning_polystep.scoring.stack_tier import StackTier
from lightning_polystep.scoring.vmapped import ParameterTier, ShiftTier
from lightning_polystep.sites import Observation
from lightning_polystep.subspaces import SUBSPACES, Subspace, particle_dim

Evaluation = Literal["auto", "vmap", "loop"]

_SMALLEST_RANK = 4
# A candidate scored in two ways may differ by rounding, and by a sample that rounding pushed over a threshold.
_AGREEMENT = (1e-3, 1e-5)
# Far away, a term that a tier overlooks (a penalty on the weights that the step reads) outgrows that tolerance.
_FAR = 100.0
# Directions and rows on which the error of an approximation is measured.
_TRIAL_RANK, _TRIAL_ROWS = 16, 8


class Tier(Protocol):
    """A way of scoring candidates.

    Args:
        name: What the plan calls it.
        default_candidates: What a step may cost by default, about a second on two cores for a small network; None
            where candidates are nearly free.
    """

    name: ClassVar[str]
    default_candidates: ClassVar[int | None]

    def score(self, proposal: Proposal, probe: Probe, start: int, stop: int) -> Tensor:
        """Return the losses of the candidates [start, stop), shape (stop - start,), float64."""
        ...


def score_by(tier: Tier, proposal: Proposal, probe: Probe, start: int, stop: int) -> Tensor:
    """Return the losses of the candidates [start, stop): those of each start in turn where the tier knows but one.

    Args:
        tier: The tier.
        proposal: The candidates.
        probe: Of the micro-batch.
        start: First candidate.
        stop: The one behind the last.
    """
    if isinstance(tier, FlipTier):
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
        failed: Whether the tier that the plan chose has failed.
    """

    block: Block
    tier: Tier
    chunking: Chunking
    reason: str = ""
    rank: int = Subspace.full_rank
    rotations: int = 1
    most_rows: int | None = None
    failed: bool = False

    def __post_init__(self) -> None:
        # Memory that runs out on one process halves its chunks, but not the pieces that all processes count in.
        self._piece = self.chunking.size
        self._seconds: float | None = None

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
        subspace = SUBSPACES[self.block.subspace]
        return self._candidates(subspace.rank(self.block, self.block.group, statistics))

    def _candidates(self, directions: int) -> int:
        return (self.most_rows or self.block.rows) * _vertices(self, min(self.rank, directions))

    def work(self, proposal: Proposal) -> Work:
        """Return the proposal's candidates in pieces, each as dear as it was in the last step."""
        piece = self._piece
        if isinstance(self.tier, StackTier):
            piece = proposal.vertices_per_row  # a row's outcomes are tabulated once for all its candidates
        elif isinstance(self.tier, LoopTier):
            piece = 1
        return Work(proposal.candidates, piece, self._seconds or float(piece))

    def learn_seconds(self, seconds: float, proposal: Proposal) -> None:
        """Remember what all pieces of a proposal have taken together, over all processes."""
        self._seconds = max(seconds / self.work(proposal).pieces, 1e-9)

    def step_down(self, reason: str) -> None:
        """From now on score one candidate after the other, and no more than that can afford."""
        if not isinstance(self.tier, LoopTier):
            self.reason, self.tier, self.failed = reason, LoopTier(), True
            _share_candidates([self], None)

    def score(self, proposal: Proposal, probe: Probe, share: range) -> Tensor:
        """Score a share of the candidates; step down to the loop, once and with a warning, when the tier fails."""
        if not share:
            return torch.zeros(0, dtype=torch.float64, device=proposal.rows.device)
        try:
            return self._run(proposal, probe, share)
        except Exception as error:
            if isinstance(self.tier, LoopTier) or is_out_of_memory(error):
                raise
            reason = f"{self.tier.name} failed: {_first_line(error)}"
            warnings.warn(
                f"{self.block.name}: {reason}. Scoring it one candidate at a time from now on; see the plan's "
                "remarks in the docs for what vmap cannot take.",
                stacklevel=2,
            )
            self.step_down(reason)
            return self._run(proposal, probe, share)

    def incumbent(self, loss: Tensor) -> Tensor:
        """Return the incumbent's loss as the tier computes losses, a scalar.

        Args:
            loss: That of the commit pass.
        """
        if isinstance(self.tier, StackTier):
            return self.tier.capture.loss(self.tier.stack)
        return loss.detach().reshape(())

    def _run(self, proposal: Proposal, probe: Probe, share: range) -> Tensor:
        return self.chunking.run(partial(score_by, self.tier, proposal, probe), share)


@dataclass
class Plan:
    """The assignments of all blocks.

    Args:
        assignments: One per block.
        live_metrics: Whether the loss depends on a torchmetrics object.
        last_candidates: Candidates of each block in the step that the plan was made for, by name.
        held: Trainable parameters that are not probed, each with the reason.
        sampling: On which samples candidates are scored; empty for all.
    """

    assignments: list[Assignment]
    live_metrics: bool = False
    last_candidates: dict[str, int] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)
    sampling: str = ""

    def table(self) -> Table:
        """Return the plan as a table: block, subspace, rows, rank, candidates per step, tier, and a note's number."""
        table = Table(title="PolyStep plan", title_justify="left", caption_justify="left")
        for column in ("block", "subspace"):
            table.add_column(column, overflow="fold")
        for column in ("rows", "rank", "candidates"):
            table.add_column(column, justify="right", no_wrap=True)
        for column in ("scored by", "note"):
            table.add_column(column, overflow="fold")
        notes = list(dict.fromkeys(note for a in self.assignments if (note := a.note)))
        for assignment in self.assignments:
            block = assignment.block
            table.add_row(
                block.name,
                block.subspace,
                f"{assignment.most_rows} of {block.rows}" if assignment.most_rows else str(block.rows),
                str(min(assignment.rank, block.dim))
                + (f" x {assignment.rotations}" if assignment.rotations > 1 else ""),
                f"{self.last_candidates.get(block.name, 0):,}",
                assignment.tier.name,
                str(notes.index(assignment.note) + 1) if assignment.note else "",
            )
        lines = [f"{sum(self.last_candidates.values()):,} candidates per step"]
        lines += [self.sampling] if self.sampling else []
        lines += [f"{number}. {note}" for number, note in enumerate(notes, start=1)]
        for reason in dict.fromkeys(self.held.values()):
            names = [name for name, why in self.held.items() if why == reason]
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            lines.append(f"not probed: {', '.join(names[:3])}{more} ({reason})")
        table.caption = "\n".join(lines)
        return table

    def __str__(self) -> str:
        """Return the table as plain text."""
        console = Console(width=120, record=True, file=io.StringIO())
        console.print(self.table())
        return console.export_text()


ProposeTrial = Callable[[Block, int, int], Proposal]
FastestTier = Callable[[Block], Tier]


def make_plan(  # noqa: PLR0913 - keyword-only options
    blocks: list[Block],
    seen: Observation,
    probe: Probe,
    propose_trial: ProposeTrial,
    fastest_tier: FastestTier,
    *,
    evaluation: Evaluation = "auto",
    memory_budget: int,
    max_candidates: int | None = None,
    known_tiers: Mapping[str, str] | None = None,
    agree: Callable[[list[int]], list[int]] = lambda choices: choices,
) -> Plan:
    """Try the tiers on a few candidates of each block, fastest first, and keep the first that agrees with the loop.

    Args:
        blocks: All blocks.
        seen: What the first commit pass showed.
        probe: Probe of the first micro-batch.
        propose_trial: Makes a small proposal for a block, from (block, rank, rows).
        fastest_tier: Returns the tier that scores a block's outcomes, or raises NotAStackError.
        evaluation: ``"auto"``; ``"vmap"`` refuses blocks that vmap cannot take; ``"loop"`` skips vmap.
        memory_budget: Bytes that a chunk of candidates may take.
        max_candidates: Candidates per step for blocks of a group without ``rank``; by default 16,384
            (incremental tier), 2,048 (vmap) or 256 (loop).
        known_tiers: Names of the tiers by block that the run used before it was resumed: tiers agree only to rounding,
            and another batch might lead to another choice.
        agree: Turns this process's choices, larger for slower tiers, into those of all processes.

    Returns:
        The plan.

    Raises:
        RuntimeError: With ``evaluation="vmap"``, when vmap cannot take a block.
    """
    plan = Plan([], _loss_needs_metrics(probe))
    probe.live_metrics = plan.live_metrics
    with probe.isolated():
        chosen = [
            _choose_tier(
                block, seen, probe, propose_trial, fastest_tier, evaluation, (known_tiers or {}).get(block.name)
            )
            for block in blocks
        ]
    agreed = agree([int(plan.live_metrics), *(_slowness(tier) for tier, _ in chosen)])
    plan.live_metrics = bool(agreed[0])
    for block, (tier, reason), slowness in zip(blocks, chosen, agreed[1:], strict=True):
        if slowness > _slowness(tier):
            tier, reason = _SLOWER[slowness](), "another process can score it in no faster way"  # noqa: PLW2901
        plan.assignments.append(Assignment(block, tier, _chunking(tier, block, seen, memory_budget), reason))
    approximated = any(isinstance(a.tier, StackTier) and a.tier.approximation() for a in plan.assignments)
    if any(block.group["response_grid"] for block in blocks) and not approximated:
        warnings.warn(guards.NO_RESPONSE_GRID, stacklevel=4)
    _share_candidates(plan.assignments, max_candidates)
    return plan


_SLOWER: dict[int, type[ShiftTier | ParameterTier | LoopTier]] = {1: ShiftTier, 2: ParameterTier, 3: LoopTier}


def _slowness(tier: Tier) -> int:
    return next((slowness for slowness, kind in _SLOWER.items() if isinstance(tier, kind)), 0)


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


def _chunking(tier: Tier, block: Block, seen: Observation, memory_budget: int) -> Chunking:
    if isinstance(tier, StackTier):
        return Chunking(sys.maxsize)
    size = seen.suffix_bytes(block.name)
    if isinstance(tier, ParameterTier):
        size = seen.total_bytes + sum(p.numel() * p.element_size() for p in block.parameters)
    return Chunking.within(memory_budget, size)


def _choose_tier(
    block: Block,
    seen: Observation,
    probe: Probe,
    propose_trial: ProposeTrial,
    fastest_tier: FastestTier,
    evaluation: Evaluation,
    known: str | None,
) -> tuple[Tier, str]:
    if evaluation == "loop":
        return LoopTier(), "asked for"
    if probe.live_metrics:
        return LoopTier(), "the loss depends on a torchmetrics object"
    reasons: list[str] = []
    near = propose_trial(block, 1, 2)
    far = replace(near, probe_radius=_FAR * near.probe_radius)
    tiers = list(_vmap_tiers(block, seen))
    if evaluation == "auto":
        try:
            tiers.insert(0, fastest_tier(block))
        except NotAStackError as error:
            reasons.append(f"not as part of a stack: {error}")
    same = _named(known, [*tiers, LoopTier()]) if evaluation == "auto" else None
    if same is not None:
        return same, "; ".join([*reasons, "as before the resume"])
    for tier in tiers:
        problem = _disagreement(tier, near, probe) or _disagreement(tier, far, probe)
        if problem is None:
            return tier, "; ".join([*reasons, *_approximation(tier, block, propose_trial, probe)])
        if problem not in reasons:
            reasons.append(problem)
    if evaluation == "vmap":
        msg = f"{block.name} cannot be scored by vmap ({'; '.join(reasons)}): use evaluation='auto' or 'loop'."
        raise RuntimeError(msg)
    return LoopTier(), "; ".join(reasons)


def _named(name: str | None, tiers: list[Tier]) -> Tier | None:
    return next((tier for tier in tiers if tier.name == name), None)


def _vmap_tiers(block: Block, seen: Observation) -> Iterable[Tier]:
    if block.shiftable and seen.calls.get(block.name):
        yield ShiftTier()
    yield ParameterTier()


def _disagreement(tier: Tier, trial: Proposal, probe: Probe) -> str | None:
    """Return why a tier cannot take a block: its error, or its distance from the loop; None when it can.

    Of an approximation it is what is approximated that has to agree.
    """
    exact = tier.exact() if isinstance(tier, StackTier) else tier
    try:
        fast, slow = (score_by(each, trial, probe, 0, trial.candidates) for each in (exact, LoopTier()))
    except Exception as error:
        return _first_line(error)
    relative, absolute = _AGREEMENT
    if torch.allclose(fast, slow, rtol=relative, atol=absolute, equal_nan=True):
        return None
    return f"differs from a re-run by {float((fast - slow).abs().max()):.2g}"


def _approximation(tier: Tier, block: Block, propose_trial: ProposeTrial, probe: Probe) -> list[str]:
    """Return what a tier approximates, and by how much its costs are off; nothing where it is exact."""
    if not isinstance(tier, StackTier) or not tier.approximation():
        return []
    trial = propose_trial(block, _TRIAL_RANK, _TRIAL_ROWS)
    costs, exact = (score_by(each, trial, probe, 0, trial.candidates) for each in (tier, tier.exact()))
    off = (costs - exact).std() / exact.std().clamp(min=torch.finfo(exact.dtype).tiny)
    return [f"{tier.approximation()}, costs off by {100 * float(off):.2g} % of their spread"]


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def _share_candidates(assignments: list[Assignment], max_candidates: int | None) -> None:
    """Give every block without an explicit rank as many directions as the step's budget allows."""
    open_ended = [
        a
        for a in assignments
        if a.block.group["rank"] is None and (max_candidates is not None or a.tier.default_candidates is not None)
    ]
    for assignment in assignments:
        assignment.rank = assignment.block.group["rank"] or SUBSPACES[assignment.block.subspace].full_rank
        assignment.rotations = assignment.block.group["rotations"]
    total_rows = sum(assignment.block.rows for assignment in open_ended)
    for assignment in open_ended:
        block = assignment.block
        budget = max_candidates if max_candidates is not None else assignment.tier.default_candidates or 1
        share = max(1, budget * block.rows // total_rows)
        ceiling = min(Subspace.full_rank, block.dim)
        affordable = [rank for rank in range(1, ceiling + 1) if block.rows * _vertices(assignment, rank) <= share]
        assignment.rank = max([min(_SMALLEST_RANK, ceiling), *affordable[-1:]])
        rows = max(1, share // _vertices(assignment, assignment.rank))
        assignment.most_rows = rows if rows < block.rows else None


def _vertices(assignment: Assignment, rank: int) -> int:
    group = assignment.block.group
    dim = particle_dim(assignment.block, rank)
    return max(1, rank // dim) * assignment.rotations * POLYTOPES[group["polytope"]].count(dim)
