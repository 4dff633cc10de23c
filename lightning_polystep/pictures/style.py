"""What all pictures share: size, colours that are told apart by everyone, and how a picture becomes a file."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's, which are told apart with any colour vision, and on white and on black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
INK, PALE = "#333333", "#999999"

# How wide an axes is, and how high, in inches.
WIDTH, HEIGHT = 3.6, 2.4


def new_figure(
    count: int, *, columns: int = 3, width: float = WIDTH, height: float = HEIGHT
) -> tuple[Figure, list[Axes]]:
    """Return a figure with so many axes side by side, in rows.

    Args:
        count: Axes.
        columns: At most so many in a row.
        width: Of each.
        height: Of each.

    Raises:
        ModuleNotFoundError: Without matplotlib: ``pip install "lightning-polystep[pictures]"``.

    Example:
        >>> figure, axes = new_figure(4)
        >>> len(axes)
        4
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - only pictures need it

    columns = max(1, min(columns, count))
    rows = max(1, -(-count // columns))
    # No pyplot: it would keep every figure, and choose a window.
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in axes[count:]:
        spare.axis("off")
    for each in axes[:count]:
        plain(each)
    return figure, axes[:count]


def plain(axes: Axes) -> None:
    """Draw thin lines where needed, and nothing else."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(PALE)
    axes.tick_params(colors=INK, labelsize=8)


def name_axes(axes: Axes, x: str, y: str, title: str = "") -> None:
    """Name what the axes show."""
    axes.set_xlabel(x, fontsize=8, color=INK)
    axes.set_ylabel(y, fontsize=8, color=INK)
    if title:
        axes.set_title(title, fontsize=9, color=INK)


def png_of(figure: Figure, dpi: int = 120) -> bytes:
    """Return a figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def svg_of(figure: Figure, salt: str, variables: Sequence[tuple[str, str]] = ()) -> str:
    """Return a figure as an ``<svg>`` to be part of a page, with text as text and without a background.

    Args:
        figure: The figure.
        salt: Of the names inside, which have to differ from those of other figures of the page.
        variables: Colours and what stands for each in the page, as ``("#333333", "currentColor")``.
    """
    import matplotlib as mpl  # noqa: PLC0415 - only pictures need it

    buffer = io.StringIO()
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": salt, "font.family": "sans-serif"}
    with mpl.rc_context(settings):
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(
        r'(<svg [^>]*?)width="[^"]*" ?', r"\1", re.sub(r'(<svg [^>]*?)height="[^"]*" ?', r"\1", text, count=1), count=1
    )
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # nothing refers to groups, and other figures have the same
    for colour, variable in variables:
        text = text.replace(colour, variable)
    return text
