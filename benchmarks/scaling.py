"""Seconds per step of ours as one thing at a time grows: ``python -m benchmarks.scaling``.

Batch, units, candidates (by the rank), time steps and depth, around 784-128-10 with T = 15, batch 1024, rank 128. A
step is a whole one (observe to move). Every point is warmed up for ten steps, which do not count, then all points are
timed in turns; the median counts. The exponent p is that of seconds ~ x^p by least squares over a sweep. Prints a
table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from benchmarks.common import (
    COLOURS,
    Images,
    Task,
    finish,
    load_images,
    make_parser,
    median_and_spread,
    new_picture,
    prepare,
    save_picture,
    show,
)
from lightning_polystep import Engine, PolyStep
from models import SpikingMLP

SWEEPS: dict[str, Sequence[int]] = {
    "batch": (256, 512, 1024, 2048),
    "units": (32, 64, 128, 256),
    "rank": (16, 32, 64, 128),
    "num_steps": (15, 30, 60, 120),
    "depth": (2, 3),
}
QUICK_SWEEPS: dict[str, Sequence[int]] = {
    "batch": (16, 32),
    "units": (4, 8),
    "rank": (2, 4),
    "num_steps": (2, 4),
    "depth": (2, 3),
}
# What the horizontal axis of a sweep says.
_AXES = {
    "batch": "samples per batch",
    "units": "hidden units",
    "rank": "candidates per step",
    "num_steps": "time steps T",
    "depth": "spiking layers",
}


@dataclass(frozen=True)
class Setting:
    """Where a point lies.

    Args:
        batch: Samples per batch.
        units: Of each hidden layer.
        rank: Directions per row; 0 is the plan's choice.
        num_steps: T.
        depth: Spiking layers.
    """

    batch: int = 1024
    units: int = 128
    rank: int = 128
    num_steps: int = 15
    depth: int = 2


@dataclass
class Point:
    """An engine at a setting, and how long its steps took.

    Args:
        sweep: What grows.
        setting: Where it is.
        images: Where its batches come from.
        seed: Of its draws.
    """

    sweep: str
    setting: Setting
    images: Images
    seed: int
    seconds: list[float] = field(default_factory=list)
    candidates: int = 0

    def __post_init__(self) -> None:
        at = self.setting
        pixels = self.images.train.images[0].numel()
        self.task = Task(SpikingMLP((pixels, *[at.units] * (at.depth - 1), 10), num_steps=at.num_steps))
        optimizer = PolyStep(self.task.parameters(), rank=at.rank or None, seed=self.seed)
        self.engine = Engine(self.task, optimizer, announce=None)

    def run(self, steps: int) -> float:
        """Make whole steps and return the seconds of one."""
        batches = self.images.batches(self.setting.batch, steps, self.seed)
        before, start = self.engine.optimizer.progress.candidates, time.perf_counter()
        for images, labels in batches:
            self.engine.step(lambda images=images, labels=labels: self.task(images, labels))  # type: ignore[misc]
        elapsed = time.perf_counter() - start
        self.candidates = (self.engine.optimizer.progress.candidates - before) // steps
        return elapsed / steps

    def record(self) -> dict[str, Any]:
        """Return the point for the record."""
        assignments = self.engine.plan.assignments if self.engine.plan else []
        clock = self.engine.clock.seconds
        return {
            **vars(self.setting),
            "candidates": self.candidates,
            "seconds_per_step": median_and_spread(self.seconds),
            "tiers": [assignment.tier.name for assignment in assignments],
            "seconds_by_verb": {verb: value / sum(clock.values()) for verb, value in clock.items()},
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print.

    Args:
        arguments: Of the command line; those of the process by default.
    """
    parser = make_parser(__doc__)
    parser.add_argument("--sweeps", nargs="+", choices=list(SWEEPS), default=list(SWEEPS))
    parser.add_argument("--rounds", type=int, default=3, help="turns of each point")
    parser.add_argument("--steps", type=int, default=10, help="per turn, best a multiple of ten")
    options = parser.parse_args(arguments)
    options.warmup = 10
    if options.quick:
        options.rounds, options.steps, options.warmup = 1, 1, 1
    prepare(options)
    images = load_images(options)
    sweeps: dict[str, list[Point]] = {name: [] for name in options.sweeps}
    points = make_points(options, images)
    for point in points:
        sweeps[point.sweep].append(point)
    measure(points, options)
    results = {"data": images.source, **{name: summarise(name, members) for name, members in sweeps.items()}}
    report(results, options)
    if options.plot:
        plot(results, options)
    finish("scaling", options, results)


def make_points(options: argparse.Namespace, images: Images) -> list[Point]:
    """Return the points of all sweeps; each sweep changes one thing of the common setting."""
    base = Setting(32, 8, 4, 4) if options.quick else Setting()
    chosen = QUICK_SWEEPS if options.quick else SWEEPS
    points = []
    for name in options.sweeps:
        # Where a tier must try candidates one by one, 128 directions are out of reach: the plan decides for both.
        start = replace(base, rank=0) if name == "depth" and not options.quick else base
        points += [Point(name, replace(start, **{name: value}), images, options.seed) for value in chosen[name]]
    return points


def measure(points: Sequence[Point], options: argparse.Namespace) -> None:
    """Warm all points up, then time them in turns, so that a slow minute of the machine hits all alike."""
    for point in points:
        point.run(options.warmup)
        point.engine.clock.reset()
    for _ in range(options.rounds):
        for point in points:
            point.seconds.append(point.run(options.steps))


def summarise(name: str, points: Sequence[Point]) -> dict[str, Any]:
    """Return a sweep for the record: its points, the fitted exponent, and what eight times as many candidates cost."""
    records = [point.record() for point in points]
    grown = [record["candidates" if name == "rank" else name] for record in records]
    seconds = [record["seconds_per_step"]["median"] for record in records]
    summary: dict[str, Any] = {"points": records, "exponent": None, "slowdown": seconds[-1] / seconds[0]}
    summary["growth"] = grown[-1] / grown[0]
    if len(records) > 1 and name != "depth":
        summary["exponent"] = float(np.polyfit(np.log(grown), np.log(seconds), 1)[0])
    return summary


def report(results: dict[str, Any], options: argparse.Namespace) -> None:
    """Print the table, a line per point."""
    rows = []
    for name in options.sweeps:
        sweep = results[name]
        for index, point in enumerate(sweep["points"]):
            seconds, last = point["seconds_per_step"], index == len(sweep["points"]) - 1
            slowest = max(point["seconds_by_verb"], key=point["seconds_by_verb"].__getitem__)
            exponent = sweep["exponent"]
            rows.append(
                [
                    f"{name} {point[name]}",
                    f"{point['candidates']:,}",
                    f"{seconds['median']:.4f}",
                    f"{seconds['low']:.4f} - {seconds['high']:.4f}",
                    f"{slowest} {point['seconds_by_verb'][slowest]:.0%}",
                    ", ".join(point["tiers"]),
                    "" if not last else "-" if exponent is None else f"{exponent:.2f}",
                    "" if not last else f"x{sweep['slowdown']:.2f} for x{sweep['growth']:.1f}",
                ]
            )
    head = ["", "candidates", "s/step", "over rounds", "most in", "tiers", "exponent", "first to last"]
    notes = [f"data: {results['data']}", "the exponent of rank is that of the candidates per step"]
    show(f"Whole steps of ours, {options.threads} threads", head, rows, notes)


def plot(results: dict[str, Any], options: argparse.Namespace) -> None:
    """Draw a log-log picture per sweep that has an exponent."""
    names = [name for name in options.sweeps if results[name]["exponent"] is not None]
    figure, axes = new_picture(len(names), height=3.6)
    figure.set_size_inches(1 + 3.1 * len(names), 3.6)
    for axis, name in zip(axes, names, strict=True):
        sweep = results[name]
        grown = [point["candidates" if name == "rank" else name] for point in sweep["points"]]
        seconds = [point["seconds_per_step"]["median"] for point in sweep["points"]]
        axis.loglog(grown, seconds, "o-", color=COLOURS["ours"], label=f"ours, exponent {sweep['exponent']:.2f}")
        linear = [seconds[0] * value / grown[0] for value in grown]
        axis.loglog(grown, linear, "--", color="0.6", label="linear")
        axis.set_xticks(grown, [f"{value:,}" for value in grown], fontsize=8)
        axis.minorticks_off()
        axis.set_xlabel(_AXES[name])
        axis.legend(frameon=False, fontsize=8, loc="upper left")
    top = max(axis.get_ylim()[1] for axis in axes)
    low = min(axis.get_ylim()[0] for axis in axes)
    for axis in axes:
        axis.set_ylim(low, 1.5 * top)  # room for the legend
        axis.set_yscale("log", base=2)
        axis.yaxis.set_major_formatter("{x:.3g}")
    axes[0].set_ylabel("seconds per step")
    save_picture(figure, options.plot)


if __name__ == "__main__":
    main()
