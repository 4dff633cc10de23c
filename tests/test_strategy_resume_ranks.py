"""Stop on one number of processes after any batch, resume on another, and go on to the same bits."""

import pytest
import torch

from lightning_polystep.hosted import Pending
from tests.helpers.ranks import (
    Dealt,
    alike,
    fit,
    foreign_task,
    noisy_hybrid,
    noisy_shards,
    resume,
    spiking_hybrid,
    spiking_shards,
    spiking_task,
)
from tests.helpers.resume import drop

pytestmark = pytest.mark.distributed


class Saved:
    """A run that was never stopped, with a checkpoint after every batch of a process."""

    def __init__(self, folder, task, ranks, **arguments):
        self.folder = folder
        self.checkpoints = folder / "saved"
        self.hashes = alike(fit(task, ranks, folder, save_in=self.checkpoints, **arguments))

    def path(self, batch):
        return self.checkpoints / f"{batch}.ckpt"

    def rest(self, batch):
        """The hashes of the steps after a batch."""
        return self.hashes[torch.load(self.path(batch), weights_only=True)["global_step"] :]

    def check(self, task, ranks, stops, **arguments):
        """Go on from each of some batches on so many processes."""
        runs = resume(task, ranks, self.folder, [self.path(stop) for stop in stops], **arguments)
        for stop, seen in zip(stops, runs, strict=True):
            assert alike(seen) == self.rest(stop), f"resumed on {ranks} after batch {stop}"


# --- candidate layout ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(("task", "batches"), [(spiking_task, 8), (foreign_task, 6)])
def test_another_number_of_processes_goes_on_to_the_same_bits(tmp_path, task, batches, accumulate):
    options = {"accumulate_grad_batches": accumulate, "max_epochs": 2}
    # Every batch where it may be in the middle of a step or at the end of one.
    stops = range(1, 2 * batches)[:: 1 if accumulate > 1 else 3]
    two = Saved(tmp_path, task, 2, options=options)
    two.check(task, 1, stops, options=options)
    two.check(task, 4, stops[::4], options=options)
    one = Saved(two.checkpoints, task, 1, options=options)
    assert one.hashes == two.hashes
    one.check(task, 2, stops, options=options)


# --- data and hybrid layouts: the same micro-batches on other shards --------------------------------------------------

LAYOUTS = {
    # processes, shards, and batches of each in a step of 12 micro-batches
    "1": (1, 1, 12),
    "2": (2, 2, 6),
    "4": (4, 4, 3),
    "2 x 2": (4, 2, 6),
}


@pytest.mark.parametrize(
    ("was", "now", "stops"),
    [
        ("2", "2", range(1, 12)),
        ("2", "1", range(1, 12)),
        ("1", "2", range(2, 24, 2)),
        ("2", "4", range(2, 12, 2)),
        ("2", "2 x 2", range(1, 12)),
        ("2 x 2", "4", (2, 4, 8)),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("task", "hybrid"), [(spiking_shards, spiking_hybrid), (noisy_shards, noisy_hybrid)], ids=["spiking", "noisy"]
)
def test_another_number_of_shards_goes_on_to_the_same_bits(tmp_path, task, hybrid, was, now, stops):
    def arguments(layout):
        ranks, shards, accumulate = LAYOUTS[layout]
        options = {"accumulate_grad_batches": accumulate}
        return hybrid if shards < ranks else task, ranks, {"options": options, "data_parallel_size": shards}

    of, ranks, settings = arguments(was)
    saved = Saved(tmp_path, of, ranks, **settings)
    of, ranks, settings = arguments(now)
    saved.check(of, ranks, stops, **settings)


# --- negative controls: the tests above can fail ----------------------------------------------------------------------


def everyone_holds_the_window():
    """What had been gathered counts once for each process."""
    Pending.emptied = lambda pending: pending
    return spiking_task()


class OneShard(Dealt):
    """Deals the first shard to everyone."""

    @property
    def place(self):
        return 0, super().place[1]


def one_shard():
    module, loader, options = spiking_shards()
    loader.batch_sampler.__class__ = OneShard
    return module, loader, options


OWN = ("optimizer_states", 0, "polystep")


@pytest.mark.parametrize("path", [(*OWN, "pending"), (*OWN, "statistics"), ("optimizer_states", 0, "state")], ids=str)
def test_without_a_part_of_the_state_the_runs_differ(tmp_path, path):
    options = {"accumulate_grad_batches": 3}
    saved = Saved(tmp_path, spiking_task, 2, options=options)
    checkpoint = torch.load(saved.path(4), weights_only=True)
    drop(path)(checkpoint)
    torch.save(checkpoint, saved.path("changed"))
    runs = resume(spiking_task, 4, tmp_path, [saved.path(4), saved.path("changed")], options=options)
    assert [alike(seen) == saved.rest(4) for seen in runs] == [True, False]


def test_a_window_that_counts_twice_is_noticed(tmp_path):
    options = {"accumulate_grad_batches": 3}
    saved = Saved(tmp_path, spiking_task, 2, options=options)
    (seen,) = resume(everyone_holds_the_window, 2, tmp_path, [saved.path(4)], options=options)
    assert alike(seen) != saved.rest(4)


def test_a_wrong_shard_is_noticed(tmp_path):
    options = {"accumulate_grad_batches": 3}
    saved = Saved(tmp_path, spiking_shards, 2, options=options, data_parallel_size=2)
    (seen,) = resume(one_shard, 2, tmp_path, [saved.path(4)], options=options, data_parallel_size=2)
    assert alike(seen) != saved.rest(4)
