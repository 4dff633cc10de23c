"""PolyStepStrategy: lifecycle and hooks that let a Lightning Trainer train by PolyStep.

This is Lightning's manual optimization done by the strategy itself: autograd is off and nothing runs a backward pass,
and where Lightning would call backward and step, the strategy scores candidates and steps PolyStep. The user's module
stays automatic for Lightning, so that schedulers, checkpoints, accumulation and counters work as they always do.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_polystep import guards, interruption, step_log, trainer_guards
from lightning_polystep.adoption import ForeignOptimizer, adopt_all, note_found_radii
from lightning_polystep.batch_size import allow_batch_size_finder
from lightning_polystep.callbacks.autograd_off import AutogradOff
from lightning_polystep.carried_state import CarriedState
from lightning_polystep.checkpoint_strategy import CheckpointStrategy
from lightning_polystep.engine import Engine
from lightning_polystep.fingerprint import fingerprint
from lightning_polystep.host import (
    STEP_OUTPUT,
    Accelerator,
    Callback,
    CheckpointIO,
    ClusterEnvironment,
    DummyLogger,
    LearningRateFinder,
    MisconfigurationException,
    Precision,
    TrainerFn,
    _optimizers_to_device,
    do_nothing_closure,
    pl,
    rank_zero_only,
)
from lightning_polystep.hosted import HostedOptimizer
from lightning_polystep.interruption import FinishBatchFirst
from lightning_polystep.isolation import silenced
from lightning_polystep.layout_strategy import StartMethod
from lightning_polystep.loaders import forget_order, keep_order, replayable
from lightning_polystep.namespaces import choose
from lightning_polystep.parallel import Size
from lightning_polystep.progress import rate_on_bar
from lightning_polystep.replays import BACKWARD_OUTSIDE, Replays, loss_of
from lightning_polystep.samples import samples_in
from lightning_polystep.scoring.plan_table import print_plan
from lightning_polystep.scoring.providers import Evaluation
from lightning_polystep.stepping import UNKNOWN_OPTIMIZER, Stepping


class PolyStepStrategy(CheckpointStrategy):
    """Train any LightningModule by forward passes only: ``Trainer(strategy="polystep")``.

    The user's ``training_step`` runs once per batch without autograd (logs, metrics and BatchNorm advance exactly once)
    and again, isolated, for the candidates. ``configure_optimizers`` may return :class:`PolyStep` (or one
    of ``lightning_polystep.baselines``), nothing, or another optimizer, which is replaced with a warning. Modules with
    ``automatic_optimization = False`` train as well, by ``opt.step(closure)`` or ``self.manual_backward(loss)`` and
    ``opt.step()``.

    Args:
        evaluation: How candidates are scored: "auto" takes the fastest way that agrees with one forward per candidate,
            saying why in the plan; "tape" refuses what cannot be replayed; "loop" runs one forward per candidate.
        memory_budget: Bytes that the activations of a chunk of candidates may take; halved when memory runs out.
        max_candidates: Candidates per step for parameter groups without a rank; by default 16,384
            (stacks), what costs about a few steps of a gradient (tape) or 256 (loop).
        foreign_optimizer: What to do with another optimizer: "replace" it by PolyStep and warn, or raise an "error".
        optimizer_options: PolyStep's arguments when configure_optimizers does not return a PolyStep.
        show_plan: Print the plan, which names each block's subspace, candidates, tier and reason, at the first batch.
        log_per_block: Log ``polystep/null_candidates/<block>``, the share of candidates that cost what the incumbent
            does, ``polystep/changed_pairs/<block>``, the share of pairs of candidate and sample with another loss,
            where the tier can tell, and ``polystep/flip_rate/<layer>``, the share of a quantised layer's weight codes
            that a step changed.
        accelerator: As in DDPStrategy; the Trainer sets it.
        parallel_devices: As in DDPStrategy; the Trainer sets it.
        cluster_environment: As in DDPStrategy.
        checkpoint_io: As in DDPStrategy; by default files with a checksum, written atomically.
        precision_plugin: As in DDPStrategy; the Trainer sets it.
        process_group_backend: As in DDPStrategy; unused with one process, which needs no process group.
        timeout: How long a process waits for the others, as a timedelta or in seconds.
        start_method: How processes are started on this machine: "popen" runs the script again, "spawn" and "fork" start
            functions; as in DDPStrategy.
        data_parallel_size: Shards of the batch, each seen by a group of processes; "auto" takes what the other size
            leaves.
        candidate_parallel_size: Processes that see the same batch and divide the candidates; "auto" takes what the
            other size leaves, by default all.
        check_replicas_every_n_steps: Steps from one comparison of all processes' parameters to the next.

    Raises:
        ValueError: For an argument that is out of range or of the wrong type.
        MisconfigurationException: At fit start, for settings that make no sense without gradients.

    Example:
        >>> import pytorch_lightning as pl
        >>> from lightning_polystep import PolyStepStrategy
        >>> trainer = pl.Trainer(strategy=PolyStepStrategy(max_candidates=512), accelerator="cpu", logger=False)
        >>> trainer.strategy
        PolyStepStrategy(for pytorch_lightning.Trainer)
    """

    def __init__(  # noqa: PLR0913 - LightningCLI shows exactly these; DDPStrategy's own cannot be hidden in **kwargs
        self,
        *,
        evaluation: Evaluation = "auto",
        memory_budget: int = 256 * 2**20,
        max_candidates: int | None = None,
        foreign_optimizer: ForeignOptimizer = "replace",
        optimizer_options: dict[str, Any] | None = None,
        show_plan: bool = True,
        log_per_block: bool = False,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta | float = 1800.0,
        start_method: StartMethod = "popen",
        data_parallel_size: Size = 1,
        candidate_parallel_size: Size = "auto",
        check_replicas_every_n_steps: int = 50,
    ) -> None:
        guards.check_strategy(
            evaluation=evaluation,
            memory_budget=memory_budget,
            max_candidates=max_candidates,
            foreign_optimizer=foreign_optimizer,
            optimizer_options=optimizer_options,
            show_plan=show_plan,
            log_per_block=log_per_block,
            timeout=timeout,
            start_method=start_method,
            data_parallel_size=data_parallel_size,
            candidate_parallel_size=candidate_parallel_size,
            check_replicas_every_n_steps=check_replicas_every_n_steps,
        )
        allow_batch_size_finder()
        super().__init__(
            accelerator=accelerator,
            parallel_devices=parallel_devices,
            cluster_environment=cluster_environment,
            checkpoint_io=checkpoint_io,
            precision_plugin=precision_plugin,
            process_group_backend=process_group_backend,
            timeout=timeout,
            start_method=start_method,
            data_parallel_size=data_parallel_size,
            candidate_parallel_size=candidate_parallel_size,
        )
        self.fit_seconds = 0.0
        self._evaluation: Evaluation = evaluation
        self._memory_budget = memory_budget
        self._max_candidates = max_candidates
        self._foreign_optimizer: ForeignOptimizer = foreign_optimizer
        self._optimizer_options = optimizer_options or {}
        self._show_plan = show_plan
        self._log_per_block = log_per_block
        self._check_replicas_every_n_steps = check_replicas_every_n_steps
        self._autograd_off = AutogradOff()
        self._finish_batch_first = FinishBatchFirst()
        self._stepping: Stepping | None = None
        self._of_fit = ExitStack()  # what is undone after a fit
        self._replays = Replays()
        self._samples = 0
        self._batch = 0
        self._started = 0.0

    def __repr__(self) -> str:
        """Name the package: the Trainer of the other one prints this when it refuses the object."""
        return f"{type(self).__name__}(for {choose()}.Trainer)"

    # --- lifecycle -------------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer) -> None:
        """Move the module to its device and, for fit, set up PolyStep."""
        module, accelerator = self.lightning_module, self.accelerator
        if module is None or accelerator is None:
            msg = "The Trainer sets the strategy's module and accelerator before setup."
            raise RuntimeError(msg)
        fitting = trainer.state.fn == TrainerFn.FITTING
        if fitting:
            trainer_guards.check_fit(trainer, module, sync_batchnorm=self._layer_sync is not None)
        accelerator.setup(trainer)
        self.model = self.precision_plugin.convert_module(module)
        self.model_to_device()
        self.start_alike(fitting=fitting)
        if fitting:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()
        if fitting:
            keep_order(trainer)
            self._carried = CarriedState(module)
            self._of_fit.enter_context(trainer_guards.no_clipping(self.precision_plugin))
            self._of_fit.enter_context(rate_on_bar(trainer, lambda: self.engines))
            # A gradient scaler has nothing to scale; without it the plugin only casts.
            vars(self.precision_plugin).update({"scaler": None} if hasattr(self.precision_plugin, "scaler") else {})
            _callbacks(trainer).insert(0, self._autograd_off)
            _callbacks(trainer).append(self._finish_batch_first)  # after those that save
            torch.set_grad_enabled(False)

    def setup_optimizers(self, trainer: pl.Trainer) -> None:
        """Ask the module for its optimizers, adopt them, and give each an engine."""
        guards.check_parameters(self._module)
        self._adoptions, self.engines = [], []
        self._data_seed = torch.initial_seed()
        with warnings.catch_warnings():
            # None means PolyStep with its defaults here, not "no optimizer" as Lightning's warning says.
            warnings.filterwarnings("ignore", message=r".*configure_optimizers` returned `None`.*")
            super().setup_optimizers(trainer)
        self._stepping = Stepping(self._module, self._step_by_hand)
        self._of_fit.callback(self._stepping.close)
        self._adopt(trainer)

    def _adopt(self, trainer: pl.Trainer) -> None:
        """Adopt the optimizers that there are now, and give each an engine; those that are known keep theirs."""
        module, known = self._module, dict(zip(self._adoptions, self.engines, strict=True))
        kept = {id(adoption.optimizer): adoption for adoption in self._adoptions}
        strangers = [each for each in self.optimizers if id(each) not in kept]
        schedulers = [config.scheduler for config in self.lr_scheduler_configs]
        new = iter(adopt_all(strangers, module, self._foreign_optimizer, self._optimizer_options, schedulers))
        self._adoptions = [kept[id(each)] if id(each) in kept else next(new) for each in self.optimizers]
        finding = any(isinstance(callback, LearningRateFinder) for callback in _callbacks(trainer))
        for adoption in self._adoptions:
            adoption.quiet |= finding
            if adoption not in known:
                # Without seed_everything every process starts from another seed.
                adoption.optimizer.seed = self.broadcast(adoption.optimizer.seed)
        self.optimizers = [adoption.optimizer for adoption in self._adoptions]
        _optimizers_to_device(self.optimizers, self.root_device)
        self.engines = [
            known.get(adoption) or self._make_engine(trainer, index) for index, adoption in enumerate(self._adoptions)
        ]
        assert self._stepping is not None
        self._stepping.follow(self._adoptions)

    def _make_engine(self, trainer: pl.Trainer, index: int) -> Engine:
        return Engine(
            self._module,
            self._adoptions[index].optimizer,
            evaluation=self._evaluation,
            memory_budget=self._memory_budget,
            max_candidates=self._max_candidates,
            mute=partial(self._muted, trainer),
            profile=partial(_profiled, trainer, index if len(self._adoptions) > 1 else None),
            announce=rank_zero_only(print_plan) if self._show_plan else None,
            count_changed_pairs=self._log_per_block,
            batches_per_epoch=lambda: trainer.num_training_batches,
            processes=self.processes,
            check_replicas_every_n_steps=self._check_replicas_every_n_steps,
        )

    def _index_of(self, optimizer: Optimizer) -> int:
        """Return the place of an optimizer, or of the one that it replaced; those put in later are adopted first."""
        if [id(each) for each in self.optimizers] != [id(adoption.optimizer) for adoption in self._adoptions]:
            self._adopt(self._module.trainer)
        for index, adoption in enumerate(self._adoptions):
            if optimizer is adoption.optimizer or optimizer is adoption.foreign:
                return index
        raise MisconfigurationException(UNKNOWN_OPTIMIZER.format(name=type(optimizer).__name__))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Take over optimizers that the user has put in the place of others, before the Trainer asks for them."""
        super().on_train_batch_start(batch, batch_idx)
        if self.optimizers:
            self._index_of(self.optimizers[0])

    def on_train_start(self) -> None:
        """Compare the processes' loaders, and start the clock; a resumed fit goes on where it was in its data."""
        self.compare_loaders()
        self.go_on()
        self._started = time.perf_counter()

    def process_dataloader(self, dataloader: Any) -> Any:
        """Make the order of training data repeatable."""
        trainer = self._module.trainer
        return replayable(dataloader, trainer, self._data_seed, self.layout.data) if trainer.training else dataloader

    def on_train_end(self) -> None:
        """Stop the clock of the fit; validation counts, setting up does not."""
        self.fit_seconds = time.perf_counter() - self._started

    def on_exception(self, exception: BaseException) -> None:
        """Save what can be saved."""
        super().on_exception(exception)
        trainer_guards.explain_missing_gradient(exception)
        if self.lightning_module is not None and self.lightning_module._trainer is not None:
            interruption.on_exception(self._module.trainer, exception)

    def teardown(self) -> None:
        """Give autograd and the callback list back."""
        trainer = self.lightning_module._trainer if self.lightning_module is not None else None
        self._of_fit.close()
        if trainer is not None:
            note_found_radii(self._module, _callbacks(trainer))
        if trainer is not None and self._autograd_off in _callbacks(trainer):
            _callbacks(trainer).remove(self._autograd_off)
            _callbacks(trainer).remove(self._finish_batch_first)
            self._finish_batch_first.release()
            forget_order(trainer)
            torch.set_grad_enabled(True)
        super().teardown()

    # --- one step --------------------------------------------------------------------------------------------------

    def training_step(self, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Run the commit pass: the user's step, once, at the current parameters, without autograd."""
        # Lightning's closure has just enabled autograd; this holds until the closure ends, hooks included.
        torch.set_grad_enabled(False)
        self._samples = samples_in(args)
        self._batch = fingerprint(args) if self.layout.candidates.size > 1 else 0
        step = partial(self._forward, partial(self._module.training_step, *args, **kwargs))
        with trainer_guards.NoStopIteration("training_step"), self._replays.step(step), self._observing(step):
            try:
                output = self._replays.run()
                if self._module.automatic_optimization:
                    for engine in self.engines:
                        engine.ends_in(output.get("loss") if isinstance(output, Mapping) else output)
                return output
            except RuntimeError as error:
                if "does not require grad" in str(error):
                    raise MisconfigurationException(trainer_guards.RAW_BACKWARD) from error
                raise

    def validation_step(self, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Run the user's step; an iterator that ends in it is an error."""
        with trainer_guards.NoStopIteration("validation_step"):
            return super().validation_step(*args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Run the user's step; an iterator that ends in it is an error."""
        with trainer_guards.NoStopIteration("test_step"):
            return super().test_step(*args, **kwargs)

    def predict_step(self, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Run the user's step; an iterator that ends in it is an error."""
        with trainer_guards.NoStopIteration("predict_step"):
            return super().predict_step(*args, **kwargs)

    @contextmanager
    def _observing(self, code: Callable[[], Any]) -> Iterator[None]:
        with ExitStack() as stack:
            for engine in self.engines:
                stack.enter_context(engine.observing(code))
            yield

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        """Score candidates where a gradient would be computed; the hooks around it run as always."""
        del optimizer, args, kwargs
        automatic = self._module.automatic_optimization
        if self._replays.passes(closure_loss):
            return closure_loss
        if not automatic and not self._replays.running:
            raise MisconfigurationException(BACKWARD_OUTSIDE)
        closure_loss = self.precision_plugin.pre_backward(closure_loss, self._module)
        index = self._replays.next_backward()
        if automatic:
            # Lightning has divided the loss by the number of micro-batches; the step itself returned this:
            closure_loss = closure_loss * self._module.trainer.accumulate_grad_batches
        self._gather(closure_loss, self._replays.returned() if automatic else self._replays.at_backward(index))
        self._replays.check_reached()
        return self.precision_plugin.post_backward(closure_loss, self._module)

    def optimizer_step(
        self,
        optimizer: Optimizer,
        closure: Callable[[], Any],
        model: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Let PolyStep transport and move, and log what it did."""
        index = self._index_of(optimizer)
        ours = self._adoptions[index].optimizer
        self._adoptions[index].follow_schedule()
        if not self._module.automatic_optimization and closure is not do_nothing_closure:
            closure = partial(self._run_manual_closure, closure, self.engines[index])
        # Nothing moves before the closure, which runs inside, has scored.
        codes = self._weight_codes(index)
        with trainer_guards.NoStopIteration("the step"):
            result = super().optimizer_step(ours, closure, model, **kwargs)
        for engine in self.engines:
            engine.moved(p for group in ours.param_groups for p in group["params"])
        self._log_report(index, codes)
        return result

    def _step_by_hand(self, optimizer: HostedOptimizer, closure: Callable[[], Any] | None) -> Any:
        """Step for user code that calls an optimizer object of its own, which PolyStep has replaced."""
        return self.optimizer_step(optimizer, do_nothing_closure if closure is None else closure)

    def _gather(self, loss: Tensor, evaluate: Callable[[], Tensor | None], engines: list[Engine] | None = None) -> None:
        """Let the engines (by default all) with unfrozen parameters score their candidates on this micro-batch."""
        for engine in self.engines if engines is None else engines:
            if any(p.requires_grad for group in engine.optimizer.param_groups for p in group["params"]):
                engine.probe(evaluate, loss, samples=self._samples, batch=self._batch)

    def _run_manual_closure(self, closure: Callable[[], Any], engine: Engine) -> Any:
        """Run ``opt.step(closure)`` of a manual module: its loss is what the closure gives to backward, or returns.

        A returned loss is for the optimizer that steps alone: no backward call has spread it to the others. Outside a
        training step, in a hook, the closure is the commit pass.
        """
        commit = nullcontext() if self._replays.running else self._observing(closure)
        with commit, self._replays.closure(partial(self._forward, closure)):
            engine.start_pass(closure)
            loss = self._replays.run()
            if self._replays.backwards == 0:
                self._gather(loss_of(loss), self._replays.returned(), [engine])
            return loss

    def _forward(self, step: Callable[[], Any]) -> Any:
        with self.precision_plugin.train_step_context():
            return step()

    @contextmanager
    def _muted(self, trainer: pl.Trainer) -> Iterator[None]:
        """Silence everything of Lightning that user code may call while it is probed."""
        modules = [m for m in self._module.modules() if isinstance(m, pl.LightningModule)]
        targets: list[tuple[Any, str]] = [(m, name) for m in modules for name in _MODULE_SIDE_EFFECTS]
        for optimizer in self._lightning_optimizers:
            targets += [(optimizer, "step"), (optimizer, "zero_grad")]
        targets += self._stepping.targets() if self._stepping is not None else []
        targets += [(config.scheduler, "step") for config in self.lr_scheduler_configs]
        loggers, optimizers = trainer.loggers, self.optimizers
        trainer.loggers = [DummyLogger() for _ in loggers]
        alone = self.layout.candidates.size == 1
        try:
            with silenced(targets, _do_nothing), nullcontext() if alone else trainer_guards.collectives_refused():
                yield
        finally:
            trainer.loggers = loggers
            if self.optimizers is not optimizers:  # replaced once more, by a step that runs again
                self.optimizers = optimizers

    def _weight_codes(self, index: int) -> dict[str, Tensor]:
        return step_log.codes(self._module, self.engines[index]) if self._log_per_block else {}

    def _log_report(self, index: int, codes: dict[str, Tensor]) -> None:
        suffix = f"/{index}" if len(self.engines) > 1 else ""
        per_block = codes if self._log_per_block else None
        step_log.log(self._module, self.engines[index], suffix, max(1, self._samples), per_block)


_MODULE_SIDE_EFFECTS = ("log", "log_dict", "print", "toggle_optimizer", "untoggle_optimizer")


def _do_nothing(*_args: Any, **_kwargs: Any) -> None:
    """Stand in for a muted method."""


def _profiled(trainer: pl.Trainer, index: int | None, verb: str) -> Any:
    suffix = "" if index is None else f"/{index}"
    # The Trainer sets both attributes through its connectors, where type checkers cannot see them.
    return vars(trainer)["profiler"].profile(f"[PolyStep]{verb}{suffix}")


def _callbacks(trainer: pl.Trainer) -> list[Callback]:
    return vars(trainer)["callbacks"]
