"""The engine: observe, propose and score, for any module and any way of computing its loss."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_polystep import guards
from lightning_polystep.agreement import Agreement, Notes, on_grid
from lightning_polystep.allocator import keep_memory
from lightning_polystep.backtracking import Backtracking
from lightning_polystep.clock import VerbClock
from lightning_polystep.fingerprint import fingerprint
from lightning_polystep.health import Health
from lightning_polystep.hosted import HostedOptimizer, Pending
from lightning_polystep.in_turn import IN_TURN, movers_of
from lightning_polystep.input_learning import InputLearning
from lightning_polystep.interop.adapters import adapters_for
from lightning_polystep.isolation import BufferWatch
from lightning_polystep.lookups import follow_lookups, is_something, rows_to_probe
from lightning_polystep.non_finite import HardInputs, noticing
from lightning_polystep.pace import Pace
from lightning_polystep.parallel import divide
from lightning_polystep.particles import Block, Proposal
from lightning_polystep.processes import Processes
from lightning_polystep.randomness import noise_frame
from lightning_polystep.scoring.plan import Plan, make_plan
from lightning_polystep.scoring.plan_table import print_plan
from lightning_polystep.scoring.probe import Probe
from lightning_polystep.scoring.providers import Evaluation, providers_of
from lightning_polystep.scoring.recognised import Recognised
from lightning_polystep.scoring.taped import Recording
from lightning_polystep.sites import Observation
from lightning_polystep.snapshot import Snapshot
from lightning_polystep.step import look, observe, score
from lightning_polystep.structure import Structure, warn_of_changes
from lightning_polystep.tape import unrecorded


class Engine:
    """Gathers the costs of candidates for :class:`PolyStep`, or another hosted optimizer.

    In plain PyTorch one call makes one step: ``loss = engine.step(lambda: criterion(model(x), y))``.

    Args:
        module: The module whose parameters the optimizer holds.
        optimizer: The optimizer.
        evaluation: ``"auto"``, ``"tape"`` (refuse what the tape cannot carry) or ``"loop"``.
        memory_budget: Bytes that the activations of a chunk of candidates may take; halved when memory runs out.
        max_candidates: Candidates per step for groups without ``rank``; by default what cost a few steps of a gradient.
        processes: This process among others; by default it is alone.
        check_replicas_every_n_steps: Steps from one comparison of all processes' parameters to the next.
        mute: Further silences around probes, as a function that returns a context manager.
        profile: Wraps each verb, for a profiler; called with the verb.
        announce: Receives the plan once it is made; None keeps it silent.
        count_changed_pairs: Whether to estimate ``optimizer.binding.changed_pairs`` at every step.
        batches_per_epoch: Returns how many batches an epoch has, for the plan's line on time; infinite if unknown.

    Raises:
        ValueError: When an argument is out of range, or the module has no trainable, or lazy parameters, or not those
            of the optimizer.

    Example:
        >>> import torch
        >>> from lightning_polystep import PolyStep
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
        optimizer: HostedOptimizer,
        *,
        evaluation: Evaluation = "auto",
        memory_budget: int = 256 * 2**20,
        max_candidates: int | None = None,
        processes: Processes | None = None,
        check_replicas_every_n_steps: int = 50,
        mute: Callable[[], AbstractContextManager[None]] = nullcontext,
        profile: Callable[[str], AbstractContextManager[None]] = lambda _verb: nullcontext(),
        announce: Callable[[Plan], None] | None = print_plan,
        count_changed_pairs: bool = False,
        batches_per_epoch: Callable[[], float] = lambda: float("inf"),
    ) -> None:
        guards.check_engine(
            module,
            optimizer,
            evaluation=evaluation,
            memory_budget=memory_budget,
            max_candidates=max_candidates,
            check_replicas_every_n_steps=check_replicas_every_n_steps,
        )
        guards.check_parameters(module)
        guards.check_owned(optimizer, module)
        keep_memory()
        self.module, self.optimizer = module, optimizer
        self.plan: Plan | None = None
        self.clock = VerbClock()
        self._pace = Pace(self.clock, batches_per_epoch, quiet=announce is None)
        self._memory_budget, self._max_candidates = memory_budget, max_candidates
        self._evaluation: Evaluation = evaluation
        self._agreement = Agreement(
            processes or Processes(), lambda: fingerprint(list(module.parameters())), check_replicas_every_n_steps
        )
        self._inputs = InputLearning(optimizer, self._agreement)
        self._mute, self._profile = mute, profile
        self._announce, self._count_changed_pairs = announce, count_changed_pairs
        self._blocks: list[Block] = []
        self._planned_for: frozenset[nn.Parameter] = frozenset()
        self._seen, self._hard_inputs = Observation(), HardInputs()
        self._recognised = Recognised(module)
        if evaluation != "auto":
            self._recognised.give_up("not asked for")
        self._adapters, self._structure = adapters_for(module), Structure(module)
        self._health = Health(module)
        self._buffers = BufferWatch(module)
        self._recording = Recording(learned=optimizer.learned, divides_batches=self._agreement.sharded)
        self._observing = False
        self._before: Snapshot | None = None
        self._written_buffers: frozenset[str] = frozenset()
        self._shared_buffers: frozenset[str] = frozenset()
        self._warned: set[str] = set()
        optimizer.binding.attached, optimizer.binding.alone = True, not self._agreement.several
        optimizer.binding.verb = self.verb
        optimizer.binding.tiers = self._tiers
        optimizer.binding.agree = self._agree
        optimizer.binding.movers = movers_of(module)
        self._backtracking = Backtracking(optimizer, self._agreement)
        optimizer.binding.decided = self._backtracking.decided

    @contextmanager
    def observing(self, code: Any = None) -> Iterator[None]:
        """Wrap the commit pass, the one run of the user's step that counts: no autograd, seeded noise, sites seen.

        Args:
            code: What runs: a function, a method or a ``functools.partial``, which holds the batch.
        """
        self._follow_changes()
        self._pace.tell(self.plan)
        self._buffers = BufferWatch(self.module)
        self._adapters.start()
        with (
            self.verb("observe"),
            self._health.looking(),
            self._adapters.observing(),
            torch.no_grad(),
            noise_frame(*self._noise_key()),
            observe(self.module, self._blocks, self._inputs.measured(self._inputs.own_batch)) as self._seen,
            noticing(self.module) as self._hard_inputs,
            self._recognised.capturing(),
        ):
            self._observing = True
            self._remember(code)
            try:
                with self._recording.recording() if self._wants_tape else nullcontext():
                    yield
            finally:
                self._observing = False
            if not self._agreement.sharded:
                self._take_inputs()
                self._inputs.learn()

    @property
    def _wants_tape(self) -> bool:
        """Whether this commit pass has to be recorded: to make a plan, or to score by it."""
        if self._evaluation == "loop":
            return False
        return self.plan is None or any(assignment.tier.reads_tape for assignment in self.plan.assignments)

    def ends_in(self, loss: Any) -> None:
        """Take note of the very loss that the commit pass returned, before anything else is made of it."""
        if isinstance(loss, Tensor):
            self._recording.ends_in(loss)

    def start_pass(self, code: Any = None) -> None:
        """Take note that probes will run this code again from here; :meth:`observing` does so by itself."""
        self._adapters.start()
        with unrecorded():
            self._remember(code)

    def _remember(self, code: Any) -> None:
        """Remember what everything is where the step begins, if it may be run again from there."""
        plan = self.plan
        skip = (Metric,) if plan is not None and not plan.live_metrics else ()
        self._before = Snapshot.of_step(self.module, code, skip) if plan is None or plan.reruns_step else None

    def moved(self, parameters: Iterable[Tensor]) -> None:
        """Take note that an optimizer has moved parameters while the step goes on, as in manual optimization."""
        if self._before is not None:
            self._before.accept(parameters)

    @torch.no_grad()
    def probe(
        self,
        evaluate: Callable[[], Tensor | None],
        loss: Tensor,
        *,
        samples: int = 0,
        weight: float = 1.0,
        batch: int = 0,
    ) -> None:
        """Score this step's candidates on one micro-batch and add their costs to the optimizer.

        Args:
            evaluate: Runs the user's step again and returns its loss, a scalar; None counts as not finite.
            loss: The loss of the commit pass.
            samples: Samples in the micro-batch, for the counters.
            weight: Weight of the micro-batch in the step.
            batch: Fingerprint of the micro-batch, by which processes that share it check that they do.

        Raises:
            ValueError: When the loss is no floating-point tensor.
        """
        if self._recording.loss is None:
            self._recording.ends_in(loss)
        with unrecorded():
            self._probe(evaluate, loss, samples, weight, batch)

    def _probe(
        self, evaluate: Callable[[], Tensor | None], loss: Tensor, samples: int, weight: float, batch: int
    ) -> None:
        problem = self._unfit(loss)
        self._agreement.notes.see(batch, loss)
        # A manual step probes from inside the commit pass, so what was seen must be learnt here already.
        self._take_inputs()
        fit = problem is None if self.plan is not None else self._agreement.ready(problem is None)
        if fit:
            self._gather(guards.none_as_nan(evaluate, loss), loss, samples, weight)
        else:
            # Of the first micro-batch another process may have had the broken part.
            self._count_skipped(*(problem or ("loss", guards.NON_FINITE_LOSS)))
            self._abstain()
        self._inputs.learn()
        self.optimizer.progress.micro_batch += 1
        # The next loss of a manual step has a pass of its own to explain it.
        self._recognised.clear()
        if self._observing:
            self._recording.loss = None
        else:
            self._backtracking.keep(self._recording, self.plan if fit else None)
            self._recording.clear()

    def _take_inputs(self) -> None:
        """Take what sites have seen, and what the tape shows of parameters that are in no layer."""
        if self._recording.tape is not None:
            wanted = self._inputs.measured(self._inputs.own_batch)
            self._seen.read(self._recording.tape, [block for block in self._blocks if block.name in wanted])
            trained = [parameter for block in self._blocks for parameter in block.parameters]
            self._seen.tell_hidden(self._recording.tape, trained)
        self._inputs.take(self._seen)

    def _unfit(self, loss: Tensor) -> tuple[str, str] | None:
        """Return why a micro-batch must not be scored, as a cause and a message; None when it can be."""
        if not bool(torch.isfinite(guards.check_loss(loss)).all()):
            return "loss", guards.NON_FINITE_LOSS
        layers = self._hard_inputs.non_finite()
        return ("inputs", guards.non_finite_inputs(layers)) if layers else None

    def _abstain(self) -> None:
        """Propose what the other processes do, when they do, and score nothing of it."""
        if self._agreement.several and self.plan is not None and self.optimizer.binding.pending is None:
            self._inputs.learn(most=1)
            self.optimizer.binding.pending = self._start(self.plan)

    def _gather(self, evaluate: Callable[[], Tensor], loss: Tensor, samples: int, weight: float) -> None:
        progress, pending = self.optimizer.progress, self.optimizer.binding.pending
        if self._objects(loss):
            self._abstain()
            return
        # A step's directions come from its first shard, however many there are.
        self._inputs.learn(most=1 if pending is None else None)
        self._written_buffers |= self._buffers.written(self.module)
        rewound, key = self._adapters.rewound(evaluate), self._noise_key()
        probe = Probe(self.module, rewound, key, mute=self._silenced, before=self._before)
        with nullcontext() if self.plan is not None else self._pace.planning(len(self._blocks)):
            plan = self.plan or self._make_plan(probe)
        probe.live_metrics = plan.live_metrics
        if pending is None:
            with self.verb("propose"):
                pending = self._start(plan)
        with self.verb("score"), probe.isolated(), self._pace.scoring(plan.candidates):
            self._recognised.select_samples(self.optimizer.importance_sampling, self._noise_key())
            assignments = {assignment.block: assignment for assignment in plan.assignments}
            look(pending.proposals, assignments, probe)
            for index, (proposal, share) in enumerate(zip(pending.proposals, pending.shares, strict=True)):
                assignment, started = assignments[proposal.block], time.perf_counter()
                losses = score(proposal, assignment, probe, share)
                pending.costs[index][share.start : share.stop] += on_grid(weight * losses)
                pending.incumbents[index] += on_grid(weight * assignment.incumbent(loss).to(losses))
                pending.seconds[index] += time.perf_counter() - started
            if self._count_changed_pairs:
                self.optimizer.binding.changed_pairs = plan.changed_pairs(pending.proposals)
        pending.weight += weight
        self.optimizer.binding.pending = pending
        for proposal in pending.proposals:
            scored = assignments[proposal.block].tier.scored_samples(samples)
            for counters in (progress, self._agreement.notes):
                counters.candidates += proposal.candidates
                counters.samples += proposal.candidates * scored

    def _agree(self, pending: Pending | None) -> Pending | None:
        """Turn what this process has gathered for a step into what all have, at the optimizer's step."""
        if not self._agreement.several or self.plan is None:
            self._agreement.notes = Notes()
            return pending
        # Who was given no loss in this step comes to the collective all the same.
        pending = pending or self._start(self.plan)
        named = dict(self.module.named_buffers())
        buffers = [named[name] for name in sorted(self._shared_buffers & named.keys())]
        with self.verb("score"):
            objected = self._agreement.settle(self.plan.assignments, pending, self.optimizer.progress, buffers)
        if objected and self._recognised.holds:
            self._give_up(self._recognised.objection or "it does not explain the loss of another process")
        return pending

    def complete(self, state: dict[str, Any]) -> None:
        """Put what all processes know of a half-gathered step into a state of the optimizer, for a checkpoint.

        A collective in the middle of an accumulation window, where every process holds a part: all have to call it.

        Args:
            state: What the optimizer's ``state_dict()`` returned; changed in place.
        """
        pending = self.optimizer.binding.pending
        if self._agreement.several and self.plan is not None and pending is not None:
            whole, counted = self._agreement.gather(self.plan.assignments, pending, self.optimizer.progress)
            state["polystep"] |= {"pending": whole.state_dict(), "progress": dict(vars(counted))}

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """Make one step in plain PyTorch, and return the loss before it.

        Args:
            closure: Computes the loss of the batch from the module. It is called once for real, and again for every
                chunk of candidates; no autograd.

        Raises:
            ValueError: When the closure is no function, or returns no loss.
        """
        guards.check_closure(closure)
        with self.observing(closure):
            loss = guards.check_loss(closure())
        self.ends_in(loss)
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
        return self.optimizer.seed, progress.step, self._inputs.own_batch

    def _follow_changes(self) -> None:
        """Plan afresh when parameters were frozen, unfrozen or added since the last plan, or parts were replaced."""
        groups, changes = self.optimizer.param_groups, self._structure.changes()
        trainable = frozenset(p for group in groups for p in group["params"] if p.requires_grad)
        if changes:
            warn_of_changes(changes, self.module, groups, planned=self.plan is not None)
            self._adapters = adapters_for(self.module)
            self._recognised = Recognised(self.module) if self._evaluation == "auto" else self._recognised
        if trainable != self._planned_for or changes:
            names = self._adapters.held()
            held = {parameter for name, parameter in self.module.named_parameters() if name in names}
            self._blocks = self.optimizer.blocks(self.module, held)
            self._inputs.follow(self._blocks)
            self._planned_for = trainable
            self.plan = None

    def _make_plan(self, probe: Probe) -> Plan:
        statistics = self.optimizer.statistics
        # Trial proposals may refresh a basis, which in the middle of an accumulation window is the next step's to do.
        known = {name: replace(each) for name, each in statistics.items()}
        self._seen.settle(self._blocks, statistics)
        for block in self._blocks:
            block.remark = IN_TURN if self.optimizer.moves_in_turn(block) else block.remark
            follow_lookups(block, None if self._agreement.sharded else self._seen.asked(block), probe)
        if self._recording.tape is None and self._evaluation != "loop":
            self._recording.record(probe)
        providers = providers_of(self.module, self._recognised, self._recording, self._evaluation)
        self.plan = make_plan(
            self._blocks,
            probe,
            self._propose_block,
            providers,
            memory_budget=self._memory_budget,
            max_candidates=self._max_candidates,
            known_tiers=self.optimizer.binding.loaded_tiers,
            agree=self._agreement.slowest,
        )
        self.optimizer.binding.loaded_tiers = {}
        if self._agreement.sharded:
            names = [name for name, _ in self.module.named_buffers()]
            self._shared_buffers = self._agreement.by_any(names, self._written_buffers)
        trainable = {name for name, parameter in self.module.named_parameters() if parameter in self._planned_for}
        if self.optimizer.importance_sampling:
            self.plan.note_sampling(squares=self._recognised.squares)
        self.plan.held = {name: reason for name, reason in self._adapters.held().items() if name in trainable}
        self.plan.count_candidates(statistics)
        self._backtracking.note(self.plan)
        statistics.update(known)
        if self._announce is not None:
            self._announce(self.plan)
        return self.plan

    def _start(self, plan: Plan) -> Pending:
        """Return the candidates of a step, with what a checkpoint from the middle of it had gathered."""
        return self._loaded_pending(plan) or self._propose(plan)

    def _propose(self, plan: Plan) -> Pending:
        proposals = [
            self._propose_block(assignment.block, assignment.rank, assignment.most_rows, assignment.rotations)
            for assignment in plan.due(self.optimizer.round, self.optimizer.scores)
            if is_something(self._in_play(assignment.block))
        ]
        costs = [torch.zeros(p.candidates, dtype=torch.float64, device=p.rows.device) for p in proposals]
        pending = Pending(proposals, costs, incumbents=[total.new_zeros(()) for total in costs])
        return self._shared(pending, plan)

    def _shared(self, pending: Pending, plan: Plan) -> Pending:
        """Say which candidates of a step this process scores."""
        assignments = {assignment.block: assignment for assignment in plan.assignments}
        pending.in_turn = [b for b in assignments if b.trainable and self.optimizer.moves_in_turn(b)]
        work = [assignments[proposal.block].work(proposal) for proposal in pending.proposals]
        pending.shares = divide(work, self._agreement.layout.candidates, self._agreement.balance.parts)
        pending.seconds = [0.0] * len(work)
        return pending

    def _tiers(self) -> dict[str, str]:
        return {} if self.plan is None else {a.block.name: a.tier.name for a in self.plan.assignments}

    def _loaded_pending(self, plan: Plan) -> Pending | None:
        """Return what a checkpoint from the middle of an accumulation window had gathered, once."""
        due = plan.due(self.optimizer.round, self.optimizer.scores)
        whole = self.optimizer.binding.take_loaded([assignment.block for assignment in due])
        if whole is None:
            return None
        # The costs of all processes will be summed, so one of them holds what is there already.
        return self._shared(whole if self._agreement.layout.rank == 0 else whole.emptied(), plan)

    def _propose_block(self, block: Block, rank: int, most_rows: int | None, rotations: int = 1) -> Proposal:
        among = self._in_play(block)
        return self.optimizer.propose(block, rank=rank, rotations=rotations, most_rows=most_rows, among=among)

    def _in_play(self, block: Block) -> Tensor | None:
        """Return the rows of a table that are probed on this batch, shape (rows,); None for all, as of any weight."""
        # Processes that divide a batch do not know which rows the others read.
        return rows_to_probe(block, None if self._agreement.sharded else self._seen.asked(block))

    def _objects(self, loss: Tensor) -> bool:
        """Tell whether this shard is to be left out, because the stack does not explain the loss of its commit pass.

        The stack is given up then, once and with the reason: at once where all processes see the same, else with the
        step.
        """
        problem = self._recognised.disagreement(loss)
        if problem is None:
            return False
        if self._agreement.sharded and self.plan is not None:
            self._recognised.objection = problem
            self._agreement.notes.objections += 1
            return True
        self._give_up(problem)
        return False

    def _give_up(self, problem: str) -> None:
        self._recognised.give_up(problem)
        if self.plan is not None:
            self.plan = None
            warnings.warn(f"The network is scored as any other from now on, which is slower: {problem}.", stacklevel=4)

    def _count_skipped(self, cause: str, message: str) -> None:
        self.optimizer.progress.skipped += 1
        self._agreement.notes.skipped += 1
        if cause not in self._warned:
            self._warned.add(cause)
            warnings.warn(message, stacklevel=3)
