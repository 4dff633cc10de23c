"""The figures of a report: which logged names belong into one picture, and the pictures as SVG."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lightning_polystep.pictures.style import COLOURS, INK, PALE, name_axes, new_figure, svg_of
from lightning_polystep.report.run import Series

# Colours of the page, which has others in the dark.
VARIABLES = [
    (INK, "currentColor"),
    (PALE, "var(--pale)"),
    *((colour, f"var(--c{place})") for place, colour in enumerate(COLOURS)),
]
_STAGES = ("train", "val", "valid", "validation", "test")
_MOST_LINES = len(COLOURS)


def groups(series: Mapping[str, Series]) -> dict[str, dict[str, Series]]:
    """Put what is logged into pictures: stages of one figure together and first, figures of PolyStep each by itself.

    Args:
        series: By name, as ``train/loss``, ``polystep/flat_rows`` or ``val/spike_rate/network.2``.

    Returns:
        By the title of a picture, its lines by their labels. Figures of single layers are left to the table of layers.

    Example:
        >>> made = groups({name: Series([1], [0.5]) for name in ("train/loss", "val/loss", "polystep/flat_rows")})
        >>> {title: list(lines) for title, lines in made.items()}
        {'loss': ['train', 'val'], 'PolyStep: flat rows': ['']}
    """
    found: dict[str, dict[str, Series]] = {}
    for name, each in sorted(series.items()):
        stage, _, rest = name.partition("/")
        if stage == "polystep":
            figure, _, block = rest.partition("/")
            found.setdefault(f"PolyStep: {figure.replace('_', ' ')}", {})[block] = each
        elif stage in _STAGES and rest and "/" not in rest:
            found.setdefault(rest.replace("_", " "), {})[stage] = each
        elif flat := re.fullmatch(rf"({'|'.join(_STAGES)})_(\w+)", name):
            found.setdefault(flat[2].replace("_", " "), {})[flat[1]] = each
        elif stage not in _STAGES:
            found.setdefault(name, {})[""] = each
    return dict(sorted(found.items(), key=lambda group: (not set(group[1]) & set(_STAGES), group[0])))


def curve(title: str, lines: Mapping[str, Series]) -> str:
    """Draw a picture of figures over time, as SVG.

    Args:
        title: Of the picture.
        lines: By label; at most six are drawn, and the title says so.
    """
    figure, (axes,) = new_figure(1, width=4.4, height=2.6)
    drawn = list(lines.items())[:_MOST_LINES]
    for place, (label, each) in enumerate(drawn):
        marker = "o" if len(each.steps) < 3 else None
        axes.plot(
            each.steps, each.values, color=COLOURS[place], linewidth=1.4, marker=marker, markersize=4, label=label
        )
    if any(label for label, _ in drawn):
        axes.legend(fontsize=8, frameon=False, labelcolor=INK)
    left_out = len(lines) - len(drawn)
    name_axes(axes, "step", "", title + (f" ({left_out} more not drawn)" if left_out else ""))
    return svg_of(figure, f"curve {title}", VARIABLES)


def bars(title: str, seconds: Mapping[str, float]) -> str:
    """Draw where the time of a run went, as SVG.

    Args:
        title: Of the picture.
        seconds: By what they were spent on.
    """
    figure, (axes,) = new_figure(1, width=5.6, height=0.6 + 0.32 * len(seconds))
    names: Sequence[str] = list(seconds)[::-1]
    values = [seconds[name] for name in names]
    axes.barh(range(len(names)), values, color=COLOURS[0])
    axes.set_yticks(range(len(names)), names)
    total = sum(values) or 1.0
    for place, value in enumerate(values):
        axes.text(value, place, f" {value:.2f} s ({100 * value / total:.0f} %)", va="center", fontsize=8, color=INK)
    axes.set_xlim(right=1.35 * max([*values, 1e-9]))
    name_axes(axes, "seconds", "", title)
    return svg_of(figure, f"bars {title}", VARIABLES)
