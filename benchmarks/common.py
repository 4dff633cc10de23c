"""What the benchmarks share: arguments, data, the task, and how results are shown.

Every benchmark prints a table for people and, as the last line of standard output, one JSON object for programs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from datamodules import MNIST, TensorImages
from lightning_polystep.__about__ import __version__

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Batch = tuple[Tensor, Tensor]

REPOSITORY = Path(__file__).resolve().parent.parent
_PACKAGES = ("torch", "pytorch-lightning", "numba", "numpy", "polystep")
_CLASSES = 10

# Moments of inputs are taken at every fifth step, and a basis that follows spikes is refreshed at about every tenth:
# only a multiple of this sees the average step.
REFRESH = 10
# One colour per contender in every picture, told apart also by those who see few colours.
COLOURS = {"ours": "#0072B2", "surrogate": "#D55E00", "peer": "#009E73"}


def make_parser(document: str | None) -> argparse.ArgumentParser:
    """Return a parser with the arguments that every benchmark takes.

    Args:
        document: Docstring of the benchmark, shown by ``--help``.
    """
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a picture (.png, .svg or .pdf)")
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it runs; no number counts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch and numba, for all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--data-root",
        type=Path,
        default=REPOSITORY.parent / "shared" / "data",
        help="folder with MNIST/raw (default: ../shared/data beside the repository)",
    )
    return parser


def prepare(options: argparse.Namespace) -> None:
    """Set threads and seed, the same for all contenders; numba's kernels follow torch's threads."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)


class Task(nn.Module):
    """A network with its loss, as an engine recognises it.

    Args:
        network: From images to scores.
        criterion: From scores and labels to a loss; cross-entropy unless given.
    """

    def __init__(self, network: nn.Module, criterion: nn.Module | None = None) -> None:
        super().__init__()
        self.network = network
        self.criterion = criterion or nn.CrossEntropyLoss()

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss."""
        loss: Tensor = self.criterion(self.network(images), labels)
        return loss


@dataclass(frozen=True)
class Images:
    """Training images.

    Args:
        train: The images with their labels.
        source: What they are, for the record.
    """

    train: TensorImages
    source: str

    def batches(self, size: int, count: int, seed: int) -> list[Batch]:
        """Draw batches without looking at how they will be used.

        Args:
            size: Images per batch.
            count: Batches.
            seed: Of the draw.
        """
        draw = torch.Generator().manual_seed(seed)
        return [self.train.__getitems__(_draw(len(self.train), size, draw)) for _ in range(count)]


def _draw(images: int, size: int, draw: torch.Generator) -> list[int]:
    chosen: list[int] = torch.randint(images, (size,), generator=draw).tolist()
    return chosen


def load_images(options: argparse.Namespace) -> Images:
    """Return MNIST's training images; where they are missing, random ones, and say so in the record.

    Args:
        options: Of the command line; with ``quick`` the images are random and have 8 x 8 pixels.
    """
    if options.quick:
        return _noise(8, options.seed, "random noise of 8 x 8 pixels, because of --quick")
    if not (options.data_root / "MNIST" / "raw").is_dir():
        return _noise(28, options.seed, "random noise, because MNIST is not in --data-root")
    data = MNIST(options.data_root)
    data.setup("fit")
    return Images(data.train_set, "MNIST")


def _noise(side: int, seed: int, source: str) -> Images:
    draw = torch.Generator().manual_seed(seed)
    images = torch.rand(4096, 1, side, side, generator=draw)
    return Images(TensorImages(images, torch.randint(_CLASSES, (4096,), generator=draw)), source)


def median_and_spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, lowest and highest.

    Example:
        >>> median_and_spread([3.0, 1.0, 2.0])
        {'median': 2.0, 'low': 1.0, 'high': 3.0}
    """
    middle = torch.tensor(values, dtype=torch.float64).quantile(0.5)
    return {"median": float(middle), "low": min(values), "high": max(values)}


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> None:
    """Print a table to standard output: names to the left, numbers to the right.

    Args:
        title: Above it.
        columns: Their heads; the first is of names.
        rows: Their cells.
        notes: Sentences below it.
    """
    table = Table(title=title, title_justify="left", caption="\n".join(notes) or None, caption_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console.width = 120
    console.print(table)


def finish(name: str, options: argparse.Namespace, results: Mapping[str, Any], *, seeds: Sequence[int] = ()) -> None:
    """Print the record, one JSON object on one line: the last line of standard output.

    Args:
        name: Of the benchmark.
        options: Its arguments; all but paths are recorded.
        results: What it found.
        seeds: Seeds of its runs, if there is more than ``options.seed``.
    """
    settings = {key: value for key, value in vars(options).items() if not isinstance(value, Path)}
    record = {
        "benchmark": name,
        "versions": {"python": platform.python_version(), "lightning-polystep": __version__, **_versions()},
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "threads": options.threads,
        "seeds": list(seeds) or [options.seed],
        "settings": settings,
        "results": results,
    }
    print(json.dumps(record))


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def new_picture(columns: int = 1, height: float = 4.2) -> tuple[Figure, list[Axes]]:
    """Return a figure and its axes, side by side, with a light grid.

    Args:
        columns: Axes.
        height: Inches.

    Raises:
        ModuleNotFoundError: Without matplotlib, saying how to install it.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - only pictures need it
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('--plot needs matplotlib: pip install -e ".[bench]"') from error
    figure = Figure(figsize=(2.4 + 4.6 * columns, height), layout="constrained")
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for axis in axes:
        axis.grid(True, which="major", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save_picture(figure: Figure, path: Path) -> None:
    """Write a figure; the folder is made when missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
