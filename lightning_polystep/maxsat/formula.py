"""A formula in conjunctive normal form whose clauses have weights, as arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_polystep.kernels.simd import compiled

# Sums of all weights stay below it, so that no sum of costs overflows int64.
MOST_WEIGHT = 2**62
# A literal is stored as twice its variable plus its sign, in 32 bits.
MOST_VARIABLES = 2**30


@dataclass(frozen=True)
class WeightedCNF:
    r"""Clauses :math:`c` of literals, each with a weight :math:`w_c`, or hard: weighted partial MAX-SAT.

    Sought is an assignment :math:`x` that satisfies all hard clauses and has the least cost

    .. math:: \mathrm{cost}(x) = \sum_{c\ \mathrm{soft}} w_c\, [\text{no literal of } c \text{ is true under } x].

    The clauses are in compressed sparse rows: the literals of clause c are ``literals[starts[c]:starts[c + 1]]``, as in
    DIMACS: v is variable v (counted from 1), -v its negation.

    Args:
        variables: Number of variables n.
        literals: Shape (L,), int32, none of them 0.
        starts: Shape (m + 1,), int64, ascending from 0 to L.
        weights: Shape (m,), int64, at least 0; of hard clauses they do not count.
        hard: Shape (m,), bool.

    Raises:
        ValueError: When a literal is 0 or of a variable that there is not, a weight is negative, the weights sum to
            2^62 or more, or shapes do not fit.

    Example:
        >>> formula = WeightedCNF.of([[1, 2], [-1], [-2]], weights=[5, 2, 3], hard=[True, False, False])
        >>> formula.cost(np.array([True, False])), formula.violated(np.array([True, False]))
        (2, 0)

    References:
        MaxSAT Evaluation, rules and input format, https://maxsat-evaluations.github.io.
    """

    variables: int
    literals: NDArray[np.int32]
    starts: NDArray[np.int64]
    weights: NDArray[np.int64]
    hard: NDArray[np.bool_]

    def __post_init__(self) -> None:
        if not 0 <= self.variables <= MOST_VARIABLES:
            raise ValueError(f"A formula has 0 to 2^30 variables, got {self.variables}.")
        clauses = len(self.weights)
        if self.starts.shape != (clauses + 1,) or self.hard.shape != (clauses,):
            raise ValueError("starts needs one entry more than there are weights, and hard as many as weights.")
        if self.starts[0] != 0 or self.starts[-1] != len(self.literals) or bool((np.diff(self.starts) < 0).any()):
            raise ValueError("starts must ascend from 0 to the number of literals.")
        if len(self.literals):
            low, high = int(self.literals.min()), int(self.literals.max())
            if bool((self.literals == 0).any()) or max(high, -low) > self.variables:
                raise ValueError(f"Literals must be 1 to {self.variables} or their negatives.")
        if clauses and int(self.weights.min()) < 0:
            raise ValueError("Weights must be at least 0.")
        if float(self.weights.sum(dtype=np.float64)) >= MOST_WEIGHT:
            raise ValueError("The weights sum to 2^62 or more, which costs in int64 cannot hold: divide them.")

    @classmethod
    def of(
        cls,
        clauses: Iterable[Sequence[int]],
        weights: Sequence[int] | None = None,
        hard: Sequence[bool] | None = None,
        variables: int | None = None,
    ) -> WeightedCNF:
        """Return the formula of some clauses in Python lists; for small ones.

        Args:
            clauses: Literals of each clause.
            weights: One per clause; all 1 by default.
            hard: Which clauses are hard; none by default.
            variables: Number of variables; the largest that occurs by default.
        """
        rows = [list(clause) for clause in clauses]
        literals = np.array([literal for row in rows for literal in row], dtype=np.int32)
        starts = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)]).astype(np.int64)
        return cls(
            variables=int(np.abs(literals).max(initial=0)) if variables is None else variables,
            literals=literals,
            starts=starts,
            weights=np.ones(len(rows), np.int64) if weights is None else np.asarray(weights, np.int64),
            hard=np.zeros(len(rows), np.bool_) if hard is None else np.asarray(hard, np.bool_),
        )

    def equals(self, other: WeightedCNF) -> bool:
        """Tell whether another formula has the same clauses, in the same order, of as many variables.

        Args:
            other: The other one.
        """
        return self.variables == other.variables and all(
            np.array_equal(getattr(self, name), getattr(other, name))
            for name in ("literals", "starts", "weights", "hard")
        )

    @property
    def clauses(self) -> int:
        """Number of clauses m."""
        return len(self.weights)

    @property
    def soft_weight(self) -> int:
        """Sum of the soft clauses' weights."""
        return int(self.weights[~self.hard].sum())

    def unsatisfied(self, values: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Tell which clauses have no true literal, shape (m,).

        Args:
            values: An assignment, shape (n,), bool.

        Raises:
            ValueError: When its shape is another.
        """
        if values.shape != (self.variables,):
            raise ValueError(f"An assignment has shape ({self.variables},), got {values.shape}.")
        return _unsatisfied(values, self.literals, self.starts)

    def cost(self, values: NDArray[np.bool_]) -> int:
        """Return the weight of the soft clauses that are not satisfied.

        Args:
            values: An assignment, shape (n,), bool.
        """
        return int(self.weights[self.unsatisfied(values) & ~self.hard].sum())

    def violated(self, values: NDArray[np.bool_]) -> int:
        """Return the number of hard clauses that are not satisfied.

        Args:
            values: An assignment, shape (n,), bool.
        """
        return int((self.unsatisfied(values) & self.hard).sum())

    def satisfied_share(self, values: NDArray[np.bool_]) -> float:
        """Return the share of the clauses that are satisfied, hard and soft alike, 0 to 1; 1 where there are none.

        Args:
            values: An assignment, shape (n,), bool.
        """
        return 1.0 - float(self.unsatisfied(values).mean()) if self.clauses else 1.0


@compiled()
def _unsatisfied(
    values: NDArray[np.bool_], literals: NDArray[np.int32], starts: NDArray[np.int64]
) -> NDArray[np.bool_]:
    found = np.empty(len(starts) - 1, np.bool_)
    for clause in range(len(found)):
        none_true = True
        for place in range(starts[clause], starts[clause + 1]):
            literal = literals[place]
            if values[abs(literal) - 1] == (literal > 0):
                none_true = False
                break
        found[clause] = none_true
    return found
