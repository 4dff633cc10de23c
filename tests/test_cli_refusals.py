"""What somebody raised to say what is wrong is a sentence; a fault keeps its traceback."""

import sys

import pytest
import torch

from lightning_polystep import PolyStep
from lightning_polystep.cli import main
from lightning_polystep.cli_refusals import refusal_in

MODULE = """
import pytorch_lightning as pl
import torch


class Net(pl.LightningModule):
    def __init__(self, width: int = 4, features: int = 4):
        if width % 2:
            raise ValueError("Net: width must be even.")
        super().__init__()
        [self.width] = [width] * (1 if width < 10 else 2)
        self.network = torch.nn.Linear(features, 2)

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self):
        pass


class Points(pl.LightningDataModule):
    def train_dataloader(self):
        x = torch.randn(32, 4)
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, (x.sum(1) > 0).long()), batch_size=16)
"""
SMALL = [
    "--model=models.Classifier",
    "--model.network=models.SpikingMLP",
    "--model.network.sizes=[64,4,10]",
    "--model.network.num_steps=2",
    "--data=datamodules.Digits",
    "--trainer.accelerator=cpu",
]
QUIET = [f"--trainer.{name}=false" for name in ("logger", "enable_checkpointing", "enable_progress_bar")]


@pytest.fixture
def fit(tmp_path, monkeypatch):
    """Runs the module above, which lies where the command is given, as a user's does."""
    (tmp_path / "own_net.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = ["--model=own_net.Net", "--data=own_net.Points", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
    yield lambda *more: main(["fit", *own, *QUIET, *more])
    sys.modules.pop("own_net", None)


def refused(capfd, run, *more):
    with pytest.raises(SystemExit) as stopped:
        run(*more)
    assert stopped.value.code == 2
    *_, error, tip = capfd.readouterr().err.strip().splitlines()
    assert tip.endswith("--help lists the options.")
    return error


def test_without_a_strategy_it_trains_by_this_one(fit):
    assert isinstance(fit().trainer.optimizers[0], PolyStep)


def test_what_a_users_class_refuses_is_a_sentence(fit, capfd):
    assert refused(capfd, fit, "--model.width=3") == "error: Net: width must be even."


def test_a_known_error_of_torch_names_the_users_line(fit, capfd):
    error = refused(capfd, fit, "--model.features=5")
    assert error.startswith("error: A layer takes 5 numbers and is given 4: ")
    assert "(own_net.py, line 15: mat1 and mat2 shapes" in error


def test_a_fault_in_it_keeps_its_traceback(fit):
    with pytest.raises(ValueError, match="too many values to unpack"):
        fit("--model.width=10")


def test_only_the_statement_raise_refuses():
    def caught(run):
        with pytest.raises((ValueError, RuntimeError, AssertionError)) as raised:
            run()
        return raised.value

    def by_hand(error):
        raise error

    assert refusal_in(caught(lambda: by_hand(ValueError("a\n  sentence")))) == "a sentence"
    assert refusal_in(caught(lambda: by_hand(RuntimeError("of a user's file")))) is None
    assert refusal_in(caught(lambda: int("x"))) is None
    assert refusal_in(caught(lambda: torch.ones(2).reshape(3))) is None
    assert refusal_in(caught(lambda: PolyStep([torch.ones(2)]).step())).startswith("PolyStep.step() has no candidates")
    assert refusal_in(caught(lambda: PolyStep([]))).startswith("PolyStep([]): there is no parameter to train")


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_first_weights_are_told_of(command):
    with pytest.warns(UserWarning, match=f"^{command} runs the network with its first weights, because no checkpoint"):
        main([command, *SMALL, *QUIET])
