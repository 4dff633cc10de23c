"""The command line: LightningCLI whose ``fit`` ends by testing the best checkpoint and writing ``results.json``.

Beside Lightning's commands there is ``audit``, which prints the parameters that have a true gradient; ``solve``, which
takes a file of clauses instead of a configuration; ``export``, which writes a checkpoint for other tools; and
``report``, which makes a page of HTML of a run.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_polystep.audit import AuditTrainer
from lightning_polystep.checkpoints import CheckedCheckpointIO, check_content
from lightning_polystep.cli_messages import OTHER_COMMANDS, ReadableParser
from lightning_polystep.cli_noise import without_noise
from lightning_polystep.cli_refusals import refusal_in
from lightning_polystep.exports.command import main as export
from lightning_polystep.host import (
    LightningDataModule,
    LightningModule,
    is_overridden,
    rank_zero_info,
    rank_zero_warn,
)
from lightning_polystep.host_cli import LightningArgumentParser, LightningCLI
from lightning_polystep.maxsat.command import main as solve
from lightning_polystep.report.command import main as report
from lightning_polystep.results import fit_record, write_results


class PolyStepCLI(LightningCLI):
    """Run configs: ``python -m lightning_polystep fit --config configs/digits_spiking.yaml``."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add our own switch."""
        parser.add_argument(
            "--test_after_fit",
            type=bool,
            default=True,
            help="End fit by testing the best checkpoint, when the data has a test set.",
        )
        # Who calls this command and names no other strategy means this one; without it nothing would train.
        parser.set_defaults({"trainer.strategy": "polystep"})

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Name the commands, each with the arguments that are not asked for."""
        return LightningCLI.subcommands() | {"audit": {"model", "datamodule"}}

    def instantiate_classes(self) -> None:
        """Make model, data and trainer; a value that one of them refuses gets one sentence, not a traceback."""
        with warnings.catch_warnings():
            # Who writes an `optimizer` section means it to replace what the model would choose.
            warnings.filterwarnings("ignore", message=r".*configure_optimizers` will be overridden by")
            try:
                super().instantiate_classes()
            except Exception as error:
                if (refusal := refusal_in(error)) is None:
                    raise
                self._subcommand_parsers[self.config["subcommand"]].error(refusal)

    def _run_subcommand(self, subcommand: str) -> None:
        """Run a command; a mistake, as data that are not there, gets one sentence, not a traceback."""
        if subcommand in {"validate", "test", "predict"} and not self.config[subcommand].get("ckpt_path"):
            rank_zero_warn(_AS_DRAWN.format(subcommand))
        try:
            super()._run_subcommand(subcommand)
        except Exception as error:
            if (refusal := refusal_in(error)) is None:
                raise
            self._subcommand_parsers[subcommand].error(refusal)

    def _parse_ckpt_path(self) -> None:
        """Check the file of ``--ckpt_path``; what it says of classes is compared with the arguments, and not used.

        Lightning imports and builds the class that a checkpoint names, in the place of ``--model``: whoever wrote the
        file would choose what runs here.
        """
        chosen = self.config.get("subcommand")
        path = self.config[chosen].get("ckpt_path") if chosen else None
        if not path or str(path) in _NO_FILES or "://" in str(path) or str(path).startswith("registry:"):
            return
        weights_only = self.config[chosen].get("weights_only")
        try:
            checkpoint = CheckedCheckpointIO().load_checkpoint(path, weights_only=weights_only)
            check_content(checkpoint, path)
        except (OSError, ValueError) as error:
            self._subcommand_parsers[chosen].error(str(error))
        model = self.config[chosen].get("model")
        for message in differences(checkpoint.get("hyper_parameters"), model.as_dict() if model is not None else {}):
            rank_zero_warn(message)

    def after_fit(self) -> None:
        """Test the best checkpoint (the last weights when none was kept) and write ``results.json``."""
        trainer = self.trainer
        record = fit_record(trainer)
        if self.config["fit"].test_after_fit and self._has_test_set():
            best = getattr(trainer.checkpoint_callback, "best_model_path", "")
            metrics = trainer.test(self.model, datamodule=self.datamodule, ckpt_path="best" if best else None)
            record["tested"] = "best checkpoint" if best else "last weights"
            record["test_metrics"] = {name: float(value) for results in metrics for name, value in results.items()}
        if not trainer.fast_dev_run:  # type: ignore[attr-defined] # leaves no files; Lightning sets it by setattr
            folder = trainer.log_dir or trainer.default_root_dir  # asked of all processes, because rank 0 tells it
            if trainer.is_global_zero:
                rank_zero_info(f"Results: {write_results(folder, record)}")

    def _has_test_set(self) -> bool:
        data = self.datamodule if self.datamodule is not None else self.model
        return is_overridden("test_dataloader", data) and is_overridden("test_step", self.model)


_AS_DRAWN = "{} runs the network with its first weights, because no checkpoint is given: --ckpt_path FILE names one."

# Values of --ckpt_path that stand for files which the Trainer knows.
_NO_FILES = {"best", "last", "hpc"}


def differences(saved: Any, model: Mapping[str, Any]) -> list[str]:
    """Return sentences about where the hyperparameters in a checkpoint are not those of the model that is built.

    Args:
        saved: The checkpoint's hyperparameters: data, of which nothing is imported or called.
        model: The ``class_path`` and ``init_args`` of the model.

    Example:
        >>> differences({"width": 8}, {"class_path": "Net", "init_args": {"width": 4}})
        ['The checkpoint was saved with width=8, and the arguments say 4, which counts.']
    """
    if not isinstance(saved, Mapping):
        return []
    messages = []
    named, built = saved.get("_class_path"), model.get("class_path")
    if isinstance(named, str) and named != built:
        messages.append(
            f"The checkpoint was saved by {named!r}, and --model says {built!r}, which is what is built: no class that "
            "a file names is imported."
        )
    ours = _leaves(model.get("init_args") or {})
    for name, value in _leaves({key: value for key, value in saved.items() if key not in _LIGHTNINGS_OWN}).items():
        if name in ours and ours[name] != value:
            said = f"and the arguments say {ours[name]!r}, which counts."
            messages.append(f"The checkpoint was saved with {name}={value!r}, {said}")
    return messages


# Entries that Lightning's command line adds to the hyperparameters of a module.
_LIGHTNINGS_OWN = {"_class_path", "_instantiator", "_class_name"}


def _leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the plain values of nested settings by their path."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _leaves(value, f"{prefix}{name}.")
        elif isinstance(value, str | int | float | bool | None):
            found[f"{prefix}{name}"] = value
        elif isinstance(value, list | tuple) and all(isinstance(each, str | int | float) for each in value):
            found[f"{prefix}{name}"] = list(value)
    return found


_DESCRIPTION = (
    "Train, test and audit by forward passes alone (PolyStep). Beside the subcommands below: solve FILE looks for the "
    "best assignment of a .cnf or .wcnf; export writes a checkpoint as NIR, ONNX or QONNX; report makes a page "
    "of a run (each with --help)."
)

# Commands that take no configuration of a Trainer.
_OTHERS: dict[str, Callable[[Sequence[str]], int]] = dict(zip(OTHER_COMMANDS, (solve, export, report), strict=True))


def _name_of_module() -> dict[str, str]:
    """Return the name to call this command by; before Python 3.12 argparse tells that of its file."""
    return {"prog": "python -m lightning_polystep"} if Path(sys.argv[0]).name == "__main__.py" else {}


def main(args: list[str] | None = None) -> PolyStepCLI:
    """Run the command line.

    Args:
        args: Arguments; those of the process by default.

    Raises:
        SystemExit: From ``solve``, ``export`` and ``report``, which end with a status of their own.
    """
    arguments = sys.argv[1:] if args is None else args
    if arguments and arguments[0] in _OTHERS:
        raise SystemExit(_OTHERS[arguments[0]](arguments[1:]))
    with without_noise():
        return PolyStepCLI(
            LightningModule,
            LightningDataModule,
            trainer_class=AuditTrainer,
            parser_class=ReadableParser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            # A second run of the same command must not fail because the first left its config behind.
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            parser_kwargs={"description": _DESCRIPTION, **_name_of_module()},
            args=args,
        )
