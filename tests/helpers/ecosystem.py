"""What the tests of other libraries' networks share: a toy task, a LightningModule around a network, and its state."""

import copy

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_polystep import Engine, PolyStep, PolyStepStrategy
from lightning_polystep.results import parameters_sha256
from tests.helpers.boring import trainer

FEATURES, CLASSES, BATCH = 6, 3, 32


def blobs(samples=128, features=FEATURES):
    """Three clouds of points in the unit cube."""
    draw = torch.Generator().manual_seed(0)
    centres = torch.rand(CLASSES, features, generator=draw)
    labels = torch.randint(CLASSES, (samples,), generator=draw)
    points = centres[labels] + 0.1 * torch.randn(samples, features, generator=draw)
    return TensorDataset(points.clamp(0, 1), labels)


def batches(count=4, features=FEATURES):
    return DataLoader(blobs(count * BATCH, features), batch_size=BATCH)


class Task(pl.LightningModule):
    """A user's module: a network, a loss of its outputs, Adam."""

    def __init__(self, make_net, loss):
        super().__init__()
        torch.manual_seed(0)
        self.net = make_net()
        self.loss = loss
        self.losses = []

    def training_step(self, batch, batch_idx):
        loss = self.loss(self.net, *batch)
        self.losses.append(loss.detach())
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


def fit(tmp_path, module, epochs=3, data=None, **options):
    """Train as a user would, from seed 0; return the engine."""
    pl.seed_everything(0, verbose=False)
    strategy = PolyStepStrategy(show_plan=False, **options)
    run = trainer(tmp_path, strategy=strategy, max_epochs=epochs)
    run.fit(module, batches() if data is None else data)
    return strategy.engines[0]


def tiers(engine):
    return {a.block.name: a.tier.name for a in engine.plan.assignments}


def digest(module):
    return parameters_sha256(module)


def state(module):
    """Copies of all buffers and plain attributes, by name."""
    kept = {f"buffer {name}": buffer.clone() for name, buffer in module.named_buffers()}
    tables = set(vars(torch.nn.Module())) - {"training"}
    for owner, part in module.named_modules():
        for name, value in vars(part).items():
            if name not in tables:
                kept[f"{owner}.{name}"] = value.clone() if isinstance(value, torch.Tensor) else copy.copy(value)
    return kept


def assert_same_state(before, after):
    assert before.keys() == after.keys()
    for name, value in before.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, after[name]), name
        elif isinstance(value, bool | int | float | str | list | type(None)):
            assert value == after[name], name


def engine_of(module, **options):
    optimizer = PolyStep(module.parameters(), seed=0, rank=4, **options)
    return Engine(module, optimizer, announce=None)


class Recorded:
    """A step on one batch that keeps the loss of every evaluation that is not batched."""

    def __init__(self, module, batch):
        self.module, self.batch, self.losses = module, batch, []

    def __call__(self):
        loss = self.module.loss(self.module.net, *self.batch)
        self.losses.append(loss.detach())
        return loss
