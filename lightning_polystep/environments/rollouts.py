r"""Episodes of many policies at once: one compiled loop over candidates and their episodes.

It runs on the CPU, in float64 and in the order of one number after the other, so a return does not depend on how many
candidates or episodes are rolled out in the same call: what ``evaluate_many`` says of a candidate is what the step
says.
"""

from __future__ import annotations

from functools import lru_cache, singledispatch
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_polystep.environments.policy import Arrays, Policy
from lightning_polystep.environments.protocol import Environment, World, compiled


class Rollouts(NamedTuple):
    """What episodes gave.

    Args:
        returns: Sum of the rewards of each episode of each candidate, (K, N), float64.
        steps: How many steps each took, (K, N), int64.
    """

    returns: Tensor
    steps: Tensor


@singledispatch
def rollouts(environment: World, policy: Policy, seeds: Tensor) -> Rollouts:
    r"""Roll out every candidate from the same starts.

    .. math:: R_{kn} = \sum_{t < T} r(s_t, \pi_k(s_t)), \qquad s_0 = \mathrm{start}(\mathit{seed}_n)

    where an episode ends after T = ``environment.horizon`` steps or when it is over. Of scores the first of the largest
    is the action; a number is the policy's output times the largest action, kept within it.

    Args:
        environment: What is controlled: compiled (:class:`~lightning_polystep.environments.Environment`) or gymnasium's
            (:class:`~lightning_polystep.environments.GymnasiumEnvironment`). Other kinds may be registered
            (``rollouts.register``).
        policy: K candidates π_k.
        seeds: Of the N episodes, (N,), int64; all candidates share them (common random numbers).

    Raises:
        ValueError: If the policy does not fit the environment.
        TypeError: If nobody has said how to play such an environment.

    Example:
        >>> from torch import nn
        >>> from lightning_polystep.environments import ENVIRONMENTS, Policy
        >>> network = nn.Linear(2, 3)
        >>> policy = Policy(network, {"weight": torch.zeros(5, 3, 2), "bias": torch.zeros(5, 3)})
        >>> rollouts(ENVIRONMENTS["MountainCar-v0"], policy, torch.tensor([1, 2])).returns[0]
        tensor([-200., -200.], dtype=torch.float64)
    """
    raise TypeError(f"rollouts: nothing is registered for a {type(environment).__name__}: {environment.name}.")


@rollouts.register
def _(environment: Environment, policy: Policy, seeds: Tensor) -> Rollouts:
    """Play by compiled dynamics."""
    policy.check(environment)
    starts = environment.starts(seeds).numpy()
    shape = (policy.candidates, len(starts))
    returns, steps = np.empty(shape), np.empty(shape, dtype=np.int64)
    _kernel(environment)(policy.arrays(), starts, returns, steps)
    return Rollouts(torch.from_numpy(returns), torch.from_numpy(steps))


def record(environment: Environment, policy: Policy, seed: int) -> tuple[Tensor, Tensor]:
    """Return the states that an episode of the first candidate passes through, (T + 1, S), and its actions, (T,).

    Args:
        environment: What is controlled.
        policy: Its first candidate acts.
        seed: Of the episode.
    """
    policy.check(environment)
    state = environment.starts(torch.tensor([seed]))[0].numpy()
    act, network = _actor(environment), policy.arrays()
    states, actions, over = [state.copy()], list[float](), False
    while not over and len(actions) < environment.horizon:
        actions.append(act(network, 0, state, *_workspace(policy)))
        _, over = environment.advance(state, actions[-1])
        states.append(state.copy())
    return torch.from_numpy(np.stack(states)), torch.tensor(actions, dtype=torch.float64)


def _workspace(policy: Policy) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.empty(max(policy.sizes)), np.empty(max(policy.sizes))


@compiled
def propagate(
    network: Arrays, candidate: int, now: NDArray[np.float64], then: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return what a candidate makes of the observation in ``now``; both arrays are written."""
    place = 0
    for layer in range(len(network.sizes) - 1):
        inputs = network.sizes[layer]
        for j in range(network.sizes[layer + 1]):
            total = network.weights[candidate, place + inputs]
            for i in range(inputs):
                total += network.weights[candidate, place + i] * now[i]
            place += inputs + 1
            if layer < len(network.sizes) - 2:
                count = network.counts[layer]
                if count < 0:
                    total = np.tanh(total)
                else:
                    total = network.levels[layer, np.searchsorted(network.jumps[layer, :count], total, side="right")]
            then[j] = total
        now, then = then, now
    return now


@lru_cache
def _actor(environment: Environment) -> Any:
    """Compile what a policy does in a state; one version for each environment."""
    observe, observations = environment.observe, environment.observations
    centre, size = np.asarray(environment.centre), np.asarray(environment.size)
    actions, largest = environment.actions, environment.largest_action

    def act(
        network: Arrays,
        candidate: int,
        state: NDArray[np.float64],
        now: NDArray[np.float64],
        then: NDArray[np.float64],
    ) -> float:
        observe(state, now[:observations])
        for i in range(observations):
            now[i] = (now[i] - centre[i]) / size[i]
        output = propagate(network, candidate, now, then)
        if actions == 0:
            return min(max(output[0], -1.0), 1.0) * largest
        best = 0
        for j in range(1, actions):
            if output[j] > output[best]:
                best = j
        return float(best)

    return compiled(act)


@lru_cache
def _kernel(environment: Environment) -> Any:
    """Compile the loop over candidates and episodes; one version for each environment."""
    act, advance, horizon = _actor(environment), environment.advance, environment.horizon

    def roll(
        network: Arrays, starts: NDArray[np.float64], returns: NDArray[np.float64], lengths: NDArray[np.int64]
    ) -> None:
        state = np.empty(starts.shape[1])
        now, then = np.empty(network.sizes.max()), np.empty(network.sizes.max())
        for candidate in range(returns.shape[0]):
            for episode in range(returns.shape[1]):
                state[:] = starts[episode]
                total, taken, over = 0.0, 0, False
                while not over and taken < horizon:
                    reward, over = advance(state, act(network, candidate, state, now, then))
                    total += reward
                    taken += 1
                returns[candidate, episode] = total
                lengths[candidate, episode] = taken

    return compiled(roll)
