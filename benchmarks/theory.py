"""How fast PolyStep becomes stationary where that is known: ``python -m benchmarks.theory [--plot FILE]``.

Sums of one-dimensional functions, turned at random, so that no particle sees them one by one:

* bent: x^2 / 2 + max(0, |x| - 1), smooth at its one stationary point, with kinks on the way.
* sharp: |x| + x^2 / 2, a kink at its one stationary point.
* wells: |x^2 - 1|, not convex; each x is stationary at -1, 0 and 1.
* stairs: ceil(4 |x|) / 4, constant almost everywhere: hitting times of its lowest level, by probe radius.

The stationarity gap of a point is the smallest delta for which 0 lies within delta of the generalised gradients of the
loss within delta of the point (Goldstein): about the norm of the gradient where the loss is smooth, and the distance
from the kink at a minimum that is one. Of a run the smallest gap so far counts. Prints a table, then one line of JSON;
docs/theory.md says what the paper proves and what is only measured here.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import finish, make_parser, new_picture, prepare, save_picture, show
from lightning_polystep import Engine, PolyStep

_DIM = 8
_STAIR = 0.25


@dataclass(frozen=True)
class Piecewise:
    """A function of one variable whose derivative is linear between breakpoints.

    Args:
        value: The function itself, of a tensor.
        breaks: Where the derivative jumps or bends, ascending.
        slopes: Of the derivative on each piece, one more than breakpoints.
        offsets: Likewise: the derivative is slope x + offset.
    """

    value: Callable[[Tensor], Tensor]
    breaks: tuple[float, ...]
    slopes: tuple[float, ...]
    offsets: tuple[float, ...]

    def derivatives(self, x: Tensor, delta: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return the least and the largest derivative within delta of each x.

        Args:
            x: Any shape.
            delta: At least 0, of a shape that goes with it; at a breakpoint both sides count even at 0.

        Example:
            >>> low, high = PROBLEMS["sharp"].derivatives(torch.tensor([0.0, 2.0]), 0.5)
            >>> low.tolist(), high.tolist()
            ([-1.5, 2.5], [1.5, 3.5])
        """
        ends = (-math.inf, *self.breaks, math.inf)
        low, high = torch.full_like(x, math.inf), torch.full_like(x, -math.inf)
        for left, right, slope, offset in zip(ends[:-1], ends[1:], self.slopes, self.offsets, strict=True):
            first, last = (x - delta).clamp(min=left), (x + delta).clamp(max=right)
            for end in (first, last):
                derivative = slope * end + offset
                low = torch.where(first <= last, torch.minimum(low, derivative), low)
                high = torch.where(first <= last, torch.maximum(high, derivative), high)
        return low, high

    def gaps(self, points: Tensor) -> Tensor:
        """Return, for each point, the smallest delta for which 0 is within delta of the derivatives within delta.

        Args:
            points: Their coordinates, shape (n, d).

        Returns:
            Shape (n,).

        Example:
            >>> [round(float(PROBLEMS[name].gaps(torch.tensor([[0.5]]))), 3) for name in ("sharp", "bent")]
            [0.5, 0.25]
        """
        below = points.new_zeros(len(points), 1)
        above = self._least(points, below).maximum(below)  # derivatives within more are no farther from 0
        for _ in range(50):
            middle = (below + above) / 2
            too_small = self._least(points, middle) > middle
            below, above = torch.where(too_small, middle, below), torch.where(too_small, above, middle)
        return above[:, 0]

    def _least(self, points: Tensor, delta: Tensor) -> Tensor:
        """Return how far 0 is from all derivatives within delta, shape (n, 1)."""
        low, high = self.derivatives(points, delta)
        return torch.maximum(low, -high).clamp(min=0.0).norm(dim=1, keepdim=True)


PROBLEMS = {
    "bent": Piecewise(
        lambda x: x.square() / 2 + (x.abs() - 1).clamp(min=0), (-1.0, 1.0), (1.0, 1.0, 1.0), (-1.0, 0.0, 1.0)
    ),
    "sharp": Piecewise(lambda x: x.abs() + x.square() / 2, (0.0,), (1.0, 1.0), (-1.0, 1.0)),
    "wells": Piecewise(lambda x: (x.square() - 1).abs(), (-1.0, 1.0), (2.0, -2.0, 2.0), (0.0, 0.0, 0.0)),
}


def stairs(x: Tensor) -> Tensor:
    """Return ceil(4 |x|) / 4: constant on intervals of 1/4."""
    return _STAIR * (x.abs() / _STAIR).ceil()


class Turned(nn.Module):
    """A loss of d parameters: the sum of a function over their coordinates in a random orthogonal basis.

    Args:
        function: Of coordinates.
        seed: Of the basis and of where the parameters start.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], seed: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.function = function
        basis = torch.linalg.qr(torch.randn(_DIM, _DIM, generator=draw, dtype=torch.float64)).Q
        self.register_buffer("basis", basis)
        start = torch.randn(_DIM, generator=draw, dtype=torch.float64)
        self.theta = nn.Parameter(start)

    def coordinates(self, theta: Tensor) -> Tensor:
        """Return the coordinates of parameters, (..., d)."""
        return theta @ self.get_buffer("basis")

    def forward(self) -> Tensor:
        """Return the loss."""
        return self.function(self.coordinates(self.theta)).sum()

    def evaluate_many(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the losses of candidates, (K,)."""
        return self.function(self.coordinates(parameters["theta"])).sum(-1)


@dataclass(frozen=True)
class Setting:
    """A way of stepping.

    Args:
        decays: Whether both radii fall as 1 / sqrt(t).
        options: Of PolyStep.
    """

    decays: bool
    options: Mapping[str, Any]


_PLAIN = {"subspace": "full", "particle_dim": _DIM, "rank": _DIM, "lr": 1.0, "probe_radius": 0.3}
SETTINGS = {
    "decaying radii, no momentum": Setting(True, {**_PLAIN, "momentum": 0.0}),
    "decaying radii, momentum 0.8": Setting(True, _PLAIN),
    "decaying radii, sampled vertex": Setting(True, {**_PLAIN, "momentum": 0.0, "transport": "sample"}),
    "constant radii, momentum 0.8": Setting(False, {**_PLAIN, "lr": 0.1}),
}


def path(problem: Turned, setting: Setting, steps: int, seed: int) -> list[Tensor]:
    """Return the coordinates after every step, from the start on.

    Args:
        problem: The loss; its parameters move.
        setting: How.
        steps: How many.
        seed: Of the optimizer.
    """
    optimizer = PolyStep(problem.parameters(), seed=seed, **setting.options)
    engine = Engine(problem, optimizer, announce=None)
    (group,) = optimizer.param_groups
    first = {name: group[name] for name in ("lr", "probe_radius")}
    points = [problem.coordinates(problem.theta.detach().clone())]
    for step in range(steps):
        if setting.decays:
            group.update({name: value / math.sqrt(step + 1) for name, value in first.items()})
        engine.step(problem)
        points.append(problem.coordinates(problem.theta.detach().clone()))
    return points


def ticks(steps: int) -> list[int]:
    """Return the steps at which gaps are taken, about eight for each factor of ten, from 4 on.

    Example:
        >>> ticks(16)
        [4, 5, 6, 8, 10, 13, 16]
    """
    count = max(1, round(8 * math.log10(steps / 4)) + 1)
    return sorted({round(4 * (steps / 4) ** (index / count)) for index in range(count + 1)})


def slope(times: Sequence[int], gaps: Sequence[float]) -> float:
    """Return the exponent p of gap = c T^p, by least squares over the second half of the ticks; gaps above 0 count.

    Example:
        >>> round(slope([1, 10, 100, 1000], [1.0, 0.1, 0.01, 0.001]), 6)
        -1.0
    """
    half = len(times) // 2
    pairs = [(math.log(t), math.log(gap)) for t, gap in zip(times[half:], gaps[half:], strict=True) if gap > 0]
    if len(pairs) < 2:
        return math.nan
    centre = [statistics.fmean(column) for column in zip(*pairs, strict=True)]
    along = sum((t - centre[0]) ** 2 for t, _ in pairs)
    return sum((t - centre[0]) * (gap - centre[1]) for t, gap in pairs) / along


def measure_gaps(steps: int, seeds: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Return, for each problem and setting, the median over seeds of the smallest gap so far, and its exponent.

    Args:
        steps: Of each run.
        seeds: Of problems and optimizers.
    """
    times, results = ticks(steps), dict[str, dict[str, Any]]()
    for name, function in PROBLEMS.items():
        results[name] = {}
        for label, setting in SETTINGS.items():
            runs = []
            for seed in seeds:
                points = torch.stack(path(Turned(function.value, seed), setting, steps, seed))
                least = function.gaps(points).cummin(0).values
                runs.append([float(least[time]) for time in times])
            medians = [statistics.median(column) for column in zip(*runs, strict=True)]
            results[name][label] = {"times": times, "gaps": medians, "exponent": slope(times, medians)}
    return results


def measure_hitting(steps: int, seeds: Sequence[int], ratios: Sequence[float]) -> list[dict[str, Any]]:
    """Return when runs first reach a loss of half a stair per coordinate or less, by probe radius.

    Args:
        steps: The most that a run makes.
        seeds: Of problems and optimizers.
        ratios: Probe radii as multiples of the width of a stair.
    """
    rows = []
    level = _DIM * _STAIR * 1.5
    for ratio in ratios:
        setting = Setting(False, {**_PLAIN, "lr": 0.1, "momentum": 0.0, "probe_radius": ratio * _STAIR})
        hits = []
        for seed in seeds:
            points = path(Turned(stairs, seed), setting, steps, seed)
            losses = (float(stairs(point).sum()) for point in points)
            hits.append(next((step for step, loss in enumerate(losses) if loss <= level), None))
        reached = sorted(hit for hit in hits if hit is not None)
        median = statistics.median(reached) if len(reached) == len(hits) else None
        rows.append({"ratio": ratio, "reached": len(reached), "runs": len(hits), "median": median})
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print.

    Args:
        arguments: Those of the command line by default.
    """
    parser = make_parser(__doc__)
    parser.add_argument("--steps", type=int, default=1000, help="of each run")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each setting")
    options = parser.parse_args(arguments)
    prepare(options)
    steps, seeds = (
        (24, [options.seed]) if options.quick else (options.steps, range(options.seed, options.seed + options.seeds))
    )
    gaps = measure_gaps(steps, list(seeds))
    hitting = measure_hitting(
        steps if options.quick else min(steps, 300), list(seeds), (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
    )
    last = ticks(steps)[-1]
    rows = [
        [f"{name}: {label}", f"{run['gaps'][0]:.2g}", f"{run['gaps'][-1]:.2g}", f"{run['exponent']:.2f}"]
        for name, runs in gaps.items()
        for label, run in runs.items()
    ]
    show(
        "Smallest stationarity gap so far, median over seeds",
        ["problem: setting", "after 4 steps", f"after {last}", "exponent of T"],
        rows,
        [f"log T / sqrt T falls as T^{slope(ticks(steps), [rate(t) for t in ticks(steps)]):.2f} over the same steps"],
    )
    show(
        "Stairs: steps until the loss is at most one and a half stairs per coordinate",
        ["probe radius / width of a stair", "reached", "median step"],
        [
            [
                f"{row['ratio']:g}",
                f"{row['reached']} of {row['runs']}",
                "-" if row["median"] is None else f"{row['median']:g}",
            ]
            for row in hitting
        ],
    )
    if options.plot is not None:
        draw(options, gaps, hitting)
    finish("theory", options, {"gaps": gaps, "hitting": hitting}, seeds=list(seeds))


def rate(steps: int) -> float:
    """Return log T / sqrt T."""
    return math.log(steps) / math.sqrt(steps)


def draw(options: Any, gaps: Mapping[str, Mapping[str, Any]], hitting: Sequence[Mapping[str, Any]]) -> None:
    """Write the picture: a panel for each problem, and one of hitting times.

    Args:
        options: Of the command line.
        gaps: What :func:`measure_gaps` returned.
        hitting: What :func:`measure_hitting` returned.
    """
    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
    figure, axes = new_picture(len(gaps) + 1, height=3.6)
    for axis, (name, runs) in zip(axes, gaps.items(), strict=False):
        for colour, (label, run) in zip(colours, runs.items(), strict=True):
            shown = [(time, gap) for time, gap in zip(run["times"], run["gaps"], strict=True) if gap > 0]
            axis.loglog(*zip(*shown, strict=True), color=colour, label=label)
        first = next(iter(runs.values()))
        scale = first["gaps"][0] / rate(first["times"][0])
        bound = [scale * rate(time) for time in first["times"]]
        axis.loglog(first["times"], bound, "k--", label="c log T / sqrt T, through the first point")
        axis.set(title=name, xlabel="steps T", ylabel="smallest gap so far")
    axes[0].legend(fontsize=7)
    known = [(row["ratio"], row["median"]) for row in hitting if row["median"] is not None]
    if known:
        axes[-1].semilogx(*zip(*known, strict=True), "o-", color=colours[0], base=2)
        axes[-1].set_ylim(bottom=0)
    axes[-1].set(title="stairs", xlabel="probe radius / width of a stair", ylabel="hitting time, steps")
    save_picture(figure, options.plot)


if __name__ == "__main__":
    main()
