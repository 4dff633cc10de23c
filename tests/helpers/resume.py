"""Run with a checkpoint after every batch, and go on from one of them."""

import random

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn

from lightning_polystep import PolyStep
from lightning_polystep.results import parameters_sha256
from tests.helpers.boring import Boring, polystep, trainer

BATCHES, EPOCHS = 5, 4
STEPS = BATCHES * EPOCHS


class Noisy(Boring):
    """Dropout and BatchNorm of another library, and a hook that draws from every global generator."""

    def __init__(self, optimizer=polystep):
        super().__init__(optimizer, dropout=0.2)
        self.net.insert(1, nn.BatchNorm1d(6))

    def on_after_batch_transfer(self, batch, dataloader_idx):
        if not self.trainer.training:
            return batch
        inputs, labels = batch
        noise = 0.1 * torch.randn_like(inputs) + 0.1 * np.random.randn() + 0.1 * random.gauss(0, 1)
        return inputs + noise, labels


def seeded(kind):
    """A module whose optimizer takes the seed of the process."""
    return kind(lambda module: PolyStep(module.parameters(), rank=4))


class Hashes(pl.Callback):
    """The hash of all parameters and buffers after every batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(parameters_sha256(pl_module))


class SaveEveryBatch(pl.Callback):
    """Writes 1.ckpt, 2.ckpt, ... as batches end."""

    def __init__(self, folder):
        self.folder, self.batches = folder, 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches += 1
        trainer.save_checkpoint(self.folder / f"{self.batches}.ckpt")


def run_whole(folder, module, data, **options):
    """Train without a stop and save after every batch; return the hashes."""
    hashes = Hashes()
    run = trainer(folder, max_epochs=EPOCHS, callbacks=[hashes, SaveEveryBatch(folder)], **options)
    pl.seed_everything(7, verbose=False)
    run.fit(module, data)
    return hashes.seen


def run_rest(path, module, data, *, save_in=None, more=(), **options):
    """Go on from a checkpoint, in a process that drew other numbers before; return the hashes."""
    hashes = Hashes()
    savers = [] if save_in is None else [SaveEveryBatch(save_in)]
    pl.seed_everything(99, verbose=False)
    run = trainer(path.parent, max_epochs=EPOCHS, callbacks=[hashes, *savers, *more], **options)
    run.fit(module, data, ckpt_path=path)
    return hashes.seen


def drop(path):
    """Return a function that empties an entry of a checkpoint."""

    def change(checkpoint):
        *parents, last = path
        for key in parents:
            checkpoint = checkpoint[key]
        kept = checkpoint[last]
        checkpoint[last] = type(kept)() if isinstance(kept, dict) else 0 if isinstance(kept, int) else None

    return change
