"""What the image data modules have in common: three sets in memory and how they are served."""

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from datamodules.augment import random_shifts
from datamodules.tensors import Pair, TensorImages
from lightning_polystep.randomness import generator


class ImageDataModule(pl.LightningDataModule):
    """Serve ``train_set``, ``val_set`` and ``test_set``, which a subclass fills in ``setup``.

    Args:
        batch_size: Images per batch.
        num_workers: Processes that fetch; with whole tensors in memory 0 is the fastest.
        drop_last: Whether a last training batch that is not full is left out.
        shift: Pixels by which training images are moved at random, at the most; the same whenever a run is repeated or
            resumed.

    Raises:
        ValueError: If ``shift`` is negative.
    """

    split_seed: int
    train_set: TensorImages
    val_set: TensorImages
    test_set: TensorImages

    def __init__(self, batch_size: int = 256, num_workers: int = 0, drop_last: bool = False, shift: int = 0) -> None:
        super().__init__()
        if shift < 0:
            raise ValueError(f"shift must be a number of pixels, at least 0, got {shift}.")
        self.shift = shift
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.drop_last = drop_last

    def on_after_batch_transfer(self, batch: Pair, dataloader_idx: int) -> Pair:
        """Shift training images, by draws that depend on nothing but the batch's number in the run."""
        trainer = self.trainer
        if not self.shift or trainer is None or not trainer.training:
            return batch
        images, labels = batch
        number = trainer.fit_loop.epoch_loop.total_batch_idx
        return random_shifts(images, self.shift, generator(self.split_seed, number, "shift")), labels

    def train_dataloader(self) -> DataLoader[Pair]:
        """Serve the training set, shuffled anew each epoch."""
        return self.train_set.loader(
            self.batch_size, shuffle=True, drop_last=self.drop_last, num_workers=self.num_workers
        )

    def val_dataloader(self) -> DataLoader[Pair]:
        """Serve the validation set in order."""
        return self.val_set.loader(self.batch_size, num_workers=self.num_workers)

    def test_dataloader(self) -> DataLoader[Pair]:
        """Serve the test set in order."""
        return self.test_set.loader(self.batch_size, num_workers=self.num_workers)

    def predict_dataloader(self) -> DataLoader[Pair]:
        """Serve the test set in order."""
        return self.test_dataloader()
