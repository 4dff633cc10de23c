"""The classifier: what it logs, what it returns, and that it leaves the optimizer to others."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import LightningCLI
from torch import nn

from datamodules import Digits, TensorImages
from models import Classifier, SpikingMLP

QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
    "devices": 1,
}


class ByAdam(Classifier):
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def test_learns_digits_and_logs_every_stage():
    model, data = ByAdam(linear()), Digits(batch_size=64)
    trainer = pl.Trainer(max_epochs=4, **QUIET)
    trainer.fit(model, data)
    logged = set(trainer.callback_metrics)
    trainer.test(model, data, verbose=False)
    logged |= set(trainer.callback_metrics)
    assert logged >= {f"{stage}/{what}" for stage in ("train", "val", "test") for what in ("loss", "accuracy")}
    assert trainer.callback_metrics["test/accuracy"] > 0.8


def test_accuracy_and_loss_are_those_of_the_whole_set():
    model = Classifier(linear())
    data = TensorImages(torch.rand(50, 1, 8, 8), torch.randint(0, 10, (50,)))
    trainer = pl.Trainer(**QUIET)
    (metrics,) = trainer.validate(model, data.loader(16), verbose=False)
    with torch.no_grad():
        scores = model(data.images)
    assert metrics["val/accuracy"] == pytest.approx((scores.argmax(-1) == data.labels).float().mean().item())
    assert metrics["val/loss"] == pytest.approx(nn.functional.cross_entropy(scores, data.labels).item())


def test_predicts_classes():
    model, data = Classifier(linear()), Digits()
    predictions = torch.cat(pl.Trainer(**QUIET).predict(model, data))
    assert torch.equal(predictions, model(data.test_set.images).argmax(-1))


def test_a_given_criterion_is_used():
    images, labels = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    model = Classifier(linear(), criterion=nn.MultiMarginLoss())
    (metrics,) = pl.Trainer(**QUIET).validate(model, TensorImages(images, labels).loader(4), verbose=False)
    with torch.no_grad():
        expected = nn.functional.multi_margin_loss(model(images), labels)
    assert metrics["val/loss"] == pytest.approx(expected.item())


def test_the_optimizer_is_left_to_the_strategy():
    assert Classifier(linear()).configure_optimizers() is None


@pytest.mark.filterwarnings("ignore:.*configure_optimizers. will be overridden by .LightningCLI:UserWarning")
def test_lightning_cli_can_configure_the_optimizer():
    pytest.importorskip("jsonargparse")
    arguments = ["--model.network=models.SpikingMLP", "--model.network.sizes=[64,10]", "--data.batch_size=32"]
    arguments += ["--optimizer=torch.optim.SGD", "--optimizer.lr=0.25", "--trainer.logger=false"]
    arguments += ["--seed_everything=false"]
    cli = LightningCLI(Classifier, Digits, run=False, save_config_callback=None, args=arguments)
    optimizer = cli.model.configure_optimizers()
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults["lr"] == 0.25
    assert cli.datamodule.batch_size == 32


def test_loads_from_a_checkpoint(tmp_path):
    model = ByAdam(linear(), num_classes=10)
    trainer = pl.Trainer(max_steps=1, limit_val_batches=0, **QUIET)
    data = TensorImages(torch.rand(8, 1, 8, 8), torch.arange(8)).loader(4)
    trainer.fit(model, data, data)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = Classifier.load_from_checkpoint(tmp_path / "model.ckpt", network=linear())
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(loaded(images), model(images))


def test_data_of_another_size_than_the_network_takes_is_named():
    module = Classifier(SpikingMLP((64, 8, 10)))
    with pytest.raises(ValueError, match=r"The data gives 49 numbers where the network takes 64 .*: make sizes\[0\]"):
        module(torch.rand(2, 1, 7, 7))


def test_other_errors_of_a_network_pass_through():
    class Broken(torch.nn.Module):
        def forward(self, inputs):
            raise RuntimeError("of its own")

    with pytest.raises(RuntimeError, match="of its own"):
        Classifier(Broken())(torch.rand(2, 4))
