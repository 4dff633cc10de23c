r"""ProbSAT, a rival of the benchmark of MAX-SAT: focused random walk with a probability for each literal.

A step draws one of the clauses that are not satisfied and flips one of its variables v, with a probability in
proportion to

.. math:: p(v) = (\varepsilon + \mathrm{break}(v))^{-c_b} \quad\text{(poly)}, \qquad
          p(v) = c_b^{-\mathrm{break}(v)} \quad\text{(exp)},

break(v) the clauses that the flip would leave unsatisfied. Written from the paper's equations; break counts are cached
(for each clause the exclusive or of its true variables, which is the one that alone satisfies it).

Source: Balint and Schoening 2012, "Choosing probability distributions for stochastic local search and the role of make
versus break", SAT 2012 (poly: c_b = 2.06, epsilon = 0.9 for 3-SAT; exp: c_b = 3.7 for 5-SAT and 5.4 for 7-SAT).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from lightning_polystep.maxsat import WeightedCNF
from lightning_polystep.maxsat.search import simplified
from lightning_polystep.randomness import derive_seed

_EPSILON = 0.9
_FLIPS_BETWEEN_LOOKS = 100_000


@dataclass(frozen=True)
class Setting:
    """How literals are weighed.

    Args:
        poly: Whether by the polynomial; else by the exponential.
        base: c_b.
    """

    poly: bool
    base: float

    def table(self, degree: int) -> NDArray[np.float64]:
        """Return the weights of breaks from 0 to ``degree``.

        Args:
            degree: Clauses of the variable that is in most.

        Example:
            >>> Setting(poly=False, base=2.0).table(2).tolist()
            [1.0, 0.5, 0.25]
        """
        breaks = np.arange(degree + 1.0)
        weights: NDArray[np.float64] = (_EPSILON + breaks) ** -self.base if self.poly else self.base**-breaks
        return weights


# By the literals of a clause: what the paper found below the threshold of satisfiability, and what was best at it on
# the formula of seed 1000 (100,000 variables, ratio 4.27, 8 s; poly of 2.06, 2.5, 3 and 3.5).
PUBLISHED = {3: Setting(True, 2.06), 5: Setting(False, 3.7), 7: Setting(False, 5.4)}
TUNED = {3: Setting(True, 3.5), 7: Setting(False, 5.4)}


def prob_sat(
    formula: WeightedCNF,
    setting: Setting,
    seed: int,
    seconds: float,
    clock: Callable[[], float] = time.process_time,
) -> tuple[NDArray[np.bool_], list[tuple[float, int]]]:
    """Walk for some time; return the assignment at the end, and after what seconds how few clauses were unsatisfied.

    Args:
        formula: Of soft clauses of weight 1.
        setting: How literals are weighed.
        seed: Of the first assignment and the walk.
        seconds: How long, preparation included.
        clock: That they are measured by.

    Raises:
        ValueError: When a clause is hard or weighs something else than 1.

    Example:
        >>> from lightning_polystep.maxsat import random_ksat
        >>> formula = random_ksat(50, 3.0, seed=1, planted=True)
        >>> values, path = prob_sat(formula, PUBLISHED[3], 0, 1.0)
        >>> path[-1][1], formula.cost(values)
        (0, 0)
    """
    if formula.hard.any() or (formula.weights != 1).any():
        raise ValueError("probSAT takes formulas of soft clauses of weight 1.")
    began = clock()
    literals, starts, _ = simplified(formula)
    values = np.random.Generator(np.random.PCG64(derive_seed(seed, 0, 0, "first assignment"))).random(formula.variables)
    state = _State(formula.variables, literals, starts, values < 0.5)
    table = setting.table(int(np.bincount(literals >> 1, minlength=1).max(initial=0)))
    _reseed(derive_seed(seed, 0, 0, "probSAT") % 2**32)
    path = [(clock() - began, state.least)]
    while state.least and clock() - began < seconds:
        state.walk(table, _FLIPS_BETWEEN_LOOKS)
        path.append((clock() - began, state.least))
    return state.values, path


class _State:
    """An assignment with what is counted of it."""

    def __init__(
        self, variables: int, literals: NDArray[np.int32], starts: NDArray[np.int64], values: NDArray[np.bool_]
    ) -> None:
        self.values = values
        clauses = len(starts) - 1
        order = np.argsort(literals, kind="stable")
        clause_of = np.repeat(np.arange(clauses, dtype=np.int32), np.diff(starts))
        offsets = np.zeros(2 * variables + 1, np.int64)
        np.cumsum(np.bincount(literals, minlength=2 * variables), out=offsets[1:])
        true, sole = np.zeros(clauses, np.int32), np.zeros(clauses, np.int32)
        self._arrays = (literals, starts, clause_of[order], offsets, true, sole, np.zeros(variables, np.int32))
        self._open, self._places = np.empty(clauses, np.int32), np.full(clauses, -1, np.int32)
        self._count = _count(values, self._arrays, self._open, self._places)
        self.least = self._count

    def walk(self, table: NDArray[np.float64], flips: int) -> None:
        """Make so many flips, or fewer if nothing is left to be satisfied."""
        self._count, self.least = _walk(
            self.values, self._arrays, self._open, self._places, self._count, self.least, table, flips
        )


@numba.njit
def _reseed(seed: int) -> None:
    np.random.seed(seed)


@numba.njit
def _count(values: Any, arrays: Any, unsatisfied: Any, places: Any) -> int:
    literals, starts, _, _, true, sole, breaks = arrays
    count = 0
    for clause in range(len(true)):
        for place in range(starts[clause], starts[clause + 1]):
            variable = literals[place] >> 1
            if values[variable] == ((literals[place] & 1) == 0):
                true[clause] += 1
                sole[clause] ^= variable
        if true[clause] == 0:
            unsatisfied[count], places[clause] = clause, count
            count += 1
        elif true[clause] == 1:
            breaks[sole[clause]] += 1
    return count


@numba.njit
def _walk(  # noqa: C901 - one loop, as the paper has it
    values: Any, arrays: Any, unsatisfied: Any, places: Any, count: int, least: int, table: Any, flips: int
) -> tuple[int, int]:
    literals, starts, clause_of, offsets, true, sole, breaks = arrays
    for _ in range(flips):
        if count == 0:
            break
        clause = unsatisfied[np.random.randint(count)]
        begin, end = starts[clause], starts[clause + 1]
        total = 0.0
        for place in range(begin, end):
            total += table[breaks[literals[place] >> 1]]
        left, chosen = np.random.random() * total, literals[end - 1] >> 1
        for place in range(begin, end):
            left -= table[breaks[literals[place] >> 1]]
            if left < 0:
                chosen = literals[place] >> 1
                break
        made, lost = 2 * chosen, 2 * chosen + 1  # literals that become true and false
        if values[chosen]:
            made, lost = lost, made
        values[chosen] = not values[chosen]
        for place in range(offsets[made], offsets[made + 1]):
            touched = clause_of[place]
            if true[touched] == 0:  # satisfied now: the last open clause takes its place
                gap, last = places[touched], unsatisfied[count - 1]
                unsatisfied[gap], places[last], places[touched] = last, gap, -1
                count -= 1
                breaks[chosen] += 1
            elif true[touched] == 1:
                breaks[sole[touched]] -= 1
            true[touched] += 1
            sole[touched] ^= chosen
        for place in range(offsets[lost], offsets[lost + 1]):
            touched = clause_of[place]
            true[touched] -= 1
            sole[touched] ^= chosen
            if true[touched] == 0:
                unsatisfied[count], places[touched] = touched, count
                count += 1
                breaks[chosen] -= 1
            elif true[touched] == 1:
                breaks[sole[touched]] += 1
        least = min(least, count)
    return count, least
