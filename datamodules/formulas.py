"""Formulas as data: a batch is the whole formula, and an epoch as many of them as steps are wanted."""

from pathlib import Path

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from lightning_polystep.maxsat import WeightedCNF, random_ksat, read_formula


class SameFormula(Dataset[WeightedCNF]):
    """One formula, as often as it is asked for.

    Args:
        formula: The formula.
        times: Length of the data set.
    """

    def __init__(self, formula: WeightedCNF, times: int) -> None:
        self.formula = formula
        self.times = times

    def __len__(self) -> int:
        """Return how often it is served in an epoch."""
        return self.times

    def __getitem__(self, index: int) -> WeightedCNF:
        """Return the formula."""
        if not 0 <= index < self.times:
            raise IndexError(index)
        return self.formula


class FormulaDataModule(pl.LightningDataModule):
    """Serve ``formula``, which a subclass makes in ``make``.

    Args:
        steps_per_epoch: Batches of a training epoch; validation and test have one.

    Raises:
        ValueError: When there is no step in an epoch.
    """

    formula: WeightedCNF | None

    def __init__(self, steps_per_epoch: int = 10) -> None:
        super().__init__()
        if steps_per_epoch < 1:
            raise ValueError(f"steps_per_epoch must be at least 1, got {steps_per_epoch}.")
        self.steps_per_epoch = steps_per_epoch
        self.formula = None

    def make(self) -> WeightedCNF:
        """Return the formula."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Make the formula, once."""
        del stage
        if self.formula is None:
            self.formula = self.make()

    def train_dataloader(self) -> DataLoader[WeightedCNF]:
        """Serve the formula ``steps_per_epoch`` times."""
        return self._loader(self.steps_per_epoch)

    def val_dataloader(self) -> DataLoader[WeightedCNF]:
        """Serve the formula once."""
        return self._loader(1)

    def test_dataloader(self) -> DataLoader[WeightedCNF]:
        """Serve the formula once."""
        return self._loader(1)

    def predict_dataloader(self) -> DataLoader[WeightedCNF]:
        """Serve the formula once."""
        return self._loader(1)

    def transfer_batch_to_device(self, batch: WeightedCNF, device: torch.device, dataloader_idx: int) -> WeightedCNF:
        """Leave the formula where it is: the objective reads its arrays on the CPU."""
        del device, dataloader_idx
        return batch

    def _loader(self, times: int) -> DataLoader[WeightedCNF]:
        if self.formula is None:
            raise RuntimeError("The formula is made in setup(): call it first, as the Trainer does.")
        return DataLoader(SameFormula(self.formula, times), batch_size=None)


class RandomKSAT(FormulaDataModule):
    """A random k-SAT formula (:func:`~lightning_polystep.maxsat.random_ksat`).

    Args:
        variables: Number of variables.
        ratio: Clauses per variable.
        k: Literals per clause.
        data_seed: Of the formula.
        planted: Whether some assignment satisfies all of it.
        max_weight: Soft weights are drawn from 1 to this.
        steps_per_epoch: Batches of a training epoch.

    Example:
        >>> from datamodules import RandomKSAT
        >>> data = RandomKSAT(variables=100, steps_per_epoch=3)
        >>> data.setup()
        >>> [formula.clauses for formula in data.train_dataloader()]
        [426, 426, 426]
    """

    def __init__(
        self,
        variables: int = 10_000,
        ratio: float = 4.27,
        k: int = 3,
        *,
        data_seed: int = 0,
        planted: bool = False,
        max_weight: int = 1,
        steps_per_epoch: int = 10,
    ) -> None:
        super().__init__(steps_per_epoch)
        self.variables = variables
        self.ratio = ratio
        self.k = k
        self.data_seed = data_seed
        self.planted = planted
        self.max_weight = max_weight

    def make(self) -> WeightedCNF:
        """Draw the formula."""
        return random_ksat(
            self.variables,
            self.ratio,
            k=self.k,
            seed=self.data_seed,
            planted=self.planted,
            max_weight=self.max_weight,
        )


class FormulaFile(FormulaDataModule):
    """A formula from a file (:func:`~lightning_polystep.maxsat.read_formula`).

    Args:
        path: Of a .cnf or .wcnf, plain or compressed.
        steps_per_epoch: Batches of a training epoch.
    """

    def __init__(self, path: str, steps_per_epoch: int = 10) -> None:
        super().__init__(steps_per_epoch)
        self.path = path

    def make(self) -> WeightedCNF:
        """Read the formula."""
        return read_formula(Path(self.path))
