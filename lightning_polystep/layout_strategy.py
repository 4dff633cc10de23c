"""LayoutStrategy: several processes on Lightning's own launchers, and what of the data each of them sees."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch

from lightning_polystep import trainer_guards
from lightning_polystep.host import (
    DDPStrategy,
    MisconfigurationException,
    _destroy_dist_connection,
    _interrupt,
    _MultiProcessingLauncher,
    _StrategyRegistry,
    _sync_module_states,
    pl,
)
from lightning_polystep.namespaces import register_in
from lightning_polystep.parallel import Layout, Size
from lightning_polystep.processes import Processes, ProcessGroup

StartMethod = Literal["popen", "spawn", "fork"]


@dataclass
class _TellingOfExceptions:
    """Run a function of the Trainer, and tell callbacks and strategy what ended it, as where no process was started.

    Lightning catches exceptions in the process that starts the others only, which knows nothing of the fit.

    Args:
        function: The function.
        trainer: Its trainer, if it has one.
    """

    function: Callable[..., Any]
    trainer: pl.Trainer | None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.function(*args, **kwargs)
        except BaseException as exception:
            if self.trainer is not None:
                _interrupt(self.trainer, exception)
            raise


class ProcessLauncher(_MultiProcessingLauncher):
    """Lightning's launcher of functions in processes, in which exceptions and signals end a fit as they do elsewhere.

    Before it forks it sees to it that the forked processes can run kernels.
    """

    def launch(self, function: Callable[..., Any], *args: Any, trainer: pl.Trainer | None = None, **kwargs: Any) -> Any:
        """Start the processes and run the function in each of them."""
        if self._start_method == "fork":
            trainer_guards.check_fork()
        return super().launch(_TellingOfExceptions(function, trainer), *args, trainer=trainer, **kwargs)


class LayoutStrategy(DDPStrategy):
    """DDPStrategy without the wrapper and the gradients: launching, connecting, sampling.

    One process needs no launcher and no process group, so that it works in notebooks and beside other runs.

    Args:
        timeout: How long a process waits for the others, as a timedelta or in seconds.
        data_parallel_size: Shards of the batch.
        candidate_parallel_size: Processes that see the same shard and divide the candidates.
        ddp_options: DDPStrategy's other arguments.
    """

    strategy_name = "polystep"

    def __init__(
        self,
        *,
        timeout: timedelta | float,
        data_parallel_size: Size,
        candidate_parallel_size: Size,
        **ddp_options: Any,
    ) -> None:
        self._patience = timeout if isinstance(timeout, timedelta) else timedelta(seconds=timeout)
        super().__init__(timeout=self._patience, **ddp_options)
        self.processes = Processes()
        self._data_parallel_size: Size = data_parallel_size
        self._candidate_parallel_size: Size = candidate_parallel_size

    @property
    def layout(self) -> Layout:
        """Where this process stands among the others."""
        world_size = self.num_nodes * self.num_processes
        rank = self.global_rank if world_size > 1 else 0
        try:
            return Layout.of(rank, world_size, self._data_parallel_size, self._candidate_parallel_size)
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Training data is divided along the data axis only, all other data among all processes."""
        trainer = self.lightning_module._trainer if self.lightning_module is not None else None
        if trainer is not None and trainer.training:
            return {"num_replicas": self.layout.data.size, "rank": self.layout.data.index}
        return super().distributed_sampler_kwargs

    def _configure_launcher(self) -> None:
        if self.layout.world_size == 1:
            self._launcher = None
        elif self._start_method == "popen":
            super()._configure_launcher()
        else:
            self._launcher = ProcessLauncher(self, start_method=self._start_method)

    def setup_distributed(self) -> None:
        """Set ranks and, with several processes, connect them."""
        if self.layout.world_size == 1:
            self.set_world_ranks()
        else:
            super().setup_distributed()
            # Lightning sees to it for NCCL alone; a thread of gloo that outlives the interpreter aborts the process.
            atexit.register(_destroy_dist_connection)

    def start_alike(self, *, fitting: bool) -> None:
        """Start from the parameters and buffers of rank 0, and give the sums of a fit a process group of their own."""
        if self.layout.world_size == 1:
            return
        module = self.lightning_module
        assert module is not None
        _sync_module_states(module)
        if fitting:
            trainer_guards.check_synchronised_norms(module)
            self.processes = ProcessGroup(self.layout, self.root_device, self._patience)

    def compare_loaders(self) -> None:
        """Refuse training loaders that would keep some processes waiting."""
        if self.layout.world_size > 1:
            assert self.lightning_module is not None
            lengths = torch.zeros(self.layout.world_size)
            lengths[self.layout.rank] = self.lightning_module.trainer.num_training_batches
            trainer_guards.check_loader_lengths(self.processes.sum({"lengths": lengths})["lengths"].tolist())

    def teardown(self) -> None:
        """Leave the process group of the fit."""
        self.processes.close()
        self.processes = Processes()
        super().teardown()

    @classmethod
    def register_strategies(cls, strategy_registry: _StrategyRegistry) -> None:
        """Register the names; safe to call again, as on a reload."""
        register_in(strategy_registry, cls)
