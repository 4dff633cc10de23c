"""Windows of an hourly series and what comes after them: by formula, or from a file such as ETTh1.csv."""

import csv
from pathlib import Path

import torch
from torch import Tensor

from datamodules.in_memory import InMemoryDataModule
from datamodules.tensors import TensorImages
from datamodules.transformer import transformer_series


class HourlySeries(InMemoryDataModule):
    r"""Forecast the last column of a series from the past of all columns.

    With x the series, each column in units of its standard deviation in the training hours and from its mean there, and
    y its last column, the pair of hour t is

    .. math::
        (x_{t-L+1} - x_t, \dots, x_t - x_t) \in \mathbb R^{L \times C} \quad\text{and}\quad
        (y_{t+1} - y_t, \dots, y_{t+H} - y_t) \in \mathbb R^H,

    so that who says that nothing changes (persistence) predicts 0. Sets follow one another in time; no hour that is a
    target of one is a target, or an input, of an earlier one.

    Args:
        path: A CSV file with a heading, a time in its first column and numbers in the others, as ETTh1.csv; None takes
            the simulated :func:`~datamodules.transformer.transformer_series`.
        lookback: Hours L that a forecast sees.
        horizon: Hours H that it is about.
        train_hours: Hours of the training set; by default twelve months of thirty days, as is usual for ETTh1.
        val_hours: Hours of the validation set, after them; four such months.
        test_hours: Hours of the test set, after those; four such months.
        data_seed: Of the simulated series.
        batch_size: Windows per batch.
        num_workers: Processes that fetch; with whole tensors in memory 0 is the fastest.
        drop_last: Whether a last training batch that is not full is left out.

    Raises:
        ValueError: If a number is below 1 or a set is too short for a window, or the file is not such a table or too
            short.
        FileNotFoundError: If there is no such file.

    Example:
        >>> from datamodules import HourlySeries
        >>> data = HourlySeries(train_hours=500, val_hours=200, test_hours=200)
        >>> data.setup()
        >>> window, ahead = data.train_set[0]
        >>> window.shape, ahead.shape, len(data.train_set)
        (torch.Size([96, 3]), torch.Size([24]), 381)

    References:
        Zhou et al. 2021, *Informer*, arXiv 2012.07436 (ETTh1 and its split); Zeng et al. 2023, arXiv 2205.13504
        (NLinear: windows relative to their last hour).
    """

    def __init__(  # noqa: PLR0913 - each option has a default
        self,
        path: str | Path | None = None,
        lookback: int = 96,
        horizon: int = 24,
        *,
        train_hours: int = 8640,
        val_hours: int = 2880,
        test_hours: int = 2880,
        data_seed: int = 0,
        batch_size: int = 256,
        num_workers: int = 0,
        drop_last: bool = False,
    ) -> None:
        super().__init__(batch_size, num_workers, drop_last)
        for name, hours in {"lookback": lookback, "horizon": horizon}.items():
            if hours < 1:
                raise ValueError(f"{name} must be at least 1 hour, got {hours}.")
        least = {"train_hours": lookback + horizon, "val_hours": horizon, "test_hours": horizon}
        self.set_hours = (train_hours, val_hours, test_hours)
        for (name, fewest), hours in zip(least.items(), self.set_hours, strict=True):
            if hours < fewest:
                raise ValueError(f"{name} must be at least {fewest} for one window, got {hours}.")
        self.path = None if path is None else Path(path)
        self.lookback = lookback
        self.horizon = horizon
        self.data_seed = data_seed

    def setup(self, stage: str | None = None) -> None:
        """Read or simulate the series, and cut all three sets out of it."""
        del stage
        hours = sum(self.set_hours)
        series = transformer_series(hours, self.data_seed) if self.path is None else read_series(self.path)
        if len(series) < hours:
            raise ValueError(
                f"{self.path} has {len(series)} hours, and the three sets need {hours}: lower train_hours, val_hours "
                "or test_hours."
            )
        known = series[: self.set_hours[0]]
        spread = known.std(0, correction=0)
        if bool((spread == 0).any()):
            raise ValueError(f"A column of {self.path} is constant in the training hours: leave it out.")
        series = (series - known.mean(0)) / spread
        ends = torch.tensor(self.set_hours).cumsum(0).tolist()
        starts = [self.lookback, *ends[:-1]]
        self.train_set, self.val_set, self.test_set = (
            self._windows(series, start, end) for start, end in zip(starts, ends, strict=True)
        )

    def _windows(self, series: Tensor, start: int, end: int) -> TensorImages:
        """Return all pairs whose targets lie in the hours [start, end)."""
        inputs = series[start - self.lookback : end - self.horizon].unfold(0, self.lookback, 1).transpose(1, 2)
        targets = series[start:end, -1].unfold(0, self.horizon, 1)
        last = inputs[:, -1:]
        return TensorImages((inputs - last).float(), (targets - last[:, :, -1]).float())


def read_series(path: Path) -> Tensor:
    """Read all columns of a table but the first, which holds the time.

    Args:
        path: A CSV file with a heading.

    Returns:
        Shape (hours, columns), float64.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a row is not of finite numbers, or not as long as the heading, or there is none.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} not found: give the path of a table such as ETTh1.csv, or leave it out for the simulated series."
        )
    with path.open(newline="", encoding="utf-8") as file:
        heading, *rows = list(csv.reader(file)) or [[]]
    if len(heading) < 2 or not rows:
        raise ValueError(f"{path} holds no series: expected a heading, then rows of a time and numbers.")
    values, wanted = [], f"a time and {len(heading) - 1} finite numbers"
    for number, row in enumerate(rows, start=2):
        try:
            numbers = [float(cell) for cell in row[1:]]
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}.") from error
        if len(row) != len(heading) or not torch.tensor(numbers).isfinite().all():
            raise ValueError(f"{path}, line {number}: expected {wanted}, got {row}.")
        values.append(numbers)
    return torch.tensor(values, dtype=torch.float64)
