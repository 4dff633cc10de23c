"""Tables as they come, without standardising: ``python -m benchmarks.tables``.

scikit-learn's wine, breast cancer and diabetes: 32 ReLUs and a readout, 60 epochs of batches of 32. PolyStep is given
the columns, and for diabetes the target, as they are; Adam is given them standardised by the training part, and as a
control as they are. Half of the samples are for training, the other half for testing; means over seeds, of accuracy in
% and, for diabetes, of R^2 in %. Prints a table, then one line of JSON.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from torch import Tensor, nn

from benchmarks.common import finish, make_parser, prepare, show
from lightning_polystep import Engine, PolyStep

EPOCHS, BATCH, HIDDEN = 60, 32, 32


def load(name: str, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return inputs and targets for training, and those for testing.

    Args:
        name: "wine", "breast cancer" or "diabetes".
        seed: Of the split.
    """
    source = {"wine": load_wine, "breast cancer": load_breast_cancer, "diabetes": load_diabetes}[name]
    data = source(scaled=False) if name == "diabetes" else source()
    x, y = torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target)
    y = y.float()[:, None] if name == "diabetes" else y
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train, test = order[: len(x) // 2], order[len(x) // 2 :]
    return x[train], y[train], x[test], y[test]


def standardised(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in units of the standard deviation of the former, from its mean."""
    mean, deviation = train.mean(0), train.std(0)
    return (train - mean) / deviation, (test - mean) / deviation


def score(network: nn.Module, x: Tensor, y: Tensor, back: tuple[float, float]) -> float:
    """Return accuracy, or R^2 of a regression.

    Args:
        network: The network.
        x: Inputs.
        y: Targets.
        back: What brings an output to the target's unit, a mean and a factor.
    """
    with torch.no_grad():
        output = network(x)
        if y.dim() == 1:
            return float((output.argmax(1) == y).float().mean())
        rest = (output * back[1] + back[0] - y).square().mean()
        return 1 - float(rest / y.var(unbiased=False))


def train(name: str, contender: str, seed: int, epochs: int, rate: float) -> float:
    """Train one network and return its score on the test part.

    Args:
        name: Of the table.
        contender: "PolyStep", "Adam" or "Adam, standardised".
        seed: Of split, first weights, batches and the optimizer.
        epochs: Over the training part.
        rate: Learning rate of Adam, or step radius.
    """
    x, y, test_x, test_y = load(name, seed)
    back = (0.0, 1.0)
    goal = y
    if contender == "Adam, standardised":
        x, test_x = standardised(x, test_x)
        if name == "diabetes":
            back = float(y.mean()), float(y.std())
            goal = (y - back[0]) / back[1]
    torch.manual_seed(seed)
    outputs = 1 if name == "diabetes" else int(y.max()) + 1
    network = nn.Sequential(nn.Linear(x.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, outputs))
    loss = nn.MSELoss() if name == "diabetes" else nn.CrossEntropyLoss()
    optimizer: torch.optim.Optimizer
    if contender == "PolyStep":
        optimizer = PolyStep(network.parameters(), lr=rate, seed=seed)
        engine = Engine(network, optimizer, announce=None)
    else:
        optimizer, engine = torch.optim.Adam(network.parameters(), lr=rate), None
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    draw = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), generator=draw).split(BATCH):
            run = partial(_loss, network, loss, x[chosen], goal[chosen])
            if engine is not None:
                engine.step(run)
                continue
            optimizer.zero_grad()
            run().backward()
            optimizer.step()
        schedule.step()
    return score(network, test_x, test_y, back)


def _loss(network: nn.Module, loss: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    value: Tensor = loss(network(x), y)
    return value


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark.

    Args:
        arguments: Of the command line.
    """
    parser = make_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--tables", nargs="*", default=["wine", "breast cancer", "diabetes"])
    options = parser.parse_args(arguments)
    if options.quick:
        options.seeds, options.epochs = 1, 1
    prepare(options)
    contenders = {"PolyStep": 0.1, "Adam, standardised": 1e-2, "Adam": 1e-2}
    results: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in options.tables:
            seeds = range(options.seed, options.seed + options.seeds)
            results[name] = {
                contender: [train(name, contender, seed, options.epochs, rate) for seed in seeds]
                for contender, rate in contenders.items()
            }
    rows = [
        [name, *(f"{100 * sum(values) / len(values):.1f}" for values in each.values())]
        for name, each in results.items()
    ]
    show(
        f"Tables as they come: accuracy, or R^2, in % of the test part after {options.epochs} epochs, "
        f"mean of {options.seeds} seeds",
        ["table", *contenders],
        rows,
    )
    finish("tables", options, results)


if __name__ == "__main__":
    main()
