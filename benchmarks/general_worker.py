"""One way of training in a process of its own, which does what it is told on standard input.

``benchmarks.general`` starts one for Adam and one for each checkout of the package that it compares: versions then do
not meet in one process, and memory that one way has taken does not make another faster. Nothing else of this repository
is imported, and of the package only what every version has.
"""

from __future__ import annotations

import json
import math
import sys
import time
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks import general_networks

Batch = tuple[Tensor, Tensor]

_EVALUATED_AT_ONCE = 500


class Training(Protocol):
    """A way of training, begun."""

    def step(self, inputs: Tensor, labels: Tensor) -> None:
        """Make a step."""

    def tiers(self) -> list[str]:
        """Return the tiers that score candidates, those of the first layers first."""
        ...

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """What holds the learning rate."""
        ...


class Adam:
    """The gradient, true or what the network's author puts in its place.

    Args:
        case: The network and its loss.
        rate: Learning rate.
    """

    def __init__(self, case: general_networks.Case, rate: float) -> None:
        self.case = case
        self.optimizer: torch.optim.Optimizer = torch.optim.Adam(case.network.parameters(), lr=rate)

    def step(self, inputs: Tensor, labels: Tensor) -> None:
        """Make a step."""
        self.optimizer.zero_grad()
        self.case.loss(inputs, labels).backward()
        self.optimizer.step()

    def tiers(self) -> list[str]:
        """Return none."""
        return []


class Ours:
    """PolyStep, by the interface that is meant for plain PyTorch.

    Args:
        package: The version of the package.
        case: The network and its loss.
        seed: Of its draws.
        rate: Learning rate; None for the package's own.
        plans: Whether to print the plan.
    """

    def __init__(
        self, package: ModuleType, case: general_networks.Case, seed: int, rate: float | None, plans: bool
    ) -> None:
        self.case = case
        own_rate = {} if rate is None else {"lr": rate}
        self.optimizer: torch.optim.Optimizer = package.PolyStep(case.network.parameters(), seed=seed, **own_rate)
        self.engine = package.Engine(case.network, self.optimizer, **({} if plans else {"announce": None}))

    def step(self, inputs: Tensor, labels: Tensor) -> None:
        """Make a step."""
        self.engine.step(lambda: self.case.loss(inputs, labels))

    def tiers(self) -> list[str]:
        """Return the names that the plan gives them."""
        plan = self.engine.plan
        return list(dict.fromkeys(assignment.tier.name for assignment in plan.assignments)) if plan else []


def load(checkout: str) -> ModuleType:
    """Return the package of a checkout.

    Args:
        checkout: Folder that holds it.

    Raises:
        ImportError: When it does not.
    """
    sys.path.insert(0, checkout)
    try:
        package = import_module("lightning_polystep")
    finally:
        sys.path.remove(checkout)
    if Path(str(package.__file__)).parents[1].resolve() != Path(checkout).resolve():
        raise ImportError(f"{checkout} holds no package lightning_polystep")
    return package


class Worker:
    """What a process can be told to do.

    Args:
        checkout: Folder of the package; None for Adam.
        name: Of the network.
        data: File of the splits "train", "val" and "test".
        batch: Samples per batch.
        seed: Of first weights, batches and draws.
        plans: Whether to print plans.
    """

    def __init__(self, checkout: str | None, name: str, data: str, batch: int, seed: int, plans: bool) -> None:
        self.name, self.batch, self.seed, self.plans = name, batch, seed, plans
        self.splits: dict[str, Batch] = torch.load(data)
        self.package = load(checkout) if checkout is not None else None
        self.case: general_networks.Case
        self.training: Training
        self.draw: torch.Generator

    def start(self, rate: float | None) -> float:
        """Make the network anew and one step of it; return the seconds of this step.

        Args:
            rate: Learning rate.
        """
        torch.manual_seed(self.seed)
        self.draw = torch.Generator().manual_seed(self.seed)
        self.case = general_networks.make(self.name)
        if self.package is None:
            self.training = Adam(self.case, rate or 1e-3)
        else:
            self.training = Ours(self.package, self.case, self.seed, rate, self.plans)
        return self.step()

    def step(self) -> float:
        """Make a step on the next batch, the same for all ways of training, and return its seconds."""
        inputs, labels = self.splits["train"]
        chosen = torch.randint(len(labels), (min(self.batch, len(labels)),), generator=self.draw)
        inputs, labels = inputs[chosen], labels[chosen]
        begin = time.process_time()
        self.training.step(inputs, labels)
        return time.process_time() - begin

    def turn(self, seconds: float, most: int | None = None) -> dict[str, float]:
        """Make steps for so long, at least one, and return how many and their seconds.

        Args:
            seconds: After which no other step begins.
            most: As many steps at the most.
        """
        spent, steps = 0.0, 0
        while not steps or (spent < seconds and steps != most):
            spent, steps = spent + self.step(), steps + 1
        return {"seconds": spent, "steps": steps}

    def tiers(self) -> list[str]:
        """Return the tiers in use."""
        return self.training.tiers()

    def fit(self, rate: float | None, seconds: float, cosine: bool = False) -> dict[str, Any]:
        """Train a new network for so long; the first step counts, and the step under way is finished.

        Args:
            rate: Learning rate.
            seconds: Of training.
            cosine: Whether the rate falls to 0 along half a cosine in that time.

        Returns:
            Steps, seconds, and the accuracy on validation and test samples.
        """
        spent, steps = self.start(rate), 1
        groups = self.training.optimizer.param_groups
        first = [group["lr"] for group in groups]
        while spent < seconds:
            share = 0.5 * (1 + math.cos(math.pi * spent / seconds)) if cosine else 1.0
            for group, own in zip(groups, first, strict=True):
                group["lr"] = own * share
            spent, steps = spent + self.step(), steps + 1
        accuracies = {split: self.accuracy(*self.splits[split]) for split in ("val", "test")}
        return {"rate": rate, "steps": steps, "seconds": spent, "tiers": self.tiers(), **accuracies}

    def accuracy(self, inputs: Tensor, labels: Tensor) -> float:
        """Return the share of right predictions, the network in evaluation mode."""
        network = self.case.network.eval()
        with torch.no_grad():
            pieces = [self.case.predict(piece) for piece in inputs.split(_EVALUATED_AT_ONCE)]
        network.train()
        return float((torch.cat(pieces) == labels).double().mean())


def serve() -> None:
    """Answer each line of standard input, a command with its arguments in JSON, by a line of standard output."""
    answers, sys.stdout = sys.stdout, sys.stderr  # a library's own messages must not come between
    torch.set_num_threads(1)
    worker: Worker | None = None

    def make(*arguments: Any) -> None:
        nonlocal worker
        worker = Worker(*arguments)

    with warnings.catch_warnings(record=True) as caught:
        for line in sys.stdin:
            command, *arguments = json.loads(line)
            run: Callable[..., Any] = make if command == "make" else getattr(worker, command)
            try:
                answer = {"value": run(*arguments)}
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            answer["warnings"] = sorted({str(warning.message) for warning in caught})
            caught.clear()
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve()
