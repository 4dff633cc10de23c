"""An assignment, what it costs and what each flip would: kept exact while variables move."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_polystep.kernels.clause_sweep import ClauseLayout, Draws, SweepState, clause_sweep
from lightning_polystep.kernels.clause_sweep.layout import WEIGHT
from lightning_polystep.kernels.flip_costs import flip_costs
from lightning_polystep.kernels.simd import compiled
from lightning_polystep.maxsat.formula import WeightedCNF

# Penalised costs stay below it, so that sums of them fit into int64.
_MOST_PENALTY = 2**62


class Search:
    """A walk through the assignments of a formula.

    A hard clause counts as a soft one of weight ``penalty``. By default that is one more than the soft weight that any
    variable touches, so that no single flip pays for a hard clause with soft ones.

    Args:
        formula: The formula.
        penalty: Weight of each hard clause, at least 1; None for the default.
        coloured: Visit variables colour by colour instead of by their numbers.

    Attributes:
        unavoidable: Weight of the empty soft clauses, which nothing satisfies.
        contradiction: Whether an empty clause is hard.

    Raises:
        ValueError: When the penalties of all hard clauses sum to 2^62 or more.

    Example:
        >>> search = Search(WeightedCNF.of([[1, 2], [-1], [-2]], weights=[1, 2, 3], hard=[True, False, False]))
        >>> search.go_to(np.array([False, False]))
        >>> search.cost, search.violated, search.penalty, search.costs.tolist()
        (0, 1, 4, [-2, -1])
    """

    def __init__(self, formula: WeightedCNF, penalty: int | None = None, *, coloured: bool = False) -> None:
        self.formula = formula
        literals, starts, kept = simplified(formula)
        hard = formula.hard[kept]
        weights = np.where(hard, 0, formula.weights[kept])
        if penalty is None:
            soft = np.bincount(literals >> 1, np.repeat(weights, np.diff(starts)).astype(np.float64), formula.variables)
            penalty = 1 + int(soft.max(initial=0)) if hard.any() else 1
        if float(hard.sum()) * penalty + float(weights.sum(dtype=np.float64)) >= _MOST_PENALTY:
            raise ValueError(f"{int(hard.sum())} hard clauses of penalty {penalty} sum to 2^62 or more.")
        self.penalty = penalty
        empty = np.diff(formula.starts) == 0
        self.contradiction = bool((empty & formula.hard).any())
        self.unavoidable = int(formula.weights[empty & ~formula.hard].sum())
        weights = np.where(hard, penalty, weights)
        self.layout = ClauseLayout.of(formula.variables, literals, starts, weights, int(hard.sum()), coloured=coloured)
        self._most_touched = int(np.diff(self.layout.first).max(initial=1))
        none = torch.zeros(formula.variables, dtype=torch.bool)
        self._state = SweepState(none, np.zeros(formula.variables, self.layout.records.dtype), 0, 0)
        self._weighed = False
        self.go_to(none.numpy())

    def go_to(self, values: NDArray[np.bool_]) -> None:
        """Start from an assignment.

        Args:
            values: Shape (n,), bool; copied.
        """
        state, layout = self._state, self.layout
        state.values.copy_(torch.from_numpy(values))
        arrays = (layout.literals, layout.starts, layout.weights)
        found = flip_costs(state.values, *map(torch.from_numpy, arrays)).numpy()
        state.costs[:] = found[:-1]
        state.weight = int(found[-1])
        layout.count(state.values.numpy())
        state.violated = int((layout.records[layout.offsets[: layout.hard]] == 0).sum())

    def weigh_violated(self, by: int) -> None:
        """Give each hard clause that is violated now a larger weight, unless costs might no longer fit.

        Args:
            by: How much larger.
        """
        state, layout = self._state, self.layout
        clauses = self._violated()
        most = np.iinfo(layout.records.dtype).max // 4
        if not len(clauses) or int(layout.weights[clauses].max()) + by > most // max(1, self._most_touched):
            return
        self._weighed = True
        layout.weights[clauses] += by
        layout.records[layout.offsets[clauses] + WEIGHT] += by
        for clause in clauses.tolist():  # few; each of their variables would satisfy them
            np.subtract.at(state.costs, layout.literals[layout.starts[clause] : layout.starts[clause + 1]] >> 1, by)
        state.weight += by * len(clauses)

    def _violated(self) -> NDArray[np.int64]:
        layout = self.layout
        return np.flatnonzero(layout.records[layout.offsets[: layout.hard]] == 0)

    def is_at(self, values: NDArray[np.bool_]) -> bool:
        """Tell whether this is the current assignment.

        Args:
            values: Shape (n,), bool.
        """
        return bool(np.array_equal(self._state.values.numpy(), values))

    @property
    def values(self) -> NDArray[np.bool_]:
        """The current assignment, shape (n,), bool; not to be written."""
        return self._state.values.numpy()

    @property
    def costs(self) -> NDArray[np.int32] | NDArray[np.int64]:
        """By how much a flip of each variable changes the penalised cost, shape (n,); not to be written."""
        return self._state.costs

    @property
    def penalised(self) -> int:
        """Weight of what is not satisfied, hard clauses at their penalty."""
        return self._state.weight + self.unavoidable

    @property
    def violated(self) -> int:
        """Number of hard clauses that are not satisfied; empty ones, which nothing satisfies, are not counted."""
        return self._state.violated

    @property
    def cost(self) -> int:
        """Weight of the soft clauses that are not satisfied."""
        if not self._weighed:
            return self.penalised - self.penalty * self.violated
        return self.penalised - int(self.layout.weights[self._violated()].sum()) if self.violated else self.penalised

    @property
    def flips(self) -> int:
        """Flips made so far."""
        return self._state.flips

    def spread(self) -> float:
        """Return the standard deviation of all flips' costs: the unit of temperatures; 1 where they are all alike."""
        return float(self.costs.std(dtype=np.float64)) or 1.0 if len(self.costs) else 1.0

    def sweep(self, draws: Draws) -> None:
        """Visit all variables, as often as ``draws.sweeps`` says."""
        clause_sweep(self._state, self.layout, draws)


def simplified(
    formula: WeightedCNF,
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Return the clauses whose truth depends on the assignment, hard ones first, no literal twice in one.

    Args:
        formula: The formula; its clauses that are empty, or hold a variable and its negation, are left out.

    Returns:
        Literals, as twice a variable (from 0) plus 1 where negated; starts; and the clause in the formula of each.

    Example:
        >>> literals, starts, kept = simplified(WeightedCNF.of([[1, -1], [2, 2], [], [-1, 2]]))
        >>> literals.tolist(), starts.tolist(), kept.tolist()
        ([2, 1, 2], [0, 1, 3], [1, 3])
    """
    order = np.argsort(~formula.hard, kind="stable").astype(np.int64)
    return _simplified(formula.variables, formula.literals, formula.starts, order)


@compiled()
def _simplified(
    variables: int, literals: NDArray[np.int32], starts: NDArray[np.int64], order: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    found, begins, kept = np.empty(len(literals), np.int32), np.empty(len(order) + 1, np.int64), np.empty_like(order)
    seen_in = np.full(2 * variables, -1, np.int64)
    count, clauses = 0, 0
    begins[0] = 0
    for clause in order:
        begin, always = count, False
        for place in range(starts[clause], starts[clause + 1]):
            literal = literals[place]
            code = 2 * (literal - 1) if literal > 0 else 2 * (-literal - 1) + 1
            always |= seen_in[code ^ 1] == clause
            if seen_in[code] != clause:
                seen_in[code] = clause
                found[count] = code
                count += 1
        if always or count == begin:
            count = begin
        else:
            kept[clauses] = clause
            clauses += 1
            begins[clauses] = count
    return found[:count].copy(), begins[: clauses + 1].copy(), kept[:clauses].copy()
