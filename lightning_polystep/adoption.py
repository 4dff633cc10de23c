"""What ``configure_optimizers`` returned becomes a PolyStep optimizer, its learning-rate schedule kept as a ratio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from pytorch_lightning.core.optimizer import _MockOptimizer
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.rank_zero import rank_zero_warn
from torch import nn

from lightning_polystep.optimizer import PolyStep
from lightning_polystep.trainer_guards import check_replaceable

ForeignOptimizer = Literal["replace", "error"]


@dataclass
class Adoption:
    """A PolyStep optimizer, and the foreign optimizer whose schedule it follows, if any.

    Args:
        optimizer: The optimizer that trains.
        foreign: The replaced optimizer; its schedulers keep acting on it.
    """

    optimizer: PolyStep
    foreign: torch.optim.Optimizer | None = None

    def __post_init__(self) -> None:
        self._radii = [group["lr"] for group in self.optimizer.param_groups]
        groups = self.foreign.param_groups if self.foreign is not None else []
        # OneCycleLR starts far below its peak, and the radius stands for the peak.
        self._foreign_rates = [group.get("max_lr", group.get("initial_lr", group["lr"])) for group in groups]

    def follow_schedule(self) -> None:
        """Scale the step radii by the ratio of the foreign learning rates to their initial (or peak) values."""
        if self.foreign is None:
            return
        # Schedulers warn when the optimizer they drive never stepped; PolyStep steps in its place.
        self.foreign._opt_called = True  # type: ignore[attr-defined]
        # Not strict: a group that a fine-tuning callback has added to PolyStep has no counterpart and keeps its radius.
        for group, radius, theirs, initial in zip(
            self.optimizer.param_groups, self._radii, self.foreign.param_groups, self._foreign_rates, strict=False
        ):
            group["lr"] = radius * theirs["lr"] / initial if initial else radius

    def restore_schedule(self) -> None:
        """After loading the optimizer's state, bring the foreign learning rates to the same ratio."""
        if self.foreign is None:
            return
        for group, radius, theirs, initial in zip(
            self.optimizer.param_groups, self._radii, self.foreign.param_groups, self._foreign_rates, strict=False
        ):
            theirs["lr"] = initial * group["lr"] / radius if radius else initial


def adopt(returned: Any, module: nn.Module, policy: ForeignOptimizer, options: dict[str, Any]) -> Adoption:
    """Turn an optimizer that ``configure_optimizers`` returned into PolyStep.

    Args:
        returned: PolyStep (kept), Lightning's stand-in for None (PolyStep over all trainable parameters), or another
            optimizer (PolyStep over the same groups, with one warning).
        module: The LightningModule.
        policy: ``"replace"`` or ``"error"`` for other optimizers.
        options: PolyStep's arguments for the cases in which we build it.

    Raises:
        MisconfigurationException: For LBFGS, and for any other optimizer under ``"error"``.
    """
    if isinstance(returned, PolyStep):
        return Adoption(returned)
    if isinstance(returned, _MockOptimizer):
        return Adoption(PolyStep([p for p in module.parameters() if p.requires_grad], **options))
    check_replaceable(returned)
    name = type(returned).__name__
    if policy == "error":
        msg = (
            f"configure_optimizers returned {name}: return PolyStep, or set the strategy's foreign_optimizer='replace'."
        )
        raise MisconfigurationException(msg)
    climbing = options.get("maximize", False)
    groups = [
        {"params": group["params"], "maximize": group.get("maximize", False) or climbing}
        for group in returned.param_groups
    ]
    adoption = Adoption(PolyStep(groups, **options), returned)
    ignored = ", ".join(sorted(key for key in returned.defaults if key not in {"lr", "maximize"}))
    rank_zero_warn(
        f"configure_optimizers returned {name}, which needs gradients; PolyStep trains the same parameters instead. "
        f"Ignored: {ignored}; the learning rate counts only as a ratio to its initial value (OneCycleLR: its peak), "
        "which scales the step radius, so schedulers keep working. Return lightning_polystep.PolyStep for its options."
    )
    return adoption
