"""The paper's settings beside ours: ``python -m benchmarks.presets [--nets spiking] [--seconds 30] [--seeds 3]``.

The networks of arXiv 2605.01928, each trained for the same processor time by ``configs/paper/<net>.yaml`` and by our
own configuration of it, from the first weights of its seed; both as written, schedules included, so that a run whose
epochs last longer than that is cut short. Accuracies are those on the test images.

Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from benchmarks.ceilings import small
from benchmarks.common import COLOURS, REPOSITORY, finish, make_parser, new_picture, prepare, save_picture, show
from benchmarks.curves import accuracy
from benchmarks.fitting import compile_kernels, load_run, quiet
from lightning_polystep.results import fit_record

NETS = {"spiking": "mnist", "int8": "mnist", "staircase": "mnist", "attention": "fashion", "moe": "mnist"}


class _Enough(pl.Callback):
    """Ends a fit when its steps have taken so much processor time."""

    def __init__(self, seconds: float) -> None:
        self.left = seconds
        self._began = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start."""
        self._began = time.process_time()

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        """Look at the clock."""
        if time.process_time() - self._began >= self.left:
            trainer.should_stop = True


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print.

    Args:
        arguments: Of the command line; those of the process by default.
    """
    options = parse(arguments)
    prepare(options)
    seeds = [options.seed + index for index in range(options.seeds)]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for net in options.nets:
            paths = {"paper": f"paper/{net}.yaml", "ours": f"{NETS[net]}_{net}.yaml"}
            results[net] = {}
            for way, path in paths.items():
                runs = [train(REPOSITORY / "configs" / path, seed, Path(folder), options) for seed in seeds]
                tests = [run["test"] for run in runs]
                spread = statistics.stdev(tests) if len(tests) > 1 else 0.0
                results[net][way] = {"mean": statistics.mean(tests), "deviation": spread, "runs": runs}
                print(f"{net}  {way}  {100 * results[net][way]['mean']:.1f} ± {100 * spread:.1f}", flush=True)
    report(results, options)
    if options.plot:
        plot(results, options)
    finish("presets", options, results, seeds=seeds)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the arguments; ``--quick`` takes digits, small layers, few directions and a few steps."""
    parser = make_parser(__doc__)
    parser.add_argument("--nets", nargs="+", choices=list(NETS), default=list(NETS), metavar="NET")
    parser.add_argument("--seconds", type=float, default=30.0, help="of processor time, for each run")
    parser.add_argument("--seeds", type=int, default=3, help="how many: --seed and those that follow")
    options = parser.parse_args(arguments)
    options.max_steps = None
    if options.quick:
        options.max_steps, options.seeds = 2, min(options.seeds, 2)
    return options


def train(config: Path, seed: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train as a config says, until the time is up.

    Args:
        config: It.
        seed: Of everything.
        folder: For a smaller config, if that is asked for.
        options: Of the command line.
    """
    options.config = small(config, folder) if options.quick else config
    options.overrides = ["--optimizer.init_args.rank=8"] if options.quick else []
    run = load_run(options, seed)
    del options.config, options.overrides
    compile_kernels(run)
    vars(run.trainer)["callbacks"].append(_Enough(options.seconds))
    began = time.process_time()
    with quiet():
        run.trainer.fit(run.model, datamodule=run.data)
    seconds = time.process_time() - began
    return {
        "seed": seed,
        "test": accuracy(run.network, run.data.test_set),
        "val": accuracy(run.network, run.data.val_set),
        "seconds": seconds,
        "steps": run.trainer.global_step,
        "candidates": fit_record(run.trainer)["candidates"],
    }


def report(results: dict[str, Any], options: argparse.Namespace) -> None:
    """Print the table."""
    rows = []
    for net, found in results.items():
        cells = [f"{100 * each['mean']:.1f} ± {100 * each['deviation']:.1f}" for each in found.values()]
        steps = [f"{statistics.mean(run['steps'] for run in each['runs']):,.0f}" for each in found.values()]
        rows.append([net, *cells, *steps])
    head = ["test accuracy, %", "paper", "ours", "steps, paper", "steps, ours"]
    notes = [f"mean ± standard deviation over {options.seeds} seeds; attention on Fashion-MNIST, others on MNIST"]
    show(f"The paper's settings and ours after {options.seconds:g} processor seconds", head, rows, notes)


def plot(results: dict[str, Any], options: argparse.Namespace) -> None:
    """Draw every run's error, network by network."""
    figure, (axis,) = new_picture()
    for place, found in enumerate(results.values()):
        for way, colour, aside in (("paper", COLOURS["peer"], -0.1), ("ours", COLOURS["ours"], 0.1)):
            errors = [100 * (1 - run["test"]) for run in found[way]["runs"]]
            label = way if place == 0 else None
            axis.plot([place + aside] * len(errors), errors, "o", markersize=5, color=colour, label=label)
    axis.set(yscale="log", ylabel="test error (%, log scale)", title=f"{options.seconds:g} processor seconds")
    axis.set_xticks(range(len(results)), list(results), rotation=20)
    axis.legend(frameon=False)
    save_picture(figure, options.plot)


if __name__ == "__main__":
    main()
