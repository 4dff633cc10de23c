"""The command: from the checkpoint of a short fit to a file that was read again and compared."""

import json
import sys

import pytest
import torch
import yaml

nir = pytest.importorskip("nir")
pytest.importorskip("onnxruntime")

from lightning_polystep.cli import main  # noqa: E402
from lightning_polystep.exports import from_nir  # noqa: E402


@pytest.fixture
def fitted(tmp_path, monkeypatch):
    """Fits a network for a few steps, as from the command line, and returns its checkpoint."""
    monkeypatch.chdir(tmp_path)

    def fit(network, **init):
        callbacks = [{"class_path": "pytorch_lightning.callbacks.ModelCheckpoint", "init_args": {"save_last": True}}]
        if network == "IntegerMLP":
            callbacks.append({"class_path": "lightning_polystep.callbacks.Calibrate"})
        settings = {
            "seed_everything": 0,
            "trainer": {
                "strategy": {"class_path": "lightning_polystep.PolyStepStrategy", "init_args": {"show_plan": False}},
                "accelerator": "cpu",
                "devices": 1,
                "max_epochs": 1,
                "limit_train_batches": 3,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "logger": {
                    "class_path": "pytorch_lightning.loggers.CSVLogger",
                    "init_args": {"save_dir": str(tmp_path / "runs")},
                },
                "callbacks": callbacks,
            },
            "model": {
                "class_path": "models.Classifier",
                "init_args": {"network": {"class_path": f"models.{network}", "init_args": init}},
            },
            "data": {"class_path": "datamodules.Digits", "init_args": {"batch_size": 256}},
            "optimizer": {"class_path": "lightning_polystep.PolyStep", "init_args": {"lr": 0.3, "rank": 4}},
        }
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        main(["fit", "--config", str(path), "--test_after_fit", "false"])
        path.unlink()  # the one that the run left is what counts
        return next(tmp_path.glob("runs/**/last.ckpt"))

    return fit


def exported(*arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["export", *map(str, arguments)])
    return stopped.value.code


def test_a_spiking_network_goes_to_nir_spike_for_spike(fitted, tmp_path, capsys):
    checkpoint = fitted("SpikingMLP", sizes=[64, 8, 10], num_steps=4, spike_on="gt")
    capsys.readouterr()
    assert exported("--ckpt", checkpoint, "--format", "nir", "--check") == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("last.nir: ")
    assert told[1] == "  spikes of layer 2 as read back: all 2,048 equal"
    weight = torch.load(checkpoint, weights_only=True)["state_dict"]["network.1.weight"]
    assert torch.equal(from_nir(nir.read("last.nir"))[1].weight, weight)


def test_neurons_that_fire_at_the_threshold_are_refused_with_the_cure_and_shifted_on_request(fitted, capsys):
    checkpoint = fitted("SpikingMLP", sizes=[64, 8, 10], num_steps=4)
    assert exported("--ckpt", checkpoint, "--format", "nir") == 2
    refusal = capsys.readouterr().err.splitlines()[-1]
    assert refusal.startswith("error: layer 2: A neuron of NIR fires above its threshold and not at it")
    assert exported("--ckpt", checkpoint, "--format", "nir", "--at-threshold", "shift", "--check") == 0
    assert exported("--ckpt", checkpoint, "--format", "onnx") == 2
    assert "LIF(" in capsys.readouterr().err


def test_an_integer_network_goes_to_onnx_and_qonnx_bit_for_bit(fitted, tmp_path, capsys):
    pytest.importorskip("qonnx")
    checkpoint = fitted("IntegerMLP", sizes=[64, 8, 10])
    capsys.readouterr()
    for format in ("onnx", "qonnx"):
        target = tmp_path / f"net.{format}"
        assert exported("--ckpt", checkpoint, "--format", format, "--out", target, "--check", "--samples", 50) == 0
        told = capsys.readouterr().out.splitlines()
        assert told[1:] == [
            "  codes of 1: all 3,200 equal",
            "  codes of 3: all 400 equal",
            "  output: all 500 equal",
        ]


def test_what_is_missing_is_said_in_a_sentence(fitted, tmp_path, capsys):
    checkpoint = fitted("SpikingMLP", sizes=[64, 8, 10], num_steps=4, spike_on="gt")
    elsewhere = tmp_path / "elsewhere" / "a" / "b" / "last.ckpt"
    elsewhere.parent.mkdir(parents=True)
    elsewhere.write_bytes(checkpoint.read_bytes())
    assert exported("--ckpt", elsewhere, "--format", "nir") == 2
    assert "There is no config.yaml above" in capsys.readouterr().err
    config = checkpoint.parent.parent / "config.yaml"
    assert exported("--ckpt", elsewhere, "--format", "nir", "--config", config, "--input-shape", 64, "--check") == 0
    assert exported("--ckpt", tmp_path / "none.ckpt", "--format", "nir", "--config", config) == 2
    assert "There is no checkpoint" in capsys.readouterr().err
    assert exported("--ckpt", checkpoint, "--format", "nir", "--part", "criterion") == 2
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    del settings["model"]
    other = tmp_path / "other.yaml"
    other.write_text(json.dumps(settings), encoding="utf-8")
    assert exported("--ckpt", checkpoint, "--format", "nir", "--config", other) == 2
    assert "has no model" in capsys.readouterr().err


def test_a_missing_package_is_named_with_its_extra(fitted, capsys, monkeypatch):
    checkpoint = fitted("SpikingMLP", sizes=[64, 8, 10], num_steps=4, spike_on="gt")
    monkeypatch.setitem(sys.modules, "nir", None)
    assert exported("--ckpt", checkpoint, "--format", "nir") == 2
    assert 'nir is not installed: pip install "lightning-polystep[nir]"' in capsys.readouterr().err
