"""Seeds of episodes: the data on which a policy is trained."""

from collections.abc import Iterator

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_polystep.randomness import derive_seed

_SEEDS = 2**63 - 1


class FreshSeeds(IterableDataset[Tensor]):
    """Seeds that come from torch's global generator, as a shuffle does.

    Under the strategy that generator is a function of (seed of the run, epoch, place) while a batch is fetched, so a
    resumed run, and each of several processes, gets the seeds that it would have had.

    Args:
        count: How many an epoch has.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[Tensor]:
        """Draw one after the other."""
        for _ in range(self.count):
            yield torch.randint(_SEEDS, ())


class FixedSeeds(Dataset[Tensor]):
    """The same seeds at every pass.

    Args:
        count: How many.
        data_seed: Decides, with the role, which.
        role: What they are for; two roles have none in common.
    """

    def __init__(self, count: int, data_seed: int, role: str) -> None:
        self.seeds = torch.tensor([derive_seed(data_seed, index, 0, f"episodes/{role}") for index in range(count)])

    def __len__(self) -> int:
        """Count them."""
        return len(self.seeds)

    def __getitem__(self, index: int) -> Tensor:
        """Return one, a scalar of int64."""
        return self.seeds[index]


class Episodes(pl.LightningDataModule):
    """Batches of episode seeds, (N,) int64: new ones at each training step, the same at each validation and test.

    Args:
        batch_size: Episodes of a step, which all candidates play.
        steps_per_epoch: Training batches of an epoch.
        val_episodes: Played at each validation.
        test_episodes: Played at the test; none of them is a validation's.
        data_seed: Decides which episodes validation and test play.

    Raises:
        ValueError: If a number is below 1.

    Example:
        >>> from datamodules import Episodes
        >>> data = Episodes(batch_size=4, steps_per_epoch=3)
        >>> [tuple(seeds.shape) for seeds in data.train_dataloader()]
        [(4,), (4,), (4,)]
    """

    def __init__(
        self,
        batch_size: int = 4,
        steps_per_epoch: int = 10,
        *,
        val_episodes: int = 100,
        test_episodes: int = 100,
        data_seed: int = 0,
    ) -> None:
        super().__init__()
        numbers = {"batch_size": batch_size, "steps_per_epoch": steps_per_epoch}
        for name, number in (numbers | {"val_episodes": val_episodes, "test_episodes": test_episodes}).items():
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}.")
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.val_set = FixedSeeds(val_episodes, data_seed, "validation")
        self.test_set = FixedSeeds(test_episodes, data_seed, "test")

    def train_dataloader(self) -> DataLoader[Tensor]:
        """Serve new seeds."""
        return DataLoader(FreshSeeds(self.batch_size * self.steps_per_epoch), batch_size=self.batch_size)

    def val_dataloader(self) -> DataLoader[Tensor]:
        """Serve the seeds of the validation, all at once."""
        return DataLoader(self.val_set, batch_size=len(self.val_set))

    def test_dataloader(self) -> DataLoader[Tensor]:
        """Serve the seeds of the test, all at once."""
        return DataLoader(self.test_set, batch_size=len(self.test_set))
