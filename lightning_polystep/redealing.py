"""Go on with another number of shards of the data than those that a checkpoint was saved with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_polystep.host import pl, rank_zero_info, rank_zero_warn
from lightning_polystep.hosted import HostedOptimizer

_REDEALT = (
    "The checkpoint was saved with {was} shards of the data and goes on with {now}: batch {before} of the epoch counts "
    "as batch {after}, because batch_size is that of a shard. The same steps follow if accumulate_grad_batches times "
    "the number of shards is what it was."
)
_UNEVEN = (
    "The checkpoint was saved after {seen} micro-batches of an epoch, which {now} shards of the data cannot share "
    "evenly: the last {again} are trained on once more, so the run differs from the uninterrupted one. Resume with "
    "{was} shards, or from a checkpoint that was saved elsewhere in the epoch, if that matters."
)


def redeal(trainer: pl.Trainer, optimizers: Sequence[HostedOptimizer], was: int, now: int) -> None:
    """Count the batches of a loaded checkpoint in those of another number of shards.

    With D shards, the batches number k of all of them are the micro-batches k D to k D + D - 1 of the epoch, so n
    micro-batches are n / D batches. Where that is no whole number, the epoch goes on from the last step before.

    Args:
        trainer: Its loops have been restored.
        optimizers: They have been restored as well.
        was: Number of shards D that the checkpoint was saved with.
        now: Number of shards of this run.
    """
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    before = progress.current.processed
    if was == now or before == 0:
        return
    seen = before * was
    gathered = max(optimizer.progress.micro_batch for optimizer in optimizers) * was
    if progress.is_last_batch and before >= progress.current.ready:
        after = -(-seen // now)
    elif seen % now or gathered % now:
        after = (seen - gathered) // now
        for optimizer in optimizers:
            optimizer.binding.loaded, optimizer.progress.micro_batch = None, 0
        rank_zero_warn(_UNEVEN.format(seen=seen, was=was, now=now, again=seen - after * now))
    else:
        after = seen // now
        for optimizer in optimizers:
            optimizer.progress.micro_batch = optimizer.progress.micro_batch * was // now
        rank_zero_info(_REDEALT.format(was=was, now=now, before=before, after=after))
    for tracker in (progress.total, progress.current):
        for name, count in vars(tracker).items():
            setattr(tracker, name, count + after - before)
