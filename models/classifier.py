"""The LightningModule of every classification example."""

import re

import pytorch_lightning as pl
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

Batch = tuple[Tensor, Tensor]

_UNEQUAL = re.compile(r"shapes cannot be multiplied \(\d+x(\d+) and (\d+)x\d+\)")
_WRONG_SIZE = (
    "The data gives {} numbers where the network takes {} (inputs of shape {}): make sizes[0] of the network, "
    "--model.network.sizes on the command line, what the data gives."
)


class Classifier(pl.LightningModule):
    """Train any network that gives one score per class; knows nothing of how it is optimised.

    Logs ``{train,val,test}/loss`` and ``{train,val,test}/accuracy``.

    Args:
        network: From a batch of inputs to ``(N, num_classes)`` scores.
        num_classes: Number of classes.
        criterion: From scores and labels to a scalar loss; cross-entropy unless given.

    Example:
        >>> import torch
        >>> from models import Classifier, SpikingMLP
        >>> Classifier(SpikingMLP((64, 16, 10)))(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, network: nn.Module, num_classes: int = 10, criterion: nn.Module | None = None) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["network", "criterion"])
        self.network = network
        self.criterion = criterion or nn.CrossEntropyLoss()
        self.train_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, inputs: Tensor) -> Tensor:
        """Score the classes, ``(N, num_classes)``."""
        try:
            scores: Tensor = self.network(inputs)
        except RuntimeError as error:
            sizes = _UNEQUAL.search(str(error))
            if sizes is None:
                raise
            raise ValueError(_WRONG_SIZE.format(*sizes.groups(), tuple(inputs.shape))) from error
        return scores

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch and log it with the accuracy."""
        return self._loss("train", self.train_accuracy, batch)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss and accuracy on a validation batch."""
        self._loss("val", self.val_accuracy, batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss and accuracy on a test batch."""
        self._loss("test", self.test_accuracy, batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the most probable class of each input."""
        inputs, _ = batch
        classes: Tensor = self(inputs).argmax(-1)
        return classes

    def configure_optimizers(self) -> None:
        """Leave the choice to the strategy, or to the ``optimizer`` section of a LightningCLI configuration."""

    def _loss(self, stage: str, accuracy: MulticlassAccuracy, batch: Batch) -> Tensor:
        inputs, labels = batch
        scores = self(inputs)
        loss: Tensor = self.criterion(scores, labels)
        accuracy(scores, labels)
        self.log(f"{stage}/loss", loss, prog_bar=True, batch_size=len(labels))
        self.log(f"{stage}/accuracy", accuracy, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(labels))
        return loss
