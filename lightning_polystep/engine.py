"""The engine: runs observe, propose and score for any module, in this order, on every micro-batch.

=========  =================================================================================================
verb       who does it
=========  =================================================================================================
observe    :meth:`Engine.observing`, with ``commit_pass.py``; what changes of the module: ``trained.py``
propose    ``proposing.py``; how many candidates, and how they will be scored: ``planning.py``, once
score      :meth:`Engine.probe`, with ``scoring/``
transport  the optimizer, which :meth:`Engine.step` calls: ``optimizer.py``
move       the optimizer likewise
=========  =================================================================================================
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lightning_polystep import guards
from lightning_polystep.agreement import Agreement, Notes, on_grid
from lightning_polystep.allocator import keep_memory
from lightning_polystep.backtracking import Backtracking
from lightning_polystep.clock import VerbClock
from lightning_polystep.commit_pass import CommitPass
from lightning_polystep.fingerprint import fingerprint
from lightning_polystep.hosted import HostedOptimizer, Pending
from lightning_polystep.in_turn import movers_of
from lightning_polystep.input_learning import InputLearning
from lightning_polystep.pace import Pace
from lightning_polystep.planning import Planning
from lightning_polystep.processes import Processes
from lightning_polystep.proposing import Proposing
from lightning_polystep.scoring.plan import Plan
from lightning_polystep.scoring.plan_table import print_plan
from lightning_polystep.scoring.probe import Probe
from lightning_polystep.scoring.providers import Evaluation
from lightning_polystep.scoring.taped import Recording
from lightning_polystep.shared_buffers import SharedBuffers
from lightning_polystep.step import look, score
from lightning_polystep.tape import unrecorded
from lightning_polystep.trained import Trained


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
        self.module = module
        self.optimizer = optimizer
        self.plan: Plan | None = None
        self.clock = VerbClock()
        self._evaluation = evaluation
        self._mute = mute
        self._profile = profile
        self._announce = announce
        self._count_changed_pairs = count_changed_pairs
        self._pace = Pace(self.clock, batches_per_epoch, quiet=announce is None)
        self._agreement = Agreement(
            processes or Processes(), lambda: fingerprint(list(module.parameters())), check_replicas_every_n_steps
        )
        self._inputs = InputLearning(optimizer, self._agreement)
        self._trained = Trained(module, optimizer, recognises=evaluation == "auto")
        self._recording = Recording(learned=optimizer.learned, divides_batches=self._agreement.sharded)
        self._pass = CommitPass(self._trained, self._inputs, self._recording)
        self._buffers = SharedBuffers(module, self._agreement)
        self._proposing = Proposing(optimizer, self._agreement)
        self._planning = Planning(
            optimizer, self._trained, self._pass, self._proposing, evaluation, memory_budget, max_candidates
        )
        self._backtracking = Backtracking(optimizer, self._agreement)
        self._warned: set[str] = set()
        self._bind()

    def _bind(self) -> None:
        """Let the optimizer reach what its steps need."""
        binding = self.optimizer.binding
        binding.attached = True
        binding.alone = not self._agreement.several
        binding.verb = self.verb
        binding.tiers = self._tiers
        binding.agree = self._agree
        binding.movers = movers_of(self.module)
        binding.decided = self._backtracking.decided

    # Observe

    @contextmanager
    def observing(self, code: Any = None) -> Iterator[None]:
        """Wrap the commit pass, the one run of the user's step that counts: no autograd, seeded noise, sites seen.

        Args:
            code: What runs: a function, a method or a ``functools.partial``, which holds the batch.
        """
        if self._trained.follow(planned=self.plan is not None):
            self._inputs.follow(self._trained.blocks)
            self.plan = None
        self._pace.tell(self.plan)
        self._buffers.watch()
        self._trained.adapters.start()
        with self.verb("observe"), self._pass.running(self._noise_key(), code, self.plan, records=self._wants_tape):
            yield

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
        self._trained.adapters.start()
        with unrecorded():
            self._pass.remember(code, self.plan)

    def moved(self, parameters: Iterable[Tensor]) -> None:
        """Take note that an optimizer has moved parameters while the step goes on, as in manual optimization."""
        if self._pass.before is not None:
            self._pass.before.accept(parameters)

    # Propose and score

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
        problem = self._pass.unfit(loss)
        self._agreement.notes.see(batch, loss)
        # A manual step probes from inside the commit pass, so what was seen must be learnt here already.
        self._pass.take_inputs()
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
        self._trained.recognised.clear()
        if self._pass.runs:
            self._recording.loss = None
        else:
            self._backtracking.keep(self._recording, self.plan if fit else None)
            self._recording.clear()

    def _abstain(self) -> None:
        """Propose what the other processes do, when they do, and score nothing of it."""
        if self._agreement.several and self.plan is not None and self.optimizer.binding.pending is None:
            self._inputs.learn(most=1)
            self.optimizer.binding.pending = self._proposing.of_step(self.plan, self._pass.seen)

    def _gather(self, evaluate: Callable[[], Tensor], loss: Tensor, samples: int, weight: float) -> None:
        """Score the step's candidates on a micro-batch, and propose them first if it is the first."""
        pending = self.optimizer.binding.pending
        if self._objects(loss):
            self._abstain()
            return
        # A step's directions come from its first shard, however many there are.
        self._inputs.learn(most=1 if pending is None else None)
        self._buffers.take()
        probe = Probe(
            self.module,
            self._trained.adapters.rewound(evaluate),
            self._noise_key(),
            mute=self._silenced,
            before=self._pass.before,
        )
        plan = self.plan or self._make_plan(probe)
        probe.live_metrics = plan.live_metrics
        if pending is None:
            with self.verb("propose"):
                pending = self._proposing.of_step(plan, self._pass.seen)
        with self.verb("score"), probe.isolated(), self._pace.scoring(plan.candidates):
            self._trained.recognised.select_samples(self.optimizer.importance_sampling, self._noise_key())
            self._score(plan, pending, probe, loss, weight)
            if self._count_changed_pairs:
                self.optimizer.binding.changed_pairs = plan.changed_pairs(pending.proposals)
        pending.weight += weight
        self.optimizer.binding.pending = pending
        self._count(plan, pending, samples)

    def _make_plan(self, probe: Probe) -> Plan:
        with self._pace.planning(len(self._trained.blocks)):
            self.plan = plan = self._planning.make(probe)
            self._buffers.agree()
            self._backtracking.note(plan)
            if self._announce is not None:
                self._announce(plan)
        return plan

    def _score(self, plan: Plan, pending: Pending, probe: Probe, loss: Tensor, weight: float) -> None:
        """Add the costs of this process's share of the candidates."""
        assignments = {assignment.block: assignment for assignment in plan.assignments}
        look(pending.proposals, assignments, probe)
        for index, (proposal, share) in enumerate(zip(pending.proposals, pending.shares, strict=True)):
            assignment = assignments[proposal.block]
            started = time.perf_counter()
            losses = score(proposal, assignment, probe, share)
            pending.costs[index][share.start : share.stop] += on_grid(weight * losses)
            pending.incumbents[index] += on_grid(weight * assignment.incumbent(loss).to(losses))
            pending.seconds[index] += time.perf_counter() - started

    def _count(self, plan: Plan, pending: Pending, samples: int) -> None:
        """Count the candidates that a micro-batch has scored, and on how many samples."""
        tiers = {assignment.block: assignment.tier for assignment in plan.assignments}
        for proposal in pending.proposals:
            scored = tiers[proposal.block].scored_samples(samples)
            for counters in (self.optimizer.progress, self._agreement.notes):
                counters.candidates += proposal.candidates
                counters.samples += proposal.candidates * scored

    def _agree(self, pending: Pending | None) -> Pending | None:
        """Turn what this process has gathered for a step into what all have, at the optimizer's step."""
        if not self._agreement.several or self.plan is None:
            self._agreement.notes = Notes()
            return pending
        # Who was given no loss in this step comes to the collective all the same.
        pending = pending or self._proposing.of_step(self.plan, self._pass.seen)
        with self.verb("score"):
            objected = self._agreement.settle(
                self.plan.assignments, pending, self.optimizer.progress, self._buffers.tensors()
            )
        if objected and self._trained.recognised.holds:
            self._give_up(self._trained.recognised.objection or "it does not explain the loss of another process")
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
        with self._mute(), self._trained.adapters.probing():
            yield

    def _noise_key(self) -> tuple[int, int, int]:
        progress = self.optimizer.progress
        return self.optimizer.seed, progress.step, self._inputs.own_batch

    def _tiers(self) -> dict[str, str]:
        return {} if self.plan is None else {a.block.name: a.tier.name for a in self.plan.assignments}

    def _objects(self, loss: Tensor) -> bool:
        """Tell whether this shard is to be left out, because the stack does not explain the loss of its commit pass.

        The stack is given up then, once and with the reason: at once where all processes see the same, else with the
        step.
        """
        problem = self._trained.recognised.disagreement(loss)
        if problem is None:
            return False
        if self._agreement.sharded and self.plan is not None:
            self._trained.recognised.objection = problem
            self._agreement.notes.objections += 1
            return True
        self._give_up(problem)
        return False

    def _give_up(self, problem: str) -> None:
        self._trained.recognised.give_up(problem)
        if self.plan is not None:
            self.plan = None
            warnings.warn(f"The network is scored as any other from now on, which is slower: {problem}.", stacklevel=4)

    def _count_skipped(self, cause: str, message: str) -> None:
        self.optimizer.progress.skipped += 1
        self._agreement.notes.skipped += 1
        if cause not in self._warned:
            self._warned.add(cause)
            warnings.warn(message, stacklevel=3)
