"""CheckpointStrategy: what a checkpoint of a fit holds, and how a fit goes on from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from lightning_polystep import carried_state, interruption
from lightning_polystep.adoption import Adoption
from lightning_polystep.carried_state import CarriedState
from lightning_polystep.checkpoints import CheckedCheckpointIO, check_content
from lightning_polystep.engine import Engine
from lightning_polystep.host import CheckpointIO, _WrappingCheckpointIO, pl
from lightning_polystep.layout_strategy import LayoutStrategy
from lightning_polystep.loaders import fast_forward
from lightning_polystep.randomness import generator_states, restore_generators
from lightning_polystep.redealing import redeal

# Entry of a checkpoint for what belongs to no module, optimizer, loop or callback.
_RUN_STATE = "polystep_run"


class CheckpointStrategy(LayoutStrategy):
    """Saves and restores the optimizers that train, the order of the data and the generators.

    Args:
        options: LayoutStrategy's arguments.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.engines: list[Engine] = []
        self._adoptions: list[Adoption] = []
        self._data_seed = 0
        # What a loaded checkpoint says of the run beside modules and optimizers, until training starts.
        self._resume: dict[str, Any] | None = None
        self._carried: CarriedState | None = None

    @property
    def checkpoint_io(self) -> CheckpointIO:
        """How checkpoints are written: with a checksum, unless the Trainer or the user gave something else."""
        # Decided late: a plugin of the Trainer and one of the strategy are a conflict to Lightning.
        if self._checkpoint_io is None:
            self._checkpoint_io = CheckedCheckpointIO()
        elif isinstance(self._checkpoint_io, _WrappingCheckpointIO):
            self._checkpoint_io.checkpoint_io = CheckedCheckpointIO()  # ignored where it wraps another already
        return self._checkpoint_io

    @checkpoint_io.setter
    def checkpoint_io(self, io: CheckpointIO) -> None:
        self._checkpoint_io = io

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a file, and refuse what is no checkpoint of a Trainer."""
        checkpoint = super().load_checkpoint(checkpoint_path, weights_only)
        check_content(checkpoint, checkpoint_path)
        return checkpoint

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the optimizer's state, with the step radius that the schedule has reached."""
        for adoption in self._adoptions:
            adoption.follow_schedule()
        state = super().optimizer_state(optimizer)
        if interruption.all_save(self._module.trainer):
            self.engines[self._index_of(optimizer)].complete(state)
        return state

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Save, with the seed of the data's order and the generators that a resumed run goes on with."""
        if interruption.refuse_half_a_step(self._module.trainer, filepath):
            return
        if "optimizer_states" in checkpoint:  # else weights only
            checkpoint[_RUN_STATE] = {
                "data_seed": self._data_seed,
                "generators": generator_states(),
                "shards": self.layout.data.size,
                "carried": self._carried.changed() if self._carried is not None else {},
            }
        super().save_checkpoint(checkpoint, filepath, storage_options)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Restore the module in its final precision; Lightning converts it later, when float64 would have been cut."""
        self.precision_plugin.convert_module(self._module)
        super().load_model_state_dict(checkpoint, strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Restore the optimizers, the schedules of those that were replaced, and the order of the data."""
        self._resume = checkpoint.get(_RUN_STATE, {})
        self._data_seed = self._resume.get("data_seed", self._data_seed)
        super().load_optimizer_state_dict(checkpoint)
        for adoption in self._adoptions:
            adoption.restore_schedule()
        shards = self.layout.data.size
        optimizers = [adoption.optimizer for adoption in self._adoptions]
        redeal(self._module.trainer, optimizers, self._resume.get("shards", shards), shards)

    def go_on(self) -> None:
        """Put a resumed fit where it was in its data, and draw what it would have drawn."""
        if self._resume is not None:
            fast_forward(self._module.trainer)
            if self._resume:
                restore_generators(self._resume["generators"])
                carried_state.restore(self._module, self._resume.get("carried", {}))
            self._resume = None

    def _index_of(self, optimizer: Optimizer) -> int:
        """Return the place of an optimizer among those that train."""
        raise NotImplementedError

    @property
    def _module(self) -> pl.LightningModule:
        if self.lightning_module is None:
            msg = "The strategy has no module yet."
            raise RuntimeError(msg)
        return self.lightning_module
