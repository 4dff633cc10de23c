"""Pictures of what PolyStep does: the costs around a row, its polytope, and figures of steps over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_polystep.pictures.style import COLOURS, INK, PALE, name_axes, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class RowStep:
    r"""What one row of a block was asked in a step, and where it went.

    Args:
        name: Of the block and the row.
        displacements: :math:`r\, B R v` of its candidates, shape (V, D).
        costs: C, their losses, shape (V,).
        incumbent: The loss of the row as it is; None if unknown.
        weights: W, shape (V,); they sum to the number of particles in the row.
        barycentre: :math:`\sum_v W_v\, r\, B R v` over all particles of the row, shape (D,).
        move: :math:`\Delta` times the step radius: the move that the step asks for, before momentum, shape (D,).
    """

    name: str
    displacements: Tensor
    costs: Tensor
    incumbent: float | None
    weights: Tensor
    barycentre: Tensor
    move: Tensor


def cost_landscape(row: RowStep) -> Figure:
    """Draw the costs of a row's candidates, the dearest weighted ones largest, along the direction of its move.

    Args:
        row: The row.

    Example:
        >>> figure = cost_landscape(_example())
        >>> figure.axes[0].get_xlabel()
        'displacement along the move'
    """
    figure, (axes, ranked) = new_figure(2, width=4.6, height=3.2)
    length = row.move.norm()
    along = (row.displacements @ (row.move / length if length else row.move)).numpy()
    share = (row.weights / row.weights.max()).numpy()
    axes.scatter(
        along, row.costs.numpy(), s=6 + 60 * share, color=COLOURS[0], alpha=0.6, linewidths=0, label="candidates"
    )
    for value, colour, style, name in (
        (float(row.barycentre @ row.move / length) if length else 0.0, COLOURS[1], "-", "barycentre"),
        (float(length), COLOURS[2], "--", "move"),
    ):
        axes.axvline(value, color=colour, linewidth=1.2, linestyle=style, label=name)
    if row.incumbent is not None:
        axes.axhline(row.incumbent, color=PALE, linewidth=1, linestyle=":", label="loss as it is")
    axes.legend(fontsize=7, frameon=False)
    name_axes(axes, "displacement along the move", "loss", row.name)
    order = row.costs.argsort()
    ranked.bar(range(len(order)), row.weights[order].numpy(), color=COLOURS[0], width=1.0)
    name_axes(ranked, "candidates, cheapest first", "weight", f"effective vertices: {effective(row.weights):.1f}")
    return figure


def polytope(row: RowStep) -> Figure:
    """Draw a row's candidates in a plane, their costs as colours, the barycentre and the move.

    The plane is spanned by the move and the direction in which the candidates, without it, spread most.

    Args:
        row: The row.

    Example:
        >>> len(polytope(_example()).axes)  # the plane and its bar of colours
        2
    """
    first, second = _plane(row)
    figure, (axes,) = new_figure(1, width=4.6, height=4.0)
    places = torch.stack([row.displacements @ first, row.displacements @ second]).numpy()
    drawn = axes.scatter(places[0], places[1], c=row.costs.numpy(), cmap="cividis", s=28, linewidths=0)
    bar = figure.colorbar(drawn, ax=axes)
    bar.set_label("loss", fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=7, colors=INK)
    axes.scatter([0], [0], marker="+", s=80, color=INK, label="the row as it is")
    for vector, marker, colour, name in (
        (row.barycentre, "o", COLOURS[1], "barycentre"),
        (row.move, "^", COLOURS[2], "move"),
    ):
        axes.scatter([float(vector @ first)], [float(vector @ second)], marker=marker, s=50, color=colour, label=name)
    axes.set_aspect("equal", adjustable="datalim")
    axes.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
    name_axes(axes, "along the move", "across", row.name)
    return figure


def history(steps: Sequence[int], figures: Mapping[str, Sequence[float]]) -> Figure:
    """Draw figures of the steps over time, an axes for each.

    Args:
        steps: When.
        figures: By name, one for each step: effective vertices, flat rows, spread of the costs, length of the move.

    Example:
        >>> len(history([1, 2], {"flat_rows": [0.5, 0.1], "effective_vertices": [90.0, 70.0]}).axes)
        2
    """
    figure, all_axes = new_figure(len(figures), columns=2, width=4.6)
    for axes, (name, values) in zip(all_axes, figures.items(), strict=True):
        axes.plot(steps, values, color=COLOURS[0], linewidth=1)
        name_axes(axes, "step", name.replace("_", " "))
    return figure


def effective(weights: Tensor) -> float:
    """Return exp(entropy) of weights: how many candidates have a say.

    Args:
        weights: Not below 0, shape (V,); scaled to sum to 1.

    Example:
        >>> round(effective(torch.tensor([1.0, 1.0, 0.0])), 6)
        2.0
    """
    share = weights.double() / weights.sum()
    return float((-torch.special.xlogy(share, share).sum()).exp())


def _plane(row: RowStep) -> tuple[Tensor, Tensor]:
    """Return two orthonormal directions, shape (D,) each."""
    length = row.move.norm()
    start = row.move if length else row.displacements[0]
    first = start / start.norm().clamp(min=1e-30)
    across = row.displacements - (row.displacements @ first)[:, None] * first
    _, sizes, directions = torch.linalg.svd(across, full_matrices=False)
    second = directions[0] if float(sizes[0]) else torch.zeros_like(first)
    return first, second


def _example() -> RowStep:
    points = torch.cat([torch.eye(3), -torch.eye(3)])
    weights = torch.softmax(-points[:, 0], 0)
    centre = weights @ points
    return RowStep("a row", points, points[:, 0], 0.0, weights, centre, 3**0.5 * centre)
