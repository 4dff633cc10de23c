"""Anytime search: annealed runs from random assignments, each longer than the last, until the time is up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_polystep.kernels.clause_sweep import Draws
from lightning_polystep.maxsat.formula import WeightedCNF
from lightning_polystep.maxsat.search import Search
from lightning_polystep.randomness import derive_seed
from lightning_polystep.schedules import Exponential

# Temperatures, in units of the spread of flips' costs, between which a run cools. Measured on random 3-SAT and 7-SAT,
# weighted and not; docs/maxsat.md has the figures.
HOT, COLD = 0.25, 0.04
# The last temperature, in units of the least weight: a difference of one such weight is then hardly ever accepted.
_COLDEST = 0.07
# Literals that the first run visits, and sweeps of the first and of the longest.
_FIRST_VISITS, _FEWEST, _MOST = 10**8, 12, 16_384
# How much longer a run is than the one before, and temperatures in a run.
_GROWTH, _STAGES = 4, 256
# First weight of a hard clause, and what one gets more each time that a run ends with it violated; temperature from
# which such a run is gone on with; both in units of the least soft weight.
_HARD, _REHEATED = 4, 2.0
# Sweeps of that; and after how many a random assignment is tried again: the fewest, and one more per so many literals,
# because small formulas gain by it and large ones would have to begin anew.
_REPAIR, _FEWEST_REPAIRS, _LITERALS_PER_REPAIR = 200, 16, 1000
# Kept for the end of a run: a sweep may take longer than the last one did.
_MARGIN = 0.96


@dataclass(frozen=True)
class Answer:
    """What a search has found.

    Args:
        values: The best assignment, shape (n,), bool.
        cost: Soft weight that it leaves unsatisfied.
        violated: Hard clauses that it violates.
        optimal: Whether there is provably none better, because nothing avoidable is unsatisfied.
        contradiction: Whether there is provably no assignment that satisfies the hard clauses: one of them is empty.
        sweeps: Sweeps made.
    """

    values: NDArray[np.bool_]
    cost: int
    violated: int
    optimal: bool
    contradiction: bool
    sweeps: int

    @property
    def feasible(self) -> bool:
        """Whether all hard clauses are satisfied."""
        return not (self.violated or self.contradiction)


class Solver:
    """Looks for the assignment of least cost.

    A run starts at a random assignment and cools geometrically; the variables move in turn, as with
    ``transport="sample"`` (:class:`~lightning_polystep.maxsat.UnsatisfiedWeight`). Runs grow by a factor of four, so
    that most of the time goes into the longest, and the last one takes all that is left. If a run ends with hard
    clauses violated, these alone weigh more from then on, and the next runs go on from there, reheated a little.

    Args:
        formula: The formula.
        seed: Of all draws.
        on_better: Called with each assignment that is better than all before and satisfies the hard clauses: its cost.
        stopped: Asked after every stage of a run; True ends the search.
        clock: What seconds are measured by: the wall clock, or the time of the process on a machine that others use.

    Example:
        >>> from lightning_polystep.maxsat import WeightedCNF
        >>> answer = Solver(WeightedCNF.of([[1, 2], [-1, 2], [-2]], weights=[1, 1, 5])).search(sweeps=20)
        >>> answer.cost, answer.values.tolist()[1]
        (1, False)
    """

    def __init__(
        self,
        formula: WeightedCNF,
        seed: int = 0,
        *,
        on_better: Callable[[int], None] = lambda _cost: None,
        stopped: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.formula = formula
        self._clock = clock
        self._seed = seed
        self._on_better = on_better
        self._stopped = stopped
        self._sweeps = 0
        self._best = (np.zeros(formula.variables, np.bool_), formula.clauses + 1, 0)
        soft = formula.weights[~formula.hard & (formula.weights > 0)]
        self._least_weight = int(soft.min(initial=np.iinfo(np.int64).max))
        self._unit = self._least_weight if len(soft) else 1
        self._repairs = 0
        self._restart_every = max(_FEWEST_REPAIRS, len(formula.literals) // _LITERALS_PER_REPAIR)
        self._walk = Search(formula, _HARD * self._unit if formula.hard.any() else None)

    def search(self, seconds: float | None = None, sweeps: int | None = None) -> Answer:
        """Search for some time, or for one run of so many sweeps, which draws the same whatever the machine.

        Args:
            seconds: How long, from now; above 0.
            sweeps: Sweeps of the one run.

        Raises:
            ValueError: Unless exactly one of the two is given.
        """
        if (seconds is None) == (sweeps is None):
            raise ValueError("Solver.search takes either seconds or sweeps.")
        self._restart(0)
        if sweeps is not None:
            self._run(0, sweeps, None)
            return self._answer()
        end = self._clock() + (seconds or 0.0)
        run = 0
        length: int | None = max(_FEWEST, min(100, _FIRST_VISITS // max(1, len(self.formula.literals))))
        while not self._over() and self._clock() < end:
            began, before = self._clock(), self._sweeps
            self._run(run, length, end)
            now = self._clock()
            each = max(now - began, 1e-9) / max(1, self._sweeps - before)
            if length is None:
                break
            run += 1
            if self._walk.violated:
                self._walk.weigh_violated(_HARD * self._unit)
                self._repairs += 1
            length = _REPAIR if self._repairs else min(_GROWTH * length, _MOST)
            if now + 1.5 * length * each > end:
                length = None  # the last one: as many as there is time for
        return self._answer()

    def _run(self, run: int, length: int | None, end: float | None) -> None:
        """Cool once, in so many sweeps, or fewer if the time runs out; None takes all the time there is.

        A sweep takes less and less time, because fewer and fewer variables flip: how many fit in can't be said before.
        """
        # A run that ended with a hard clause violated is gone on with, at temperatures at which soft weights count.
        repairs = self._repairs > 0 and run % self._restart_every > 0
        if not repairs:
            self._restart(run)
        walk = self._walk
        spread = walk.spread()
        cold = min(COLD * spread, _COLDEST * self._least_weight)
        hot = _REHEATED * self._unit if repairs else HOT * spread
        schedule = Exponential(max(hot, cold), cold, steps=_STAGES)
        began, first, share, count = self._clock(), self._sweeps, 0.0, 1
        while share < 1 and not self._over():
            self._sweep(schedule.at(round(share * _STAGES)), count)
            done, passed = self._sweeps - first, self._clock() - began
            by_time = passed / max(_MARGIN * (end - began), 1e-9) if end is not None else 0.0
            share = by_time if length is None else max(done / length, by_time)
            # As many temperatures as stages, where there are as many sweeps.
            expected = length if length is not None else done / max(by_time, 1e-9)
            count = max(1, min(int(expected / _STAGES), int(expected) - done))
        if not self._over():
            self._sweep(schedule.end, 1)

    def _sweep(self, temperature: float, count: int) -> None:
        seed = derive_seed(self._seed, 0, 0, "clause sweeps")
        self._walk.sweep(Draws(temperature, True, 1.0, seed, range(self._sweeps, self._sweeps + count)))
        self._sweeps += count
        self._remember()

    def _restart(self, run: int) -> None:
        draw = np.random.Generator(np.random.PCG64(derive_seed(self._seed, run, 0, "first assignment")))
        self._walk.go_to(draw.integers(0, 2, self.formula.variables, dtype=np.int8).astype(np.bool_))
        self._remember()

    def _remember(self) -> None:
        walk, (_, violated, cost) = self._walk, self._best
        if (walk.violated, walk.cost) < (violated, cost):
            self._best = (walk.values.copy(), walk.violated, walk.cost)
            if not walk.violated and not walk.contradiction:
                self._on_better(walk.cost)

    def _over(self) -> bool:
        """Tell whether nothing better can be found, or nobody wants it any more."""
        return self._optimal or self._walk.contradiction or self._stopped()

    @property
    def _optimal(self) -> bool:
        return not self._best[1] and self._best[2] == self._walk.unavoidable and not self._walk.contradiction

    def _answer(self) -> Answer:
        values, violated, cost = self._best
        return Answer(values, cost, violated, self._optimal, self._walk.contradiction, self._sweeps)
