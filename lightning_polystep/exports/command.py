"""``python -m lightning_polystep export --ckpt last.ckpt --format nir --check``: a trained network for other tools."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import yaml
from torch import Tensor, nn

from lightning_polystep.cli_parsers import OneSentenceParser
from lightning_polystep.exports.chain import chain_of, network_of
from lightning_polystep.exports.nir_check import check_nir
from lightning_polystep.exports.nir_graph import AtThreshold, to_nir
from lightning_polystep.exports.onnx_check import check_onnx, run_onnxruntime, run_qonnx
from lightning_polystep.exports.onnx_qcdq import to_onnx
from lightning_polystep.exports.parity import Parity
from lightning_polystep.exports.qonnx import to_qonnx
from lightning_polystep.interop.snntorch_conversion import ConversionError
from lightning_polystep.layers import NotCalibratedError, TimeFirst
from lightning_polystep.layers.lif import SpikingNeuron

if TYPE_CHECKING:
    from lightning_polystep.host import LightningDataModule, LightningModule

Format = Literal["nir", "onnx", "qonnx"]
FORMATS: tuple[Format, ...] = ("nir", "onnx", "qonnx")
# Exit status: the file is written, and equal where that was checked; a number differs; refused.
EQUAL, UNEQUAL, REFUSED = 0, 1, 2

_DESCRIPTION = """Write the network of a checkpoint as a file for other tools.

The model is built from the config.yaml that the run left beside its checkpoints (or --config): no class that a
checkpoint names is imported. --check reads the file again, runs a batch of the configured data in the format's reader,
and compares every spike or every code with the network's. Exit status: 0 written (and equal), 1 a number differs,
2 refused."""


def export(
    network: nn.Module,
    inputs: Tensor,
    format: Format,
    path: str | Path,
    *,
    at_threshold: AtThreshold = "refuse",
    unit_resistance: bool = False,
    check: bool = True,
) -> list[Parity]:
    """Write a network to a file, read the file, and compare.

    Args:
        network: An ``nn.Sequential`` of this package's layers.
        inputs: A batch as the network takes it, float32.
        format: ``"nir"`` for spiking networks, ``"onnx"`` or ``"qonnx"`` for quantised ones.
        path: The file.
        at_threshold: As in :func:`~lightning_polystep.exports.to_nir`.
        unit_resistance: As there.
        check: Whether to read and compare.

    Returns:
        What was compared; empty without ``check``.

    Raises:
        ConversionError: For what the format cannot say.
        NotCalibratedError: If an activation has no scale.
        ModuleNotFoundError: Without the packages of the format, the extra ``nir`` or ``onnx``.

    Example:
        >>> import tempfile
        >>> from lightning_polystep.layers import LIF
        >>> network = nn.Sequential(nn.Linear(4, 3), LIF(0.9, num_steps=5, spike_on="gt"))
        >>> found = export(network, torch.rand(8, 4), "nir", Path(tempfile.mkdtemp()) / "net.nir")
        >>> all(parity.unequal == 0 for parity in found)
        True
    """
    network = network.eval()
    if format == "nir":
        import nir

        shape = tuple(inputs.shape[2 if _has_time(network) else 1 :])
        nir.write(path, to_nir(network, shape, at_threshold=at_threshold, unit_resistance=unit_resistance))
        return check_nir(network, nir.read(path), inputs) if check else []
    import onnx

    onnx.save((to_onnx if format == "onnx" else to_qonnx)(network, tuple(inputs.shape[1:])), str(path))
    run = run_onnxruntime if format == "onnx" else run_qonnx
    return check_onnx(network, onnx.load(str(path)), inputs, run) if check else []


def _has_time(network: nn.Module) -> bool:
    links = chain_of(network)
    constant = any(getattr(link.layer, "num_steps", None) is not None for link in links)
    return type(links[0].layer) is TimeFirst or (
        not constant and any(isinstance(link.layer, SpikingNeuron) for link in links)
    )


def main(arguments: Sequence[str]) -> int:
    """Build the model, load the checkpoint, write the file and say what was compared.

    Args:
        arguments: Of the command line, behind ``export``.

    Returns:
        The exit status.
    """
    options = _options(arguments)
    path = Path(options.out or f"{Path(options.ckpt).stem}.{options.format}")
    try:
        module, data = _built(_config(options), options.ckpt, with_data=options.input_shape is None)
        _, network = network_of(module, options.part)
        inputs = _inputs(data, options.input_shape, options.samples)
        found = export(
            network,
            inputs,
            options.format,
            path,
            at_threshold=options.at_threshold,
            unit_resistance=options.unit_resistance,
            check=options.check,
        )
    except ModuleNotFoundError as error:
        extra = "nir" if options.format == "nir" else "onnx"
        return _refuse(f'{error.name} is not installed: pip install "lightning-polystep[{extra}]".')
    except (ConversionError, NotCalibratedError, OSError, ValueError, RuntimeError) as error:
        return _refuse(" ".join(str(error).split()))
    print(f"{path}: {path.stat().st_size:,} bytes")
    for parity in found:
        print(f"  {parity}")
    return UNEQUAL if any(parity.unequal for parity in found) else EQUAL


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = OneSentenceParser(
        prog="python -m lightning_polystep export",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ckpt", required=True, help="the checkpoint")
    parser.add_argument("--format", required=True, choices=FORMATS, help="nir: spiking; onnx, qonnx: quantised")
    parser.add_argument("--out", help="the file (default: the checkpoint's name here, with the format as its ending)")
    parser.add_argument("--config", help="configuration of the run (default: config.yaml above the checkpoint)")
    parser.add_argument("--part", help="the part of the model to write (default: network, or its one nn.Sequential)")
    parser.add_argument(
        "--input-shape", type=int, nargs="+", help="of one sample; random inputs then stand for those of the data"
    )
    parser.add_argument("--samples", type=int, default=64, help="samples to compare (default: 64)")
    parser.add_argument("--check", action="store_true", help="read the file again, run it and compare")
    parser.add_argument(
        "--at-threshold",
        choices=("refuse", "shift"),
        default="refuse",
        help="nir: what to do with neurons that fire at the threshold (>=), which NIR's do not: refuse, or shift "
        "thresholds to the next smaller float32, which is the same neuron",
    )
    parser.add_argument(
        "--unit-resistance", action="store_true", help="nir: write R = 1, for readers that ignore R (Norse)"
    )
    return parser.parse_args(list(arguments))


def _config(options: argparse.Namespace) -> dict[str, Any]:
    """Return the configuration that was given, or the one of the run that saved the checkpoint."""
    checkpoint = Path(options.ckpt)
    above = [folder / "config.yaml" for folder in list(checkpoint.resolve().parents)[:3]]
    path = Path(options.config) if options.config else next((each for each in above if each.is_file()), None)
    if path is None:
        raise ValueError(
            f"There is no config.yaml above {checkpoint}: name the configuration of the run with --config."
        )
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings = settings.get("fit", settings) if isinstance(settings, dict) else {}
    if "model" not in settings:
        raise ValueError(f"{path} has no model.")
    return cast("dict[str, Any]", settings)


def _built(
    settings: dict[str, Any], checkpoint: str, *, with_data: bool
) -> tuple[LightningModule, LightningDataModule | None]:
    """Make the model and the data of a configuration, and load the checkpoint into the model."""
    # Whoever exports in Python needs no Lightning.
    from lightning_polystep.checkpoints import CheckedCheckpointIO
    from lightning_polystep.host import LightningDataModule, LightningModule
    from lightning_polystep.host_cli import LightningArgumentParser

    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    wanted = {"model": settings["model"]}
    if with_data and settings.get("data") is not None:
        parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
        wanted["data"] = settings["data"]
    made = parser.instantiate_classes(parser.parse_object(wanted))
    state = CheckedCheckpointIO().load_checkpoint(checkpoint)
    if "state_dict" not in state:
        raise ValueError(f"{checkpoint} has no state_dict: give a checkpoint of Lightning.")
    made.model.load_state_dict(state["state_dict"])
    return made.model.float(), made.get("data")


def _inputs(data: LightningDataModule | None, shape: list[int] | None, samples: int) -> Tensor:
    """Return the first samples of the validation (or test, or training) data, or random ones."""
    if shape is not None:
        return torch.rand(samples, *shape, generator=torch.Generator().manual_seed(0))
    if data is None:
        raise ValueError("The configuration has no data: give the shape of one sample with --input-shape.")
    data.prepare_data()
    for stage, loader in (("fit", "val_dataloader"), ("test", "test_dataloader"), ("fit", "train_dataloader")):
        data.setup(stage)
        batch: Any = next(iter(getattr(data, loader)() or ()), None)
        if batch is not None:
            inputs: Tensor = (batch[0] if isinstance(batch, list | tuple) else batch)[:samples]
            return inputs.float()
    raise ValueError("The configured data has no batch: give the shape of one sample with --input-shape.")


def _refuse(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return REFUSED
