"""The ways of training that benchmarks compare, each under a watch."""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.common import Task
from benchmarks.curves import Curve, Watch
from benchmarks.peer import BATCH, Peer
from benchmarks.straight_through import straight_through
from benchmarks.surrogate import SurrogateName, with_surrogate
from datamodules.augment import random_shifts
from datamodules.in_memory import InMemoryDataModule
from datamodules.tensors import Pair
from lightning_polystep import Engine, PolyStep
from lightning_polystep.callbacks import Calibrate
from lightning_polystep.cli import PolyStepCLI
from lightning_polystep.layers import calibrate
from models import Classifier


@dataclass
class Run:
    """What a config describes, not yet trained.

    Args:
        trainer: Lightning's, without logger, checkpoints and validation, whose time would count.
        model: Network and criterion.
        data: Set up.
        source: Name of the data, for the record.
        settings: The config, for the record.
    """

    trainer: pl.Trainer
    model: Classifier
    data: InMemoryDataModule
    source: str
    settings: dict[str, Any]

    @property
    def shift(self) -> int:
        """Pixels by which training images are moved at random, at the most; 0 where the data has no images."""
        return int(getattr(self.data, "shift", 0))

    @property
    def network(self) -> nn.Sequential:
        """The network that is trained."""
        return cast("nn.Sequential", self.model.network)

    def loader(self, batch: int) -> DataLoader[Pair]:
        """Serve the training images, not shifted, in batches of another size.

        Args:
            batch: Images per batch.
        """
        data = copy.copy(self.data)
        data.batch_size = batch
        return data.train_dataloader()


@dataclass(frozen=True)
class Choice:
    """How Adam is set.

    Args:
        rate: Learning rate.
        schedule: "constant", or "cosine" for a rate that goes down to 0.
        shift: Pixels by which training images are moved at random, at the most.
        epochs: Over the training images; a cosine takes as long.
    """

    rate: float
    schedule: str
    shift: int
    epochs: int


def load_run(options: argparse.Namespace, seed: int) -> Run:
    """Build what ``python -m lightning_polystep fit`` would train.

    Args:
        options: Config, data root, for ``--quick`` the number of steps, epochs in place of the config's, and other
            arguments of the command line in ``overrides``.
        seed: Of everything.
    """
    settings = yaml.safe_load(options.config.read_text(encoding="utf-8"))
    source = str(settings["data"]["class_path"]).rpartition(".")[2]
    arguments = ["--config", str(options.config), f"--seed_everything={seed}", "--trainer.logger=false"]
    arguments += ["--trainer.limit_val_batches=0", "--trainer.num_sanity_val_steps=0"]
    arguments += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    arguments += [f"--data.root={options.data_root}"] if "root" in settings["data"]["init_args"] else []
    arguments += [f"--trainer.max_steps={options.max_steps}"] if options.max_steps else []
    epochs = getattr(options, "epochs", None)
    arguments += [f"--trainer.max_epochs={epochs}", f"--lr_scheduler.init_args.T_max={epochs}"] if epochs else []
    arguments += getattr(options, "overrides", [])
    with quiet():
        cli = PolyStepCLI(
            pl.LightningModule,
            pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            args=arguments,
            run=False,
        )
    data, trainer = cast("InMemoryDataModule", cli.datamodule), cli.trainer
    data.setup("fit")
    data.setup("test")
    watched: tuple[type[Any], ...] = (ModelCheckpoint, LearningRateMonitor)  # they need validation, or a logger
    callbacks = cast("list[pl.Callback]", vars(trainer)["callbacks"])
    callbacks[:] = [callback for callback in callbacks if not isinstance(callback, watched)]
    return Run(trainer, cast("Classifier", cli.model), data, source, settings)


class _Stopwatch(pl.Callback):
    """Lets a watch see the steps of a trainer."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start."""
        self.watch.resume()

    def on_train_batch_end(self, *arguments: Any) -> None:
        """Count."""
        self.watch.stepped()


def train_ours(run: Run, every: float) -> Curve:
    """Train as the config says.

    Args:
        run: The config's trainer, model and data.
        every: Seconds between samples.
    """
    compile_kernels(run)
    watch = Watch(run.network, run.data.val_set, run.data.test_set, every)
    vars(run.trainer)["callbacks"].append(_Stopwatch(watch))
    with quiet():
        run.trainer.fit(run.model, datamodule=run.data)
    return watch.finish()


def compile_kernels(run: Run) -> None:
    """Make a step on a copy, so that kernels are compiled and loaded."""
    task = Task(copy.deepcopy(run.network), run.model.criterion)
    images, labels = run.data.train_set.__getitems__(range(8))
    calibrate(task.network, [images], keep_given=True)
    engine = Engine(task, PolyStep(task.parameters(), seed=0), announce=None)
    engine.step(lambda: cast("torch.Tensor", task(images, labels)))


def train_adam(
    run: Run,
    start: nn.Sequential,
    choice: Choice,
    *,
    batch: int,
    surrogate: SurrogateName,
    watch_of: Callable[[nn.Module], Watch],
) -> Curve:
    """Train the surrogate network by Adam.

    Args:
        run: Criterion and data.
        start: The network, left as it is.
        choice: How Adam is set.
        batch: Images per batch.
        surrogate: Name of the surrogate derivative.
        watch_of: Makes the watch of the network that is trained.
    """
    task = Task(with_surrogate(start, surrogate), run.model.criterion)
    return _adam(run, task, choice, batch, watch_of(task.network))


def train_straight_through(
    run: Run,
    start: nn.Sequential,
    choice: Choice,
    *,
    batch: int,
    watch_of: Callable[[nn.Module], Watch],
) -> Curve:
    """Train the network by Adam with straight-through gradients; scales are calibrated, and follow, as in the config.

    Args:
        run: Criterion and data; its callbacks say whether scales follow.
        start: The network, left as it is.
        choice: How Adam is set.
        batch: Images per batch.
        watch_of: Makes the watch of the network that is trained.
    """
    task = Task(copy.deepcopy(start), run.model.criterion)
    callbacks = [c for c in vars(run.trainer)["callbacks"] if isinstance(c, Calibrate)]
    with straight_through():
        return _adam(run, task, choice, batch, watch_of(task.network), *callbacks)


def _adam(run: Run, task: Task, choice: Choice, batch: int, watch: Watch, scales: Calibrate | None = None) -> Curve:
    loader = run.loader(batch)
    optimizer = torch.optim.Adam(task.parameters(), lr=choice.rate)
    steps = choice.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if choice.schedule == "cosine" else None
    draw = torch.Generator().manual_seed(torch.initial_seed() % 2**63)
    with torch.enable_grad():
        watch.resume()
        for epoch in range(choice.epochs):
            if scales is not None and (epoch == 0 or scales.follow):
                calibrate(
                    task.network,
                    loader,
                    percentile=scales.percentile,
                    max_batches=scales.max_batches,
                    keep_given=True,
                )
            for images, labels in loader:
                optimizer.zero_grad()
                moved = random_shifts(images, choice.shift, draw) if choice.shift else images
                task(moved, labels).backward()
                optimizer.step()
                if schedule is not None:
                    schedule.step()
                if scales is not None and scales.follow:
                    scales.follow_weights(task.network)
                watch.stepped()
    return watch.finish()


def train_peer(opponent: Peer, run: Run, seconds: float, every: float) -> Curve:
    """Train by the peer until the time is up; the step under way is finished.

    Args:
        opponent: The peer.
        run: Data.
        seconds: Of training.
        every: Seconds between samples.
    """
    loader = run.loader(BATCH)
    watch = Watch(opponent.network, run.data.val_set, run.data.test_set, every)
    watch.resume()
    while True:
        for images, labels in loader:
            opponent.step(images, labels)
            watch.stepped()
            if watch.seconds >= seconds:
                return watch.finish()


class quiet(warnings.catch_warnings):  # noqa: N801 - a context manager reads as a verb
    """Hides advice that a benchmark does not follow: on workers, logging intervals, and how a CLI is called."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")
