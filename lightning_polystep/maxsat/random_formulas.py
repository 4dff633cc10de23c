"""Random k-SAT: the test bed of the paper, drawn without a loop over clauses."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lightning_polystep.maxsat.formula import WeightedCNF
from lightning_polystep.randomness import derive_seed


def random_ksat(
    variables: int, ratio: float = 4.27, *, k: int = 3, seed: int = 0, planted: bool = False, max_weight: int = 1
) -> WeightedCNF:
    """Draw a uniform random k-SAT formula: int(ratio n) clauses of k different variables, each negated or not.

    Args:
        variables: Number of variables n, at least k.
        ratio: Clauses per variable, at least 0; from 4.267 (k = 3) or 87.79 (k = 7) on, hardly any is satisfiable.
        k: Literals per clause, at least 1.
        seed: Of the draw; the formula is a function of it and the other arguments.
        planted: Draw, of the clauses, only those that a hidden random assignment satisfies: the least cost is 0.
        max_weight: Soft weights are drawn from 1 to this.

    Raises:
        ValueError: When an argument is out of range.

    Example:
        >>> formula = random_ksat(1000, 4.27, seed=1)
        >>> formula.clauses, len(formula.literals)
        (4270, 12810)

    References:
        PolyStep, arXiv 2605.01928 (its MAX-SAT task: k = 3, ratio 4.27); Mertens, Mezard and Zecchina 2006, "Threshold
        values of random k-SAT from the cavity method".
    """
    if k < 1 or variables < k:
        raise ValueError(f"random_ksat: a clause has k >= 1 different variables, got k={k} of {variables}.")
    if not (np.isfinite(ratio) and ratio >= 0) or max_weight < 1:
        raise ValueError(f"random_ksat: ratio must be at least 0 and max_weight 1, got {ratio} and {max_weight}.")
    draw = np.random.Generator(np.random.PCG64(derive_seed(seed, 0, 0, "random k-SAT")))
    clauses = int(ratio * variables)
    chosen = _different(draw, clauses, k, variables)
    negated = draw.integers(0, 2, (clauses, k), dtype=np.int8).astype(np.bool_)
    if planted:
        hidden = draw.integers(0, 2, variables, dtype=np.int8).astype(np.bool_)
        # All signs but the one under which every literal is false are alike likely.
        while len(bad := np.flatnonzero((hidden[chosen] == negated).all(1))):
            negated[bad] = draw.integers(0, 2, (len(bad), k), dtype=np.int8).astype(np.bool_)
    literals = np.where(negated, -1 - chosen, 1 + chosen).astype(np.int32).reshape(-1)
    weights = draw.integers(1, max_weight, clauses, dtype=np.int64, endpoint=True)
    starts = np.arange(clauses + 1, dtype=np.int64) * k
    return WeightedCNF(variables, literals, starts, weights, np.zeros(clauses, np.bool_))


def _different(draw: np.random.Generator, clauses: int, k: int, variables: int) -> NDArray[np.int32]:
    """Draw k different variables for each clause, shape (clauses, k): rows with a repetition are drawn again."""
    if 2 * k > variables:  # too many repetitions: the first k of a random order
        order = np.argsort(draw.random((clauses, variables)), axis=1)
        return order[:, :k].astype(np.int32)
    chosen = draw.integers(0, variables, (clauses, k), dtype=np.int32)
    bad = np.arange(clauses)
    while len(bad):
        ordered = np.sort(chosen[bad], axis=1)
        bad = bad[(ordered[:, 1:] == ordered[:, :-1]).any(1)]
        chosen[bad] = draw.integers(0, variables, (len(bad), k), dtype=np.int32)
    return chosen
