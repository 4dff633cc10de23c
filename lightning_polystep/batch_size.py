"""Let Lightning's batch size finder see one process of the strategy as what it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from lightning_polystep.host import BatchSizeFinder, pl, tuning
from lightning_polystep.layout_strategy import LayoutStrategy

_ALLOWED = "_polystep_allowed"


def allow_batch_size_finder() -> None:
    """Make the finder take a strategy of one process; safe to call again.

    Lightning refuses every strategy that is a DDPStrategy, with a sentence about distributed ones. Elsewhere it is to
    go on taking ours for one of them: the sampler that it puts in must not depend on the number of processes.

    Example:
        >>> allow_batch_size_finder()
        >>> trainer = pl.Trainer(strategy="polystep", accelerator="cpu", devices=1, logger=False)
        >>> tuning._check_scale_batch_size_configuration(trainer)
    """
    for place, name in ((BatchSizeFinder, "setup"), (tuning, "_check_scale_batch_size_configuration")):
        original = getattr(place, name)
        if not hasattr(original, _ALLOWED):
            setattr(place, name, _allowing(original))


def _allowing(check: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(check)
    def checked(*args: Any, **kwargs: Any) -> Any:
        trainer = next((each for each in (*args, *kwargs.values()) if isinstance(each, pl.Trainer)), None)
        with _as_what_it_is(trainer):
            return check(*args, **kwargs)

    setattr(checked, _ALLOWED, True)
    return checked


@contextmanager
def _as_what_it_is(trainer: pl.Trainer | None) -> Iterator[None]:
    strategy = None if trainer is None else trainer.strategy
    if trainer is None or not isinstance(strategy, LayoutStrategy) or strategy.layout.world_size > 1:
        yield
        return
    connector = trainer._accelerator_connector
    kind = type(connector)
    # A property of the class, so the object becomes one of another class for a moment.
    connector.__class__ = type(kind.__name__, (kind,), {"is_distributed": False})
    try:
        yield
    finally:
        connector.__class__ = kind
