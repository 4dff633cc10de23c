"""The processes of a run: their layout, and the sums over all of them in a process group of their own."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import cast

import torch
from torch import Tensor, distributed

from lightning_polystep.parallel import Layout

# What rank 0 is given to answer before it counts as gone: it keeps the list of arrivals.
_PATIENCE = timedelta(seconds=5)
# For so many seconds a process waits awake, giving way to others: woken from sleep it takes milliseconds to get going.
_AWAKE = 0.01


class MissingProcessError(RuntimeError):
    """Some process did not come to a collective within the time-out."""


@dataclass
class Processes:
    """One process on its own: every sum over processes is its own contribution.

    Args:
        layout: Where this process stands.
        asked_to_stop: Whether this process has been asked to end, by a signal.
        stopping: Whether one of all had been at their last step: all then end after the same batch.
    """

    layout: Layout = field(default_factory=Layout)
    asked_to_stop: bool = field(default=False, init=False)
    stopping: bool = field(default=False, init=False)
    seconds: float = field(default=0.0, init=False)
    collectives: int = field(default=0, init=False)
    bytes: int = field(default=0, init=False)

    def sum(self, parts: Mapping[str, Tensor], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """Return each tensor's sum over all processes, by one collective; zeros elsewhere make it a gather.

        Args:
            parts: The same names and shapes on all processes.
            dtype: In which they are counted.
        """
        return {name: part.to(dtype) for name, part in parts.items()}

    def close(self) -> None:
        """Leave the process group."""


class ProcessGroup(Processes):
    """Several processes, connected by torch.distributed.

    Collectives run in a group of their own, so that they cannot pair with those of Lightning or of user code. Before
    each, a process writes down that it arrived; when one fails, the others can tell who did not.

    Args:
        layout: Where this process stands.
        device: Where collectives take place.
        timeout: How long a process waits for the others.
    """

    def __init__(self, layout: Layout, device: torch.device, timeout: timedelta) -> None:
        super().__init__(layout)
        self.device = device
        self.timeout = timeout
        self._group = cast("distributed.ProcessGroup", distributed.new_group(timeout=timeout))
        self._store = distributed.PrefixStore("polystep", distributed.distributed_c10d._get_default_store())

    def sum(self, parts: Mapping[str, Tensor], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """Return each tensor's sum over all processes, by one collective.

        Args:
            parts: The same names and shapes on all processes.
            dtype: In which they are counted.

        Raises:
            MissingProcessError: When a process does not arrive within the time-out, naming it.
        """
        started = time.perf_counter()
        flat = torch.cat([part.detach().to(self.device, dtype).flatten() for part in parts.values()])
        try:
            self._store.set(str(self.layout.rank), str(self.collectives))
            work = distributed.all_reduce(flat, group=self._group, async_op=True)
            while self.device.type == "cpu" and not work.is_completed() and time.perf_counter() < started + _AWAKE:
                time.sleep(0)
            work.wait()
        except RuntimeError as error:
            raise MissingProcessError(self._missing(time.perf_counter() - started)) from error
        self.collectives += 1
        self.bytes += flat.numel() * flat.element_size()
        sums = flat.split([part.numel() for part in parts.values()])
        total = {n: s.reshape(p.shape).to(p.device) for (n, p), s in zip(parts.items(), sums, strict=True)}
        self.seconds += time.perf_counter() - started
        return total

    def close(self) -> None:
        """Leave the process group."""
        if distributed.is_initialized():
            distributed.destroy_process_group(self._group)

    def _missing(self, waited: float) -> str:
        try:
            self._store.set_timeout(_PATIENCE)
            late = [str(rank) for rank in range(self.layout.world_size) if self._arrivals(rank) < self.collectives]
        except RuntimeError:
            late = ["0, which keeps the list of arrivals"]
        who = f"rank(s) {', '.join(late)}" if late else "no rank (all arrived, so the connection broke)"
        return (
            f"Rank {self.layout.rank} waited {waited:.0f} s to sum costs over {self.layout.world_size} processes; "
            f"missing: {who}. Look for an error or a slow loader there, or set a longer PolyStepStrategy(timeout=...)."
        )

    def _arrivals(self, rank: int) -> int:
        """Return the number of the last collective that a process came to, -1 before the first."""
        key = str(rank)
        return int(self._store.get(key)) if self._store.check([key]) else -1
