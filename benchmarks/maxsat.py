"""MAX-SAT: satisfied share against seconds: ``python -m benchmarks.maxsat --sizes 1000 10000 --seconds 1 3``.

Random k-SAT of each size, several seeds. Beside each result stands what takes no search: a random assignment, the
majority vote of each variable's literals, and greedy descent with sideways moves (sweeps at temperature 0). Then:

* ours: ``maxsat.solver.Solver``, which is ``solve``: vertices drawn from the plan, in turn, annealed, with restarts.
* barycentre: 300 steps of the paper's move, however long they take (left out above ``--most-barycentre`` variables).
* probSAT: our own (``benchmarks/prob_sat.py``), as published and with the constant that was best on other formulas, for
  as many seconds as ours (left out where clauses have weights).

Seconds are those of the process on one thread, making the formula left out and preparing the search included. Prints a
table of the shares at the end and one of the shares on the way, then one line of JSON.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import COLOURS, finish, make_parser, median_and_spread, new_picture, prepare, save_picture, show
from benchmarks.prob_sat import PUBLISHED, TUNED, Setting, prob_sat
from lightning_polystep import Engine, PolyStep
from lightning_polystep.kernels.clause_sweep import Draws
from lightning_polystep.maxsat import UnsatisfiedWeight, WeightedCNF, random_ksat
from lightning_polystep.maxsat.search import Search
from lightning_polystep.maxsat.solver import Solver

_GREEDY_SWEEPS, _BARYCENTRE_STEPS = 20, 300
_WAYS = ("random", "majority", "greedy", "barycentre", "probSAT published", "probSAT tuned", "ours")
# Shares of the seconds after which the paths are looked at.
_MARKS = (0.05, 0.1, 0.2, 0.5, 1.0)

# After what seconds which share was satisfied, ascending.
Path = list[tuple[float, float]]


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


def measure(
    formula: WeightedCNF, seed: int, seconds: float, options: argparse.Namespace
) -> tuple[dict[str, float], dict[str, Path]]:
    """Return the satisfied share of each way on a formula, and the paths of those that take time.

    Args:
        formula: The formula.
        seed: Of all draws.
        seconds: Of each search.
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
    del walk
    if formula.variables <= options.most_barycentre:
        found["barycentre"] = barycentre(formula, seed)
    paths = {"ours": ours(formula, seed, seconds)}
    if options.max_weight == 1:
        tuned = TUNED.get(options.k) if options.cb is None else Setting(True, options.cb)
        for way, setting in (("probSAT published", PUBLISHED.get(options.k)), ("probSAT tuned", tuned)):
            if setting is not None:
                _, path = prob_sat(formula, setting, seed, seconds)
                paths[way] = [(when, 1 - cost / formula.clauses) for when, cost in path]
    return found | {way: path[-1][1] for way, path in paths.items()}, paths


def ours(formula: WeightedCNF, seed: int, seconds: float) -> Path:
    """Search as ``solve`` does; return the path of the share, whose end is counted anew.

    Args:
        formula: The formula.
        seed: Of all draws.
        seconds: Of the search, preparing it included.
    """
    began, seen = time.process_time(), Path()
    weight = max(1, formula.soft_weight)

    def note(cost: int) -> None:
        seen.append((time.process_time() - began, 1 - cost / weight))

    solver = Solver(formula, seed, on_better=note, clock=time.process_time)
    answer = solver.search(seconds=max(1e-3, seconds - (time.process_time() - began)))
    return [*seen, (time.process_time() - began, 1 - formula.cost(answer.values) / weight)]


def share_at(path: Path, seconds: float) -> float:
    """Return the share that a path has reached after some seconds; nothing before its first.

    Args:
        path: The path.
        seconds: When.

    Example:
        >>> share_at([(1.0, 0.5), (2.0, 0.75)], 1.5), share_at([(1.0, 0.5)], 0.5)
        (0.5, 0.0)
    """
    return max((share for when, share in path if when <= seconds), default=0.0)


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
    parser.add_argument(
        "--seconds", type=float, nargs="+", default=[10.0], help="of each search: one for all sizes, or one for each"
    )
    parser.add_argument("--cb", type=float, help="constant of the tuned probSAT (poly)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--most-barycentre", type=int, default=100_000)
    options = parser.parse_args(arguments)
    if options.quick:
        options.sizes, options.seconds, options.seeds = [1000], [0.5], 1
    if len(options.seconds) not in {1, len(options.sizes)}:
        parser.error("--seconds takes one number, or one for each size")
    prepare(options)
    torch.set_num_threads(options.threads)
    seeds = range(options.seed, options.seed + options.seeds)
    _compile()
    results: dict[str, Any] = {}
    for size, seconds in zip(
        options.sizes, options.seconds * (len(options.sizes) // len(options.seconds)), strict=True
    ):
        runs = [
            measure(
                random_ksat(size, options.ratio, k=options.k, seed=seed, max_weight=options.max_weight),
                seed,
                seconds,
                options,
            )
            for seed in seeds
        ]
        results[str(size)] = {way: median_and_spread([run[way] for run, _ in runs]) for way in runs[0][0]}
        results[str(size)]["seconds"] = seconds
        results[str(size)]["paths"] = {
            way: [
                (mark * seconds, median_and_spread([share_at(paths[way], _until(mark, seconds)) for _, paths in runs]))
                for mark in _MARKS
            ]
            for way in runs[0][1]
        }
    report(results, options)
    if options.plot:
        picture(results, options)
    finish("maxsat", options, results, seeds=list(seeds))


def report(results: dict[str, Any], options: argparse.Namespace) -> None:
    """Print the shares at the end, and those on the way."""
    ways = [way for way in _WAYS if any(way in found for found in results.values())]
    rows = [
        [f"{int(size):,}", *(_shown(found.get(way)) for way in ways), f"{found['seconds']:g}"]
        for size, found in results.items()
    ]
    notes = [f"Median (lowest to highest) of {options.seeds} formulas; ratio {options.ratio}, k = {options.k}."]
    show("MAX-SAT: % of the weight satisfied", ["variables", *ways, "seconds"], rows, notes)
    for size, found in results.items():
        rows = [[way, *(f"{100 * share['median']:.3f}" for _, share in path)] for way, path in found["paths"].items()]
        marks = [f"{mark * found['seconds']:g} s" for mark in _MARKS]
        show(f"{int(size):,} variables: % of the weight satisfied after", ["way", *marks], rows)


def picture(results: dict[str, Any], options: argparse.Namespace) -> None:
    """Draw the unsatisfied share against seconds, one panel for each size."""
    figure, panels = new_picture(len(results))
    colours = {"ours": COLOURS["ours"], "probSAT published": COLOURS["surrogate"], "probSAT tuned": COLOURS["peer"]}
    for axis, (size, found) in zip(panels, results.items(), strict=True):
        for way, path in found["paths"].items():
            shares = [100 * (1 - share["median"]) for _, share in path]
            axis.loglog([when for when, _ in path], shares, "o-", color=colours[way], label=way)
        axis.axhline(100 * (1 - found["greedy"]["median"]), color="#999999", linestyle="--", label="greedy")
        axis.set(title=f"{int(size):,} variables", xlabel="seconds", ylabel="% of the weight not satisfied")
        axis.set_xticks([mark * found["seconds"] for mark in _MARKS], [f"{m * found['seconds']:g}" for m in _MARKS])
        axis.xaxis.set_minor_formatter("")
    panels[0].legend()
    save_picture(figure, options.plot)


def _until(mark: float, seconds: float) -> float:
    """Return the time of a mark; the last one is the end, which may come a little late."""
    return mark * seconds if mark < 1 else math.inf


def _compile() -> None:
    """Compile everything before a clock runs."""
    formula = random_ksat(20, 4.0, seed=0)
    ours(formula, 0, 0.01)
    prob_sat(formula, PUBLISHED[3], 0, 0.01)


def _shown(found: dict[str, float] | None) -> str:
    if found is None:
        return "-"
    return f"{100 * found['median']:.3f} ({100 * found['low']:.3f} to {100 * found['high']:.3f})"


if __name__ == "__main__":
    main()
