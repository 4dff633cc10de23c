"""The callback sets the first weights before the first step of a fit, once, and leaves nothing else behind."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from lightning_polystep import initialise
from lightning_polystep.callbacks import InitialiseByData
from lightning_polystep.layers import LIF, SpikeCount
from tests.helpers.boring import FEATURES, Boring, loader, polystep, spiking, trainer
from tests.helpers.ranks import alike, fit


class Spiking(pl.LightningModule):
    def __init__(self, manual=False):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(FEATURES, 16), LIF(0.5, 2.0, num_steps=5), nn.Linear(16, 2), LIF(0.5, 2.0), SpikeCount()
        )
        self.steps = 0
        self.automatic_optimization = not manual
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.steps += 1
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        if not self.automatic_optimization:
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            self.optimizers().step()
        return loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.seen.append(batch)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


class Weights(pl.Callback):
    """Keeps the weights with which the first step starts."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0 and trainer.current_epoch == 0:
            self.first = [parameter.detach().clone() for parameter in pl_module.parameters()]


@pytest.mark.filterwarnings("ignore:.*is replaced by PolyStep")
@pytest.mark.filterwarnings("ignore:.*Adam")
@pytest.mark.parametrize("manual", [False, True])
def test_equals_the_function_on_the_first_batch(tmp_path, manual):
    module, weights = Spiking(manual), Weights()
    run = trainer(tmp_path, callbacks=[InitialiseByData(), weights], max_steps=2)
    run.fit(module, loader(batches=2, batch_size=32))
    by_hand = Spiking()
    initialise(by_hand.net, module.seen[0])
    assert all(torch.equal(*pair) for pair in zip(weights.first, by_hand.parameters(), strict=True))
    assert module.steps == 2, "the pass of the callback does not count"
    assert run.global_step == 2


@pytest.mark.filterwarnings("ignore:.*Adam")
def test_later_epochs_and_a_resumed_run_keep_their_weights(tmp_path):
    module = Spiking()
    run = trainer(tmp_path, callbacks=[InitialiseByData()], max_epochs=2)
    run.fit(module, loader(batches=2, batch_size=32))
    run.save_checkpoint(tmp_path / "last.ckpt")
    resumed, weights = Spiking(), Weights()
    again = trainer(tmp_path, callbacks=[InitialiseByData(), weights], max_epochs=3)

    class First(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.weights = getattr(self, "weights", [p.detach().clone() for p in pl_module.parameters()])

    first = First()
    again.callbacks.append(first)
    again.fit(resumed, loader(batches=2, batch_size=32), ckpt_path=tmp_path / "last.ckpt", weights_only=False)
    assert all(torch.equal(*pair) for pair in zip(first.weights, module.parameters(), strict=True))


def test_another_strategy_is_told(tmp_path):
    class Plain(Spiking):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(FEATURES, 2)

    module = Plain()
    run = trainer(tmp_path, strategy="auto", callbacks=[InitialiseByData()], max_steps=1)
    with pytest.warns(UserWarning, match=r"does nothing with another strategy.*initialise\(model, batch\)"):
        run.fit(module, loader(batches=1, batch_size=32))


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="target must be above 0"):
        InitialiseByData(target=0)


@pytest.mark.filterwarnings("ignore:.*Adam")
def test_layers_that_need_larger_radii_are_named(tmp_path):
    module = Spiking()
    module.net[1].threshold.fill_(50.0)
    run = trainer(tmp_path, callbacks=[InitialiseByData()], max_steps=1)
    with pytest.warns(UserWarning, match=r"much wider than 1 to be heard.*net\.0 \(\d+\).*first\.groups"):
        run.fit(module, loader(batches=1, batch_size=32))


def initialised_task():
    return spiking(Boring, torch.float32)(polystep), loader(8), {"callbacks": [InitialiseByData()]}


@pytest.mark.distributed
def test_all_processes_get_the_same_weights(tmp_path):
    one, two = (alike(fit(initialised_task, ranks, tmp_path)) for ranks in (1, 2))
    assert one == two
    alike(fit(initialised_task, 2, tmp_path, data_parallel_size=2))
