"""Draw what PolyStep's steps do: the costs around a row, its polytope, and figures over time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_polystep.callbacks.drawing import Drawing
from lightning_polystep.host import pl
from lightning_polystep.hosted import Pending
from lightning_polystep.optimizer import PolyStep
from lightning_polystep.particles import Proposal
from lightning_polystep.pictures.steps import RowStep, cost_landscape, history, polytope
from lightning_polystep.step import move, transport

# Of a step's report, what is drawn over time.
_FIGURES = ("effective_vertices", "flat_rows", "cost_spread", "step_norm")


class StepPictures(Drawing):
    """Draw the cost landscape of a row, its polytope in the plane, and figures of all steps so far.

    Files: ``landscape.png`` and ``polytope.png`` (of the row whose costs differ most in the last step of an epoch,
    unless one is named), and ``steps.png``: effective vertices, flat rows, spread of the costs, length of the moves.

    In YAML::

        trainer:
          callbacks:
            - class_path: lightning_polystep.callbacks.StepPictures

    Args:
        every_n_epochs: Draw after every so many epochs.
        block: The block of the row, by its name in the plan; that of the widest spread by default.
        row: The row; that of the widest spread by default.

    Raises:
        ValueError: If ``every_n_epochs`` is below 1.

    Example:
        >>> import pytorch_lightning as pl
        >>> from lightning_polystep.callbacks import StepPictures
        >>> trainer = pl.Trainer(callbacks=[StepPictures()], accelerator="cpu", logger=False)
    """

    def __init__(self, every_n_epochs: int = 1, block: str | None = None, row: int | None = None) -> None:
        super().__init__(every_n_epochs)
        self.block = block
        self.row = row
        self._optimizer: PolyStep | None = None
        self._last: RowStep | None = None
        self._steps: list[int] = []
        self._figures: dict[str, list[float]] = {name: [] for name in _FIGURES}

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Look at the costs that the step is about to use, at the end of an epoch."""
        if not isinstance(optimizer, PolyStep):
            self.tell_once(f"draws steps of PolyStep, and this is {type(optimizer).__name__}.")
            return
        self._optimizer = optimizer
        pending = optimizer.binding.pending
        if not (trainer.is_last_batch and self.due(trainer)) or pending is None or pending.weight <= 0:
            return
        if not optimizer.binding.alone:
            self.tell_once("of several processes each knows a part of the costs, so no landscape is drawn.")
            return
        with torch.no_grad():
            self._last = self._look(optimizer, pending)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take note of the figures of the step."""
        report = self._optimizer.binding.report if self._optimizer is not None else {}
        if all(name in report for name in _FIGURES) and (not self._steps or self._steps[-1] != trainer.global_step):
            self._steps.append(trainer.global_step)
            for name in _FIGURES:
                self._figures[name].append(float(report[name]))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw."""
        if not self.due(trainer):
            return
        try:
            if self._last is not None:
                self.show(trainer, "landscape", cost_landscape(self._last))
                self.show(trainer, "polytope", polytope(self._last))
            if self._steps:
                self.show(trainer, "steps", history(self._steps, self._figures))
        except ModuleNotFoundError as error:
            self.tell_once(f'no pictures, because {error}: pip install "lightning-polystep[pictures]".')

    def _look(self, optimizer: PolyStep, pending: Pending) -> RowStep | None:
        """Return what the step does to the row, as the optimizer will compute it."""
        blocks = list(zip(pending.proposals, pending.costs, strict=True))
        named = [pair for pair in blocks if pair[0].block.name == self.block]
        if self.block is not None and not named:
            self.tell_once(
                f"no block {self.block!r} is probed; the plan names {', '.join(p.block.name for p, _ in blocks)}."
            )
        usable = [
            (proposal, costs) for proposal, costs in named or blocks if proposal.starts is None and len(proposal.rows)
        ]
        if not usable:
            return None
        proposal, costs = max(usable, key=lambda pair: float(_spread(*pair).max()))
        place = int(_spread(proposal, costs).argmax())
        if self.row is not None and bool((proposal.rows == self.row).any()):
            place = int((proposal.rows == self.row).nonzero()[0])
        index = list(pending.proposals).index(proposal)
        incumbent = float(pending.incumbents[index] / pending.weight) if index < len(pending.incumbents) else None
        return _row_step(optimizer, proposal, costs / pending.weight, place, incumbent)


def _spread(proposal: Proposal, costs: Tensor) -> Tensor:
    return costs.reshape(len(proposal.rows), -1).nan_to_num(posinf=0, neginf=0).std(1)


def _row_step(optimizer: PolyStep, proposal: Proposal, costs: Tensor, place: int, incumbent: float | None) -> RowStep:
    group = proposal.block.group
    shaped = costs.reshape(len(proposal.rows), *proposal.directions.shape[:2])
    signed = -shaped if group["maximize"] else shaped
    # A function of (seed, step, block): the optimizer finds the same weights.
    result = transport(signed, group, seed=optimizer.seed, step=optimizer.progress.step, name=proposal.block.name)
    per_row = proposal.vertices_per_row
    _, displacements = proposal.displacements(place * per_row, (place + 1) * per_row)
    weights = result.weights[place].flatten().cpu()
    displacements = displacements.double().cpu()
    return RowStep(
        f"{proposal.block.name}, row {int(proposal.rows[place])}, step {optimizer.progress.step + 1}",
        displacements,
        shaped[place].flatten().cpu(),
        incumbent,
        weights,
        weights @ displacements,
        group["lr"] * move(proposal, result.weights)[place].double().cpu(),
    )
