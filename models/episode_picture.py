"""A picture of an episode, after the test."""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lightning_polystep.environments import Environment, GymnasiumEnvironment, Policy, record
from models.policy_search import PolicySearch

if TYPE_CHECKING:
    from matplotlib.axes import Axes

State = list[float]

_INK, _ACCENT, _PALE = "#333333", "#0072B2", "#AAAAAA"


class EpisodePicture(pl.Callback):
    """Draw moments of one episode side by side into ``episode.png`` of the run's folder, once the test is over.

    Args:
        moments: How many.
        seed: Of the episode.

    Raises:
        ValueError: If there is not one moment.
    """

    def __init__(self, moments: int = 10, seed: int = 0) -> None:
        if moments < 1:
            raise ValueError(f"EpisodePicture: moments must be at least 1, got {moments}.")
        self.moments = moments
        self.seed = seed

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw, on one process."""
        folder = trainer.log_dir or trainer.default_root_dir  # asked of all processes, because rank 0 tells it
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            if not isinstance(pl_module, PolicySearch):
                rank_zero_warn(f"EpisodePicture draws the episodes of a PolicySearch, and not of {type(pl_module)}.")
                return
            try:
                draw_episode(pl_module, Path(folder) / "episode.png", self.moments, self.seed)
            except ModuleNotFoundError as error:
                rank_zero_warn(
                    f'No picture of an episode, because {error}: pip install "lightning-polystep[examples]".'
                )
            else:
                rank_zero_info(f"Episode: {Path(folder) / 'episode.png'}")


def draw_episode(search: PolicySearch, path: Path, moments: int = 10, seed: int = 0) -> None:
    """Draw an episode of a policy as a strip of moments, evenly spaced from the first to the last.

    Args:
        search: The policy in its environment.
        path: Of the picture; its folder is made when missing.
        moments: How many.
        seed: Of the episode.

    Raises:
        ModuleNotFoundError: Without matplotlib.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - only pictures need it

    figure = Figure(figsize=(1.6 * moments, 1.9), layout="constrained")
    for axes, (step, draw) in zip(
        figure.subplots(1, moments, squeeze=False)[0], _moments(search, moments, seed), strict=True
    ):
        draw(axes)
        axes.set_title(str(step), fontsize=8, color=_INK)
        axes.set_aspect("equal")
        axes.axis("off")
    figure.suptitle(f"{search.environment.name}, {step} steps", fontsize=9, color=_INK)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _moments(search: PolicySearch, moments: int, seed: int) -> "Iterator[tuple[int, Callable[[Axes], Any]]]":
    """Yield the steps of moments, and what draws each: our drawing of the state, or gymnasium's own picture."""
    environment, policy = search.environment, Policy(search.network)
    if isinstance(environment, GymnasiumEnvironment):
        for step, frame in environment.frames(policy, seed, moments):
            yield step, partial(_frame, frame)
    elif isinstance(environment, Environment):
        states, _ = record(environment, policy, seed)
        for step in torch.linspace(0, len(states) - 1, moments).round().long().tolist():
            yield step, partial(_drawn, _DRAWINGS[environment.name], states[step].tolist())


def _drawn(drawing: "Callable[[Axes, State], Any]", state: State, axes: "Axes") -> None:
    drawing(axes, state)


def _frame(frame: Any, axes: "Axes") -> None:
    axes.imshow(frame)


def _cart_pole(axes: "Axes", state: State) -> None:
    x, angle = state[0], state[2]
    axes.plot([-3, 3], [0, 0], color=_PALE, linewidth=1)
    axes.plot([x - 0.4, x + 0.4], [0, 0], color=_INK, linewidth=6, solid_capstyle="butt")
    axes.plot([x, x + 2 * math.sin(angle)], [0, 2 * math.cos(angle)], color=_ACCENT, linewidth=3)
    axes.set(xlim=(-3, 3), ylim=(-0.6, 2.4))


def _acrobot(axes: "Axes", state: State) -> None:
    first, second = state[0], state[0] + state[1]
    x, y = math.sin(first), -math.cos(first)
    axes.plot([-2.2, 2.2], [1, 1], color=_PALE, linewidth=1)
    axes.plot([0, x, x + math.sin(second)], [0, y, y - math.cos(second)], color=_ACCENT, linewidth=3, marker="o")
    axes.set(xlim=(-2.2, 2.2), ylim=(-2.2, 2.2))


def _mountain_car(axes: "Axes", state: State) -> None:
    places = torch.linspace(-1.2, 0.6, 100)
    axes.plot(places, torch.sin(3 * places) / 2, color=_PALE, linewidth=1)
    axes.plot([0.5, 0.5], [0.5, 0.8], color=_INK, linewidth=2)
    axes.plot(state[0], math.sin(3 * state[0]) / 2 + 0.08, color=_ACCENT, marker="o", markersize=8)
    axes.set(xlim=(-1.3, 0.7), ylim=(-0.7, 1.0))


def _pendulum(axes: "Axes", state: State) -> None:
    axes.plot(0, 0, color=_INK, marker="o", markersize=4)
    axes.plot([0, -math.sin(state[0])], [0, math.cos(state[0])], color=_ACCENT, linewidth=4)
    axes.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2))


_DRAWINGS: Mapping[str, Callable[["Axes", State], Any]] = {
    "CartPole-v1": _cart_pole,
    "Acrobot-v1": _acrobot,
    "MountainCar-v0": _mountain_car,
    "MountainCarContinuous-v0": _mountain_car,
    "Pendulum-v1": _pendulum,
}
