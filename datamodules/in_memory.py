"""What the data modules have in common: three sets in memory and how they are served."""

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from datamodules.tensors import Pair, TensorImages


class InMemoryDataModule(pl.LightningDataModule):
    """Serve ``train_set``, ``val_set`` and ``test_set``, which a subclass fills in ``setup``.

    Args:
        batch_size: Samples per batch.
        num_workers: Processes that fetch; with whole tensors in memory 0 is the fastest.
        drop_last: Whether a last training batch that is not full is left out.

    Raises:
        ValueError: If ``batch_size`` is below 1.
    """

    train_set: TensorImages
    val_set: TensorImages
    test_set: TensorImages

    def __init__(self, batch_size: int = 256, num_workers: int = 0, drop_last: bool = False) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.drop_last = drop_last

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
