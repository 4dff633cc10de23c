"""The engine: observe, propose and score, for any module and any way of computing its loss."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace

import torch
from rich.console import Console
from torch import Tensor, nn

from lightning_polystep import guards
from lightning_polystep.interop.adapters import adapters_for
from lightning_polystep.isolation import BufferWatch
from lightning_polystep.non_finite import HardInputs, noticing
from lightning_polystep.optimizer import Pending, PolyStep
from lightning_polystep.parallel import Layout
from lightning_polystep.particles import Block, Proposal
from lightning_polystep.randomness import noise_frame
from lightning_polystep.scoring.fastest import fastest_tier
from lightning_polystep.scoring.plan import Evaluation, Plan, make_plan
from lightning_polystep.scoring.probe import Probe
from lightning_polystep.scoring.recognise import recognise
from lightning_polystep.scoring.stack import Capture, NotAStackError, Stack, capturing, disagreement
from lightning_polystep.scoring.stack_tier import StackTier
from lightning_polystep.sites import Observation, find_blocks
from lightning_polystep.step import learn_inputs, observe, propose, score

# The moments settle within so many batches; from then on they only follow the drift of hidden layers' inputs.
_EARLY_BATCHES = 20
_MOMENT_PERIOD = 5

# Why random directions take the place of the span of a layer's inputs.
_UNSEEN = "its inputs were not seen: the module is not called as a layer of floats"
_UNREACHED = "its inputs were not seen: nothing reached it in the first batch, as an expert without a sample"

VERBS = ("observe", "propose", "score", "transport", "move")


class VerbClock:
    """Wall seconds per verb; time inside a nested verb counts for the inner one alone."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(VERBS, 0.0)
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def __call__(self, verb: str) -> Iterator[None]:
        """Time the body under a verb."""
        self._charge()
        self._open.append(verb)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


def print_plan(plan: Plan) -> None:
    """Print the plan to standard error."""
    Console(stderr=True).print(plan.table())


class Engine:
    """Gathers the costs of candidates for a :class:`PolyStep` optimizer.

    In plain PyTorch one call makes one step::

        engine = Engine(model, optimizer)
        for x, y in loader:
            loss = engine.step(lambda: criterion(model(x), y))

    Args:
        module: The module whose parameters the optimizer holds.
        optimizer: The optimizer.
        evaluation: ``"auto"``, ``"vmap"`` (refuse what vmap cannot take) or ``"loop"``.
        memory_budget: Bytes that the activations of a chunk of candidates may take; halved when memory runs out.
        max_candidates: Candidates per step for parameter groups without ``rank``; by default 16,384
            (incremental tier), 2,048 (vmap) or 256 (loop).
        layout: Which share of the candidates this process scores.
        mute: Further silences around probes, as a function that returns a context manager.
        profile: Wraps each verb, for a profiler; called with the verb.
        announce: Receives the plan once it is made; None keeps it silent.
        count_changed_pairs: Whether to estimate ``optimizer.binding.changed_pairs`` at every step.

    Raises:
        ValueError: When the module has no trainable, or lazy, or integer parameters, or not those of the optimizer.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(4, 2)
        >>> engine = Engine(model, PolyStep(model.parameters(), seed=0), announce=None)
        >>> x, y = torch.randn(8, 4), torch.tensor([0, 1] * 4)
        >>> loss = engine.step(lambda: torch.nn.functional.cross_entropy(model(x), y))
        >>> [parameter.grad for parameter in model.parameters()]
        [None, None]
    """

    def __init__(  # noqa: PLR0913 - keyword-only options, each with a default
        self,
        module: nn.Module,
        optimizer: PolyStep,
        *,
        evaluation: Evaluation = "auto",
        memory_budget: int = 256 * 2**20,
        max_candidates: int | None = None,
        layout: Layout | None = None,
        mute: Callable[[], AbstractContextManager[None]] = nullcontext,
        profile: Callable[[str], AbstractContextManager[None]] = lambda _verb: nullcontext(),
        announce: Callable[[Plan], None] | None = print_plan,
        count_changed_pairs: bool = False,
    ) -> None:
        guards.check_parameters(module)
        guards.check_owned(optimizer, module)
        self.module = module
        self.optimizer = optimizer
        self.plan: Plan | None = None
        self.clock = VerbClock()
        self._evaluation: Evaluation = evaluation
        self._memory_budget = memory_budget
        self._max_candidates = max_candidates
        self._layout = layout or Layout()
        self._mute = mute
        self._profile = profile
        self._announce = announce
        self._count_changed_pairs = count_changed_pairs
        self._blocks: list[Block] = []
        self._planned_for: frozenset[nn.Parameter] = frozenset()
        self._seen = Observation()
        self._hard_inputs = HardInputs()
        self._capture = Capture()
        self._stack, self._no_stack = _recognise(module) if evaluation == "auto" else (None, "not asked for")
        self._adapters = adapters_for(module)
        self._buffers = BufferWatch(module)
        self._written_buffers: frozenset[str] = frozenset()
        self._warned: set[str] = set()
        optimizer.binding.attached = True
        optimizer.binding.verb = self.verb
        optimizer.binding.tiers = self._tiers

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Wrap the commit pass, the one run of the user's step that counts: no autograd, seeded noise, sites seen."""
        self._follow_frozen_parameters()
        self._buffers = BufferWatch(self.module)
        self.start_pass()
        with (
            self.verb("observe"),
            self._adapters.observing(),
            torch.no_grad(),
            noise_frame(*self._noise_key()),
            observe(self.module, self._blocks, self._due_for_moments()) as self._seen,
            noticing(self.module) as self._hard_inputs,
            capturing(self._stack, self._capture) if self._stack is not None else nullcontext(),
        ):
            yield
            learn_inputs(self._seen, self.optimizer.statistics)

    def start_pass(self) -> None:
        """Take note that the code that probes will run again starts now; :meth:`observing` does so by itself."""
        self._adapters.start()

    @torch.no_grad()
    def probe(self, evaluate: Callable[[], Tensor], loss: Tensor, *, samples: int = 0, weight: float = 1.0) -> None:
        """Score this step's candidates on one micro-batch and add their costs to the optimizer.

        Args:
            evaluate: Runs the user's step again and returns its loss, a scalar.
            loss: The loss of the commit pass.
            samples: Samples in the micro-batch, for the counters.
            weight: Weight of the micro-batch in the step.

        Raises:
            ValueError: When the loss is no floating-point tensor.
        """
        if not bool(torch.isfinite(guards.check_loss(loss)).all()):
            self._count_skipped("loss", guards.NON_FINITE_LOSS)
        elif layers := self._hard_inputs.non_finite():
            self._count_skipped("inputs", guards.non_finite_inputs(layers))
        else:
            self._gather(evaluate, loss, samples, weight)
        self.optimizer.progress.micro_batch += 1
        # The next loss of a manual step has a pass of its own to explain it.
        self._capture.clear()

    def _gather(self, evaluate: Callable[[], Tensor], loss: Tensor, samples: int, weight: float) -> None:
        progress, pending = self.optimizer.progress, self.optimizer.binding.pending
        # A manual step probes from inside the commit pass, so what was seen must be learnt here already.
        learn_inputs(self._seen, self.optimizer.statistics)
        self._written_buffers |= self._buffers.written(self.module)
        probe = Probe(
            self.module,
            self._adapters.rewound(evaluate),
            self._noise_key(),
            self._written_buffers,
            mute=self._silenced,
            vectorised=self._adapters.vectorised,
        )
        self._check_stack(loss)
        plan = self.plan or self._make_plan(probe)
        probe.live_metrics = plan.live_metrics
        if pending is None:
            with self.verb("propose"):
                pending = self._loaded_pending(plan) or self._propose(plan)
        with self.verb("score"), probe.isolated():
            assignments = {assignment.block: assignment for assignment in plan.assignments}
            for proposal, total, incumbent in zip(pending.proposals, pending.costs, pending.incumbents, strict=True):
                share = self._layout.share(proposal.candidates)
                losses = self._layout.gather(score(proposal, assignments[proposal.block], probe, share))
                total.add_(losses, alpha=weight)
                incumbent.add_(assignments[proposal.block].incumbent(loss).to(incumbent), alpha=weight)
            if self._count_changed_pairs:
                self.optimizer.binding.changed_pairs = {
                    proposal.block.name: tier.changed_pairs(proposal)
                    for proposal in pending.proposals
                    if isinstance(tier := assignments[proposal.block].tier, StackTier)
                }
        pending.weight += weight
        self.optimizer.binding.pending = pending
        candidates = sum(proposal.candidates for proposal in pending.proposals)
        progress.candidates += candidates
        progress.samples += candidates * samples

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """Make one step in plain PyTorch.

        Args:
            closure: Computes the loss of the batch from the module. It is called once for real, and again for every
                chunk of candidates; no autograd.

        Returns:
            The loss before the step.
        """
        with self.observing():
            loss = guards.check_loss(closure())
        self.optimizer.zero_grad()
        self.probe(closure, loss)
        self.optimizer.step()
        return loss

    @contextmanager
    def verb(self, name: str) -> Iterator[None]:
        """Time the body under a verb, for the engine's clock and the profiler."""
        with self.clock(name), self._profile(name):
            yield

    @contextmanager
    def _silenced(self) -> Iterator[None]:
        with self._mute(), self._adapters.probing():
            yield

    def _noise_key(self) -> tuple[int, int, int]:
        progress = self.optimizer.progress
        return self.optimizer.seed, progress.step, progress.micro_batch

    def _due_for_moments(self) -> set[str]:
        """Return the blocks whose running second moment takes this batch in: all at first, then every fifth step."""
        known, step = self.optimizer.statistics, self.optimizer.progress.step
        early = {b.name for b in self._blocks if b.name not in known or known[b.name].batches < _EARLY_BATCHES}
        return {b.name for b in self._blocks} if step % _MOMENT_PERIOD == 0 else early

    def _follow_frozen_parameters(self) -> None:
        """Plan afresh when parameters were frozen, unfrozen or added since the last plan, as fine-tuning does."""
        groups = self.optimizer.param_groups
        trainable = frozenset(p for group in groups for p in group["params"] if p.requires_grad)
        if trainable != self._planned_for:
            names = self._adapters.held()
            held = {parameter for name, parameter in self.module.named_parameters() if name in names}
            self._blocks = [b for b in find_blocks(self.module, groups) if held.isdisjoint(b.parameters)]
            self._planned_for = trainable
            self.plan = None

    def _make_plan(self, probe: Probe) -> Plan:
        # Trial proposals may refresh a basis, which in the middle of an accumulation window is the next step's to do.
        known = {name: replace(statistics) for name, statistics in self.optimizer.statistics.items()}
        for block in self._blocks:
            if block.subspace == "inputs" and block.name not in self.optimizer.statistics:
                block.subspace = "gaussian"
                block.remark = _UNSEEN if self._seen.calls.get(block.name) else _UNREACHED
        self.plan = make_plan(
            self._blocks,
            self._seen,
            probe,
            self._propose_block,
            self._fastest_tier,
            evaluation=self._evaluation,
            memory_budget=self._memory_budget,
            max_candidates=self._max_candidates,
            known_tiers=self.optimizer.binding.loaded_tiers,
        )
        self.optimizer.binding.loaded_tiers = {}
        trainable = {name for name, parameter in self.module.named_parameters() if parameter in self._planned_for}
        self.plan.held = {name: reason for name, reason in self._adapters.held().items() if name in trainable}
        pending = self._propose(self.plan)
        self.plan.last_candidates = {p.block.name: p.candidates for p in pending.proposals}
        self.optimizer.statistics.update(known)
        if self._announce is not None:
            self._announce(self.plan)
        return self.plan

    def _propose(self, plan: Plan) -> Pending:
        proposals = [
            self._propose_block(assignment.block, assignment.rank, assignment.most_rows, assignment.rotations)
            for assignment in plan.assignments
            if assignment.block.trainable
        ]
        costs = [torch.zeros(p.candidates, dtype=torch.float64, device=p.rows.device) for p in proposals]
        return Pending(proposals, costs, incumbents=[total.new_zeros(()) for total in costs])

    def _tiers(self) -> dict[str, str]:
        return {} if self.plan is None else {a.block.name: a.tier.name for a in self.plan.assignments}

    def _loaded_pending(self, plan: Plan) -> Pending | None:
        """Return what a checkpoint from the middle of an accumulation window had gathered, once."""
        state, self.optimizer.binding.loaded = self.optimizer.binding.loaded, None
        if state is None:
            return None
        try:
            return Pending.restored(state, [a.block for a in plan.assignments if a.block.trainable])
        except KeyError as error:
            warnings.warn(guards.LOST_WINDOW.format(error.args[0]), stacklevel=4)
            return None

    def _propose_block(self, block: Block, rank: int, most_rows: int | None, rotations: int = 1) -> Proposal:
        optimizer = self.optimizer
        return propose(
            block,
            optimizer.statistics.get(block.name),
            optimizer.reach(block),
            seed=optimizer.seed,
            step=optimizer.progress.step,
            rank=rank,
            rotations=rotations,
            most_rows=most_rows,
        )

    def _fastest_tier(self, block: Block) -> StackTier:
        if self._stack is None:
            raise NotAStackError(self._no_stack)
        return fastest_tier(block, self._stack, self._capture)

    def _check_stack(self, loss: Tensor) -> None:
        """Give the stack up, once and with the reason, when it does not explain the loss of the commit pass."""
        if self._stack is None:
            return
        problem = disagreement(self._stack, self._capture, loss)
        if problem is None:
            return
        self._stack, self._no_stack = None, problem
        if self.plan is not None:
            self.plan = None
            warnings.warn(f"The network is run for each candidate from now on: {problem}.", stacklevel=3)

    def _count_skipped(self, cause: str, message: str) -> None:
        self.optimizer.progress.skipped += 1
        if cause not in self._warned:
            self._warned.add(cause)
            warnings.warn(message, stacklevel=3)


def _recognise(module: nn.Module) -> tuple[Stack | None, str]:
    """Return the module's stack, or why it has none."""
    try:
        return recognise(module), ""
    except NotAStackError as error:
        return None, str(error)
