"""The LightningModule that forecasts a series."""

import pytorch_lightning as pl
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]


class Forecaster(pl.LightningModule):
    """Train any network that gives one number per hour ahead; knows nothing of how it is optimised.

    Logs ``{train,val,test}/mse`` and, of validation and test, ``/mae`` and ``/persistence``: the squared error of the
    forecast that nothing changes, which is 0 in the units of :class:`~datamodules.HourlySeries`.

    Args:
        network: From windows, (N, L, C), to (N, H) changes since their last hour.

    Example:
        >>> import torch
        >>> from models import Forecaster, StaircaseMLP
        >>> Forecaster(StaircaseMLP((288, 16, 24)))(torch.rand(2, 96, 3)).shape
        torch.Size([2, 24])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["network"])
        self.network = network
        self.criterion = nn.MSELoss()

    def forward(self, windows: Tensor) -> Tensor:
        """Forecast, ``(N, H)``."""
        changes: Tensor = self.network(windows)
        return changes

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean squared error of a batch and log it."""
        windows, ahead = batch
        loss: Tensor = self.criterion(self(windows), ahead)
        self.log("train/mse", loss, prog_bar=True, batch_size=len(ahead))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the errors on a validation batch."""
        self._log_errors("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the errors on a test batch."""
        self._log_errors("test", batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the forecasts, (N, H)."""
        windows, _ = batch
        changes: Tensor = self(windows)
        return changes

    def configure_optimizers(self) -> None:
        """Leave the choice to the strategy, or to the ``optimizer`` section of a LightningCLI configuration."""

    def _log_errors(self, stage: str, batch: Batch) -> None:
        windows, ahead = batch
        errors = self(windows) - ahead
        self.log(f"{stage}/mse", errors.square().mean(), prog_bar=True, batch_size=len(ahead))
        self.log(f"{stage}/mae", errors.abs().mean(), batch_size=len(ahead))
        self.log(f"{stage}/persistence", ahead.square().mean(), batch_size=len(ahead))
