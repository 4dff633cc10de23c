"""How close forward-only training comes to a gradient: ``python -m benchmarks.ceilings [--nets int8 tfc] [--seeds 3]``.

For each network of the worked examples:

* ours: under Lightning's Trainer, everything as the config says.
* ceiling: Adam, the same hard forward pass from the same initial weights, with a straight-through gradient (spiking
  networks: a surrogate gradient). As many epochs as ours unless told, in small batches, with the config's shifts of
  images and a cosine; the learning rate is the best of a few on the validation images, at the first seed.
* paper: the figure of arXiv 2605.01928 (for TFC and SFC: straight-through, 1000 epochs, of Brevitas' BNN-PYNQ).

Accuracies are those on the test images after the last step. Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.common import COLOURS, REPOSITORY, finish, make_parser, new_picture, prepare, save_picture, show
from benchmarks.curves import Curve, Watch
from benchmarks.fitting import Choice, Run, load_run, train_adam, train_ours, train_straight_through
from lightning_polystep.layers import LIF
from lightning_polystep.results import fit_record

# Data that --quick takes digits for.
_IMAGES = {"datamodules.MNIST", "datamodules.FashionMNIST"}
# No sample but that of the end.
_NEVER = float("inf")


@dataclass(frozen=True)
class Net:
    """A network of the table.

    Args:
        name: Of its config, ``configs/mnist_<name>.yaml`` unless it has another.
        paper: Test accuracy in the paper, in percent; None if there is none.
        remark: On that figure.
        config: Name of its config if that is another.
    """

    name: str
    paper: float | None
    remark: str = ""
    config: str = ""

    @property
    def path(self) -> Path:
        """Its config."""
        return REPOSITORY / "configs" / f"{self.config or 'mnist_' + self.name}.yaml"


NETS = {
    net.name: net
    for net in (
        Net("int8", 97.1),
        Net("integer", None),
        Net("staircase", 94.3),
        Net("attention", 86.8, "on Fashion-MNIST"),
        Net("moe", 90.7),
        Net("tfc", 93.17, "straight-through, 1000 epochs"),
        Net("sfc", 97.81, "straight-through, 1000 epochs"),
        Net("spiking", 93.4),
        Net("events", None),
        Net("recall", None, config="associative_recall"),
        Net("fashion_residual", None, config="fashion_residual"),
        Net("fashion_attention", 86.8, config="fashion_attention"),
        Net("fashion_spiking", None, config="fashion_spiking"),
        Net("fashion_staircase", None, config="fashion_staircase"),
    )
}


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
        for name in options.nets:
            options.config = NETS[name].path
            if options.quick:
                options.config = small(options.config, Path(folder))
            results[name] = compare(NETS[name], seeds, options)
            line = row(results[name])
            print("  ".join([name, *line[1:]]), flush=True)  # hours may pass until the table
    report(results, options)
    if options.plot:
        plot(results, options)
    del options.config
    finish("ceilings", options, results, seeds=seeds)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the arguments; ``--quick`` takes digits, small layers and a few steps."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--nets", nargs="+", choices=list(NETS), default=list(NETS), metavar="NET", help=", ".join(NETS)
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many: --seed and those that follow")
    parser.add_argument("--adam-epochs", type=int, help="as many as the config's unless given")
    parser.add_argument("--adam-batch", type=int, default=256)
    parser.add_argument("--adam-rates", type=float, nargs="+", default=[0.0003, 0.001, 0.003, 0.01])
    options = parser.parse_args(arguments)
    options.max_steps = None
    if options.quick:
        options.max_steps, options.adam_epochs, options.adam_rates = 2, 1, options.adam_rates[:2]
        options.seeds = min(options.seeds, 2)
    return options


def small(config: Path, folder: Path) -> Path:
    """Write a config of the same kind of network for digits, with few units; other data than images stays as it is.

    Args:
        config: For MNIST.
        folder: To write to.
    """
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    if settings["data"]["class_path"] not in _IMAGES:
        return config
    network = settings["model"]["init_args"]["network"]["init_args"]
    if "sizes" in network:
        network["sizes"] = [64, *[8] * (len(network["sizes"]) - 2), network["sizes"][-1]]
    else:
        network |= {"image_shape": [1, 8, 8], "channels": 4}
    settings["data"] = {"class_path": "datamodules.Digits", "init_args": {"batch_size": 256, "shift": 1}}
    path = folder / config.name
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def compare(net: Net, seeds: Sequence[int], options: argparse.Namespace) -> dict[str, Any]:
    """Train a network in both ways at every seed.

    Args:
        net: The network.
        seeds: Of the runs.
        options: With the config.
    """
    rates, choice = tune(options)
    ours, ceilings = [], []
    for seed in seeds:
        run = load_run(options, seed)
        start = copy.deepcopy(run.network)
        curve = train_ours(run, _NEVER)
        record = fit_record(run.trainer)
        ours.append(_result(curve, seed) | {"candidates": record["candidates"], "plan": record["plan"]})
        ceilings.append(_result(adam(run, start, choice, options, tuning=False), seed))
    found = {"ours": _summary(ours), "ceiling": _summary(ceilings)}
    return {
        "net": net.name,
        **found,
        "difference": found["ours"]["mean"] - found["ceiling"]["mean"],
        "paper": net.paper,
        "remark": net.remark,
        "adam_rates": rates,
        "adam_choice": vars(choice),
        "config": run.settings,
        "data": run.source,
    }


def tune(options: argparse.Namespace) -> tuple[list[dict[str, Any]], Choice]:
    """Train by every learning rate, and return what each reached on validation, and the best."""
    run = load_run(options, options.seed)
    epochs = options.adam_epochs or run.settings["trainer"]["max_epochs"]
    rows = []
    for rate in options.adam_rates:
        curve = adam(run, run.network, Choice(rate, "cosine", run.shift, epochs), options, tuning=True)
        rows.append({"rate": rate, "val": curve.samples[-1].val})
    best = max(rows, key=lambda found: found["val"])
    return rows, Choice(best["rate"], "cosine", run.shift, epochs)


def adam(run: Run, start: torch.nn.Sequential, choice: Choice, options: argparse.Namespace, *, tuning: bool) -> Curve:
    """Train the network by a gradient from given weights; while tuning, no test image is looked at."""

    def watch_of(network: torch.nn.Module) -> Watch:
        return Watch(network, run.data.val_set, None if tuning else run.data.test_set, _NEVER)

    if any(isinstance(layer, LIF) for layer in start.modules()):
        return train_adam(run, start, choice, batch=options.adam_batch, surrogate="fast_sigmoid", watch_of=watch_of)
    return train_straight_through(run, start, choice, batch=options.adam_batch, watch_of=watch_of)


def _result(curve: Curve, seed: int) -> dict[str, Any]:
    last = curve.samples[-1]
    return {"seed": seed, "test": last.test, "val": last.val, "seconds": last.seconds, "steps": last.step}


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    tests = [run["test"] for run in runs]
    spread = statistics.stdev(tests) if len(tests) > 1 else 0.0
    summary = {"mean": statistics.mean(tests), "deviation": spread, "low": min(tests), "high": max(tests)}
    summary |= {key: statistics.mean(run[key] for run in runs) for key in ("seconds", "steps")}
    if "candidates" in runs[0]:
        summary["candidates"] = statistics.mean(run["candidates"] for run in runs)
    return summary | {"runs": runs}


def row(found: dict[str, Any]) -> list[str]:
    """Return the cells of a network."""
    ours, ceiling, paper = found["ours"], found["ceiling"], found["paper"]
    return [
        found["net"],
        *(f"{100 * way['mean']:.2f} ± {100 * way['deviation']:.2f}" for way in (ours, ceiling)),
        f"{100 * found['difference']:+.2f}",
        ("-" if paper is None else f"{paper:g}") + (" *" if found["remark"] else ""),
        f"{ours['candidates'] / 1e6:,.1f} M",
        f"{ours['seconds']:,.1f}",
        f"{ceiling['seconds']:,.1f}",
    ]


def report(results: dict[str, Any], options: argparse.Namespace) -> None:
    """Print the table."""
    head = ["test accuracy, %", "ours", "ceiling", "difference", "paper", "candidates", "s, ours", "s, ceiling"]
    data = next(iter(results.values()))["data"]
    notes = [f"data: {data}; mean ± standard deviation over {options.seeds} seeds, after the last step"]
    notes += [f"* {name}: {found['remark']}" for name, found in results.items() if found["remark"]]
    title = f"Forward passes alone against straight-through gradients, {options.threads} threads"
    show(title, head, [row(found) for found in results.values()], notes)


def plot(results: dict[str, Any], options: argparse.Namespace) -> None:
    """Draw every run's error, network by network."""
    figure, (axis,) = new_picture()
    for index, found in enumerate(results.values()):
        for way, colour, aside in (("ours", COLOURS["ours"], -0.12), ("ceiling", COLOURS["surrogate"], 0.12)):
            errors = [100 * (1 - run["test"]) for run in found[way]["runs"]]
            label = {"ours": "ours", "ceiling": "straight-through, Adam"}[way] if index == 0 else None
            axis.plot([index + aside] * len(errors), errors, "o", markersize=5, color=colour, label=label)
        if found["paper"] is not None:
            label = "paper" if "paper" not in [line.get_label() for line in axis.lines] else None
            axis.plot(index, 100 - found["paper"], "_", markersize=22, color="0.4", label=label)
    axis.set(yscale="log", ylabel="test error (%, log scale)")
    axis.set_xticks(range(len(results)), list(results), rotation=20)
    axis.set_title(f"{options.seeds} seeds")
    figure.legend(frameon=False, loc="outside lower center", ncols=3)
    save_picture(figure, options.plot)


if __name__ == "__main__":
    main()
