"""What the image data modules have in common: training images may be shifted."""

from datamodules.augment import random_shifts
from datamodules.in_memory import InMemoryDataModule
from datamodules.tensors import Pair
from lightning_polystep.randomness import generator


class ImageDataModule(InMemoryDataModule):
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

    def __init__(self, batch_size: int = 256, num_workers: int = 0, drop_last: bool = False, shift: int = 0) -> None:
        super().__init__(batch_size, num_workers, drop_last)
        if shift < 0:
            raise ValueError(f"shift must be a number of pixels, at least 0, got {shift}.")
        self.shift = shift

    def on_after_batch_transfer(self, batch: Pair, dataloader_idx: int) -> Pair:
        """Shift training images, by draws that depend on nothing but the batch's number in the run."""
        trainer = self.trainer
        if not self.shift or trainer is None or not trainer.training:
            return batch
        images, labels = batch
        number = trainer.fit_loop.epoch_loop.total_batch_idx
        return random_shifts(images, self.shift, generator(self.split_seed, number, "shift")), labels
