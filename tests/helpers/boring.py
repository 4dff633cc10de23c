"""Small LightningModules, data and trainers for the tests of the Lightning side."""

from collections import Counter
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassAccuracy

from lightning_polystep import PolyStep, PolyStepStrategy
from models import SpikingMLP

FEATURES = 4
BATCH = 8


def separable(samples=64, seed=0):
    """Points of two classes with a plane between them."""
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, FEATURES, generator=draw)
    plane = torch.randn(FEATURES, generator=draw)
    return TensorDataset(inputs, (inputs @ plane > 0).long())


def loader(batches=8, batch_size=BATCH, *, shuffle=False):
    return DataLoader(separable(batches * batch_size), batch_size=batch_size, shuffle=shuffle)


def trainer(tmp_path, **options):
    """A Trainer that trains by PolyStep, quietly, and writes only what a test asks for."""
    settings: dict[str, Any] = {
        "strategy": PolyStepStrategy(show_plan=False),
        "accelerator": "cpu",
        "max_epochs": 1,
        "default_root_dir": tmp_path,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(**{**settings, **options})


class Boring(pl.LightningModule):
    """A small classifier; ``optimizer`` makes from the module what ``configure_optimizers`` returns."""

    def __init__(self, optimizer=None, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(FEATURES, 6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 2))
        self.make_optimizer = optimizer
        self.losses = []

    def loss(self, batch):
        inputs, labels = batch
        return functional.cross_entropy(self.net(inputs), labels)

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.losses.append(loss.detach())
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.loss(batch))

    def predict_step(self, batch, batch_idx):
        return self.net(batch[0]).argmax(-1)

    def val_dataloader(self):
        """Serve data whenever fit is given none, so that Lightning does not warn of its absence."""
        return loader(batches=2)

    def configure_optimizers(self):
        return None if self.make_optimizer is None else self.make_optimizer(self)


class ByHand(pl.LightningModule):
    """Put before :class:`Boring` or what is made of it: its own step calls the optimizer."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()


class BoringByHand(ByHand, Boring):
    pass


def spiking(kind, dtype=torch.float64):
    """Make a kind of :class:`Boring` train a network whose outcomes can be scored."""

    class Spiking(kind):
        def __init__(self, optimizer=polystep, **options):
            super().__init__(optimizer, **options)
            del self.net
            torch.manual_seed(0)
            self.network = SpikingMLP((FEATURES, 8, 2), num_steps=6, threshold=0.7).to(dtype)
            self.criterion = nn.CrossEntropyLoss()

        def loss(self, batch):
            inputs, labels = batch
            return self.criterion(self.network(inputs.to(dtype)), labels)

    return Spiking


def polystep(module, **options):
    """An optimizer whose draws do not depend on torch's seed."""
    return PolyStep(module.parameters(), **{"seed": 0, "rank": 4, **options})


def sampled(module):
    """The same, scoring candidates on a part of the samples."""
    return polystep(module, importance_sampling=0.8)


class CountingExperiment:
    """Counts every call of a method of a logger's experiment; snapshots of the module do not reach it."""

    def __init__(self):
        self.calls = Counter()

    def add_scalar(self, name, _value, _step=None):
        self.calls[name] += 1


class CountingLogger(Logger):
    """Counts how often each metric arrives, and keeps the values."""

    def __init__(self):
        super().__init__()
        self._experiment = CountingExperiment()
        self.history = {}

    @property
    def experiment(self):
        return self._experiment

    @property
    def name(self):
        return "counting"

    @property
    def version(self):
        return 0

    def log_hyperparams(self, *_args, **_kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        for name, value in metrics.items():
            self.history.setdefault(name, []).append(value)


class Busy(pl.LightningModule):
    """What ordinary training code does besides computing a loss, trained by Adam with a StepLR."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(FEATURES, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.1), nn.Linear(12, 2)
        )
        self.accuracy = MulticlassAccuracy(2, average="micro")
        self.batches_counted = SumMetric()
        self.losses = []
        self.steps = 0
        self.notes = {"nested": [set()]}
        self.learning_rates = []

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        scores = self.net(inputs)
        loss = functional.cross_entropy(scores, labels)
        self.steps += 1
        self.losses.append(loss.detach())
        self.notes["nested"][0].add(len(self.losses))
        self.accuracy(scores, labels)
        self.batches_counted.update(1)
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
        self.logger.experiment.add_scalar("inner", 1.0, self.global_step)
        self.logger.log_metrics({"by_hand": 1.0})
        return {"loss": loss, "scores": scores}

    def validation_step(self, batch, batch_idx):
        inputs, labels = batch
        self.log("val_loss", functional.cross_entropy(self.net(inputs), labels))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-3, weight_decay=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]
