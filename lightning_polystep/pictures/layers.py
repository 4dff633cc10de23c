"""Pictures of what hard layers do: spikes, membranes, loads, choices, and outcomes that flip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from lightning_polystep.pictures.style import COLOURS, INK, PALE, name_axes, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TICKED = 40


def spike_raster(spikes: Mapping[str, Tensor]) -> Figure:
    """Draw the spikes of one sample, a layer to an axes: a mark where a neuron fires.

    Args:
        spikes: By layer, ``(T, neurons)``.

    Example:
        >>> import torch
        >>> figure = spike_raster({"hidden": torch.eye(5)})
        >>> len(figure.axes)
        1
    """
    figure, all_axes = new_figure(len(spikes))
    for axes, (name, train) in zip(all_axes, spikes.items(), strict=True):
        steps, neurons = np.nonzero(train.flatten(1).cpu().numpy() > 0)
        # As high as a neuron's row, so that neighbours touch and do not overlap.
        rows = train[0].numel()
        axes.scatter(
            steps + 1, neurons, marker="|", s=max(2.0, min(120.0, 5000 / max(rows, 1))), color=COLOURS[0], linewidths=1
        )
        axes.set(xlim=(0.5, len(train) + 0.5), ylim=(-0.5, rows - 0.5))
        name_axes(axes, "step", "neuron", f"{name}: {len(steps):,} spikes")
    return figure


def spike_rates(rates: Mapping[str, Tensor]) -> Figure:
    """Draw how often neurons fire, a layer to an axes, and say how many never do, and how many always.

    Args:
        rates: By layer, each neuron's share of steps with a spike, ``(neurons,)``.

    Example:
        >>> import torch
        >>> spike_rates({"hidden": torch.tensor([0.0, 0.2, 1.0])}).axes[0].get_title()
        'hidden: mean 0.40, 1 silent, 1 always'
    """
    figure, all_axes = new_figure(len(rates))
    for axes, (name, rate) in zip(all_axes, rates.items(), strict=True):
        values = rate.flatten().cpu().numpy()
        axes.hist(values, bins=20, range=(0, 1), color=COLOURS[0])
        silent, always = int((values == 0).sum()), int((values == 1).sum())
        name_axes(
            axes, "spikes per step", "neurons", f"{name}: mean {values.mean():.2f}, {silent} silent, {always} always"
        )
    return figure


def membrane_traces(membranes: Mapping[str, Tensor], thresholds: Mapping[str, Tensor]) -> Figure:
    """Draw the membranes of a few neurons for one sample, after the reset of each step, and their threshold.

    Args:
        membranes: By layer, ``(T, neurons)``; a few neurons are enough.
        thresholds: By layer, ``()`` or ``(neurons,)``.

    Example:
        >>> import torch
        >>> figure = membrane_traces({"hidden": torch.rand(5, 3)}, {"hidden": torch.tensor(1.0)})
        >>> len(figure.axes[0].lines)
        4
    """
    figure, all_axes = new_figure(len(membranes))
    for axes, (name, traces) in zip(all_axes, membranes.items(), strict=True):
        steps = np.arange(1, len(traces) + 1)
        for place, trace in enumerate(traces.flatten(1).T.cpu().numpy()):
            axes.plot(steps, trace, color=COLOURS[place % len(COLOURS)], linewidth=1.2)
        level = thresholds[name].flatten()
        if level.unique().numel() == 1:
            axes.axhline(float(level[0]), color=PALE, linewidth=1, linestyle="--")
        name_axes(axes, "step", "membrane", f"{name} (dashed: threshold)")
    return figure


def loads(counts: Mapping[str, Tensor], what: str) -> Figure:
    """Draw how many samples go where: to each expert of a mixture, to each slot of an attention.

    Args:
        counts: By layer, ``(experts,)``.
        what: What they are, in the singular.

    Example:
        >>> import torch
        >>> loads({"mixture": torch.tensor([3, 1, 0])}, "expert").axes[0].get_title()
        'mixture: 1 of 3 without a sample'
    """
    figure, all_axes = new_figure(len(counts))
    for axes, (name, count) in zip(all_axes, counts.items(), strict=True):
        values = count.cpu().numpy()
        axes.bar(np.arange(len(values)), values, color=COLOURS[0])
        axes.axhline(values.mean(), color=PALE, linewidth=1, linestyle="--")
        if len(values) <= _TICKED:
            axes.set_xticks(np.arange(len(values)))
        name_axes(axes, what, "samples", f"{name}: {int((values == 0).sum())} of {len(values)} without a sample")
    return figure


def attention_choices(shares: Mapping[str, Tensor]) -> Figure:
    """Draw which key each query takes: the share of samples and heads in which it does.

    Args:
        shares: By layer, ``(queries, keys)``.

    Example:
        >>> import torch
        >>> len(attention_choices({"attention": torch.eye(4)}).axes)
        2
    """
    figure, all_axes = new_figure(len(shares))
    for axes, (name, share) in zip(all_axes, shares.items(), strict=True):
        image = axes.imshow(share.cpu().numpy(), vmin=0, vmax=1, cmap="cividis", aspect="auto", interpolation="nearest")
        figure.colorbar(image, ax=axes).ax.tick_params(labelsize=7, colors=INK)
        name_axes(axes, "key", "query", f"{name}: share of samples and heads")
    return figure


def flips(steps: Sequence[int], shares: Mapping[str, Sequence[float]]) -> Figure:
    """Draw which share of each layer's outcomes (spikes, codes, signs, choices) was another one than the time before.

    Args:
        steps: When they were looked at, from the second time on.
        shares: By layer, one for each of these.

    Example:
        >>> len(flips([20, 40], {"0": [0.1, 0.05], "2": [0.2, 0.1]}).axes[0].lines)
        2
    """
    figure, (axes,) = new_figure(1, width=6.4, height=3.2)
    for place, (name, values) in enumerate(shares.items()):
        axes.plot(steps, values, color=COLOURS[place % len(COLOURS)], marker=".", linewidth=1.2, label=name)
    axes.set_ylim(bottom=0)
    name_axes(axes, "step", "share of outcomes", "outcomes that differ from the last time, on the same batch")
    if 0 < len(shares) <= _TICKED:
        axes.legend(fontsize=7, frameon=False)
    return figure
