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
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning_fabric.utilities.optimizer import _optimizers_to_device
from pytorch_lightning.accelerators import Accelerator
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.core.optimizer import do_nothing_closure
from pytorch_lightning.loggers.logger import DummyLogger
from pytorch_lightning.plugins import Precision
from pytorch_lightning.plugins.io.wrapper import _WrappingCheckpointIO
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.data import extract_batch_size
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from pytorch_lightning.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.optim import Optimizer

from lightning_polystep import guards, interruption, trainer_guards
from lightning_polystep.adoption import Adoption, ForeignOptimizer, adopt
from lightning_polystep.callbacks.autograd_off import AutogradOff
from lightning_polystep.checkpoints import CheckedCheckpointIO
from lightning_polystep.engine import Engine, print_plan
from lightning_polystep.fingerprint import fingerprint
from lightning_polystep.interruption import FinishBatchFirst
from lightning_polystep.isolation import silenced
from lightning_polystep.layout_strategy import LayoutStrategy, StartMethod
from lightning_polystep.loaders import fast_forward, forget_order, keep_order, replayable
from lightning_polystep.metrics.codes import flip_rates, weight_codes
from lightning_polystep.parallel import Size
from lightning_polystep.randomness import generator_states, restore_generators
from lightning_polystep.redealing import redeal
from lightning_polystep.scoring.plan import Evaluation


class _ReachedBackward(BaseException):
    """Stops a replay of user code at the backward call whose loss is wanted; no ``except Exception`` may catch it."""

    def __init__(self, loss: Tensor) -> None:
        self.loss = loss


class PolyStepStrategy(LayoutStrategy):
    """Train any LightningModule by forward passes only: ``Trainer(strategy="polystep")``.

    The user's ``training_step`` runs once per batch without autograd (logs, metrics and BatchNorm advance exactly once)
    and again, isolated, for the candidates. ``configure_optimizers`` may return :class:`PolyStep`, nothing, or another
    optimizer, which is replaced with a warning. Modules with ``automatic_optimization = False`` train as well, by
    ``opt.step(closure)`` or ``self.manual_backward(loss)`` and ``opt.step()``.

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
        self.engines: list[Engine] = []
        self.fit_seconds = 0.0
        self._evaluation: Evaluation = evaluation
        self._memory_budget = memory_budget
        self._max_candidates = max_candidates
        self._foreign_optimizer: ForeignOptimizer = foreign_optimizer
        self._optimizer_options = optimizer_options or {}
        self._show_plan = show_plan
        self._log_per_block = log_per_block
        self._check_replicas_every_n_steps = check_replicas_every_n_steps
        self._adoptions: list[Adoption] = []
        self._autograd_off = AutogradOff()
        self._finish_batch_first = FinishBatchFirst()
        # The user code that a probe runs again, how many backward calls it has made, and which one a replay stops at.
        self._replay: Callable[[], Any] = do_nothing_closure
        self._backwards = 0
        self._stop_at: int | None = None
        self._samples = 0
        self._batch = 0
        self._started = 0.0
        self._data_seed = 0
        # What a loaded checkpoint says of the run beside modules and optimizers, until training starts.
        self._resume: dict[str, Any] | None = None

    def __repr__(self) -> str:
        """Name the package: the Trainer of lightning.pytorch prints this when it refuses the object."""
        return f"{type(self).__name__}(for pytorch_lightning.Trainer)"

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
            # A gradient scaler has nothing to scale; without it the plugin only casts.
            vars(self.precision_plugin).update({"scaler": None} if hasattr(self.precision_plugin, "scaler") else {})
            _optimizers_to_device(self.optimizers, self.root_device)
            _callbacks(trainer).insert(0, self._autograd_off)
            _callbacks(trainer).append(self._finish_batch_first)  # after those that save
            torch.set_grad_enabled(False)

    def setup_optimizers(self, trainer: pl.Trainer) -> None:
        """Ask the module for its optimizers, adopt them, and give each an engine."""
        guards.check_parameters(self._module)
        self._data_seed = torch.initial_seed()
        with warnings.catch_warnings():
            # None means PolyStep with its defaults here, not "no optimizer" as Lightning's warning says.
            warnings.filterwarnings("ignore", message=r".*configure_optimizers` returned `None`.*")
            super().setup_optimizers(trainer)
        module = self._module
        schedulers = [config.scheduler for config in self.lr_scheduler_configs]
        self._adoptions = [
            adopt(returned, module, self._foreign_optimizer, self._optimizer_options, schedulers)
            for returned in self.optimizers
        ]
        self.optimizers = [adoption.optimizer for adoption in self._adoptions]
        for adoption in self._adoptions:
            # Without seed_everything every process starts from another seed.
            adoption.optimizer.seed = self.broadcast(adoption.optimizer.seed)
        self.engines = [
            Engine(
                module,
                adoption.optimizer,
                evaluation=self._evaluation,
                memory_budget=self._memory_budget,
                max_candidates=self._max_candidates,
                mute=partial(self._muted, trainer),
                profile=partial(_profiled, trainer, index if len(self._adoptions) > 1 else None),
                announce=rank_zero_only(print_plan) if self._show_plan else None,
                count_changed_pairs=self._log_per_block,
                processes=self.processes,
                check_replicas_every_n_steps=self._check_replicas_every_n_steps,
            )
            for index, adoption in enumerate(self._adoptions)
        ]

    def on_train_start(self) -> None:
        """Compare the processes' loaders, and start the clock; a resumed fit goes on where it was in its data."""
        self.compare_loaders()
        if self._resume is not None:
            fast_forward(self._module.trainer)
            if self._resume:
                restore_generators(self._resume["generators"])
            self._resume = None
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
        if self.lightning_module is not None and self.lightning_module._trainer is not None:
            interruption.on_exception(self._module.trainer, exception)

    def teardown(self) -> None:
        """Give autograd and the callback list back."""
        trainer = self.lightning_module._trainer if self.lightning_module is not None else None
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
        module = self._module
        self._replay = lambda: self._forward(partial(module.training_step, *args, **kwargs))
        self._backwards = 0
        self._samples = _batch_size(args)
        self._batch = fingerprint(args) if self.layout.candidates.size > 1 else 0
        with ExitStack() as stack:
            for engine in self.engines:
                stack.enter_context(engine.observing())
            try:
                output = self._replay()
                if module.automatic_optimization:
                    for engine in self.engines:
                        engine.ends_in(output.get("loss") if isinstance(output, Mapping) else output)
                return output
            except RuntimeError as error:
                if "does not require grad" in str(error):
                    raise MisconfigurationException(trainer_guards.RAW_BACKWARD) from error
                raise

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        """Score candidates where a gradient would be computed; the hooks around it run as always."""
        del optimizer, args, kwargs
        if self._stop_at is not None:
            if self._backwards == self._stop_at:
                raise _ReachedBackward(closure_loss)
            self._backwards += 1
            return closure_loss
        closure_loss = self.precision_plugin.pre_backward(closure_loss, self._module)
        index, self._backwards = self._backwards, self._backwards + 1
        if self._module.automatic_optimization:
            # Lightning has divided the loss by the number of micro-batches; the step itself returned this:
            closure_loss = closure_loss * self._module.trainer.accumulate_grad_batches
            self._gather(closure_loss, lambda replay: _loss_of(replay()))
        else:
            self._gather(closure_loss, partial(self._loss_at_backward, index))
        return self.precision_plugin.post_backward(closure_loss, self._module)

    def optimizer_step(
        self,
        optimizer: Optimizer,
        closure: Callable[[], Any],
        model: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Let PolyStep transport and move, and log what it did."""
        index = next(i for i, adoption in enumerate(self._adoptions) if adoption.optimizer is optimizer)
        self._adoptions[index].follow_schedule()
        if not self._module.automatic_optimization and closure is not do_nothing_closure:
            closure = partial(self._run_manual_closure, closure, self.engines[index])
        # Nothing moves before the closure, which runs inside, has scored.
        codes = self._weight_codes(index)
        result = super().optimizer_step(optimizer, closure, model, **kwargs)
        self._log_report(index, codes)
        return result

    def _gather(
        self, loss: Tensor, loss_of: Callable[[Callable[[], Any]], Tensor], engines: list[Engine] | None = None
    ) -> None:
        """Let the engines (by default all) with unfrozen parameters score their candidates on this micro-batch."""
        replay = self._replay
        for engine in self.engines if engines is None else engines:
            if any(p.requires_grad for group in engine.optimizer.param_groups for p in group["params"]):
                engine.probe(lambda: loss_of(replay), loss, samples=self._samples, batch=self._batch)

    def _loss_at_backward(self, index: int, replay: Callable[[], Any]) -> Tensor:
        """Run manual user code again and return the loss given to its backward call number ``index``."""
        made, self._backwards, self._stop_at = self._backwards, 0, index
        try:
            replay()
        except _ReachedBackward as reached:
            return reached.loss
        finally:
            self._backwards, self._stop_at = made, None
        msg = "A replay of training_step made fewer manual_backward calls than before: make them unconditional."
        raise RuntimeError(msg)

    def _run_manual_closure(self, closure: Callable[[], Any], engine: Engine) -> Any:
        """Run ``opt.step(closure)`` of a manual module: its loss is what the closure gives to backward, or returns.

        A returned loss is for the optimizer that steps alone: no backward call has spread it to the others.
        """
        outer = self._replay, self._backwards
        self._replay, self._backwards = partial(self._forward, closure), 0
        engine.start_pass()
        try:
            loss = self._replay()
            if self._backwards == 0:
                self._gather(_loss_of(loss), lambda replay: _loss_of(replay()), [engine])
            return loss
        finally:
            self._replay, self._backwards = outer

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
        targets += [(config.scheduler, "step") for config in self.lr_scheduler_configs]
        loggers = trainer.loggers
        trainer.loggers = [DummyLogger() for _ in loggers]
        alone = self.layout.candidates.size == 1
        try:
            with silenced(targets, _do_nothing), nullcontext() if alone else trainer_guards.collectives_refused():
                yield
        finally:
            trainer.loggers = loggers

    def _weight_codes(self, index: int) -> dict[str, Tensor]:
        if not self._log_per_block:
            return {}
        groups = self.engines[index].optimizer.param_groups
        return weight_codes(self._module, [p for group in groups for p in group["params"]])

    def _log_report(self, index: int, codes: dict[str, Tensor]) -> None:
        engine, module = self.engines[index], self._module
        progress, report = engine.optimizer.progress, engine.optimizer.binding.report
        if module._trainer is None or module._trainer.barebones or not report:
            return
        suffix = f"/{index}" if len(self.engines) > 1 else ""
        figures = {**report, "skipped": float(progress.skipped)}
        if self._log_per_block:
            binding = engine.optimizer.binding
            figures |= {f"null_candidates/{name}": share for name, share in binding.null_candidates.items()}
            figures |= {f"changed_pairs/{name}": share for name, share in binding.changed_pairs.items()}
            figures |= {
                f"flip_rate/{name}": share for name, share in flip_rates(codes, self._weight_codes(index)).items()
            }
        named = {f"polystep/{name}{suffix}": value for name, value in figures.items()}
        module.log_dict(named, on_step=True, on_epoch=False, batch_size=max(1, self._samples))

    # --- checkpoints -----------------------------------------------------------------------------------------------

    @property
    def checkpoint_io(self) -> CheckpointIO:
        """How checkpoints are written: with a checksum, unless the Trainer or the user gave something else."""
        # Decided late: a plugin of the Trainer and one of the strategy are a conflict to Lightning.
        if self._checkpoint_io is None:
            self._checkpoint_io = CheckedCheckpointIO()
        elif isinstance(self._checkpoint_io, _WrappingCheckpointIO):
            self._checkpoint_io.checkpoint_io = CheckedCheckpointIO()  # ignored where it wraps another already
        return self._checkpoint_io

    @checkpoint_io.setter
    def checkpoint_io(self, io: CheckpointIO) -> None:
        self._checkpoint_io = io

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the optimizer's state, with the step radius that the schedule has reached."""
        for adoption in self._adoptions:
            adoption.follow_schedule()
        state = super().optimizer_state(optimizer)
        if interruption.all_save(self._module.trainer):
            next(engine for engine in self.engines if engine.optimizer is optimizer).complete(state)
        return state

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Save, with the seed of the data's order and the generators that a resumed run goes on with."""
        if interruption.refuse_half_a_step(self._module.trainer, filepath):
            return
        if "optimizer_states" in checkpoint:  # else weights only
            checkpoint[_RUN_STATE] = {
                "data_seed": self._data_seed,
                "generators": generator_states(),
                "shards": self.layout.data.size,
            }
        super().save_checkpoint(checkpoint, filepath, storage_options)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Restore the module in its final precision; Lightning converts it later, when float64 would have been cut."""
        self.precision_plugin.convert_module(self._module)
        super().load_model_state_dict(checkpoint, strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Restore the optimizers, the schedules of those that were replaced, and the order of the data."""
        self._resume = checkpoint.get(_RUN_STATE, {})
        self._data_seed = self._resume.get("data_seed", self._data_seed)
        super().load_optimizer_state_dict(checkpoint)
        for adoption in self._adoptions:
            adoption.restore_schedule()
        shards = self.layout.data.size
        optimizers = [adoption.optimizer for adoption in self._adoptions]
        redeal(self._module.trainer, optimizers, self._resume.get("shards", shards), shards)

    @property
    def _module(self) -> pl.LightningModule:
        if self.lightning_module is None:
            msg = "The strategy has no module yet."
            raise RuntimeError(msg)
        return self.lightning_module


# Entry of a checkpoint for what belongs to no module, optimizer, loop or callback.
_RUN_STATE = "polystep_run"
_MODULE_SIDE_EFFECTS = ("log", "log_dict", "print", "toggle_optimizer", "untoggle_optimizer")


def _do_nothing(*_args: Any, **_kwargs: Any) -> None:
    """Stand in for a muted method."""


def _profiled(trainer: pl.Trainer, index: int | None, verb: str) -> Any:
    suffix = "" if index is None else f"/{index}"
    # The Trainer sets both attributes through its connectors, where type checkers cannot see them.
    return vars(trainer)["profiler"].profile(f"[PolyStep]{verb}{suffix}")


def _callbacks(trainer: pl.Trainer) -> list[Callback]:
    return vars(trainer)["callbacks"]


def _loss_of(output: Any) -> Tensor:
    """Return the loss in what a training step or a closure returned."""
    return output["loss"] if isinstance(output, Mapping) else output


def _batch_size(args: tuple[Any, ...]) -> int:
    """Return the number of samples of a batch for the counters; 0 when it cannot be told."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return extract_batch_size(args[0]) if args else 0
        except MisconfigurationException:
            return 0
