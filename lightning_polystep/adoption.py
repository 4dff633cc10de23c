"""What ``configure_optimizers`` returned becomes a PolyStep optimizer, its learning-rate schedule kept as a ratio."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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

# Entry of an adopted optimizer's group, which checkpoints keep: the step radius where the schedule's ratio is 1.
_FULL_LR = "full_lr"


@dataclass
class Adoption:
    """A PolyStep optimizer, and the foreign optimizer whose schedule it follows, if any.

    Args:
        optimizer: The optimizer that trains.
        foreign: The replaced optimizer; its schedulers keep acting on it.
        schedulers: All schedulers that there are, those of other optimizers among them.
    """

    optimizer: PolyStep
    foreign: torch.optim.Optimizer | None = None
    schedulers: Sequence[Any] = ()

    def __post_init__(self) -> None:
        self._full_rates = [] if self.foreign is None else _full_rates(self.foreign, self.schedulers)
        self._followed = [group["lr"] for group in self.optimizer.param_groups]
        self._warned = False
        for group, _, _ in self._groups():
            group[_FULL_LR] = group["lr"]

    def follow_schedule(self) -> None:
        """Scale the step radii by the ratio of the foreign learning rates to their initial (or peak) values.

        A radius that was set by hand since the last call is kept as it is, and scaled by what the schedule does next.
        """
        if self.foreign is None:
            return
        # Schedulers warn when the optimizer they drive never stepped; PolyStep steps in its place.
        self.foreign._opt_called = True  # type: ignore[attr-defined]
        for index, (group, theirs, full_rate) in enumerate(self._groups()):
            ratio = float(theirs["lr"]) / full_rate if full_rate else 1.0
            if group["lr"] == self._followed[index]:
                group["lr"] = group[_FULL_LR] * ratio
            else:
                self._warn_of_hand(group["lr"], self._followed[index])
                group[_FULL_LR] = group["lr"] / (ratio or 1.0)
            self._followed[index] = group["lr"]

    def restore_schedule(self) -> None:
        """After loading the optimizer's state, bring the foreign learning rates to the same ratio."""
        for index, (group, theirs, full_rate) in enumerate(self._groups()):
            theirs["lr"] = full_rate * group["lr"] / group[_FULL_LR] if group[_FULL_LR] else full_rate
            self._followed[index] = group["lr"]

    def _groups(self) -> Iterator[tuple[dict[str, Any], dict[str, Any], float]]:
        """Return our groups, theirs, and the rates at which the ratio is 1."""
        theirs = [] if self.foreign is None else self.foreign.param_groups
        # Not strict: a group that a fine-tuning callback has added to PolyStep has no counterpart and keeps its radius.
        return zip(self.optimizer.param_groups, theirs, self._full_rates, strict=False)

    def _warn_of_hand(self, found: float, followed: float) -> None:
        if not self._warned:
            rank_zero_warn(
                f"The learning rate of the PolyStep that replaced {type(self.foreign).__name__} was set by hand, from "
                f"{followed:g} to {found:g}. It is kept, as the step radius that it is, and schedulers scale it from "
                "now on. If it was meant for the replaced optimizer, multiply the learning rate instead of setting it, "
                "or return lightning_polystep.PolyStep from configure_optimizers."
            )
            self._warned = True


def adopt(
    returned: Any,
    module: nn.Module,
    policy: ForeignOptimizer,
    options: dict[str, Any],
    schedulers: Sequence[Any] = (),
) -> Adoption:
    """Turn an optimizer that ``configure_optimizers`` returned into PolyStep.

    Args:
        returned: PolyStep (kept), Lightning's stand-in for None (PolyStep over all trainable parameters), or another
            optimizer (PolyStep over the same groups, with one warning).
        module: The LightningModule.
        policy: ``"replace"`` or ``"error"`` for other optimizers.
        options: PolyStep's arguments for the cases in which we build it.
        schedulers: The learning-rate schedulers that ``configure_optimizers`` returned.

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
    adoption = Adoption(PolyStep(groups, **options), returned, schedulers)
    ignored = ", ".join(sorted(key for key in returned.defaults if key not in {"lr", "maximize"}))
    rank_zero_warn(
        f"configure_optimizers returned {name}, which needs gradients; PolyStep trains the same parameters instead. "
        f"Ignored: {ignored}; the learning rate counts only as a ratio to its initial value (OneCycleLR, CyclicLR: "
        "their peak), which scales the step radius, so schedulers keep working. Return lightning_polystep.PolyStep for "
        "its options."
    )
    return adoption


def _full_rates(foreign: torch.optim.Optimizer, schedulers: Iterable[Any]) -> list[float]:
    """Return the learning rates that the step radii stand for: initial ones, or the peak where a schedule has one."""
    # OneCycleLR writes its peak into the groups, CyclicLR keeps it for itself.
    rates = [group.get("max_lr", group.get("initial_lr", group["lr"])) for group in foreign.param_groups]
    for scheduler in _unpacked(schedulers):
        if scheduler.optimizer is foreign:
            rates = getattr(scheduler, "max_lrs", rates)
    return [float(rate) for rate in rates]


def _unpacked(schedulers: Iterable[Any]) -> Iterator[Any]:
    """Take SequentialLR and ChainedScheduler apart."""
    for scheduler in schedulers:
        parts = getattr(scheduler, "_schedulers", None)
        yield from [scheduler] if parts is None else _unpacked(parts)
