"""Several processes against one, on the same global batches of the spiking MNIST job: ``python -m benchmarks.ranks``.

Every process has as many threads as the one. One process, the candidate layout (each process scores its share of the
candidates on the whole batch) and the data layout (each scores all candidates on its shard) take turns; whoever has
nothing to do waits. Whole steps are timed on rank 0, from one barrier to the next, after a warm-up that does not count.
Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn

from benchmarks.common import (
    REFRESH,
    Batch,
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
from lightning_polystep.parallel import Axis, Layout
from lightning_polystep.processes import Processes, ProcessGroup
from lightning_polystep.results import parameters_sha256
from models import SpikingMLP

_COLOURS = {"one": "0.5", "candidates": "#0072B2", "data": "#009E73"}


@dataclass
class Contender:
    """A way of sharing a step, on this process.

    Args:
        processes: This process among those that share.
        options: The benchmark's.
        pixels: Of an image.
    """

    processes: Processes
    options: argparse.Namespace
    pixels: int
    step_seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(self.options.seed)
        self.task = Task(SpikingMLP((self.pixels, self.options.units, 10), num_steps=self.options.num_steps))
        optimizer = PolyStep(
            self.task.parameters(), seed=self.options.seed, importance_sampling=self.options.importance_sampling
        )
        self.engine = Engine(self.task, optimizer, announce=None, processes=self.processes)

    def run(self, batches: Sequence[Batch]) -> float:
        """Make whole steps on this process's shards and return the seconds of one."""
        data, start = self.processes.layout.data, time.perf_counter()
        for images, labels in batches:
            x, y = images[data.index :: data.size], labels[data.index :: data.size]
            self.engine.step(lambda x=x, y=y: self.task(x, y))  # type: ignore[misc]
        return (time.perf_counter() - start) / len(batches)

    def forget(self) -> None:
        """Let the clocks start afresh after the warm-up."""
        self.engine.clock.reset()
        self.processes.seconds, self.processes.bytes, self.processes.collectives = 0.0, 0, 0

    def record(self, steps: int) -> dict[str, Any]:
        """Return what this process found, per step."""
        return {
            "seconds_per_step": median_and_spread(self.step_seconds),
            "seconds_by_verb": {verb: s / steps for verb, s in self.engine.clock.seconds.items()},
            "seconds_in_sums": self.processes.seconds / steps,
            "bytes_in_sums": self.processes.bytes / steps,
            "sums": self.processes.collectives / steps,
            "parameters_sha256": parameters_sha256(self.task),
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark.

    Args:
        arguments: Of the command line; those of the process by default.
    """
    options = parse(arguments)
    prepare(options)
    with tempfile.TemporaryDirectory() as folder:
        spawn(compete, (options, Path(folder)), nprocs=options.processes)
        results = json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))
    one = results["one"]["seconds_per_step"]["median"]
    for name in ("candidates", "data"):
        results[name]["speed_up"] = one / results[name]["seconds_per_step"]["median"]
    results["same_parameters"] = results["one"]["parameters_sha256"] == results["candidates"]["parameters_sha256"]
    report(results, options)
    if options.plot:
        plot(results, options)
    finish("ranks", options, results)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the arguments; ``--quick`` makes everything small."""
    parser = make_parser(__doc__)
    parser.set_defaults(threads=1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1024, help="samples per step, over all processes")
    parser.add_argument("--importance-sampling", type=float, default=0.0, help="of the optimizer; 0 scores all samples")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each")
    parser.add_argument("--steps", type=int, default=20, help=f"per turn, best a multiple of {REFRESH}")
    options = parser.parse_args(arguments)
    options.units, options.num_steps, options.warmup = 128, 15, 2 * REFRESH
    if options.quick:
        options.units, options.num_steps, options.batch = 8, 4, 32
        options.rounds, options.steps, options.warmup = 2, 2, 2
    return options


def compete(rank: int, options: argparse.Namespace, folder: Path) -> None:
    """Let the layouts take turns, on one process of several; rank 0 writes the results.

    Args:
        rank: Of this process.
        options: The benchmark's.
        folder: Where the processes meet, and for the results.
    """
    prepare(options)
    meeting, size = f"file://{folder / 'meeting'}", options.processes
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    images = load_images(options)
    pixels, device, patience = images.train.images[0].numel(), torch.device("cpu"), timedelta(minutes=10)
    layouts = {"candidates": Layout(candidates=Axis(rank, size)), "data": Layout(data=Axis(rank, size))}
    contenders = {"one": Contender(Processes(), options, pixels)} if rank == 0 else {}
    contenders |= {n: Contender(ProcessGroup(at, device, patience), options, pixels) for n, at in layouts.items()}
    for turn in range(1 + options.rounds):
        batches = images.batches(options.batch, options.steps if turn else options.warmup, options.seed + turn)
        for name in ("one", *layouts):
            distributed.barrier()
            seconds = contenders[name].run(batches) if name in contenders else 0.0
            if turn and name in contenders:
                contenders[name].step_seconds.append(seconds)
        if not turn:
            for contender in contenders.values():
                contender.forget()
    if rank == 0:
        steps = options.rounds * options.steps
        results = {"data_source": images.source, **{name: c.record(steps) for name, c in contenders.items()}}
        (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    distributed.barrier()
    distributed.destroy_process_group()


def report(results: dict[str, Any], options: argparse.Namespace) -> None:
    """Print the table."""
    verbs = list(results["one"]["seconds_by_verb"])
    rows = []
    for name in ("one", "candidates", "data"):
        found = results[name]
        seconds = found["seconds_per_step"]
        rows.append(
            [
                "one process" if name == "one" else f"{options.processes}: {name}",
                f"{1e3 * seconds['median']:.1f}",
                f"{1e3 * seconds['low']:.1f} - {1e3 * seconds['high']:.1f}",
                f"{found.get('speed_up', 1.0):.2f}",
                *(f"{1e3 * found['seconds_by_verb'][verb]:.1f}" for verb in verbs),
                f"{1e3 * found['seconds_in_sums']:.1f}",
                f"{found['bytes_in_sums'] / 1e6:.2f}",
            ]
        )
    title = f"LIF {options.units} hidden, T={options.num_steps}, global batch {options.batch}"
    head = ["", "ms/step", "over rounds", "speed-up", *verbs, "in sums", "MB/step"]
    same = "equal" if results["same_parameters"] else "DIFFERENT"
    notes = [
        f"{options.threads} thread(s) for each process",
        "verbs and sums in ms on rank 0; waiting for the others counts as a sum, which is part of score",
        f"parameters of one process and of the candidate layout at the end: {same}; data: {results['data_source']}",
    ]
    show(title, head, rows, notes)


def plot(results: dict[str, Any], options: argparse.Namespace) -> None:
    """Draw the seconds of a step by layout."""
    figure, (axes,) = new_picture()
    for position, name in enumerate(("one", "candidates", "data")):
        seconds = results[name]["seconds_per_step"]
        axes.bar(position, 1e3 * seconds["median"], color=_COLOURS[name])
        axes.vlines(position, 1e3 * seconds["low"], 1e3 * seconds["high"], color="black")
    axes.set_xticks(range(3), ["one process", f"{options.processes}: candidates", f"{options.processes}: data"])
    axes.set(ylabel="milliseconds per step", title=f"Whole steps, global batch {options.batch}")
    save_picture(figure, options.plot)


if __name__ == "__main__":
    main()
