"""Gradient-free optimizers at matched budgets: ``python -m benchmarks.paper [--families spiking] [--seeds 3]``.

Five families of hard networks on scikit-learn's digits, in plain PyTorch, each trained twice:

* at equal candidates: until ``--candidates`` candidates have been scored, whatever that takes;
* at equal seconds: for ``--seconds`` of processor time, whatever can be scored in it (plans included, compiling not).

Contenders: PolyStep as it is, and with few candidates a step; the baselines of ``lightning_polystep.baselines``;
PolyStep's options that are off by default, on request; and Adam through a surrogate or straight-through gradient, at
equal seconds alone. First weights are the same at a seed. Step sizes fall as a cosine of the budget. Each contender's
setting is the best of a few on the validation images at the first seed, for each family and budget; accuracies are
those on the test images after the last step.

Prints tables, then one line of JSON.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import Task, finish, make_parser, new_picture, prepare, save_picture, show
from benchmarks.curves import accuracy
from benchmarks.fitting import quiet
from benchmarks.straight_through import straight_through
from benchmarks.surrogate import with_surrogate
from datamodules import Digits
from lightning_polystep import Engine, PolyStep
from lightning_polystep.baselines import CMAES, EGGROLL, SPSA, MeZO, OpenAIES
from lightning_polystep.hosted import HostedOptimizer
from lightning_polystep.layers import calibrate
from models import Int8MLP, MoENet, SlotAttentionNet, SpikingMLP, StaircaseMLP

_BATCH = 256
_LAST_SHARE = 0.05  # of the first step size

FAMILIES: dict[str, Callable[[], nn.Sequential]] = {
    "spiking": lambda: SpikingMLP((64, 32, 10), num_steps=6),
    "int8": lambda: Int8MLP((64, 32, 32, 10)),
    "attention": lambda: SlotAttentionNet((64, 32, 10)),
    "staircase": lambda: StaircaseMLP((64, 32, 32, 10)),
    "moe": lambda: MoENet((64, 32, 10)),
}


@dataclass(frozen=True)
class Contender:
    """An optimizer and the settings that it may choose from.

    Args:
        kind: Its class; None for Adam through a gradient.
        settings: Arguments, each a choice.
        max_candidates: Of a step; None leaves it to the plan.
    """

    kind: type[HostedOptimizer] | None
    settings: tuple[dict[str, Any], ...]
    max_candidates: int | None = None


def _rates(*rates: float, **options: Any) -> tuple[dict[str, Any], ...]:
    return tuple({"lr": rate, **options} for rate in rates)


CONTENDERS: dict[str, Contender] = {
    "PolyStep": Contender(PolyStep, _rates(0.2, 0.4)),
    "PolyStep, 128 a step": Contender(PolyStep, _rates(0.4, 0.8), max_candidates=128),
    "SPSA": Contender(SPSA, _rates(0.1, 0.4, pairs=8, probe_radius=0.05)),
    "MeZO": Contender(MeZO, _rates(0.1, 0.4, pairs=8, probe_radius=0.05)),
    "OpenAIES": Contender(OpenAIES, _rates(0.02, 0.06, pairs=8, probe_radius=0.05)),
    "EGGROLL": Contender(EGGROLL, _rates(0.02, 0.06, pairs=8, probe_radius=0.05, rule="adam")),
    "CMAES": Contender(CMAES, tuple({"covariance": "diagonal", "probe_radius": radius} for radius in (0.1, 0.3))),
    "Adam": Contender(None, _rates(0.01, 0.03)),
}
# PolyStep with one option that is off by default, at the step radii of PolyStep.
OPTIONS: dict[str, dict[str, Any]] = {
    "gaussian": {"subspace": "gaussian"},
    "sparse": {"subspace": "sparse"},
    "adaptive": {"subspace": "adaptive"},
    "layer": {"subspace": "layer"},
    "factored": {"subspace": "factored"},
    "paper": {
        "subspace": "layer",
        "rank": 64,
        "particle_dim": 8,
        "polytope": "simplex",
        "anchor_every": 20,
        "rotation_bias": 0.5,
        "epsilon": 0.5,
        "probe_radius": 0.5,
    },
    "anchor_every=20": {"anchor_every": 20, "rank": 32},
    "rank=32": {"rank": 32},
    "rotation_bias=0.5": {"rotation_bias": 0.5},
    "reuse_costs=3": {"reuse_costs": 3},
    "two radii": {"rotations": 2, "radius_ratio": 3.0},
}
CONTENDERS |= {name: Contender(PolyStep, _rates(0.1, 0.2, 0.4, **options)) for name, options in OPTIONS.items()}
_USUAL = [name for name in CONTENDERS if name not in OPTIONS]


@dataclass(frozen=True)
class Budget:
    """What a run may spend.

    Args:
        unit: "candidates" or "seconds" of processor time.
        amount: Of that.
    """

    unit: str
    amount: float


@dataclass
class Spent:
    """What a run has spent.

    Args:
        candidates: Scored.
        seconds: Of processor time.
        steps: Made.
    """

    candidates: int = 0
    seconds: float = 0.0
    steps: int = 0
    began: float = field(default=0.0, repr=False)

    def share(self, budget: Budget) -> float:
        """Return which part of a budget that is."""
        return float(getattr(self, budget.unit)) / budget.amount


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print.

    Args:
        arguments: Of the command line; those of the process by default.
    """
    options = parse(arguments)
    prepare(options)
    data = Digits(batch_size=_BATCH, drop_last=True)
    data.setup()
    seeds = [options.seed + index for index in range(options.seeds)]
    results: dict[str, Any] = {}
    for unit in options.budgets:
        budget = Budget(unit, getattr(options, unit))
        results[unit] = {family: _compare(family, budget, data, seeds, options) for family in options.families}
        report(unit, results[unit], options)
    if options.plot:
        plot(results, options)
    finish("paper", options, results, seeds=seeds)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the arguments; ``--quick`` takes one setting each and a hundredth of the budgets."""
    parser = make_parser(__doc__)
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES), metavar="FAMILY")
    parser.add_argument(
        "--methods", nargs="+", choices=list(CONTENDERS), default=_USUAL, metavar="METHOD", help=", ".join(CONTENDERS)
    )
    parser.add_argument("--budgets", nargs="+", choices=["candidates", "seconds"], default=["candidates", "seconds"])
    parser.add_argument("--candidates", type=int, default=8192)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--seeds", type=int, default=3, help="how many: --seed and those that follow")
    options = parser.parse_args(arguments)
    if options.quick:
        options.candidates, options.seconds, options.seeds = 64, 0.03, min(options.seeds, 2)
    return options


def _compare(
    family: str, budget: Budget, data: Digits, seeds: Sequence[int], options: argparse.Namespace
) -> dict[str, Any]:
    """Return what every contender reaches in a family: its setting, and a run for every seed."""
    found = {}
    for name in options.methods:
        contender = CONTENDERS[name]
        if contender.kind is None and budget.unit == "candidates":
            continue
        settings = contender.settings[:1] if options.quick else contender.settings
        tried = [
            {"setting": setting, "val": train(family, contender, setting, seeds[0], data, budget)["val"]}
            for setting in settings
            if len(settings) > 1
        ]
        best = max(tried, key=lambda row: row["val"])["setting"] if tried else settings[0]
        runs = [train(family, contender, best, seed, data, budget) for seed in seeds]
        tests = [run["test"] for run in runs]
        found[name] = {
            "mean": statistics.mean(tests),
            "deviation": statistics.stdev(tests) if len(tests) > 1 else 0.0,
            "setting": best,
            "tried": tried,
            "runs": runs,
        }
        print(f"{budget.unit}  {family}  {name}  {100 * found[name]['mean']:.1f}", flush=True)
    return found


def train(
    family: str, contender: Contender, setting: dict[str, Any], seed: int, data: Digits, budget: Budget
) -> dict[str, Any]:
    """Train a family's network until the budget is spent.

    Args:
        family: Its name.
        contender: The optimizer.
        setting: Its arguments.
        seed: Of first weights, batches and draws.
        data: Set up.
        budget: What may be spent.

    Returns:
        Accuracy on validation and test images, and what was spent.
    """
    torch.manual_seed(seed)
    task = Task(FAMILIES[family]())
    first = next(iter(data.train_dataloader()))
    calibrate(task.network, [first[0]], keep_given=True)
    if contender.kind is None:
        if family == "spiking":
            task = Task(with_surrogate(task.network, "fast_sigmoid"))  # type: ignore[arg-type]
        spent = _by_gradient(task, setting, data, budget)
    else:
        _by_candidates(copy.deepcopy(task), contender, setting, seed, [first], Budget("candidates", 1))  # compiles
        spent = _by_candidates(task, contender, setting, seed, data.train_dataloader(), budget)
    with straight_through() if contender.kind is None and family != "spiking" else nullcontext():
        val, test = (accuracy(task.network, part) for part in (data.val_set, data.test_set))
    return {
        "seed": seed,
        "val": val,
        "test": test,
        "candidates": spent.candidates,
        "seconds": spent.seconds,
        "steps": spent.steps,
    }


def _by_candidates(
    task: Task, contender: Contender, setting: dict[str, Any], seed: int, loader: Any, budget: Budget
) -> Spent:
    assert contender.kind is not None
    optimizer: Any = contender.kind(task.parameters(), seed=seed, **setting)
    engine = Engine(task, optimizer, max_candidates=contender.max_candidates, announce=None)
    rate, spent = optimizer.param_groups[0]["lr"], Spent()
    with quiet():
        loss = torch.zeros(())
        while spent.share(budget) < 1 and bool(loss.isfinite()):
            for images, labels in loader:
                _decay(optimizer, rate, spent.share(budget))
                began = time.process_time()
                loss = engine.step(lambda: task(images, labels))  # noqa: B023 - used within the loop
                spent.seconds += time.process_time() - began
                spent.candidates, spent.steps = optimizer.progress.candidates, spent.steps + 1
                # Where a run has diverged, no candidate is scored any more.
                if spent.share(budget) >= 1 or not bool(loss.isfinite()):
                    break
    return spent


def _by_gradient(task: Task, setting: dict[str, Any], data: Digits, budget: Budget) -> Spent:
    optimizer, spent = torch.optim.Adam(task.parameters(), **setting), Spent()
    with torch.enable_grad(), straight_through():
        while spent.share(budget) < 1:
            for images, labels in data.train_dataloader():
                _decay(optimizer, setting["lr"], spent.share(budget))
                began = time.process_time()
                optimizer.zero_grad()
                loss: Tensor = task(images, labels)
                loss.backward()
                optimizer.step()
                spent.seconds += time.process_time() - began
                spent.steps += 1
                if spent.share(budget) >= 1:
                    break
    return spent


def _decay(optimizer: torch.optim.Optimizer, rate: float, share: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * (_LAST_SHARE + (1 - _LAST_SHARE) * (1 + math.cos(math.pi * min(share, 1.0))) / 2)


def report(unit: str, found: dict[str, Any], options: argparse.Namespace) -> None:
    """Print the table of a budget: families in columns."""
    names = list(next(iter(found.values())))
    rows = [
        [name, *(f"{100 * each[name]['mean']:.1f} ± {100 * each[name]['deviation']:.1f}" for each in found.values())]
        for name in names
    ]
    amount = f"{getattr(options, unit):,g} " + ("processor seconds" if unit == "seconds" else "candidates")
    notes = [
        f"mean ± standard deviation over {options.seeds} seeds, after the last step; settings chosen on validation"
    ]
    show(f"Test accuracy on digits, %, after {amount}", ["", *found], rows, notes)


def plot(results: dict[str, Any], options: argparse.Namespace) -> None:
    """Draw the error of every run, budget by budget and family by family."""
    figure, axes = new_picture(len(results))
    for axis, (unit, found) in zip(axes, results.items(), strict=True):
        for index, name in enumerate(options.methods):
            places, errors = [], []
            for place, each in enumerate(found.values()):
                runs = each[name]["runs"] if name in each else []
                places += [place + 0.08 * (index - len(options.methods) / 2)] * len(runs)
                errors += [100 * (1 - run["test"]) for run in runs]
            if places:
                label = name if unit == "seconds" or len(results) == 1 else None
                axis.plot(places, errors, "o", markersize=4, color=f"C{index}", label=label)
        axis.set(yscale="log", ylabel="test error (%, log scale)", title=f"{getattr(options, unit):,g} {unit}")
        axis.set_xticks(range(len(found)), list(found))
    figure.legend(frameon=False, loc="outside lower center", ncols=4)
    save_picture(figure, options.plot)


if __name__ == "__main__":
    main()
