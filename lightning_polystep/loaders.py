"""Training data in the same order after a resume, for loaders that keep no position of their own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from lightning_polystep.host import (
    RunningStage,
    _is_dataloader_shuffled,
    _set_sampler_epoch,
    _Stateful,
    pl,
    rank_zero_info,
    rank_zero_warn,
)
from lightning_polystep.parallel import Axis
from lightning_polystep.randomness import noise_frame

_MIXED_LOADERS = (
    "Some training loaders keep their position and some do not, so the epoch cannot be continued where it stopped: use "
    "torchdata's StatefulDataLoader for all of them, or for none."
)

_TOO_SHORT = (
    "The training data ended after {} of the {} batches of the epoch that the checkpoint has trained on: resume with "
    "the data of the interrupted run, or start from its weights without ckpt_path."
)


class ReplayableLoader:
    """A loader whose batches are a function of the run's seed, the epoch and their place in it.

    Shuffling and augmentation in the loader's process draw from the global generators; each batch is fetched with these
    seeded by (seed, epoch, place), and they are put back afterwards. Places count over all shards of the data, which
    take their batches in turn. Generators that the user gave the loader or its
    sampler are remembered as they were when the epoch began. So a resumed run that fetches the epoch's first batches
    once more and drops them goes on as if it had never stopped. Everything else is the loader's own.

    Args:
        loader: The user's loader.
        trainer: Counts the epochs and knows the loader's place among several.
        seed: Seed of the order.
        shard: Which shard of the data the loader serves.
    """

    def __init__(self, loader: Any, trainer: pl.Trainer, seed: int, shard: Axis) -> None:
        self.loader = loader
        self._trainer = trainer
        self._seed = seed
        self._shard = shard
        # Shorter loaders are run through several times in an epoch of several loaders.
        self._epoch, self._passes = -1, 0
        self._epoch_start = self._generators()

    def __getattr__(self, name: str) -> Any:
        """Pass on what the loader has."""
        if name == "loader":  # not set yet: a copy is being made
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __len__(self) -> int:
        """Count the batches."""
        return len(self.loader)

    @property
    def worker_init_fn(self) -> Any:
        """What Lightning sets where workers are to be seeded."""
        return self.loader.worker_init_fn

    @worker_init_fn.setter
    def worker_init_fn(self, function: Any) -> None:
        self.loader.worker_init_fn = function

    def __iter__(self) -> Iterator[Any]:
        """Run through the loader; nothing is drawn before the first batch is asked for."""
        progress: Any = self._trainer.fit_loop.epoch_progress.current
        epoch = progress.processed
        if epoch != self._epoch:
            self._epoch, self._passes = epoch, 0
            self._epoch_start = self._generators()
        # Lightning does so as well, but only after a resumed epoch has been fast-forwarded.
        _set_sampler_epoch(self.loader, epoch)
        frame = partial(noise_frame, self._seed, epoch, role=f"loader/{self._place()}/{self._passes}")
        with frame(0):
            batches = iter(self.loader)
        for number in itertools.count():
            with frame(number * self._shard.size + self._shard.index):
                try:
                    batch = next(batches)
                except StopIteration:
                    self._passes += 1
                    return
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return what the order depends on beside the seed and the epoch."""
        return {
            "sampler_seed": getattr(self._sampler(), "seed", None),
            "epoch_start": self._epoch_start,
            "now": self._generators(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the order over; Lightning's sampler is seeded by the process, which may have another seed now."""
        if isinstance(state.get("sampler_seed"), int) and hasattr(self._sampler(), "seed"):
            self._sampler().seed = state["sampler_seed"]
        self._loaded = state

    def rewind(self, *, to_epoch_start: bool) -> None:
        """Set the user's generators to where they were at the start of the epoch, or when the state was saved."""
        state = vars(self).pop("_loaded", None) or {}
        states = state.get("epoch_start" if to_epoch_start else "now", [])
        for generator, known in zip(self._user_generators(), states, strict=False):
            generator.set_state(known)

    def _sampler(self) -> Any:
        return getattr(self.loader, "sampler", None)

    def _user_generators(self) -> list[torch.Generator]:
        holders = [self.loader, self._sampler(), getattr(getattr(self.loader, "batch_sampler", None), "sampler", None)]
        found = [getattr(holder, "generator", None) for holder in holders]
        return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())

    def _generators(self) -> list[torch.Tensor]:
        return [generator.get_state() for generator in self._user_generators()]

    def _place(self) -> int:
        combined = self._trainer.fit_loop._combined_loader
        return combined.flattened.index(self) if combined is not None else 0


def replayable(loader: Any, trainer: pl.Trainer, seed: int, shard: Axis) -> Any:
    """Return the loader so that its order can be replayed; one that keeps its own position is returned as it is.

    Args:
        loader: What the user, or Lightning for the user, made.
        trainer: The trainer that will run through it.
        seed: Seed of the order.
        shard: Which shard of the data the loader serves.
    """
    return loader if isinstance(loader, _Stateful) else ReplayableLoader(loader, trainer, seed, shard)


def keep_order(trainer: pl.Trainer) -> None:
    """Let Lightning's sampler shuffle the training data where the user does, and nowhere else.

    Lightning puts its sampler into every loader of a distributed strategy, and has it shuffle all training data, also
    where the user said ``shuffle=False`` or gave a sampler with an order of its own.

    Args:
        trainer: Before its loaders are set up; :func:`forget_order` undoes it.
    """
    connector = trainer._data_connector
    prepare = type(connector)._prepare_dataloader

    def prepare_in_order(loader: object, shuffle: bool, mode: RunningStage) -> object:
        return prepare(connector, loader, shuffle=shuffle and _is_dataloader_shuffled(loader), mode=mode)

    vars(connector)["_prepare_dataloader"] = prepare_in_order


def forget_order(trainer: pl.Trainer) -> None:
    """Undo :func:`keep_order`."""
    vars(trainer._data_connector).pop("_prepare_dataloader", None)


def fast_forward(trainer: pl.Trainer) -> None:
    """Drop the batches that an interrupted epoch has trained on already; call it before its next batch is fetched.

    Args:
        trainer: At the start of a fit that was resumed from a checkpoint.
    """
    loop = trainer.fit_loop
    if not loop.restarting or loop._combined_loader is None or loop._data_fetcher is None:
        return
    _leave_finished_epoch(trainer)
    loaders = loop._combined_loader.flattened
    known = [loader for loader in loaders if isinstance(loader, ReplayableLoader)]
    seen = _batches_seen(trainer)
    for loader in known:
        loader.rewind(to_epoch_start=seen > 0)
    if not known:
        return
    if len(known) < len(loaders):
        if seen:
            rank_zero_warn(_MIXED_LOADERS)
        return
    # Anew, because of a loader without a length one batch is fetched ahead, which happened in an earlier epoch's name.
    fetcher = iter(loop._data_fetcher)
    if seen:
        rank_zero_info(
            f"Fetching the first {seen} batches of the epoch again, to drop them: the loader keeps no position of its "
            "own (torchdata's StatefulDataLoader does)."
        )
    for fetched in range(seen):
        if next(fetcher, None) is None:
            raise RuntimeError(_TOO_SHORT.format(fetched, seen))
    loop._data_fetcher.fetched -= seen  # Lightning adds them when the epoch goes on


def _leave_finished_epoch(trainer: pl.Trainer) -> None:
    """Let a run that was saved after an epoch's last batch begin the next epoch as such.

    Lightning 2.6 counts the epoch as finished then, but goes on as if it were in the middle of it: the next epoch is
    not counted as begun, nor are its hooks called, and a second resume from there trains an epoch too many.
    """
    loop = trainer.fit_loop
    current: Any = loop.epoch_progress.current
    if loop.restarted_mid_epoch and current.processed == current.started:
        loop.reset_restart_stage()


def _batches_seen(trainer: pl.Trainer) -> int:
    """Return how many batches of an unfinished epoch the checkpoint has trained on."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    processed = progress.current.processed
    over = processed >= trainer.num_training_batches or (progress.is_last_batch and processed >= progress.current.ready)
    return 0 if over else processed
