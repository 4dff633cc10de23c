"""Networks that users bring, as their authors wrote them: ``python -m benchmarks.general [--nets rate lstm]``.

The networks (benchmarks/general_networks) are modules of snnTorch, Norse, SpikingJelly, Brevitas and torch, with no
layer, attribute or loss of this project. Each is trained by Adam, through the surrogate or straight-through gradient
that it has, and by PolyStep, as ``Engine.step(closure)``, from the same weights on the same batches:

* x Adam: seconds of a step, as a multiple of Adam's. All take turns after a warm-up; median of the ratios. The first
  step, which makes the plan and loads or compiles kernels, is shown apart.
* accuracy on the test samples after so many seconds of training, the first step included, at the learning rate that is
  best on validation samples: of a few for Adam, the package's own for PolyStep unless ``--rates`` names some.

With ``--other DIR``, a checkout of another version of the package is measured in the same turns. Each way of training
runs in a process of its own. Seconds are processor seconds on one thread. Each network is reported to standard error as
soon as it is measured; all of them take hours. Prints tables, then one line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import general_networks
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
from benchmarks.general_data import source, splits
from benchmarks.general_networks import NETWORKS

# What is slower at first does not count here: of the first twenty batches all are taken into the moments of inputs, and
# loops are compiled when they pay. Accuracy after so many seconds counts it.
_WARM_STEPS = 200
_COLOURS = {"other": COLOURS["peer"], "ours": COLOURS["ours"], "adam": COLOURS["surrogate"]}


class WorkerError(RuntimeError):
    """What went wrong in a worker."""


class Worker:
    """A process that trains in one way."""

    def __init__(self) -> None:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.general_worker"],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | threads,
            text=True,
        )
        self.warnings: set[str] = set()

    def __call__(self, command: str, *arguments: Any) -> Any:
        """Have a method of :class:`benchmarks.general_worker.Worker` run, and return what it returns.

        Raises:
            WorkerError: When it fails.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps([command, *arguments]), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise WorkerError(f"the process ended with status {self.process.wait()}")
        answer = json.loads(line)
        self.warnings |= set(answer["warnings"])
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer["value"]

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()


class Comparison:
    """A network, trained in all ways.

    Args:
        name: Of the network.
        options: Of the command line.
        data: File of its splits.
    """

    def __init__(self, name: str, options: argparse.Namespace, data: Path) -> None:
        self.options = options
        checkouts = {"adam": None, "ours": str(REPOSITORY)}
        if options.other:
            checkouts["other"] = str(options.other.resolve())
        self.workers = {way: Worker() for way in checkouts}
        self.found: dict[str, dict[str, Any]] = {way: {} for way in checkouts}
        for way, checkout in checkouts.items():
            self.ask(way, "make", checkout, name, str(data), options.batch, options.seed, options.plans)

    def ask(self, way: str, command: str, *arguments: Any) -> Any:
        """Return a worker's answer; None, now and from then on, once it has failed."""
        if "error" in self.found[way]:
            return None
        try:
            return self.workers[way](command, *arguments)
        except WorkerError as error:
            self.found[way]["error"] = str(error)
            return None

    def run(self) -> dict[str, dict[str, Any]]:
        """Measure steps, then accuracy, and return both for each way of training."""
        rates = {way: self.options.adam_rates if way == "adam" else self.options.rates for way in self.workers}
        for way in self.workers:
            self.found[way]["first_step"] = self.ask(way, "start", rates[way][0])
            self.ask(way, "turn", self.options.warm_up, _WARM_STEPS)
        turns = self.take_turns()
        for way, found in self.found.items():
            found["tiers"] = self.ask(way, "tiers") or []
            if turns[way]:
                found["seconds_per_step"] = median_and_spread(turns[way])
            ratios = [mine / adam for mine, adam in zip(turns[way], turns["adam"], strict=False)]
            if ratios:
                found["times_adam"] = median_and_spread(ratios)
        for way, found in self.found.items() if self.options.seconds else ():
            fits = [self.ask(way, "fit", rate, self.options.seconds, self.options.cosine) for rate in rates[way]]
            found["fits"] = [fit for fit in fits if fit is not None]
            if found["fits"]:
                best = max(found["fits"], key=lambda fit: fit["val"])
                found |= {"test": best["test"], "rate": best["rate"]}
        for way, worker in self.workers.items():
            self.found[way]["warnings"] = sorted(worker.warnings)
        return self.found

    def take_turns(self) -> dict[str, list[float]]:
        """Return the seconds of a step in each turn."""
        turns: dict[str, list[float]] = {way: [] for way in self.workers}
        spent = 0.0
        for _ in range(self.options.rounds):
            for way in self.workers:
                turn = self.ask(way, "turn", self.options.turn)
                if turn is not None:
                    turns[way].append(turn["seconds"] / turn["steps"])
                    spent += turn["seconds"]
            if spent > self.options.most:
                break
        return turns

    def close(self) -> None:
        """End all processes."""
        for worker in self.workers.values():
            worker.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print.

    Args:
        arguments: Of the command line; those of the process by default.
    """
    options = parse(arguments)
    prepare(options)
    results: dict[str, Any] = {}
    left_out = {name: why for name in options.nets if (why := general_networks.missing(name)) is not None}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.nets:
            if name not in left_out:
                results[name] = measure(name, options, Path(folder))
    report(results, left_out, options)
    if options.plot:
        plot(results, options)
    record = {"networks": results, "left_out": left_out, "other": commit(options.other) if options.other else None}
    finish("general", options, record)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the arguments; ``--quick`` takes two networks and random images."""
    parser = make_parser(__doc__)
    parser.add_argument("--nets", nargs="+", choices=list(NETWORKS), metavar="NAME", help=", ".join(NETWORKS))
    parser.add_argument("--other", type=Path, metavar="DIR", help="checkout of another version of the package")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=45.0, help="of training, for the accuracy; 0 leaves it out")
    parser.add_argument("--adam-rates", type=float, nargs="+", default=[0.001, 0.003, 0.01], help="of Adam")
    parser.add_argument("--rates", type=float, nargs="+", default=[None], help="of ours and the other")
    parser.add_argument("--cosine", action="store_true", help="let all rates fall along half a cosine of the seconds")
    parser.add_argument("--rounds", type=int, default=5, help="of turns")
    parser.add_argument("--turn", type=float, default=0.5, help="seconds of a turn, or one step if that takes longer")
    parser.add_argument("--most", type=float, default=90.0, help="seconds after which no other round begins")
    parser.add_argument("--plans", action="store_true", help="print every plan, to standard error")
    parser.set_defaults(threads=1)
    options = parser.parse_args(arguments)
    options.warm_up = 20.0
    if options.other and not (options.other / "lightning_polystep").is_dir():
        parser.error(f"{options.other} holds no package lightning_polystep")
    if options.threads != 1:
        parser.error("one thread only: processor seconds of several do not say how long a user waits")
    if options.quick:
        options.nets = options.nets or ["small", "wine"]
        options.batch, options.seconds, options.rounds, options.turn = 8, 0.1, 2, 0.01
        options.warm_up, options.adam_rates = 0.0, options.adam_rates[:1]
    options.nets = options.nets or list(NETWORKS)
    return options


def measure(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return what was found for a network, and say it at once.

    Args:
        name: Of the network.
        options: Of the command line.
        folder: For data.
    """
    entry = NETWORKS[name]
    data = folder / f"{entry.data}.pt"
    if not data.exists():
        torch.save(splits(entry.data, options), data)
    comparison = Comparison(name, options, data)
    try:
        found: dict[str, Any] = comparison.run()
    finally:
        comparison.close()
    line = [f"{title} {cell}" for title, cell in zip(head(options), row(name, found, options), strict=True)]
    print(", ".join(line).removeprefix("network "), file=sys.stderr)
    return {"description": entry.description, "data": source(entry.data, options), **found}


def commit(checkout: Path) -> str | None:
    """Return the commit of a checkout; None where git does not know it."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return run.stdout.strip() or None


def ways(options: argparse.Namespace) -> list[str]:
    """Return the versions of the package, in the order of the columns."""
    return [*(["other"] if options.other else []), "ours"]


def head(options: argparse.Namespace) -> list[str]:
    """Return the heads of the columns."""
    accuracies = [f"{way} %" for way in [*ways(options), "Adam"]] if options.seconds else []
    return ["network", *(f"{way} x Adam" for way in ways(options)), *accuracies]


def row(name: str, found: Mapping[str, Any], options: argparse.Namespace) -> list[str]:
    """Return the cells of a network."""
    times = [_times(found[way]) for way in ways(options)]
    tests = [found[way].get("test") for way in [*ways(options), "adam"]] if options.seconds else []
    cells = ["-" if ratio is None else f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}" for ratio in times]
    return [name, *cells, *("-" if test is None else f"{100 * test:.1f}" for test in tests)]


def report(results: dict[str, Any], left_out: dict[str, str], options: argparse.Namespace) -> None:
    """Print what was measured, then how candidates were scored, and what the networks are."""
    after = f", accuracy after {options.seconds:g} s" if options.seconds else ""
    falling = ", rates along half a cosine" if options.cosine else ""
    notes = [f"batches of {options.batch}, seed {options.seed}, one thread{after}{falling}"]
    notes += ["data: " + "; ".join(dict.fromkeys(found["data"] for found in results.values()))]
    notes += [f"{name} was left out: {why}" for name, why in left_out.items()]
    title = "Seconds of a step as a multiple of Adam's" + (", and test accuracy" if options.seconds else "")
    show(title, head(options), [row(name, found, options) for name, found in results.items()], notes)
    rows, errors = [], []
    for name, found in results.items():
        steps = [_seconds(found[way].get("seconds_per_step", {}).get("median")) for way in [*ways(options), "adam"]]
        firsts = [_seconds(found[way]["first_step"]) for way in ways(options)]
        rows.append([name, *steps, *firsts, *(", ".join(found[way]["tiers"]) or "-" for way in ways(options))])
        errors += [f"{name}, {way}: {found[way]['error']}" for way in _COLOURS if "error" in found.get(way, {})]
    columns = [f"{way} s/step" for way in [*ways(options), "Adam"]]
    columns += [f"{way} first s" for way in ways(options)] + [f"{way} scored by" for way in ways(options)]
    show("Seconds of a step and of the first one, and the tiers of the plan", ["network", *columns], rows, errors)
    for name, found in results.items():
        print(f"{name}: {found['description']}")


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}" if value < 1 else f"{value:.1f}"


def plot(results: dict[str, Any], options: argparse.Namespace) -> None:
    """Draw steps and errors, network by network."""
    figure, (steps, errors) = new_picture(2, height=1.5 + 0.3 * len(results))
    for way, colour in _COLOURS.items():
        for axis, value in ((steps, _times), (errors, _error)):
            points = [(value(found[way]), at) for at, found in enumerate(results.values()) if way in found]
            known = [(x, at) for x, at in points if x is not None]
            label = {"adam": "Adam"}.get(way, way) if known and axis is steps else None
            axis.plot([x for x, _ in known], [at for _, at in known], "o", color=colour, label=label)
    steps.set(xscale="log", xlabel="seconds of a step, times Adam's")
    errors.set(xscale="log", xlabel=f"test error after {options.seconds:g} s (%)")
    for axis in (steps, errors):
        axis.set_yticks(range(len(results)), list(results))
        axis.invert_yaxis()
    figure.legend(frameon=False, loc="outside lower center", ncols=3)
    save_picture(figure, options.plot)


def _times(found: dict[str, Any]) -> float | None:
    median: float | None = found.get("times_adam", {}).get("median")
    return median


def _error(found: dict[str, Any]) -> float | None:
    # No error at all would lie infinitely far to the left.
    return max(100 * (1 - found["test"]), 0.1) if "test" in found else None


if __name__ == "__main__":
    main()
