"""Test accuracy against seconds of training: ``python -m benchmarks.time_to_accuracy [--runs 3]``.

* ours: under Lightning's Trainer, everything (network, data, batch, step radius, schedule) as the config says.
* surrogate: Adam through a surrogate gradient, the same network from the same weights, in a plain loop, which spares it
  Lightning's overhead. Its rate, schedule, epochs and shifts of images (none, or the config's) are those that reach the
  target first on the validation images.
* peer: polystep 1.1.0 as its own spiking runs set it up, for as many seconds as ours took.

Measuring accuracy, and compiling kernels, do not count as training. Test images serve the curves; nothing is chosen by
them. Prints tables, then one line of JSON.
"""

from __future__ import annotations

import argparse
import copy
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import peer
from benchmarks.common import (
    COLOURS,
    REPOSITORY,
    finish,
    make_parser,
    median_and_spread,
    new_picture,
    prepare,
    save_picture,
    show,
)
from benchmarks.curves import Curve, Watch
from benchmarks.fitting import Choice, Run, load_run, train_adam, train_ours, train_peer

_NAMES = {"ours": "ours", "surrogate": "surrogate gradient, Adam", "peer": f"polystep {peer.VERSION}"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print.

    Args:
        arguments: Of the command line; those of the process by default.
    """
    options = parse(arguments)
    prepare(options)
    seeds = [options.seed + index for index in range(options.runs)]
    tuning, best = tune(options)
    curves: dict[str, list[Curve]] = {name: [] for name in ("ours", "surrogate", "peer")}
    chunk = None
    for seed in seeds:
        run = load_run(options, seed)
        start = copy.deepcopy(run.network)
        curves["ours"].append(train_ours(run, options.every))
        seconds = curves["ours"][-1].samples[-1].seconds
        curves["surrogate"].append(adam(run, start, best, options, tuning=False))
        if peer.missing() is None:
            batch = next(iter(run.loader(peer.BATCH)))
            chunk = chunk or peer.fastest_chunk(start, batch, seed, options.chunks)[0]
            opponent = peer.Peer(start, run.model.criterion, seed, chunk, options.peer_coordinates)
            curves["peer"].append(train_peer(opponent, run, seconds, options.every))
    results = summarise(curves, tuning, best, options) | {"data": run.source, "peer_chunk": chunk}
    results["config"] = run.settings
    report(results, options)
    if options.plot:
        plot(curves, options)
    finish("time_to_accuracy", options, results, seeds=seeds)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the arguments; ``--quick`` takes digits and a few steps."""
    parser = make_parser(__doc__)
    parser.add_argument("--config", type=Path, default=REPOSITORY / "configs" / "mnist_spiking.yaml")
    parser.add_argument("--epochs", type=int, help="of ours, its cosine schedule included (default: the config's)")
    parser.add_argument("--runs", type=int, default=1, help="seeds: --seed and those that follow")
    parser.add_argument("--every", type=float, default=1.0, help="seconds of training between points of a curve")
    parser.add_argument("--levels", type=float, nargs="+", default=[0.95, 0.96, 0.97, 0.972])
    parser.add_argument("--target", type=float, default=0.97, help="what Adam is tuned to reach first, on validation")
    parser.add_argument("--adam-epochs", type=int, nargs="+", default=[10, 20])
    parser.add_argument("--adam-batch", type=int, default=256)
    parser.add_argument("--adam-rates", type=float, nargs="+", default=[0.001, 0.002, 0.005])
    parser.add_argument("--adam-schedules", nargs="+", choices=["constant", "cosine"], default=["constant", "cosine"])
    parser.add_argument("--surrogate", choices=["fast_sigmoid", "atan"], default="fast_sigmoid")
    options = parser.parse_args(arguments)
    options.max_steps, options.chunks, options.peer_coordinates = None, peer.CHUNKS, None
    if options.quick:
        options.config = REPOSITORY / "configs" / "digits_spiking.yaml"
        options.max_steps, options.adam_epochs, options.adam_rates = 4, [1], options.adam_rates[:2]
        options.every, options.chunks, options.peer_coordinates = 0.1, peer.CHUNKS[:1], 100
    return options


def tune(options: argparse.Namespace) -> tuple[list[dict[str, Any]], Choice]:
    """Train Adam at every rate, schedule, shift and length, looking at validation images alone.

    Args:
        options: The choices.

    Returns:
        What each choice reached, and the choice that reached the target first (or, if none did, came closest).
    """
    run = load_run(options, options.seed)
    rows = []
    shifts = sorted({0, run.shift})
    for setting in itertools.product(options.adam_rates, options.adam_schedules, shifts, options.adam_epochs):
        choice = Choice(*setting)
        curve = adam(run, run.network, choice, options, tuning=True)
        highest = max(sample.val for sample in curve.samples)
        rows.append(vars(choice) | {"seconds_to_target": curve.seconds_to(options.target, "val"), "best_val": highest})

    def key(row: dict[str, Any]) -> tuple[float, float]:
        seconds = row["seconds_to_target"]
        return (float("inf") if seconds is None else seconds, -row["best_val"])

    best = min(rows, key=key)
    return rows, Choice(best["rate"], best["schedule"], best["shift"], best["epochs"])


def adam(run: Run, start: torch.nn.Sequential, choice: Choice, options: argparse.Namespace, *, tuning: bool) -> Curve:
    """Train the surrogate network from given weights; while tuning, no test image is looked at."""
    return train_adam(
        run,
        start,
        choice,
        batch=options.adam_batch,
        surrogate=options.surrogate,
        watch_of=lambda network: Watch(network, run.data.val_set, None if tuning else run.data.test_set, options.every),
    )


def summarise(
    curves: dict[str, list[Curve]], tuning: list[dict[str, Any]], best: Choice, options: argparse.Namespace
) -> dict[str, Any]:
    """Return the record: every run, and medians over the seeds."""
    results: dict[str, Any] = {"adam_tuning": tuning, "adam_choice": vars(best), "peer_missing": peer.missing()}
    results["peer_settings"] = {**peer.SETTINGS, **peer.SUBSPACE, "batch": peer.BATCH}
    for name, runs in curves.items():
        if not runs:
            continue
        records = [curve.record(options.levels) for curve in runs]
        times: dict[str, Any] = {}
        for level in map(str, options.levels):
            reached = [r["seconds_to_test"][level] for r in records if r["seconds_to_test"][level] is not None]
            times[level] = {"reached": len(reached), **(median_and_spread(reached) if reached else {})}
        keys = ("last_test", "test_at_best_val", "seconds", "steps")
        spread = {key: median_and_spread([record[key] for record in records]) for key in keys}
        results[name] = {**spread, "seconds_to_test": times, "runs": records}
    return results


def report(results: dict[str, Any], options: argparse.Namespace) -> None:
    """Print how Adam was tuned, then the comparison."""
    rows = [
        [
            f"{row['rate']:g}, {row['schedule']}, shift {row['shift']}, {row['epochs']} epochs"
            + (" (chosen)" if _is(row, results["adam_choice"]) else ""),
            "-" if row["seconds_to_target"] is None else f"{row['seconds_to_target']:.1f}",
            f"{row['best_val']:.2%}",
        ]
        for row in results["adam_tuning"]
    ]
    head = ["Adam", f"s to {options.target:.1%}", "highest"]
    show(f"Tuning Adam on validation, batches of {options.adam_batch}", head, rows)
    rows = []
    for name, label in _NAMES.items():
        if name not in results:
            continue
        found = results[name]
        cells = [_time(found["seconds_to_test"][str(level)], options.runs) for level in options.levels]
        final = [f"{found[key]['median']:.2%}" for key in ("test_at_best_val", "last_test")]
        rows.append([label, *cells, *final, f"{found['seconds']['median']:.1f}", f"{found['steps']['median']:.0f}"])
    head = ["", *(f"s to {level:.1%}" for level in options.levels), "at best val", "at end", "s", "steps"]
    notes = [f"data: {results['data']}; medians over {options.runs} seeds, (how many reached it)"]
    notes += [f"no peer: {results['peer_missing']}"] if results["peer_missing"] else []
    show(f"Test accuracy against training seconds, {options.threads} threads", head, rows, notes)


def _is(row: dict[str, Any], choice: dict[str, Any]) -> bool:
    return all(row[key] == value for key, value in choice.items())


def _time(found: dict[str, Any], runs: int) -> str:
    if not found["reached"]:
        return "-"
    return f"{found['median']:.1f}" + (f" ({found['reached']}/{runs})" if runs > 1 else "")


def plot(curves: dict[str, list[Curve]], options: argparse.Namespace) -> None:
    """Draw all runs: error, which shows the last points apart, against seconds."""
    figure, (axis,) = new_picture()
    figure.set_size_inches(7.5, 4.6)
    for name, runs in curves.items():
        for index, curve in enumerate(runs):
            seconds = [sample.seconds for sample in curve.samples]
            errors = [100 * (1 - (sample.test or 0.0)) for sample in curve.samples]
            label = _NAMES[name] if index == 0 else None
            axis.plot(seconds, errors, "o-", markersize=3, linewidth=1, color=COLOURS[name], label=label)
    for level in options.levels:
        axis.axhline(100 * (1 - level), color="0.5", linewidth=0.8, zorder=0)
    axis.set(yscale="log", xlabel="seconds of training", ylabel="test error (%, log scale)", xlim=(0, None))
    ticks = [2, 3, 4, 5, 10, 20, 50, 90]
    axis.set_yticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set_title(f"Hard LIF network, threads: {options.threads} (solid grey: levels of the table)")
    figure.legend(frameon=False, loc="outside lower center", ncols=3)
    save_picture(figure, options.plot)


if __name__ == "__main__":
    main()
