"""Batches of one number of shards, counted in those of another."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytorch_lightning.loops.progress import _BatchProgress
from torch import nn

from lightning_polystep import PolyStep
from lightning_polystep.redealing import redeal


def saved_after(batches, micro_batch=0, is_last_batch=False):
    """A trainer and an optimizer as a checkpoint from the end of a batch restores them."""
    progress = _BatchProgress()
    for tracker in (progress.total, progress.current):
        tracker.ready = tracker.started = tracker.processed = batches
        tracker.completed = batches - 1
    progress.is_last_batch = is_last_batch
    optimizer = PolyStep(nn.Linear(2, 2).parameters(), seed=0)
    optimizer.progress.micro_batch = micro_batch
    optimizer.binding.loaded = {"weight": float(micro_batch)} if micro_batch else None
    trainer = SimpleNamespace(fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)))
    return trainer, optimizer, progress


@given(st.integers(1, 50), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_no_micro_batch_is_left_out_or_seen_twice_where_they_can_be_shared(rounds, was, now, gathered):
    """After whole rounds of both numbers of shards, each has seen as many micro-batches as before."""
    trainer, optimizer, progress = saved_after(rounds * now, micro_batch=now * min(gathered, rounds))
    redeal(trainer, [optimizer], was, now)
    assert progress.current.processed * now == rounds * now * was
    assert optimizer.progress.micro_batch == was * min(gathered, rounds)
    assert optimizer.binding.loaded is not None
    trackers = [vars(tracker) for tracker in (progress.current, progress.total)]
    assert trackers[0] == trackers[1]
    assert progress.current.completed == progress.current.processed - 1


def test_what_cannot_be_shared_goes_back_to_the_last_step_and_says_so():
    trainer, optimizer, progress = saved_after(5, micro_batch=2)
    with pytest.warns(UserWarning, match=r"after 15 micro-batches .* 2 shards .* the last 7 are trained on once more"):
        redeal(trainer, [optimizer], 3, 2)
    assert progress.current.processed == 4
    assert (optimizer.progress.micro_batch, optimizer.binding.loaded) == (0, None)


def test_a_finished_epoch_stays_finished():
    trainer, optimizer, progress = saved_after(5, is_last_batch=True)
    redeal(trainer, [optimizer], 3, 2)
    assert progress.current.processed == 8


@pytest.mark.parametrize(("batches", "was", "now"), [(5, 2, 2), (0, 2, 4)])
def test_nothing_is_counted_anew_without_need(batches, was, now):
    trainer, optimizer, progress = saved_after(batches)
    redeal(trainer, [optimizer], was, now)
    assert progress.current.processed == batches
