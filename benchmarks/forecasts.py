"""A hard network forecasts an hourly series: ``python -m benchmarks.forecasts [--path ETTh1.csv] [--seeds 3]``.

Mean squared error on the hours of the test, in units of the training hours' standard deviation, of

* ours: ``configs/hourly_staircase.yaml`` under Lightning's Trainer, after the last step;
* Adam: the same network from the same first weights, with a straight-through gradient, as many epochs; the rate is the
  best of a few on the validation hours at the first seed;
* a linear regression on the same windows, its ridge the best of a few on the validation hours;
* persistence (nothing changes) and daily persistence (as a day ago).

Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from torch import Tensor, nn

from benchmarks.common import COLOURS, REPOSITORY, finish, make_parser, new_picture, prepare, save_picture, show
from benchmarks.fitting import Run, compile_kernels, load_run, quiet
from benchmarks.straight_through import straight_through
from datamodules import HourlySeries, TensorImages

_CONFIG = REPOSITORY / "configs" / "hourly_staircase.yaml"
_RIDGES = (1e-2, 1.0, 1e2, 1e3)
_DAY = 24


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print.

    Args:
        arguments: Of the command line; those of the process by default.
    """
    options = parse(arguments)
    prepare(options)
    seeds = [options.seed + index for index in range(options.seeds)]
    results = compare(seeds, options)
    report(results, options)
    if options.plot:
        plot(results, options)
    finish("forecasts", options, results, seeds=seeds)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the arguments; ``--quick`` takes a few steps."""
    parser = make_parser(__doc__)
    parser.add_argument("--path", type=Path, help="a table such as ETTh1.csv; the simulated series unless given")
    parser.add_argument("--seeds", type=int, default=3, help="how many: --seed and those that follow")
    parser.add_argument("--adam-batch", type=int, default=256)
    parser.add_argument("--adam-rates", type=float, nargs="+", default=[0.003, 0.01, 0.03])
    options = parser.parse_args(arguments)
    options.config, options.max_steps, options.epochs = _CONFIG, None, None
    options.overrides = []
    if options.path is not None:
        options.overrides += [f"--data.path={options.path}"]
    if options.quick:
        options.max_steps, options.adam_rates = 2, options.adam_rates[:1]
        hours = ["--data.train_hours=600", "--data.val_hours=200", "--data.test_hours=200"]
        options.overrides += [*hours, "--data.batch_size=256"]
    return options


def compare(seeds: Sequence[int], options: argparse.Namespace) -> dict[str, Any]:
    """Train in both ways at every seed, and find what needs no training.

    Args:
        seeds: Of the runs.
        options: With the config.
    """
    options.overrides += sizes_for(options)
    first = load_run(options, seeds[0])
    data = cast("HourlySeries", first.data)
    rates = [{"rate": rate, "val": error(adam(first, rate, options), data.val_set)} for rate in options.adam_rates]
    chosen = min(rates, key=lambda row: row["val"])["rate"]
    ours, straight = [], []
    for seed in seeds:
        run = load_run(options, seed)
        start = copy.copy(run)
        start.model = copy.deepcopy(run.model)
        compile_kernels(run)
        began = time.process_time()
        with quiet():
            run.trainer.fit(run.model, datamodule=run.data)
        ours.append(_result(run.network, data, seed, time.process_time() - began))
        began = time.process_time()
        network = adam(start, chosen, options)
        straight.append(_result(network, data, seed, time.process_time() - began))
    return {
        "ours": _summary(ours),
        "Adam, straight-through": _summary(straight) | {"rate": chosen, "rates": rates},
        "linear regression": {"test": regression(data)},
        "daily persistence": {"test": daily_persistence(data)},
        "persistence": {"test": float(data.test_set.labels.square().mean())},
        "data": "simulated transformer" if options.path is None else options.path.name,
        "config": first.settings,
    }


def sizes_for(options: argparse.Namespace) -> list[str]:
    """Return what fits the config's network to the columns of the series."""
    if options.path is None:
        return []
    settings = yaml.safe_load(options.config.read_text(encoding="utf-8"))
    _, *rest = settings["model"]["init_args"]["network"]["init_args"]["sizes"]
    data = HourlySeries(options.path)
    data.setup()
    inputs = data.train_set.images[0].numel()
    return [f"--model.init_args.network.init_args.sizes={[inputs, *rest]}"]


def adam(run: Run, rate: float, options: argparse.Namespace) -> nn.Module:
    """Return the network, trained by straight-through gradients from the run's first weights.

    Args:
        run: With network, criterion and data; left as it is.
        rate: Of the first step; a cosine takes it to 0.
        options: With the batch.
    """
    network = copy.deepcopy(run.network)
    loader = run.loader(options.adam_batch)
    epochs = 1 if options.quick else int(run.settings["trainer"]["max_epochs"])
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    with torch.enable_grad(), straight_through():
        for _ in range(epochs):
            for windows, ahead in loader:
                optimizer.zero_grad()
                run.model.criterion(network(windows), ahead).backward()
                optimizer.step()
                schedule.step()
    return network


@torch.no_grad()
def error(network: nn.Module, part: TensorImages) -> float:
    """Return the mean squared error of a network's forecasts."""
    return float((network(part.images) - part.labels).square().mean())


def regression(data: HourlySeries) -> float:
    """Return the test error of a linear regression, whose ridge is chosen on the validation hours."""

    def rows(part: TensorImages) -> tuple[Tensor, Tensor]:
        inputs = part.images.flatten(1).double()
        return torch.cat([inputs, torch.ones(len(inputs), 1, dtype=torch.float64)], 1), part.labels.double()

    inputs, targets = rows(data.train_set)
    moment, cross = inputs.T @ inputs, inputs.T @ targets
    found = []
    for ridge in _RIDGES:
        weights = torch.linalg.solve(moment + ridge * torch.eye(len(moment), dtype=torch.float64), cross)
        val, test = (float((x @ weights - y).square().mean()) for x, y in map(rows, (data.val_set, data.test_set)))
        found.append((val, test))
    return min(found)[1]


def daily_persistence(data: HourlySeries) -> float:
    """Return the test error of forecasts that each hour is as it was a whole number of days ago."""
    past, horizon = data.test_set.images[:, -_DAY:, -1], data.test_set.labels.shape[1]
    days = -(-horizon // _DAY)
    return float((past.repeat(1, days)[:, :horizon] - data.test_set.labels).square().mean())


def _result(network: nn.Module, data: HourlySeries, seed: int, seconds: float) -> dict[str, Any]:
    return {
        "seed": seed,
        "val": error(network, data.val_set),
        "test": error(network, data.test_set),
        "seconds": seconds,
    }


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    tests = [run["test"] for run in runs]
    return {
        "test": statistics.mean(tests),
        "deviation": statistics.stdev(tests) if len(tests) > 1 else 0.0,
        "seconds": statistics.mean(run["seconds"] for run in runs),
        "runs": runs,
    }


def _contenders(results: dict[str, Any]) -> dict[str, Any]:
    return {name: found for name, found in results.items() if isinstance(found, dict) and "test" in found}


def report(results: dict[str, Any], options: argparse.Namespace) -> None:
    """Print the table."""
    rows = []
    for name, found in _contenders(results).items():
        spread = f" ± {found['deviation']:.4f}" if "deviation" in found else ""
        rows.append([name, f"{found['test']:.4f}{spread}", f"{found['seconds']:.1f}" if "seconds" in found else "-"])
    notes = [f"data: {results['data']}; mean ± standard deviation over {options.seeds} seeds, after the last step"]
    show("Forecasts of an hourly series", ["", "test error, squared", "CPU s"], rows, notes)


def plot(results: dict[str, Any], options: argparse.Namespace) -> None:
    """Draw the errors, and that of every run."""
    figure, (axis,) = new_picture()
    found = _contenders(results)
    for place, (name, each) in enumerate(found.items()):
        colour = {"ours": COLOURS["ours"], "Adam, straight-through": COLOURS["surrogate"]}.get(name, "0.4")
        values = [run["test"] for run in each.get("runs", [each])]
        axis.plot([place] * len(values), values, "o", color=colour)
    axis.set(yscale="log", ylabel="test error, squared (log scale)")
    axis.set_xticks(range(len(found)), list(found), rotation=20)
    axis.set_title(f"{results['data']}, {options.seeds} seeds")
    save_picture(figure, options.plot)


if __name__ == "__main__":
    main()
