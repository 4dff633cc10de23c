"""Draw docs/step.png, one step of PolyStep in two dimensions: ``python scripts/draw_step.py``.

The loss is the share of points that one hard unit puts on the wrong side: flat almost everywhere. All numbers in the
picture are computed by the package.
"""

from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lightning_polystep.polytopes import orthoplex
from lightning_polystep.transport import softmax_transport

mpl.use("agg")

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "step.png"
PROBE_RADIUS, STEP_RADIUS, EPSILON = 0.7, 0.7, 2.0
START = (-0.75, -0.75)
ORANGE, INK = "#d55e00", "#333333"


def points() -> tuple[Tensor, Tensor]:
    """Return points of two classes, (60, 2), and which class each has."""
    draw = torch.Generator().manual_seed(0)
    classes = torch.arange(60) % 2
    return torch.randn(60, 2, generator=draw) + 1.2 * classes[:, None], classes.bool()


def loss(weights: Tensor) -> Tensor:
    """Return the share of points on the wrong side, in percent, for each pair of weights (..., 2)."""
    x, classes = points()
    return 100 * (((weights @ x.T) > 1) != classes).float().mean(-1)


def one_step(weights: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Propose, score, transport, move.

    Returns:
        The candidates (m, 2), their costs (m,), their weights in the transport (m,), and where the weights go (2,).
    """
    vertices = orthoplex(2).float()
    angle = 2 * torch.pi * torch.rand((), generator=torch.Generator().manual_seed(seed))
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).reshape(2, 2)
    turned = vertices @ turn.T
    costs = loss(weights + PROBE_RADIUS * turned)
    shares = softmax_transport((costs - costs.mean()) / costs.std(correction=0), EPSILON)
    return weights + PROBE_RADIUS * turned, costs, shares, weights + STEP_RADIUS * 2**0.5 * (shares @ turned)


def landscape(axes: Axes, title: str) -> None:
    """Draw the loss in the background."""
    line = torch.linspace(-2.3, 2.3, 300)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
    axes.pcolormesh(line, line, loss(grid), cmap="Blues", vmin=10, vmax=75, rasterized=True)
    axes.set(xticks=[], yticks=[], aspect="equal")
    axes.set_title(title, fontsize=11, color=INK)


def main() -> None:
    """Draw the picture."""
    figure = Figure(figsize=(10, 3.7))
    propose, weigh, move = figure.subplots(1, 3)
    start = torch.tensor(START)
    candidates, costs, shares, moved = one_step(start, seed=5)
    for axes, title in (
        (propose, "1. Try the corners of a polytope"),
        (weigh, "2. Better corners weigh more"),
        (move, "3. Move to their mean, and again"),
    ):
        landscape(axes, title)
        axes.plot(*start, "o", color=INK, markersize=7)
    for axes in (propose, weigh):
        axes.fill(*candidates.T, fill=False, edgecolor=INK, linewidth=1)
    label = {"fontsize": 9, "color": INK, "bbox": {"boxstyle": "round,pad=0.2", "facecolor": "white", "alpha": 0.85}}
    for place, cost, share in zip(candidates, costs, shares, strict=True):
        outward = place + torch.tensor([0.5, 0.36]) * (place - start) / (place - start).norm()
        propose.plot(*place, "o", color=ORANGE, markersize=8)
        propose.text(*outward, f"{cost:.0f} %", ha="center", va="center", **label)
        weigh.plot(*place, "o", color=ORANGE, markersize=4 + 22 * float(share) ** 0.5)
        weigh.text(*outward, f"{share:.2f}", ha="center", va="center", **label)
    weigh.annotate(
        "",
        moved.tolist(),
        START,
        arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 2, "shrinkA": 0, "shrinkB": 0},
    )
    path = [start, moved]
    for step in range(2, 12):
        path.append(one_step(path[-1], seed=step)[3])
    move.plot(*torch.stack(path).T, "-o", color=ORANGE, markersize=5)
    move.text(*(path[-1] - torch.tensor([0.0, 0.45])), f"{loss(path[-1]):.0f} % wrong", ha="center", **label)
    move.text(*(start - torch.tensor([0.0, 0.45])), f"{loss(start):.0f} % wrong", ha="center", **label)
    caption = "Darker blue: more points on the wrong side of one hard unit with these two weights. Each facet is flat."
    figure.text(0.5, 0.03, caption, ha="center", fontsize=9, color=INK)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.1, top=0.92, wspace=0.03)
    figure.savefig(PICTURE, dpi=150, facecolor="white", metadata={"Software": None})


if __name__ == "__main__":
    main()
