"""Any environment of gymnasium through its vector interface: slower than compiled dynamics, but whatever there is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_polystep.environments.policy import Arrays, Policy
from lightning_polystep.environments.protocol import compiled
from lightning_polystep.environments.rollouts import Rollouts, propagate, rollouts

_MISSING = (
    "{} has no compiled dynamics, and gymnasium, which may have it, is not installed: pip install "
    '"lightning-polystep[policies]".'
)
# Episodes of random actions by which the size of observations is found, and what they are drawn by.
_MEASURED_EPISODES = 16
# Environments that step together; each waits for a policy in turn, so more of them gain little.
_MOST_TOGETHER = 64
# Seeds of gymnasium are not negative.
_SEED_MASK = 2**63 - 1


@dataclass(frozen=True)
class GymnasiumEnvironment:
    """An environment that gymnasium makes; :func:`gymnasium_environment` finds out what it is like.

    Args:
        name: As gymnasium registers it.
        options: Of the environment, as ``gymnasium.make`` takes them by name.
        horizon: Steps after which an episode ends.
        threshold: Mean return at which it counts as solved; None where none is registered.
        actions: How many there are to choose from; 0 where an action is numbers.
        lowest: Of each number of an action ...
        highest: ... and its largest value.
        centre: Of each observation, where policies see 0.
        size: Of each observation, what policies see as 1.
        first_action: What the first of the actions is called.
    """

    name: str
    options: tuple[tuple[str, Any], ...]
    horizon: int
    threshold: float | None
    actions: int
    lowest: tuple[float, ...]
    highest: tuple[float, ...]
    centre: tuple[float, ...]
    size: tuple[float, ...]
    first_action: int = 0

    @property
    def observations(self) -> int:
        """How many numbers a policy sees."""
        return len(self.size)

    @property
    def outputs(self) -> int:
        """How many numbers a policy returns: a score for each action, or the numbers of the action."""
        return self.actions or len(self.lowest)

    def frames(self, policy: Policy, seed: int, moments: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Play an episode of the first candidate and give evenly spaced moments of it: their steps, and what is seen.

        Args:
            policy: Its first candidate acts.
            seed: Of the episode.
            moments: How many.
        """
        length = int(rollouts(self, policy, torch.tensor([seed])).steps[0, 0])
        wanted = np.linspace(0, length, moments).round().astype(int).tolist()
        world = _gymnasium(self.name).make(self.name, render_mode="rgb_array", **dict(self.options))
        observation, _ = world.reset(seed=seed & _SEED_MASK)
        arrays, first = policy.arrays(), np.zeros(1, np.int64)
        for step in range(length + 1):
            for _ in range(wanted.count(step)):
                yield step, world.render()
            if step < length:
                observation, *_ = world.step(self._actions(arrays, first, observation.reshape(1, -1))[0])
        world.close()

    def _actions(self, arrays: Arrays, candidates: NDArray[np.int64], observations: NDArray[Any]) -> NDArray[Any]:
        """Return what candidates do, each upon one observation, as gymnasium takes it."""
        seen = (observations.astype(np.float64) - np.asarray(self.centre)) / np.asarray(self.size)
        outputs = np.empty((len(seen), self.outputs))
        _propagate_all(arrays, candidates, seen, outputs)
        if self.actions:
            return outputs.argmax(1) + self.first_action
        low, high = np.asarray(self.lowest), np.asarray(self.highest)
        return ((low + high) / 2 + (high - low) / 2 * outputs.clip(-1.0, 1.0)).astype(np.float32)


def gymnasium_environment(
    name: str,
    options: Mapping[str, Any] | None = None,
    *,
    centre: tuple[float, ...] | None = None,
    size: tuple[float, ...] | None = None,
) -> GymnasiumEnvironment:
    r"""Return an environment of gymnasium for :func:`~lightning_polystep.environments.rollouts`.

    What policies see is :math:`(o_j - m_j) / s_j`. Unless they are given, m and s are mean and standard deviation over
    sixteen episodes of random actions, always the same ones, and s = 1 where an observation never changes.

    Args:
        name: As gymnasium registers it, "LunarLander-v3".
        options: Of the environment, as ``gymnasium.make`` takes them by name.
        centre: Of each observation (m).
        size: Of each observation (s).

    Raises:
        ModuleNotFoundError: Without gymnasium, or without what the environment itself needs.
        ValueError: If gymnasium has no such environment, its observations or actions are not arrays of numbers or
            choices, actions have no bounds, or an episode need not end.

    Example:
        >>> environment = gymnasium_environment("CartPole-v1")
        >>> environment.observations, environment.outputs, environment.horizon, environment.threshold
        (4, 2, 500, 475.0)

    References:
        Towers et al. 2024, "Gymnasium: a standard interface for reinforcement learning environments", arXiv 2407.17032.
    """
    gymnasium = _gymnasium(name)
    chosen = tuple((options or {}).items())
    if ":" not in name and name not in gymnasium.registry:
        raise ValueError(f"gymnasium makes no {name}: names are registered with a version, as CartPole-v1 is.")
    try:
        world = gymnasium.make(name, **dict(chosen))
    except gymnasium.error.DependencyNotInstalled as error:
        raise ModuleNotFoundError(f"{name} needs more than gymnasium: {error}") from error
    except gymnasium.error.Error as error:
        raise ValueError(f"gymnasium makes no {name}: {error}") from error
    seen, action, spaces = world.observation_space, world.action_space, gymnasium.spaces
    if not isinstance(seen, spaces.Box):
        raise ValueError(f"{name}: a policy sees numbers (Box), and this one's observations are {seen}.")
    actions, first, low, high = 0, 0, np.empty(0), np.empty(0)
    if isinstance(action, spaces.Discrete):
        actions, first = int(action.n), int(action.start)
    elif isinstance(action, spaces.Box) and len(action.shape) == 1 and action.is_bounded():
        low, high = action.low, action.high
    else:
        raise ValueError(
            f"{name}: a policy chooses (Discrete) or gives bounded numbers (Box), and this one wants {action}."
        )
    if world.spec is None or world.spec.max_episode_steps is None:
        raise ValueError(f"{name}: an episode need not end: register the environment with max_episode_steps.")
    if centre is None or size is None:
        measured = _measured(world)
        centre, size = centre or measured[0], size or measured[1]
    world.close()
    return GymnasiumEnvironment(
        name=name,
        options=chosen,
        horizon=int(world.spec.max_episode_steps),
        threshold=world.spec.reward_threshold,
        actions=actions,
        lowest=tuple(low.tolist()),
        highest=tuple(high.tolist()),
        centre=centre,
        size=size,
        first_action=first,
    )


@rollouts.register
def _(environment: GymnasiumEnvironment, policy: Policy, seeds: Tensor) -> Rollouts:
    """Play all episodes of all candidates; as soon as one is over, its place is taken by the next."""
    policy.check(environment)
    jobs = list(product(range(policy.candidates), [seed & _SEED_MASK for seed in seeds.tolist()]))
    returns, steps = np.zeros(len(jobs)), np.zeros(len(jobs), np.int64)
    worlds = _worlds(environment.name, environment.options, max(1, min(len(jobs), _MOST_TOGETHER)))
    owners, waiting = np.arange(worlds.num_envs), worlds.num_envs
    arrays = policy.arrays()
    observations, _ = worlds.reset(seed=[seed for _, seed in jobs[: worlds.num_envs]])
    while jobs and bool((owners < len(jobs)).any()):
        # A place for which nothing is left plays on, for nobody.
        candidates = np.array([jobs[owner][0] if owner < len(jobs) else 0 for owner in owners])
        actions = environment._actions(arrays, candidates, observations.reshape(len(owners), -1))
        observations, rewards, terminated, truncated, _ = worlds.step(actions)
        playing = owners < len(jobs)
        returns[owners[playing]] += rewards[playing]
        steps[owners[playing]] += 1
        over = terminated | truncated
        if over.any():
            freed = np.flatnonzero(over)
            owners[freed] = np.arange(waiting, waiting + len(freed))
            waiting += len(freed)
            next_seeds = [jobs[owner][1] if owner < len(jobs) else 0 for owner in owners]
            observations, _ = worlds.reset(seed=next_seeds, options={"reset_mask": over})
    shape = policy.candidates, len(seeds)
    return Rollouts(torch.from_numpy(returns.reshape(shape)), torch.from_numpy(steps.reshape(shape)))


@compiled
def _propagate_all(
    network: Arrays, candidates: NDArray[np.int64], seen: NDArray[np.float64], outputs: NDArray[np.float64]
) -> None:
    now, then = np.empty(network.sizes.max()), np.empty(network.sizes.max())
    for place in range(len(candidates)):
        now[: seen.shape[1]] = seen[place]
        outputs[place] = propagate(network, candidates[place], now, then)[: outputs.shape[1]]


def _gymnasium(name: str) -> Any:
    try:
        import gymnasium  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(_MISSING.format(name)) from error
    return gymnasium


@lru_cache(maxsize=8)
def _worlds(name: str, options: tuple[tuple[str, Any], ...], count: int) -> Any:
    """Return environments that step together, and are reset one by one by whoever plays them."""
    gymnasium = _gymnasium(name)
    by_hand = {"autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED}
    return gymnasium.make_vec(name, count, vectorization_mode="sync", vector_kwargs=by_hand, **dict(options))


def _measured(world: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of observations in episodes of random actions."""
    seen = list[NDArray[np.float64]]()
    world.action_space.seed(0)
    for episode in range(_MEASURED_EPISODES):
        observation, _ = world.reset(seed=episode)
        over = False
        while not over:
            seen.append(np.asarray(observation, np.float64).reshape(-1))
            observation, _, terminated, truncated, _ = world.step(world.action_space.sample())
            over = terminated or truncated
    all_seen = np.stack(seen)
    deviation = all_seen.std(0)
    return tuple(all_seen.mean(0).tolist()), tuple(np.where(deviation > 1e-8, deviation, 1.0).tolist())
