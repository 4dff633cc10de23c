"""The training run that ``benchmarks.faults`` strikes: it tells its phase, and brings a fault about when asked to."""

from __future__ import annotations

import mmap
import os
import resource
import signal
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.profilers import Profiler
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_polystep import PolyStep, PolyStepStrategy
from lightning_polystep.results import parameters_sha256
from models import SpikingMLP

SUM = "sum over processes"
PHASES = (
    "between phases",
    "loader",
    "observe",
    "propose",
    "score",
    SUM,
    "transport",
    "move",
    "validation",
    "saving",
)
HANG, NOT_FINITE = "process that hangs", "non-finite batch"
FAULT_OF_SIGNAL = {signal.SIGKILL: "kill -9", signal.SIGTERM: "SIGTERM"}

# How long a process waits for the others; where one of them is to hang, the shorter time, and it hangs for the longer.
_PATIENCE_SECONDS, _SHORT_PATIENCE_SECONDS, _HANG_SECONDS = 60.0, 3.0, 9.0

_EPOCHS, _BATCHES, _BATCH, _FEATURES = 4, 5, 8, 4
_BAD_BATCH = 3
# Less than a checkpoint: writing beyond it fails as on a full disk.
_ROOM_BYTES = 2048


@dataclass(frozen=True)
class Fault:
    """What is to happen.

    Args:
        name: Of the fault.
        phase: In which it strikes.
        occurrence: The how manieth beginning of that phase.
        rank: The process that it strikes.
    """

    name: str
    phase: str
    occurrence: int = 7
    rank: int = 0

    def strikes(self, rank: int) -> bool:
        """Tell whether a process has to do with it; data is the same everywhere."""
        return rank == self.rank or self.name == NOT_FINITE


@dataclass(frozen=True)
class Place:
    """One process of a run.

    Args:
        folder: For checkpoints, hashes and log.
        network: "dense" (dropout and BatchNorm) or "spiking".
        rank: The process, counted from 0.
        processes: Number of processes, which divide the candidates.
        port: By which they find one another.
        hanging: Whether one of them is to hang.
    """

    folder: Path
    network: str
    rank: int = 0
    processes: int = 1
    port: int = 0
    hanging: bool = False

    @property
    def hash(self) -> Path:
        """Where the process writes the hash of all parameters in the end."""
        return self.folder / f"hash-{self.rank}"


class PhaseCell:
    """The phase of another process, in a byte of shared memory that outlives it."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 1)

    @property
    def died_in(self) -> int:
        """Index of the phase."""
        return self._memory[0]

    def enter(self, phase: int) -> None:
        """Note the phase."""
        self._memory[0] = phase


def run_to_the_end(place: Place, checkpoint: Path | None, fault: Fault | None, cell: PhaseCell, pipe: int) -> int:
    """Train, from a checkpoint if there is one, write the hash of all parameters, and return the exit code.

    Args:
        place: Which process of which run this is.
        checkpoint: Where to go on.
        fault: What is to happen, or None.
        cell: Told every phase.
        pipe: Gets a byte when the fault is to be brought about from outside.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    if place.processes > 1:  # as torchrun tells the processes that it starts
        addresses = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(place.port)}
        os.environ.update({"LOCAL_RANK": str(place.rank), "NODE_RANK": "0", **addresses})
    log = os.open(place.folder / "log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(log, stream)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _train(place, checkpoint, _PhaseProfiler(fault, cell, pipe))
        except SystemExit as ended:
            return ended.code if isinstance(ended.code, int) else 1
        except BaseException as error:
            print(repr(error), flush=True)
            return 1
    return 0


def _train(place: Place, checkpoint: Path | None, profiler: _PhaseProfiler) -> None:
    pl.seed_everything(0, verbose=False)
    module = _Module(place.network, profiler)
    trainer = pl.Trainer(
        strategy=_WatchedSums(show_plan=False, timeout=_SHORT_PATIENCE_SECONDS if place.hanging else _PATIENCE_SECONDS),
        accelerator="cpu",
        devices=place.processes,
        max_epochs=_EPOCHS,
        default_root_dir=place.folder,
        logger=False,
        # Only the newest is kept, so that a checkpoint lost while it is replaced would be missed.
        callbacks=[ModelCheckpoint(place.folder, every_n_train_steps=1, save_top_k=1, filename="{step}")],
        enable_progress_bar=False,
        enable_model_summary=False,
        profiler=profiler,
    )
    train = DataLoader(_Points(profiler), batch_size=_BATCH, shuffle=True)
    trainer.fit(module, train, DataLoader(_Points(None), batch_size=_BATCH), ckpt_path=checkpoint)
    result = place.folder / f"unfinished-{place.rank}"
    result.write_text(parameters_sha256(module))
    result.rename(place.hash)


class _WatchedSums(PolyStepStrategy):
    """Tells the profiler when the processes sum up what they know."""

    def start_alike(self, *, fitting: bool) -> None:
        """Connect the processes."""
        super().start_alike(fitting=fitting)
        profiler, add_up = vars(self._module.trainer)["profiler"], self.processes.sum

        def sum_watched(parts: Mapping[str, Tensor], *dtype: torch.dtype) -> dict[str, Tensor]:
            with profiler.profile(f"[PolyStep]{SUM}"):
                return add_up(parts, *dtype)

        vars(self.processes)["sum"] = sum_watched


class _PhaseProfiler(Profiler):
    """Lightning tells a profiler what it does; this one brings about what is to happen then."""

    def __init__(self, fault: Fault | None, cell: PhaseCell, pipe: int) -> None:
        super().__init__()
        self.fault = fault
        self._left = fault.occurrence if fault is not None else 0
        self._cell, self._pipe = cell, pipe
        self._open: list[int] = []
        self.striking = False

    def start(self, action_name: str) -> None:
        """Note the phase that an action belongs to, if any."""
        phase = _phase_of(action_name)
        if phase is None:
            return
        self._open.append(phase)
        self._cell.enter(phase)
        if self.fault is not None and PHASES[phase] == self.fault.phase:
            self._left -= 1
            if self._left == 0:
                self._strike(self.fault)

    def stop(self, action_name: str) -> None:
        """Return to the phase around."""
        if _phase_of(action_name) is not None:
            self._open.pop()
            self._cell.enter(self._open[-1] if self._open else 0)

    def _strike(self, fault: Fault) -> None:
        self.striking = True
        if fault.name in FAULT_OF_SIGNAL.values():
            os.write(self._pipe, b"!")
        elif fault.name == HANG:
            time.sleep(_HANG_SECONDS)
        elif fault.name == "disk full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (_ROOM_BYTES, resource.RLIM_INFINITY))

    def brings(self, name: str) -> bool:
        """Tell, once, whether a fault is to be brought about now."""
        due = self.striking and self.fault is not None and self.fault.name == name
        self.striking = self.striking and not due
        return due


def _phase_of(action: str) -> int | None:
    if action.startswith("[PolyStep]"):
        return PHASES.index(action.removeprefix("[PolyStep]").split("/", 1)[0])
    if action.endswith("train_dataloader_next"):
        return PHASES.index("loader")
    if action == "save_checkpoint":
        return PHASES.index("saving")
    return PHASES.index("validation") if action.endswith(".validation_step") else None


class _Points(Dataset[tuple[Tensor, Tensor]]):
    """Points of two classes; one of them is not finite, or cannot be read, where that is the fault."""

    def __init__(self, profiler: _PhaseProfiler | None) -> None:
        draw = torch.Generator().manual_seed(0)
        self._inputs = torch.randn(_BATCHES * _BATCH, _FEATURES, generator=draw)
        self._labels = (self._inputs.sum(1) > 0).long()
        self._profiler = profiler
        fault = profiler.fault if profiler is not None else None
        if fault is not None and fault.name == NOT_FINITE:
            self._inputs[_BAD_BATCH] = torch.nan

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if self._profiler is not None and self._profiler.brings("exception in the loader"):
            raise OSError("the sample cannot be read")
        return self._inputs[index], self._labels[index]


class _Module(pl.LightningModule):
    """A classifier of points."""

    def __init__(self, network: str, profiler: _PhaseProfiler) -> None:
        super().__init__()
        if network == "spiking":
            self.network: nn.Module = SpikingMLP((_FEATURES, 8, 2), num_steps=6, threshold=0.7)
        else:
            hidden = (nn.Linear(_FEATURES, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.2))
            self.network = nn.Sequential(*hidden, nn.Linear(6, 2))
        self.criterion = nn.CrossEntropyLoss()
        self._profiler = profiler

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        """Return the loss."""
        del batch_idx
        if self._profiler.brings("out of memory"):
            raise torch.OutOfMemoryError("out of memory, brought about for a test")
        inputs, labels = batch
        return self.criterion(self.network(inputs), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the loss."""
        del batch_idx
        inputs, labels = batch
        self.log("val_loss", self.criterion(self.network(inputs), labels))

    def configure_optimizers(self) -> PolyStep:
        """Use a small PolyStep."""
        return PolyStep(self.parameters(), rank=4)
