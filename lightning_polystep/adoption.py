"""What ``configure_optimizers`` returned becomes a hosted optimizer, its learning-rate schedule kept as a ratio."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import nn

from lightning_polystep.guards import check_option_names
from lightning_polystep.host import LearningRateFinder, MisconfigurationException, _MockOptimizer, rank_zero_warn
from lightning_polystep.hosted import HostedOptimizer
from lightning_polystep.optimizer import PolyStep
from lightning_polystep.trainer_guards import check_replaceable

ForeignOptimizer = Literal["replace", "error"]

# Entries of an adopted optimizer's group, which checkpoints keep: the step radius where the schedule's ratio is 1, and
# the foreign learning rate, because a ratio multiplied out again may be off by a rounding.
_FULL_LR = "full_lr"
_FOREIGN_LR = "foreign_lr"

# Step radii that Lightning's learning rate finder has found for modules, which it has told the module only.
_found_radii: WeakKeyDictionary[nn.Module, float] = WeakKeyDictionary()


class ScheduledGroup(dict[str, Any]):
    """A parameter group whose "lr" is always what the schedule of a replaced optimizer makes of it.

    Schedulers act on the replaced optimizer, between the steps; whoever looks at the step radius then (a monitor, the
    user's hooks) is to see the one that the next step uses.

    Args:
        group: The group; its entries are taken over.
        follow: Brings the entry up to date.

    Example:
        >>> group = ScheduledGroup({"lr": 0.1}, lambda: None)
        >>> group["lr"], dict(group)
        (0.1, {'lr': 0.1})
    """

    def __init__(self, group: dict[str, Any], follow: Callable[[], None]) -> None:
        super().__init__(group)
        self._follow = follow

    def __getitem__(self, name: str) -> Any:
        if name == "lr":
            self._follow()
        return super().__getitem__(name)

    def __setitem__(self, name: str, value: Any) -> None:
        if name == "lr":
            self._follow()  # what the schedule did so far is not what is set by hand now
        super().__setitem__(name, value)
        if name == "lr":
            self._follow()

    def get(self, name: str, default: Any = None) -> Any:
        """Return an entry, or the default."""
        if name == "lr":
            self._follow()
        return super().get(name, default)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy follows nothing.
        return dict, (dict(self),)


@dataclass(eq=False)
class Adoption:
    """An optimizer that trains by forward passes, and the foreign optimizer whose schedule it follows, if any.

    Args:
        optimizer: The optimizer that trains.
        foreign: The replaced optimizer; its schedulers keep acting on it.
        reference: The learning rate for which the step radii stand; by default the largest of the foreign groups.
        quiet: Do not warn of step radii that are set by hand.
    """

    optimizer: HostedOptimizer
    foreign: torch.optim.Optimizer | None = None
    reference: float | None = None
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.foreign is None:
            return
        if self.reference is None:
            self.reference = max(full_rates(self.foreign, ()), default=0.0)
        groups = self.optimizer.param_groups
        # Of each group the radius and the foreign rate that it was made from.
        self._followed = [(group["lr"], math.nan) for group in groups]
        for index, theirs in enumerate(self.foreign.param_groups[: len(groups)]):
            groups[index] = ScheduledGroup(groups[index], self.follow_schedule)
            groups[index].update({_FULL_LR: self._followed[index][0], _FOREIGN_LR: float(theirs["lr"])})
        self.follow_schedule()

    def follow_schedule(self) -> None:
        """Scale the step radii by the ratio of the foreign learning rates to the one that the radii stand for.

        A radius that was set by hand since the last call is kept as it is, and scaled by what the schedule does next.
        """
        if self.foreign is None:
            return
        # Schedulers warn when the optimizer they drive never stepped; PolyStep steps in its place.
        self.foreign._opt_called = True  # type: ignore[attr-defined]
        for index, (group, theirs) in enumerate(self._groups()):
            radius, rate = dict.__getitem__(group, "lr"), float(theirs["lr"])
            followed, seen_rate = self._followed[index]
            if radius != followed:
                self._warn_of_hand(radius, followed)
                group[_FULL_LR] = radius / (self._ratio(rate) or 1.0)
            elif rate != seen_rate:
                radius = group[_FULL_LR] * self._ratio(rate)
            self._followed[index] = radius, rate
            group.update({"lr": radius, _FOREIGN_LR: rate})

    def restore_schedule(self) -> None:
        """After loading the optimizer's state, bring the foreign learning rates to where they were."""
        for index, (group, theirs) in enumerate(self._groups()):
            radius, full, rate = dict.__getitem__(group, "lr"), group[_FULL_LR], group[_FOREIGN_LR]
            # Where it was is not where it is to be: an earlier version saved no rate, or the initial one has changed.
            if not math.isclose(full * self._ratio(rate), radius, rel_tol=1e-9):
                rate = (self.reference or 0.0) * radius / full if full else rate
            theirs["lr"] = rate
            self._followed[index] = radius, rate

    def _ratio(self, rate: float) -> float:
        if self.reference:
            return rate / self.reference
        return float(rate > 0)  # nothing to compare with: a rate of 0 holds still, any other moves

    def _groups(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Return our groups and theirs."""
        theirs = [] if self.foreign is None else self.foreign.param_groups
        # Not strict: a group that a fine-tuning callback has added to PolyStep has no counterpart and keeps its radius.
        return zip(self.optimizer.param_groups, theirs, strict=False)

    def _warn_of_hand(self, found: float, followed: float) -> None:
        if not self.quiet:
            rank_zero_warn(
                f"The learning rate of the PolyStep that replaced {type(self.foreign).__name__} was set by hand, from "
                f"{followed:g} to {found:g}. It is kept, as the step radius that it is, and schedulers scale it from "
                "now on. If it was meant for the replaced optimizer, multiply the learning rate instead of setting it, "
                "or return lightning_polystep.PolyStep from configure_optimizers."
            )
            self.quiet = True


def adopt_all(
    returned: Sequence[Any],
    module: nn.Module,
    policy: ForeignOptimizer,
    options: dict[str, Any],
    schedulers: Sequence[Any] = (),
) -> list[Adoption]:
    """Turn all optimizers that ``configure_optimizers`` returned into PolyStep, see :func:`adopt`.

    The learning rates of optimizers of one class are compared: the largest stands for the whole step radius.

    Args:
        returned: The optimizers.
        module: The LightningModule.
        policy: ``"replace"`` or ``"error"`` for other optimizers.
        options: PolyStep's arguments for the cases in which we build it.
        schedulers: The learning-rate schedulers that ``configure_optimizers`` returned.
    """
    largest: dict[type, float] = {}
    for each in returned:
        if not isinstance(each, HostedOptimizer | _MockOptimizer):
            largest[type(each)] = max([largest.get(type(each), 0.0), *full_rates(each, schedulers)])
    return [adopt(each, module, policy, options, schedulers, largest.get(type(each))) for each in returned]


def adopt(
    returned: Any,
    module: nn.Module,
    policy: ForeignOptimizer,
    options: dict[str, Any],
    schedulers: Sequence[Any] = (),
    reference: float | None = None,
) -> Adoption:
    """Turn an optimizer that ``configure_optimizers`` returned into PolyStep.

    Args:
        returned: A hosted optimizer such as PolyStep (kept), Lightning's stand-in for None (PolyStep over all trainable
            parameters), or another optimizer (PolyStep over the same groups, with one warning).
        module: The LightningModule.
        policy: ``"replace"`` or ``"error"`` for other optimizers.
        options: PolyStep's arguments for the cases in which we build it.
        schedulers: The learning-rate schedulers that ``configure_optimizers`` returned.
        reference: The learning rate that stands for the whole step radius; by default the largest of the groups.

    Raises:
        MisconfigurationException: For LBFGS, and for any other optimizer under ``"error"``.
    """
    if isinstance(returned, HostedOptimizer):
        return Adoption(returned)
    check_option_names(options, PolyStep)
    found = _found_radii.get(module)
    if isinstance(returned, _MockOptimizer):
        radius = {} if found is None else {"lr": found}
        return Adoption(PolyStep([p for p in module.parameters() if p.requires_grad], **{**options, **radius}))
    check_replaceable(returned)
    name = type(returned).__name__
    if policy == "error":
        msg = (
            f"configure_optimizers returned {name}: return PolyStep, or set the strategy's foreign_optimizer='replace'."
        )
        raise MisconfigurationException(msg)
    if reference is None:
        reference = max(full_rates(returned, schedulers), default=0.0)
    climbing = options.get("maximize", False)
    groups = [
        {"params": group["params"], "maximize": group.get("maximize", False) or climbing}
        for group in returned.param_groups
    ]
    if found == reference:
        options = {**options, "lr": found}
    adoption = Adoption(PolyStep(groups, **options), returned, reference)
    _warn_of_replacement(returned, reference, found)
    return adoption


def note_found_radii(module: nn.Module, callbacks: Iterable[Any]) -> None:
    """Take note of the step radius that a learning rate finder has written into an attribute of a module.

    It has tried learning rates of PolyStep: where an optimizer with that learning rate is replaced, it is the radius.

    Args:
        module: The module.
        callbacks: Those of the Trainer; a finder that was told to leave the module alone does not count.
    """
    for callback in callbacks:
        if isinstance(callback, LearningRateFinder) and callback._update_attr and callback.optimal_lr is not None:
            radius = callback.optimal_lr.suggestion()
            if radius is not None:
                _found_radii[module] = radius


def full_rates(foreign: torch.optim.Optimizer, schedulers: Iterable[Any]) -> list[float]:
    """Return each group's learning rate before any schedule acts on it, or the peak where a schedule has one.

    Args:
        foreign: The optimizer.
        schedulers: All schedulers that there are, those of other optimizers among them.
    """
    # OneCycleLR writes its peak into the groups, CyclicLR keeps it for itself.
    rates = [group.get("max_lr", group.get("initial_lr", group["lr"])) for group in foreign.param_groups]
    for scheduler in _unpacked(schedulers):
        if scheduler.optimizer is foreign:
            rates = getattr(scheduler, "max_lrs", rates)
    return [float(rate) for rate in rates]


def _warn_of_replacement(returned: torch.optim.Optimizer, reference: float, found: float | None) -> None:
    ignored = ", ".join(sorted(key for key in returned.defaults if key not in {"lr", "maximize"}))
    rank_zero_warn(
        f"configure_optimizers returned {type(returned).__name__}, which needs gradients; PolyStep trains the same "
        f"parameters instead. Ignored: {ignored}; learning rates count only as ratios to the largest initial one "
        "(OneCycleLR, CyclicLR: peak), which scale the step radius, so groups differ and schedulers work as before. "
        "Return lightning_polystep.PolyStep for its options."
    )
    frozen = sum(float(group.get("initial_lr", group["lr"])) == 0 for group in returned.param_groups)
    if frozen and not reference:
        rank_zero_warn(
            f"The learning rate of {type(returned).__name__} is 0, so nothing moves until something sets it: give it "
            "any other to train."
        )
    if found is not None and found != reference:
        rank_zero_warn(
            f"The learning rate finder has found a step radius of {found:g}, which is not the learning rate of the "
            f"{type(returned).__name__} that configure_optimizers returned ({reference:g}), so it is ignored: return "
            f"lightning_polystep.PolyStep(self.parameters(), lr={found:g})."
        )


def _unpacked(schedulers: Iterable[Any]) -> Iterator[Any]:
    """Take SequentialLR and ChainedScheduler apart."""
    for scheduler in schedulers:
        parts = getattr(scheduler, "_schedulers", None)
        yield from [scheduler] if parts is None else _unpacked(parts)
