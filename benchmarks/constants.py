"""Constants of neurons, learned and fixed: ``python -m benchmarks.constants``.

A network of snnTorch's leaky neurons on scikit-learn's digits, 64-16-10, eight steps of the image as a current, class
scores by spike counts; leaks of 0.9 and thresholds of 1, one per neuron, fixed or learned. Each is trained for the same
steps by PolyStep, with several budgets of candidates, and by Adam with snnTorch's surrogate gradient; the table shows
the mean test accuracy over seeds, learned less fixed, and where the constants have ended. Prints a table, then one line
of JSON.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import Task, finish, make_parser, prepare, show
from datamodules import Digits
from lightning_polystep import Engine, PolyStep

PIXELS, HIDDEN, CLASSES, STEPS, BATCH = 64, 16, 10, 8, 256


class Leaky(nn.Module):
    """The network of a tutorial.

    Args:
        learn: Whether leaks and thresholds are learned.
    """

    def __init__(self, *, learn: bool) -> None:
        super().__init__()
        neurons = importlib.import_module("snntorch").Leaky
        options = {"learn_beta": learn, "learn_threshold": learn, "init_hidden": True}
        self.fc1, self.fc2 = nn.Linear(PIXELS, HIDDEN), nn.Linear(HIDDEN, CLASSES)
        self.lif1 = neurons(torch.full((HIDDEN,), 0.9), threshold=torch.ones(HIDDEN), **options)
        self.lif2 = neurons(torch.full((CLASSES,), 0.9), threshold=torch.ones(CLASSES), **options)

    def forward(self, images: Tensor) -> Tensor:
        """Return spike counts, (N, classes)."""
        images = images.flatten(1)
        self.lif1.reset_mem()
        self.lif2.reset_mem()
        return torch.stack([self.lif2(self.fc2(self.lif1(self.fc1(images)))) for _ in range(STEPS)]).sum(0)


def by_polystep(task: Task, candidates: int | None, seed: int) -> Callable[[Tensor, Tensor], object]:
    """Return a step of PolyStep.

    Args:
        task: What is trained.
        candidates: Per step, at the most; None for the default.
        seed: Of its draws.
    """
    engine = Engine(task, PolyStep(task.parameters(), lr=0.1, seed=seed), max_candidates=candidates, announce=None)
    return lambda images, labels: engine.step(lambda: task(images, labels))


def by_adam(task: Task) -> Callable[[Tensor, Tensor], object]:
    """Return a step of Adam with the surrogate gradient.

    Args:
        task: What is trained.
    """
    optimizer = torch.optim.Adam(task.parameters(), lr=1e-2)

    def step(images: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        task(images, labels).backward()
        optimizer.step()

    return step


def train(
    contender: str, candidates: int | None, data: Digits, steps: int, seed: int, *, learn: bool
) -> dict[str, Any]:
    """Train one network.

    Args:
        contender: "PolyStep" or "Adam".
        candidates: As above.
        data: The digits.
        steps: Of the optimizer.
        seed: Of first weights, batches and the optimizer.
        learn: Whether constants are learned.
    """
    torch.manual_seed(seed)
    task = Task(Leaky(learn=learn))
    step = by_adam(task) if contender == "Adam" else by_polystep(task, candidates, seed)
    images, labels = data.train_set.__getitems__(range(len(data.train_set)))
    draw = torch.Generator().manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(steps):
            chosen = torch.randperm(len(images), generator=draw)[:BATCH]
            step(images[chosen], labels[chosen])
    test, expected = data.test_set.__getitems__(range(len(data.test_set)))
    with torch.no_grad():
        right = float((task.network(test).argmax(-1) == expected).double().mean())
    constants = {n: p.detach() for n, p in task.named_parameters() if n.endswith(("beta", "threshold"))}
    return {
        "test accuracy": right,
        "constants": {name: [float(values.min()), float(values.max())] for name, values in constants.items()},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark.

    Args:
        arguments: Of the command line.
    """
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--candidates", type=int, nargs="*", default=[128, 512, 0], help="per step; 0: the default")
    options = parser.parse_args(arguments)
    if options.quick:
        options.seeds, options.steps, options.candidates = 1, 2, [64]
    prepare(options)
    data = Digits()
    data.setup()
    contenders = [("PolyStep", count or None) for count in options.candidates] + [("Adam", None)]
    results: dict[str, Any] = {}
    for contender, count in contenders:
        name = f"{contender}, {count or 'default'}" if contender == "PolyStep" else contender
        seeds = range(options.seed, options.seed + options.seeds)
        results[name] = {
            kind: [train(contender, count, data, options.steps, seed, learn=kind == "learned") for seed in seeds]
            for kind in ("fixed", "learned")
        }
    rows = []
    for name, each in results.items():
        means = {kind: 100 * sum(run["test accuracy"] for run in runs) / len(runs) for kind, runs in each.items()}
        ends = [run["constants"] for run in each["learned"]]
        reached = [
            f"{min(low for end in ends for n, (low, _) in end.items() if n.endswith(constant)):.2f} to "
            f"{max(high for end in ends for n, (_, high) in end.items() if n.endswith(constant)):.2f}"
            for constant in ("beta", "threshold")
        ]
        rows.append(
            [name, *[f"{means[kind]:.1f}" for kind in means], f"{means['learned'] - means['fixed']:+.1f}", *reached]
        )
    show(
        f"Test accuracy in % after {options.steps} steps, mean of {options.seeds} seeds",
        ["contender, candidates", "fixed", "learned", "difference", "leaks", "thresholds"],
        rows,
    )
    finish("constants", options, results)


if __name__ == "__main__":
    main()
