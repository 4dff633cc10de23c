"""What an optimizer offers so that the engine and the strategy host it: blocks, a proposal, an update from losses."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, ParamsT

from lightning_polystep import guards
from lightning_polystep.in_turn import MovesInTurn
from lightning_polystep.particles import Block, InputStatistics, Proposal
from lightning_polystep.step import null_candidates
from lightning_polystep.tape import moving

# What an update tells of itself, for logs, by name.
Figures = dict[str, Tensor | float]

STATE_FORMAT = 2


@dataclass
class Pending:
    """What a step has gathered so far: the proposals, and their costs summed over micro-batches.

    Args:
        proposals: One per block.
        costs: Summed losses of each proposal's candidates, shape (candidates,), float64.
        weight: Sum of the micro-batches' weights.
        incumbents: The incumbent's summed losses, scored as each proposal's candidates are: scalars; empty if unknown.
        shares: Which candidates of each proposal this process scores.
        seconds: What that took, for each proposal.
        in_turn: Blocks whose particles move one after the other: nothing is scored before they do.
        objections: Micro-batches that some process left out because the recognised stack did not explain their loss.
    """

    proposals: list[Proposal]
    costs: list[Tensor]
    weight: float = 0.0
    incumbents: list[Tensor] = field(default_factory=list)
    shares: list[range] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    in_turn: list[Block] = field(default_factory=list)
    objections: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Return what was gathered, as tensors and numbers by the name of the block."""
        columns = itertools.zip_longest(self.proposals, self.costs, self.incumbents)
        return {
            "weight": self.weight,
            "objections": self.objections,
            "blocks": {
                proposal.block.name: {
                    "costs": costs,
                    "incumbent": incumbent,
                    "proposal": {name: value for name, value in vars(proposal).items() if name != "block"},
                }
                for proposal, costs, incumbent in columns
            },
        }

    @classmethod
    def restored(cls, state: dict[str, Any], blocks: list[Block]) -> Pending:
        """Return what :meth:`state_dict` described, for the same blocks of another process.

        Raises:
            KeyError: When a block is missing in the state, or one of the state's is not among the blocks.
        """
        known = {block.name: block for block in blocks}
        # Of a table that the batch does not read nothing is proposed.
        needed = {name for name, block in known.items() if not block.lookups}
        if not needed <= state["blocks"].keys() <= known.keys():
            raise KeyError(*(known.keys() ^ state["blocks"].keys()))
        proposals, costs, incumbents = [], [], []
        for name, saved in state["blocks"].items():
            device = known[name].parameters[0].device
            values: dict[str, Any] = {
                k: v.to(device) if isinstance(v, Tensor) else v for k, v in saved["proposal"].items()
            }
            proposals.append(Proposal(block=known[name], **values))
            costs.append(saved["costs"].to(device, copy=True))
            if saved["incumbent"] is not None:
                incumbents.append(saved["incumbent"].to(device, copy=True))
        return cls(proposals, costs, state["weight"], incumbents, objections=state.get("objections", 0))

    def emptied(self) -> Pending:
        """Return the same proposals, of which nothing has been gathered."""
        costs, incumbents = ([torch.zeros_like(total) for total in sums] for sums in (self.costs, self.incumbents))
        return Pending(self.proposals, costs, incumbents=incumbents)


@dataclass
class Progress:
    """Counters; one object that is mutated in place, because Lightning wraps the optimizer.

    Args:
        step: Updates made.
        micro_batch: Micro-batches gathered for the next update.
        candidates: Candidates scored, once per micro-batch.
        samples: Candidates times samples they were scored on.
        skipped: Micro-batches left out because their own loss, or what a hard layer was given, was not finite.
    """

    step: int = 0
    micro_batch: int = 0
    candidates: int = 0
    samples: int = 0
    skipped: int = 0


@dataclass
class Binding:
    """What ties the optimizer to an engine.

    Args:
        attached: Whether an engine scores candidates for this optimizer.
        alone: Whether no other process scores candidates for the same step.
        pending: Costs gathered for the next step, or None.
        loaded: State of the costs that a checkpoint had gathered for the next step, until an engine knows the blocks.
        tiers: Returns the names of the tiers that score the blocks, by block.
        loaded_tiers: Those of the run that a checkpoint came from.
        report: Figures of the last step, for logs.
        null_candidates: Share of each block's candidates that cost what the incumbent does in the last step, by name.
        changed_pairs: Share of each block's pairs of candidate and sample with another loss, for the blocks whose tier
            can tell and if the engine is asked to count; by name.
        warned: Which warnings have been given, so that none is given twice.
        idle_steps: In how many steps since the first no candidate has changed the loss; infinite once one has.
        verb: Times the body under a verb.
        agree: Turns what this process has gathered into what all processes have.
        movers: Parts of the module that move particles of their own one after the other, by parameter.
        decided: Makes a move, given by what makes it whole, as far as the loss says.
    """

    attached: bool = False
    alone: bool = True
    pending: Pending | None = None
    loaded: dict[str, Any] | None = None
    tiers: Callable[[], dict[str, str]] = dict
    loaded_tiers: dict[str, str] = field(default_factory=dict)
    report: Figures = field(default_factory=dict)
    null_candidates: dict[str, Tensor] = field(default_factory=dict)
    changed_pairs: dict[str, float] = field(default_factory=dict)
    warned: set[str] = field(default_factory=set)
    idle_steps: float = 0
    verb: Callable[[str], AbstractContextManager[None]] = lambda _name: nullcontext()
    agree: Callable[[Pending | None], Pending | None] = lambda pending: pending
    movers: dict[nn.Parameter, MovesInTurn] = field(default_factory=dict)
    decided: Callable[[Callable[[], Figures]], Figures] = lambda update: update()

    def take_loaded(self, blocks: list[Block]) -> Pending | None:
        """Return what a checkpoint had gathered for the next step, once; None, with a warning, if it does not fit.

        Args:
            blocks: Those that this step probes.
        """
        state, self.loaded = self.loaded, None
        if state is None:
            return None
        try:
            return Pending.restored(state, blocks)
        except KeyError as error:
            of_one = state.get("blocks") == {}
            reason = guards.ONE_PROCESS if of_one else f"{error.args[0]!r} is probed in only one of the two runs"
            warnings.warn(guards.LOST_WINDOW.format(reason), stacklevel=5)
            return None


class HostedOptimizer(Optimizer):
    r"""Base of every optimizer that learns from the losses of candidates, which an engine finds by forward passes.

    The engine asks three things of it, and nothing else is known about it anywhere:

    1. :meth:`blocks`: which parameters does a candidate change?
    2. :meth:`propose`: which candidates are there in this step? Every draw is a function of (seed, step, role), so all
       processes propose the same and divide the candidates among themselves.
    3. :meth:`update`: given the loss of every candidate, summed over micro-batches and processes, move.

    What follows from that is the same for all: accumulation, several processes, checkpoints that resume to the bit.

    Args:
        params: Parameters or parameter groups, as for any torch optimizer.
        defaults: Entries of groups that do not have their own.
        seed: Seed of every draw; None takes torch.initial_seed(), which seed_everything sets.
        importance_sampling: As in PolyStep; 0 scores all samples.

    Example:
        An optimizer that goes to the best of eight random points::

            class BestOfEight(HostedOptimizer):
                def blocks(self, module, held=frozenset()): ...
                def propose(self, block, *, rank, rotations=1, most_rows=None, among=None): ...
                def update(self, pending): ...

        ``lightning_polystep.baselines`` has five such optimizers.

    Attributes:
        kind: What checkpoints call it, so that none is loaded into an optimizer that makes something else of its state.
    """

    kind: ClassVar[str]
    # Attributes of their own that copies and pickles take along.
    _copied: ClassVar[tuple[str, ...]] = (
        "seed", "importance_sampling", "backtracking", "progress", "statistics", "learned",
    )  # fmt: skip

    def __init__(
        self, params: ParamsT, defaults: dict[str, Any], *, seed: int | None = None, importance_sampling: float = 0.0
    ) -> None:
        guards.check_optimizer(self.kind, params, importance_sampling=importance_sampling, seed=seed)
        given: list[Any] = list(params)
        guards.check_some(self.kind, given)
        self.importance_sampling = importance_sampling
        self.backtracking = False
        self.seed = torch.initial_seed() if seed is None else seed
        self.progress = Progress()
        self.binding = Binding()
        self.statistics: dict[str, InputStatistics] = {}
        self.learned: dict[str, dict[str, Tensor]] = {}
        super().__init__(given, defaults)

    def blocks(self, module: nn.Module, held: Set[nn.Parameter] = frozenset()) -> list[Block]:
        """Return what candidates change: blocks of the unfrozen parameters of this optimizer's groups.

        Args:
            module: Holds the parameters.
            held: Parameters that must not be probed.
        """
        raise NotImplementedError

    def with_signs(self, blocks: list[Block], acts_by_signs: Callable[[Block], bool]) -> list[Block]:
        """Return blocks after it was seen which weights act by their signs alone: by default as they are.

        Args:
            blocks: Those that candidates change.
            acts_by_signs: Tells whether only the signs of a block's weights matter.
        """
        del acts_by_signs
        return blocks

    def propose(
        self,
        block: Block,
        *,
        rank: int,
        rotations: int = 1,
        most_rows: int | None = None,
        among: Tensor | None = None,
    ) -> Proposal:
        """Return the candidates of a block in the step that ``progress`` counts.

        Args:
            block: One of :meth:`blocks`.
            rank: Directions of a row that the plan affords.
            rotations: As planned.
            most_rows: Rows that the plan affords; None for all.
            among: Rows that matter for the batch; None for all.
        """
        raise NotImplementedError

    @property
    def round(self) -> int:
        """How many steps have scored candidates so far, by which blocks take turns."""
        return self.progress.step

    def moves_in_turn(self, block: Block) -> bool:
        """Tell whether a block's particles move one after the other, without being scored before.

        Args:
            block: One of :meth:`blocks`.
        """
        del block
        return False

    def scores(self, block: Block) -> bool:
        """Tell whether candidates of a block are scored before it moves.

        Args:
            block: One of :meth:`blocks`.
        """
        return block.trainable and not self.moves_in_turn(block)

    def update(self, pending: Pending) -> Figures:
        """Move the parameters.

        Args:
            pending: The proposals, and their losses summed over micro-batches of ``pending.weight`` altogether.

        Returns:
            Figures for the log, by name.
        """
        raise NotImplementedError

    def own_state(self) -> dict[str, Any]:
        """Return what a checkpoint has to keep beside ``state`` and groups, as tensors, numbers and dicts of them."""
        return {}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`own_state` returned.

        Args:
            state: That, with other entries beside it.
        """

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the costs gathered for the next step; there are no gradients to clear."""
        del set_to_none
        self.binding.pending = None
        self._forget_loaded("the resumed run begins its steps at other batches")
        self.progress.micro_batch = 0

    def _forget_loaded(self, reason: str) -> None:
        """Say so when what a checkpoint had gathered for a step has not been taken up."""
        loaded, self.binding.loaded = self.binding.loaded, None
        if loaded is not None:
            warnings.warn(guards.LOST_WINDOW.format(reason), stacklevel=3)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one update from the losses gathered since the last.

        Args:
            closure: Called first, if given; under Lightning it runs the training step and gathers the costs.

        Returns:
            What the closure returned.

        Raises:
            RuntimeError: When nothing ever scores candidates for this optimizer.
        """
        result = closure() if closure is not None else None
        if not self.binding.attached:
            raise RuntimeError(guards.DETACHED_OPTIMIZER.format(self.kind))
        guards.check_finite(self.kind, self.param_groups)
        pending, self.binding.pending = self.binding.agree(self.binding.pending), None
        self._forget_loaded("no batch of the step that came after it could be scored")
        if pending is not None and pending.weight > 0:
            self.binding.null_candidates = {
                proposal.block.name: null_candidates(costs, incumbent)
                for proposal, costs, incumbent in zip(
                    pending.proposals, pending.costs, pending.incumbents, strict=False
                )
            }
            # A manual step goes on with what has moved.
            with moving(parameter for group in self.param_groups for parameter in group["params"]):
                self.binding.report = self.binding.decided(lambda: self.update(pending))
        self.progress.micro_batch = 0
        self.progress.step += 1
        return result

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and pickles take along: all but the engine's binding."""
        return {**super().__getstate__(), **{name: getattr(self, name) for name in self._copied}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy, bound to no engine."""
        vars(self).setdefault("binding", Binding())
        super().__setstate__(state)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors, numbers, strings and dicts: loads with ``weights_only=True``."""
        state = super().state_dict()
        state["polystep"] = {
            "format": STATE_FORMAT,
            "optimizer": self.kind,
            "seed": self.seed,
            "progress": dict(vars(self.progress)),
            "pending": self._gathered(),
            "tiers": self.binding.tiers() or self.binding.loaded_tiers,
            "learned": {block: dict(known) for block, known in self.learned.items()},
            **self.own_state(),
        }
        return state

    def _gathered(self) -> dict[str, Any] | None:
        """Return the state of the costs gathered for the next step, without blocks where others know the rest of it."""
        pending = self.binding.pending
        if pending is None:
            return self.binding.loaded
        return pending.state_dict() if self.binding.alone else {"weight": pending.weight, "blocks": {}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state.

        Raises:
            ValueError: When the state belongs to another optimizer, or to another version of this one.
        """
        guards.check_state(state_dict, STATE_FORMAT, self.kind)
        own, groups = state_dict["polystep"], self.param_groups
        super().load_state_dict(state_dict)
        # torch makes new dicts, but the blocks of a plan, and schedules, hold on to the old ones.
        for group, loaded in zip(groups, self.param_groups, strict=True):
            group.update(loaded)
        self.param_groups = groups
        self.seed = own["seed"]
        vars(self.progress).update(own["progress"])
        self.binding.pending, self.binding.loaded = None, own.get("pending")
        self.binding.loaded_tiers = own.get("tiers", {})
        learned = own.get("learned", {})
        for name in {*self.learned, *learned}:  # tiers hold on to the dict of their block
            known = self.learned.setdefault(name, {})
            known.clear()
            known.update(learned.get(name, {}))
        self.load_own_state(own)
