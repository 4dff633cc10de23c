"""Several processes: the same bits on 1, 2 and 4 of them, by every launcher, and clear errors where they disagree."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import StrategyRegistry
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from lightning_polystep import PolyStep, PolyStepStrategy
from lightning_polystep.cli import main
from tests.helpers.boring import BATCH, FEATURES, Boring, Busy, CountingLogger, loader, polystep, separable, trainer
from tests.helpers.ranks import (
    alike,
    deep_task,
    fit,
    foreign_task,
    noisy_hybrid,
    noisy_shards,
    sampled_hybrid,
    sampled_shards,
    sampled_task,
    spiking_hybrid,
    spiking_shards,
    spiking_task,
)

REPOSITORY = Path(__file__).resolve().parent.parent

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore:.*does not have many workers")]


# --- candidate layout: 1 = 2 = 4 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [spiking_task, sampled_task, foreign_task])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_number_of_processes_does_not_change_a_bit(tmp_path, task, accumulate):
    options = {"accumulate_grad_batches": accumulate}
    one, two, four = (alike(fit(task, ranks, tmp_path, options=options)) for ranks in (1, 2, 4))
    assert one == two == four


def test_feedback_is_learned_alike_by_processes_that_score_other_candidates(tmp_path):
    two = fit(deep_task, 2, tmp_path)
    assert alike(two) == alike(fit(deep_task, 1, tmp_path))
    assert two[0].report["tiers"][1:3] == ["units", "units"]


def shuffled_on_rank_1():
    module, _, options = spiking_task()

    class OneRankShuffled(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_rank == 1 and batch_idx == 2:
                for tensor in batch:
                    tensor.copy_(tensor.flip(0))

    return module, loader(8), {**options, "callbacks": [OneRankShuffled()]}


def test_a_shuffled_batch_stops_all_processes_in_its_step(tmp_path):
    seen = fit(shuffled_on_rank_1, 2, tmp_path)
    assert [len(rank.hashes) for rank in seen] == [2, 2]
    for rank in seen:
        assert rank.error.startswith("At step 2 rank(s) 1 saw another batch than rank 0")


CALLS = itertools.count(1)  # which a probe cannot put back, as it would a number


class ShortOfMemory(Busy):
    """Rank 1 runs out of memory, once, while it scores the third step."""

    def training_step(self, batch, batch_idx):
        third_of_rank_1 = self.trainer.global_rank == 1 and self.trainer.global_step == 2
        if self.trainer.world_size > 1 and third_of_rank_1 and next(CALLS) == 2:
            raise torch.OutOfMemoryError("out of memory, brought about for a test")
        return super().training_step(batch, batch_idx)

    def on_train_epoch_end(self):
        (engine,) = self.trainer.strategy.engines
        self.report = {"chunks": [assignment.chunking.size for assignment in engine.plan.assignments]}


def short_of_memory():
    return ShortOfMemory(), loader(6, shuffle=True), {"logger": CountingLogger()}


def test_memory_that_runs_out_on_one_process_changes_no_bit(tmp_path):
    """Chunks are halved there alone, and what a candidate costs does not depend on those beside it."""
    two = fit(short_of_memory, 2, tmp_path, evaluation="loop")
    assert alike(two) == alike(fit(short_of_memory, 1, tmp_path, evaluation="loop"))
    chunks = [rank.report["chunks"] for rank in two]
    assert sum(ours < theirs for ours, theirs in zip(chunks[1], chunks[0], strict=True)) == 1


# --- data and hybrid layouts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "hybrid"),
    [(spiking_shards, spiking_hybrid), (sampled_shards, sampled_hybrid), (noisy_shards, noisy_hybrid)],
)
def test_the_number_of_shards_does_not_change_a_bit(tmp_path, task, hybrid):
    """One process that accumulates over four micro-batches makes the steps of four that see one each."""

    def run(task, ranks, shards, accumulate):
        options = {"accumulate_grad_batches": accumulate}
        return alike(fit(task, ranks, tmp_path, options=options, data_parallel_size=shards))

    assert run(task, 1, 1, 4) == run(task, 4, 4, 1) == run(hybrid, 4, 2, 2)


def test_data_and_hybrid_layouts_agree_on_buffers_too(tmp_path):
    """Each shard writes statistics of its own into batch normalisation."""
    data = alike(fit(foreign_task, 2, tmp_path, data_parallel_size=2))
    hybrid = alike(fit(foreign_task, 4, tmp_path, data_parallel_size=2))
    assert data == hybrid


# --- what is refused, on all processes alike --------------------------------------------------------------------------


class Augmented(torch.utils.data.Dataset):
    """Random noise on every sample, drawn in the process that loads it."""

    def __len__(self):
        return 4 * BATCH

    def __getitem__(self, index):
        return torch.randn(FEATURES), index % 2


def augmented_in_workers():
    pl.seed_everything(0, workers=True)
    # Spawned, because a worker that is forked from a process with threads may wait for a lock of theirs for ever.
    batches = DataLoader(Augmented(), batch_size=BATCH, num_workers=1, multiprocessing_context="spawn")
    return Boring(polystep), batches, {}


class Drifting(Boring):
    """Changes its parameters on one rank only, by hand."""

    def on_train_batch_start(self, batch, batch_idx):
        if batch_idx == 3 and self.global_rank == 1:
            with torch.no_grad():
                self.net[0].bias.add_(1e-3)


def drifting():
    return Drifting(polystep), loader(16), {}


class Communicating(Boring):
    """Its loss looks at the other processes."""

    def loss(self, batch):
        return self.all_gather(super().loss(batch)).mean()


def communicating():
    return Communicating(polystep), loader(8), {}


class SyncedLogging(Boring):
    """Logs its loss over all processes: the commit pass may, and a probe does not log."""

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("loss", loss, sync_dist=True)
        return loss


def synced_logging():
    return SyncedLogging(polystep), loader(4), {}


class Uneven(torch.utils.data.IterableDataset):
    """More samples on rank 1 than on rank 0."""

    def __len__(self):
        return BATCH * (3 + torch.distributed.get_rank())

    def __iter__(self):
        return iter([separable()[index] for index in range(len(self))])


def uneven():
    return Boring(polystep), DataLoader(Uneven(), batch_size=BATCH), {}


class NotANumber(Boring):
    """The third batch of rank 1 has no finite loss."""

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        return loss * float("nan") if batch_idx == 2 and self.global_rank == 1 else loss


def not_a_number():
    return NotANumber(polystep), loader(16), {}


@pytest.mark.parametrize(
    ("task", "steps", "message"),
    [
        (augmented_in_workers, 0, "At step 0 rank(s) 1 saw another batch than rank 0"),
        (drifting, 3, "At step 3 rank(s) 1 got another loss than rank 0 for the same batch"),
        (communicating, 0, "training_step called torch.distributed.all_gather"),
        (uneven, 0, "different numbers of batches (rank 0: 3, rank 1: 4)"),
    ],
)
def test_all_processes_stop_with_the_cause(tmp_path, task, steps, message):
    for rank in fit(task, 2, tmp_path):
        assert message in rank.error
        assert len(rank.hashes) == steps


def test_drift_that_no_batch_shows_is_found_by_the_parameters(tmp_path):
    """In the data layout every loss differs anyway."""
    options = {"data_parallel_size": 2, "check_replicas_every_n_steps": 2}
    for rank in fit(drifting, 2, tmp_path, **options):
        assert rank.error.startswith("At step 4 the parameters of rank(s) 1 differ from those of rank 0")


@pytest.mark.parametrize(("task", "data"), [(synced_logging, 1), (communicating, 2)])
def test_collectives_that_pair_rightly_are_allowed(tmp_path, task, data):
    alike(fit(task, 2, tmp_path, data_parallel_size=data))


def test_a_shard_without_a_finite_loss_is_left_out_everywhere(tmp_path):
    seen = fit(not_a_number, 2, tmp_path, data_parallel_size=2)
    assert len(alike(seen)) == 8


# --- who sees what ----------------------------------------------------------------------------------------------------


class Counting(Boring):
    """Counts the samples that it is given."""

    def __init__(self):
        super().__init__(polystep)
        self.report = {"train": 0, "val": 0}

    def training_step(self, batch, batch_idx):
        self.counted = ("train", len(batch[0]))
        return self.loss(batch)

    def on_train_batch_end(self, *_):
        self.report["train"] += self.counted[1]

    def validation_step(self, batch, batch_idx):
        self.report["val"] += len(batch[0])


def counting():
    return Counting(), loader(8), {"num_sanity_val_steps": 0}


@pytest.mark.parametrize(("shards", "train"), [(1, 8 * BATCH), (2, 4 * BATCH)])
def test_training_is_divided_along_the_data_and_validation_among_all(tmp_path, shards, train):
    for rank in fit(counting, 2, tmp_path, data_parallel_size=shards):
        assert rank.report == {"train": train, "val": BATCH}


def test_ranks_start_from_the_parameters_and_the_seed_of_rank_0(tmp_path):
    assert alike(fit(unseeded, 2, tmp_path))


class Unseeded(Boring):
    """Every process makes and draws its own numbers, unless they are told."""

    def configure_optimizers(self):
        torch.manual_seed(100 + self.global_rank)
        return PolyStep(self.parameters(), rank=4)

    def setup(self, stage):
        torch.manual_seed(self.global_rank)
        torch.nn.init.normal_(self.net[0].weight)


def unseeded():
    return Unseeded(), loader(3), {}


# --- launchers and names ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "start_method", "shape"),
    [
        ("polystep", "popen", (1, 2)),
        ("polystep_ddp", "popen", (2, 1)),
        ("polystep_spawn", "spawn", (1, 2)),
        ("polystep_fork", "fork", (1, 2)),
        ("polystep_notebook", "fork", (1, 2)),
    ],
)
def test_names(tmp_path, name, start_method, shape):
    assert name in StrategyRegistry
    strategy = trainer(tmp_path, strategy=name, devices=2).strategy
    assert strategy._start_method == start_method
    assert (strategy.layout.data.size, strategy.layout.candidates.size) == shape
    assert trainer(tmp_path, strategy=name, devices=1).strategy.launcher is None


def test_spawned_processes_make_the_same_steps(tmp_path):
    assert alike(fit(foreign_task, 2, tmp_path, start_method="spawn")) == alike(fit(foreign_task, 1, tmp_path))


@pytest.mark.filterwarnings("ignore:The verbose parameter", "ignore:.*is deprecated")
def test_processes_of_the_command_line_make_the_same_steps(tmp_path):
    """Lightning runs the command again for the second process."""
    options = ["fit", "--config", str(REPOSITORY / "configs" / "digits_spiking.yaml"), "--test_after_fit", "false"]
    options += ["--trainer.max_steps", "2", "--trainer.enable_progress_bar", "false"]

    def folder(name):
        return ["--trainer.logger.init_args.save_dir", str(tmp_path / name)]

    def sha256(name):
        (results,) = (tmp_path / name).rglob("results.json")
        return json.loads(results.read_text(encoding="utf-8"))["parameters_sha256"]

    main([*options, *folder("one")])
    command = [sys.executable, "-m", "lightning_polystep", *options, *folder("two"), "--trainer.devices", "2"]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=one_thread, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert sha256("one") == sha256("two")


def test_forking_after_kernels_is_refused_before_any_process_starts(tmp_path, monkeypatch):
    monkeypatch.setattr("numba.threading_layer", lambda: "omp")
    monkeypatch.setattr("sys.platform", "linux")
    strategy = PolyStepStrategy(start_method="fork", show_plan=False)
    with pytest.raises(MisconfigurationException, match="NUMBA_THREADING_LAYER=workqueue"):
        trainer(tmp_path, strategy=strategy, devices=2).fit(Boring(polystep), loader())
