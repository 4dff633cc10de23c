"""The command line: LightningCLI whose ``fit`` ends by testing the best checkpoint and writing ``results.json``.

Beside Lightning's commands there is ``audit``, which prints the parameters that have a true gradient.
"""

from __future__ import annotations

import warnings

from pytorch_lightning import LightningDataModule, LightningModule
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities.model_helpers import is_overridden
from pytorch_lightning.utilities.rank_zero import rank_zero_info

from lightning_polystep.audit import AuditTrainer
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

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Name the commands, each with the arguments that are not asked for."""
        return LightningCLI.subcommands() | {"audit": {"model", "datamodule"}}

    def instantiate_classes(self) -> None:
        """Make model, data and trainer."""
        with warnings.catch_warnings():
            # Who writes an `optimizer` section means it to replace what the model would choose.
            warnings.filterwarnings("ignore", message=r".*configure_optimizers` will be overridden by")
            super().instantiate_classes()

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


def main(args: list[str] | None = None) -> PolyStepCLI:
    """Run the command line.

    Args:
        args: Arguments; those of the process by default.
    """
    return PolyStepCLI(
        LightningModule,
        LightningDataModule,
        trainer_class=AuditTrainer,
        subclass_mode_model=True,
        subclass_mode_data=True,
        # A second run of the same command must not fail because the first left its config behind.
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
        args=args,
    )
