"""One harness for several processes: run a fit on n of them and compare what every one holds after every step.

A *task* is a function of this file or of a test module that makes a fit: a module, a training loader and options of the
Trainer. :func:`fit` runs it on n forked processes; their parent is forked from a server that has imported everything
and has run no kernel, because GNU OpenMP does not survive a fork. :func:`resume` goes on from one checkpoint of a fit
after the other, in the same n processes, which is fast enough to stop after every batch.
"""

import json
import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

# Imported by the server, so that no process has to; no kernel runs there.
import lightning_polystep.kernels.lif_direct_costs.cpu
import lightning_polystep.kernels.lif_outcome_costs.cpu  # noqa: F401
from lightning_polystep import PolyStepStrategy
from lightning_polystep.layout_strategy import ProcessLauncher
from lightning_polystep.results import parameters_sha256
from tests.helpers.boring import (
    BATCH,
    Boring,
    Busy,
    CountingLogger,
    loader,
    polystep,
    sampled,
    separable,
    spiking,
    trainer,
)
from tests.helpers.resume import SaveEveryBatch

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.helpers.ranks"])


@dataclass
class Rank:
    """What one process saw.

    Args:
        hashes: Of all parameters and buffers, after every step.
        error: The message of the exception that ended its fit; empty when none did.
        report: What a task's module put into its ``report``.
    """

    hashes: list[str] = field(default_factory=list)
    error: str = ""
    report: dict[str, Any] = field(default_factory=dict)


class Watch(pl.Callback):
    """Hashes the parameters after every step, and writes what a process saw for the test to read."""

    def __init__(self, folder):
        self.folder = folder
        self.seen = Rank()
        self.steps = 0

    def write(self, trainer, error=""):
        self.seen.report = getattr(trainer.lightning_module, "report", {})
        self.seen.error = error
        path = self.folder / f"{trainer.global_rank}.json"
        path.write_text(json.dumps(vars(self.seen)), encoding="utf-8")

    def on_train_start(self, trainer, pl_module):
        self.steps = trainer.global_step

    def on_train_batch_end(self, trainer, pl_module, *_):
        if trainer.global_step > self.steps:
            self.steps = trainer.global_step
            self.seen.hashes.append(parameters_sha256(pl_module))

    def on_train_end(self, trainer, pl_module):
        self.write(trainer)


@dataclass
class Reported:
    """What a launcher starts in each process, with an end that the others wait for.

    Lightning ends all processes with the first that fails, before the others could tell what they saw.
    """

    function: Callable[..., Any]
    trainer: pl.Trainer

    def __call__(self, *args, **options):
        try:
            return self.function(*args, **options)
        except BaseException as error:
            watch = next(callback for callback in self.trainer.callbacks if isinstance(callback, Watch))
            watch.write(self.trainer, str(error) or type(error).__name__)
            patience = time.monotonic() + 10
            while time.monotonic() < patience and len(list(watch.folder.glob("?.json"))) < self.trainer.world_size:
                time.sleep(0.02)
            raise


class ReportingLauncher(ProcessLauncher):
    """Forks or spawns processes that report how they end."""

    def launch(self, function, *args, trainer=None, **options):
        return super().launch(Reported(function, trainer), *args, trainer=trainer, **options)


class ReportingStrategy(PolyStepStrategy):
    """Starts its processes by that launcher."""

    def _configure_launcher(self):
        super()._configure_launcher()
        if self._launcher is not None:
            self._launcher = ReportingLauncher(self, start_method=self._start_method)


def fit(task, ranks, folder, *, options=None, start_method="fork", save_in=None, **strategy) -> list[Rank]:
    """Run a task on so many processes and return what each of them saw.

    Args:
        task: Makes module, training loader and options of the Trainer; pickled by name.
        ranks: Number of processes.
        folder: A new folder for their files is made in it.
        options: Further options of the Trainer.
        start_method: "fork" or "spawn".
        save_in: A folder that gets a checkpoint after every batch: 1.ckpt, 2.ckpt, ...
        strategy: Arguments of the strategy.
    """
    place = _new_folder(folder, ranks)
    settings = {**SETTINGS, **strategy}
    args = (task, ranks, place, options or {}, start_method, settings, save_in)
    _run_all([SERVER.Process(target=_parent, args=args)], place)
    return _seen(place, ranks)


def resume(task, ranks, folder, checkpoints, *, options=None, **strategy) -> list[list[Rank]]:
    """Go on from each of some checkpoints on so many processes; return what each process saw, for each of them.

    Args:
        task: As for :func:`fit`.
        ranks: Number of processes.
        folder: A new folder for their files is made in it.
        checkpoints: Their paths.
        options: Further options of the Trainer.
        strategy: Arguments of the strategy.
    """
    place = _new_folder(folder, ranks)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    more = (task, ranks, place, checkpoints, options or {}, {**SETTINGS, **strategy}, port)
    _run_all([SERVER.Process(target=_resuming_rank, args=(rank, *more)) for rank in range(ranks)], place)
    return [_seen(place / str(number), ranks) for number in range(len(checkpoints))]


SETTINGS = {"show_plan": False, "timeout": 60.0}


def _new_folder(folder, ranks):
    place = folder / f"{ranks}-{len(list(folder.iterdir()))}"
    place.mkdir()
    return place


def _run_all(processes, place):
    for process in processes:
        process.start()
    until = time.monotonic() + 120
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    hanging = [process for process in processes if process.is_alive()]
    for process in hanging:
        process.kill()
    if hanging:
        raise AssertionError(f"the processes hang: {[path.read_text() for path in place.rglob('*.json')]}")


def _seen(place, ranks):
    files = sorted(place.glob("?.json"))
    if len(files) < ranks:
        raise AssertionError("".join(path.read_text(encoding="utf-8") for path in place.parent.rglob("*.txt")))
    return [Rank(**json.loads(path.read_text(encoding="utf-8"))) for path in files]


def _parent(task, ranks, folder, options, start_method, settings, save_in):
    torch.set_num_threads(1)
    try:
        module, loader, more = task()
        strategy = ReportingStrategy(start_method=start_method, **settings)
        savers = [] if save_in is None else [SaveEveryBatch(save_in)]
        callbacks = [Watch(folder), *more.pop("callbacks", []), *savers]
        run = trainer(folder, strategy=strategy, devices=ranks, callbacks=callbacks, **{**more, **options})
        run.fit(module, loader)
    except BaseException:
        (folder / "error.txt").write_text(traceback.format_exc(), encoding="utf-8")


def _resuming_rank(rank, task, ranks, folder, checkpoints, options, settings, port):
    """One of several processes that somebody else has started, as torchrun does."""
    torch.set_num_threads(1)
    if ranks > 1:
        os.environ.update({"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    for number, checkpoint in enumerate(checkpoints):
        place = folder / str(number)
        place.mkdir(exist_ok=True)
        pl.seed_everything(99, verbose=False)  # the resumed processes drew other numbers before
        module, loader, more = task()
        watch = Watch(place)
        callbacks = [watch, *more.pop("callbacks", [])]
        run = trainer(
            place, strategy=PolyStepStrategy(**settings), devices=ranks, callbacks=callbacks, **{**more, **options}
        )
        try:
            run.fit(module, loader, ckpt_path=checkpoint)
        except BaseException as error:
            watch.write(run, str(error))
            (place / f"error-{rank}.txt").write_text(traceback.format_exc(), encoding="utf-8")
            if ranks > 1:  # the others may have got further, or not so far
                return


def alike(seen: list[Rank]) -> list[str]:
    """Return the hashes after every step, which all processes must share."""
    assert [rank.error for rank in seen] == [""] * len(seen)
    for rank, other in enumerate(seen[1:], start=1):
        assert other.hashes == seen[0].hashes, f"rank {rank} differs from rank 0"
    assert len(set(seen[0].hashes)) == len(seen[0].hashes) > 0, "some step changed nothing"
    return seen[0].hashes


def spiking_task() -> tuple[pl.LightningModule, Any, dict[str, Any]]:
    """A spiking network on the fast tiers, shuffled batches."""
    return spiking(Boring, torch.float32)(polystep), loader(8, shuffle=True), {}


def sampled_task() -> tuple[pl.LightningModule, Any, dict[str, Any]]:
    """The same, scored on a part of the samples."""
    return spiking(Boring, torch.float32)(sampled), loader(8, shuffle=True), {}


def foreign_task() -> tuple[pl.LightningModule, Any, dict[str, Any]]:
    """Batch normalisation and dropout by vmap, trained by an Adam that is replaced."""
    return Busy(), loader(6, shuffle=True), {"logger": CountingLogger()}


class Deep(Busy):
    """Layers whose units are looked at all at once, behind one of which feedback is learned."""

    def __init__(self):
        super().__init__()
        first, second, third = nn.Linear(self.net[0].in_features, 64), nn.Linear(64, 64), nn.Linear(64, 64)
        self.net = nn.Sequential(
            first, nn.BatchNorm1d(64), nn.ReLU(), second, nn.ReLU(), third, nn.ReLU(), nn.Linear(64, 2)
        )

    def on_train_epoch_end(self):
        (engine,) = self.trainer.strategy.engines
        self.report = {"tiers": [each.tier.name for each in engine.plan.assignments if each.block.dim > 1]}


def deep_task() -> tuple[pl.LightningModule, Any, dict[str, Any]]:
    """Layers that are scored by the answers of their units."""
    return Deep(), loader(6, shuffle=True), {"logger": CountingLogger()}


class Dealt(Sampler):
    """Deals whole micro-batches to the shards of the data in turn; for tasks with ``use_distributed_sampler=False``.

    One process that accumulates over n of them sees in a step what n shards see, or n / 2 that accumulate over two.

    Args:
        batches: Number of micro-batches, over all shards.
        size: Samples of each.
        shares: Processes that see the same shard.
    """

    def __init__(self, batches, size, shares=1):
        self.batches = batches
        self.size = size
        self.shares = shares

    @property
    def place(self):
        alone = not torch.distributed.is_initialized()
        rank, world_size = (0, 1) if alone else (torch.distributed.get_rank(), torch.distributed.get_world_size())
        return rank // self.shares, world_size // self.shares

    def __len__(self):
        return self.batches // self.place[1]

    def __iter__(self):
        shard, shards = self.place
        for batch in range(len(self)):
            first = (batch * shards + shard) * self.size
            yield list(range(first, first + self.size))


def dealt(module, shares=1, **options):
    """Return a task's values with micro-batches dealt in turn."""
    sampler = Dealt(24, BATCH, shares)
    loader = DataLoader(Jittered(separable(24 * BATCH)), batch_sampler=sampler)
    return module, loader, {"use_distributed_sampler": False, **options}


class Noisy(Boring):
    """Dropout, on whichever tier takes it."""

    def __init__(self):
        super().__init__(polystep, dropout=0.2)


class Jittered(Dataset):
    """Augmentation by torch's global generator, where the samples are fetched."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        inputs, label = self.data[index]
        return inputs + 0.1 * torch.randn_like(inputs), label


def spiking_shards():
    """A spiking network, micro-batches dealt to the ranks."""
    return dealt(spiking(Boring, torch.float32)(polystep))


def spiking_hybrid():
    """The same, dealt to pairs of ranks."""
    return dealt(spiking(Boring, torch.float32)(polystep), shares=2)


def sampled_shards():
    """A spiking network scored on a part of the samples, micro-batches dealt to the ranks."""
    return dealt(spiking(Boring, torch.float32)(sampled))


def sampled_hybrid():
    """The same, dealt to pairs of ranks."""
    return dealt(spiking(Boring, torch.float32)(sampled), shares=2)


def noisy_shards():
    """Dropout and augmentation, micro-batches dealt to the ranks."""
    return dealt(Noisy())


def noisy_hybrid():
    """The same, dealt to pairs of ranks."""
    return dealt(Noisy(), shares=2)
