"""What a step takes, measured on the first steps and told once, and what slow phases do; nothing is decided by it."""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lightning_utilities.core.rank_zero import rank_zero_only

from lightning_polystep.clock import VerbClock

if TYPE_CHECKING:
    from lightning_polystep.scoring.plan import Plan

# The first step makes the plan, the second still compiles.
_FIRST, _LAST = 2, 5
# Whoever waits longer than that, in seconds, wants to know what for.
PATIENCE = 3.0


class Pace:
    """Seconds per step, from the clock of an engine.

    Args:
        clock: Of the engine.
        batches: Returns the batches of an epoch, infinite where nobody knows.
        quiet: Whether to print nothing.

    Example:
        >>> clock = VerbClock()
        >>> pace = Pace(clock)
        >>> for step in range(6):
        ...     clock.seconds["score"] = 9.0 + 0.5 * step
        ...     told = pace.at_start_of_step(candidates=64)
        >>> told
        '0.5 s per step (100 % of it for 64 candidates), 8.3 min for 1,000 steps'
    """

    def __init__(
        self, clock: VerbClock, batches: Callable[[], float] = lambda: math.inf, *, quiet: bool = False
    ) -> None:
        self._clock = clock
        self._batches = batches
        self._quiet = quiet
        self._told: set[str] = set()
        self._steps = 0
        self._before: dict[str, float] = {}

    def at_start_of_step(self, candidates: int) -> str:
        """Return what there is to tell as a step begins: once what a step takes, else nothing.

        Args:
            candidates: Of a step.
        """
        self._steps += 1
        if self._steps == _FIRST + 1:
            self._before = dict(self._clock.seconds)
        if self._steps != _LAST + 1:
            return ""
        spent = {verb: now - self._before.get(verb, 0.0) for verb, now in self._clock.seconds.items()}
        total = sum(spent.values())
        share = 100 * spent.get("score", 0.0) / max(total, 1e-9)
        seconds = total / (_LAST - _FIRST)
        return (
            f"{_rounded(seconds)} per step ({share:.0f} % of it for {candidates:,} candidates), "
            f"{self._for_many(seconds)}"
        )

    def _for_many(self, seconds: float) -> str:
        batches = self._batches()
        if not math.isfinite(batches):
            return f"{_rounded(1000 * seconds)} for 1,000 steps"
        return f"{_rounded(batches * seconds)} for an epoch of {int(batches):,} batches"

    def tell(self, plan: Plan | None) -> None:
        """Print what a step takes as soon as that is known, and add it to the plan; a new plan is measured anew.

        Args:
            plan: That of the step that begins.
        """
        if plan is None:
            self._steps = 0
        elif pace := self.at_start_of_step(plan.candidates):
            plan.pace = pace
            if not self._quiet:
                print_pace(pace)

    @contextmanager
    def planning(self, blocks: int) -> Iterator[None]:
        """Wrap the making of a plan: say what it does if it takes long.

        Args:
            blocks: That are planned for.
        """
        sentence = f"making the plan: recording the step, and timing the ways to score {blocks} blocks, once"
        with self._telling("plan", sentence):
            yield

    @contextmanager
    def scoring(self, candidates: int) -> Iterator[None]:
        """Wrap the scoring of a step: say what it does if it takes long, in the first steps.

        Args:
            candidates: Of the step.
        """
        if self._steps > _LAST:  # what a step takes has been told
            yield
            return
        sentence = f"scoring {candidates:,} candidates of a step; the first one also compiles what the plan has chosen"
        with self._telling("score", sentence):
            yield

    @contextmanager
    def _telling(self, phase: str, sentence: str) -> Iterator[None]:
        """Print a sentence if the body is still running after a while, once for each phase."""
        if self._quiet or phase in self._told:
            yield
            return

        def tell() -> None:
            self._told.add(phase)
            print_pace(sentence)

        timer = threading.Timer(PATIENCE, tell)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


def print_pace(pace: str) -> None:
    """Print what a step takes, or a slow phase does, to standard error, on one process.

    Args:
        pace: What :meth:`Pace.at_start_of_step` returned, or a sentence.
    """
    # Lightning knows better than the environment, if one of its packages is loaded; this file needs none.
    if getattr(rank_zero_only, "rank", int(os.environ.get("RANK", "0"))) == 0:
        print(f"PolyStep: {pace}", file=sys.stderr)


def _rounded(seconds: float) -> str:
    for unit, name in ((3600.0, "h"), (60.0, "min"), (1.0, "s")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.2g} {name}"
    return f"{seconds:.2g} s" if seconds >= 0.1 else f"{1000 * seconds:.2g} ms"
