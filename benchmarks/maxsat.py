"""MAX-SAT: satisfied share against seconds: ``python -m benchmarks.maxsat --sizes 1000 10000 100000``.

Random k-SAT of each size, several seeds. Beside each result stands what takes no search: a random assignment, the
majority vote of each variable's literals, and greedy descent with sideways moves (sweeps at temperature 0). Then:

* ours: ``maxsat.solver.Solver``, which is ``solve``: vertices drawn from the plan, in turn, annealed, with restarts.
* barycentre: 300 steps of the paper's move, however long they take (left out above ``--most-barycentre`` variables).

Seconds are wall-clock seconds on one thread, making the formula left out. Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import COLOURS, finish, make_parser, median_and_spread, new_picture, prepare, save_picture, show
from lightning_polystep import Engine, PolyStep
from lightning_polystep.kernels.clause_sweep import Draws
from lightning_polystep.maxsat import UnsatisfiedWeight, WeightedCNF, random_ksat
from lightning_polystep.maxsat.search import Search
from lightning_polystep.maxsat.solver import Solver

_GREEDY_SWEEPS, _BARYCENTRE_STEPS = 20, 300
_WAYS = ("random", "majority", "greedy", "barycentre", "ours")


def majority(formula: WeightedCNF) -> NDArray[np.bool_]:
    """Return the assignment in which each variable has the sign of most of its literals.

    Args:
        formula: The formula.

    Example:
        >>> majority(WeightedCNF.of([[1], [1], [-1], [-2]])).tolist()
        [True, False]
    """
    votes = np.bincount(np.abs(formula.literals) - 1, np.sign(formula.literals), formula.variables)
    chosen: NDArray[np.bool_] = votes > 0
    return chosen


def measure(formula: WeightedCNF, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Return the satisfied share of each way on a formula.

    Args:
        formula: The formula.
        seed: Of all draws.
        options: Of the command line.
    """
    start = np.random.default_rng(seed).random(formula.variables) < 0.5
    walk = Search(formula)
    walk.go_to(start)
    walk.sweep(Draws(1e-9, True, 1.0, seed, range(_GREEDY_SWEEPS)))
    found = {
        "random": formula.satisfied_share(start),
        "majority": formula.satisfied_share(majority(formula)),
        "greedy": formula.satisfied_share(walk.values),
    }
    if formula.variables <= options.most_barycentre:
        found["barycentre"] = barycentre(formula, seed)
    began = time.perf_counter()
    answer = Solver(formula, seed).search(seconds=options.seconds)
    found["seconds"] = time.perf_counter() - began
    found["ours"] = formula.satisfied_share(answer.values)
    return found


def barycentre(formula: WeightedCNF, seed: int) -> float:
    """Return the best share that the paper's move reaches.

    Args:
        formula: The formula.
        seed: Of the first assignment.
    """
    objective = UnsatisfiedWeight(formula, seed=seed)
    optimizer = PolyStep(objective.parameters(), lr=0.15, epsilon=1.0, momentum=0.0, seed=seed)
    engine = Engine(objective, optimizer, announce=None)
    for _ in range(_BARYCENTRE_STEPS):
        engine.step(objective)
    return formula.satisfied_share(objective.best.numpy())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark.

    Args:
        arguments: Of the command line; those of the process by default.
    """
    parser = make_parser(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--ratio", type=float, default=4.27, help="clauses per variable")
    parser.add_argument("--k", type=int, default=3, help="literals per clause")
    parser.add_argument("--max-weight", type=int, default=1, help="weights are drawn from 1 to this")
    parser.add_argument("--seconds", type=float, default=10.0, help="of our search, for each formula")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--most-barycentre", type=int, default=100_000)
    options = parser.parse_args(arguments)
    if options.quick:
        options.sizes, options.seconds, options.seeds = [1000], 0.5, 1
    prepare(options)
    torch.set_num_threads(options.threads)
    seeds = range(options.seed, options.seed + options.seeds)
    results: dict[str, Any] = {}
    for size in options.sizes:
        runs = [
            measure(
                random_ksat(size, options.ratio, k=options.k, seed=seed, max_weight=options.max_weight), seed, options
            )
            for seed in seeds
        ]
        results[str(size)] = {way: median_and_spread([run[way] for run in runs]) for way in runs[0]}
    rows = [
        [f"{int(size):,}", *(_shown(found.get(way)) for way in _WAYS), f"{found['seconds']['median']:.1f}"]
        for size, found in results.items()
    ]
    notes = [f"Median (lowest to highest) of {options.seeds} formulas; ratio {options.ratio}, k = {options.k}."]
    show("MAX-SAT: % of the clauses satisfied", ["variables", *_WAYS, "seconds"], rows, notes)
    if options.plot:
        picture, (axis,) = new_picture()
        sizes = [int(size) for size in results]
        for way, colour in (("greedy", COLOURS["peer"]), ("ours", COLOURS["ours"])):
            axis.semilogx(sizes, [100 * results[str(n)][way]["median"] for n in sizes], "o-", color=colour, label=way)
        axis.set(xlabel="variables", ylabel="% of the clauses satisfied")
        axis.legend()
        save_picture(picture, options.plot)
    finish("maxsat", options, results, seeds=list(seeds))


def _shown(found: dict[str, float] | None) -> str:
    if found is None:
        return "-"
    return f"{100 * found['median']:.3f} ({100 * found['low']:.3f} to {100 * found['high']:.3f})"


if __name__ == "__main__":
    main()
