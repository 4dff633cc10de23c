"""Weighted partial MAX-SAT beside RC2, which proves optima: ``python -m benchmarks.maxsat_exact``.

Twenty formulas whose hard clauses are planted 3-SAT (ratio ``--ratio``) and whose soft ones wish a value for each
variable, with weights from 1 to 20; or one formula from a file (``--file``, as ``benchmarks.debian_packages`` writes).
Each is given to ours (``solve``) for ``--seconds``, and to RC2 of PySAT, which is ended after ``--most-seconds`` by the
wall clock. Seconds are those of the process on one thread. Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import finish, make_parser, prepare, show
from lightning_polystep.maxsat import WeightedCNF, random_ksat, read_formula
from lightning_polystep.maxsat.solver import Solver


def partial(variables: int, ratio: float, seed: int) -> WeightedCNF:
    """Return hard 3-SAT that some assignment satisfies, and a wish for each variable.

    Args:
        variables: How many.
        ratio: Hard clauses per variable.
        seed: Of the draw.

    Example:
        >>> formula = partial(30, 3.0, 0)
        >>> int(formula.hard.sum()), formula.clauses
        (90, 120)
    """
    rules, draw = random_ksat(variables, ratio, seed=seed, planted=True), np.random.default_rng(seed)
    signs = np.where(draw.random(variables) < 0.5, 1, -1)
    rows = [*rules.literals.reshape(-1, 3).tolist(), *(signs[:, None] * np.arange(1, variables + 1)[:, None]).tolist()]
    weights = [1] * rules.clauses + draw.integers(1, 20, variables, endpoint=True).tolist()
    return WeightedCNF.of(rows, weights, [True] * rules.clauses + [False] * variables)


def optimum(formula: WeightedCNF, seconds: float) -> tuple[int | None, float]:
    """Return the optimum that RC2 proves, None if it does not in time, and the seconds that it took.

    Args:
        formula: The formula.
        seconds: After which it is ended, by the wall clock.

    Raises:
        ModuleNotFoundError: Without PySAT (the extra "maxsat").
    """
    import pysat.examples.rc2  # noqa: F401, PLC0415 - an extra, and its lack is to be said here

    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_solve_exactly, args=(formula, theirs), daemon=True)
    process.start()
    ours.recv()  # it has been imported: from now on its time counts
    found: tuple[int | None, float] = ours.recv() if ours.poll(seconds) else (None, seconds)
    process.kill()
    process.join()
    return found


def _solve_exactly(formula: WeightedCNF, answer: Any) -> None:
    from pysat.examples.rc2 import RC2Stratified  # noqa: PLC0415 - an extra
    from pysat.formula import WCNF  # noqa: PLC0415

    answer.send("ready")
    began, problem = time.process_time(), WCNF()
    for clause in range(formula.clauses):
        row = formula.literals[formula.starts[clause] : formula.starts[clause + 1]].tolist()
        problem.append(row, weight=None if formula.hard[clause] else int(formula.weights[clause]))
    with RC2Stratified(problem) as solver:
        solver.compute()
        answer.send((int(solver.cost), time.process_time() - began))


def main() -> None:
    """Run the benchmark."""
    parser = make_parser(__doc__)
    parser.add_argument("--variables", type=int, default=60)
    parser.add_argument("--ratio", type=float, default=3.2, help="hard clauses per variable")
    parser.add_argument("--formulas", type=int, default=20)
    parser.add_argument("--file", type=Path, help="one formula from a file instead")
    parser.add_argument("--seconds", type=float, default=2.0, help="of ours, for each")
    parser.add_argument("--most-seconds", type=float, default=60.0, help="of RC2, for each")
    options = parser.parse_args()
    if options.quick:
        options.variables, options.formulas, options.seconds = 30, 2, 0.3
    prepare(options)
    seeds = range(options.seed, options.seed + options.formulas)
    formulas = (
        [read_formula(options.file)] if options.file else [partial(options.variables, options.ratio, s) for s in seeds]
    )
    Solver(partial(30, 3.0, 0)).search(sweeps=2)  # compile before a clock runs
    results = [measure(formula, options) for formula in formulas]
    rows = [
        [
            str(index),
            *("-" if each[key] is None else f"{each[key]:,}" for key in ("ours", "violated", "rc2")),
            f"{each['rc2_seconds']:.1f}",
        ]
        for index, each in enumerate(results)
    ]
    ended = [each for each in results if each["rc2"] is not None]
    equal = sum(each["ours"] == each["rc2"] and not each["violated"] for each in ended)
    notes = [f"RC2 ended on {len(ended)} of {len(results)}, and ours had its optimum on {equal} of these."]
    show("Weighted partial MAX-SAT: cost", ["formula", "ours", "hard violated", "RC2", "RC2's seconds"], rows, notes)
    finish("maxsat_exact", options, {"formulas": results, "ended": len(ended), "equal": equal}, seeds=list(seeds))


def measure(formula: WeightedCNF, options: argparse.Namespace) -> dict[str, Any]:
    """Return the costs of ours and of RC2 on a formula."""
    answer = Solver(formula, options.seed, clock=time.process_time).search(seconds=options.seconds)
    least, took = optimum(formula, options.most_seconds)
    return {"ours": answer.cost, "violated": answer.violated, "rc2": least, "rc2_seconds": took}


if __name__ == "__main__":
    main()
