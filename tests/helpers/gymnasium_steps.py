"""One step of gymnasium beside one of ours, from the same state, along episodes of random actions."""

import numpy as np
import pytest
import torch


def compare_steps(environment, steps=2000, tolerance=1e-9):
    """Walk through gymnasium's episodes; states, observations, rewards and ends have to be ours at every step."""
    gymnasium = pytest.importorskip("gymnasium")
    theirs, draw = gymnasium.make(environment.name), np.random.default_rng(0)
    assert theirs.spec.max_episode_steps == environment.horizon
    assert theirs.spec.reward_threshold == environment.threshold
    over, ends, length = True, [], 0
    for number in range(steps):
        if over:
            theirs.reset(seed=number)
            mine = environment.starts(torch.tensor([number]))[0].numpy()
            theirs.unwrapped.state, length = mine.copy(), 0
        # Long pushes to one side reach every bound and end.
        if number % 25 == 0:
            pushed = draw.integers(environment.actions) if environment.actions else draw.uniform(-1, 1)
        hold = draw.random() < 0.7
        drawn = draw.integers(environment.actions) if environment.actions else draw.uniform(-1, 1)
        action = pushed if hold else drawn
        action = int(action) if environment.actions else environment.largest_action * float(action)
        given = action if environment.actions else np.array([action])
        observation, reward, over, truncated, _ = theirs.step(given)
        mine = np.asarray(mine, dtype=np.float64)
        my_reward, my_over = environment.advance(mine, float(action))
        seen = np.empty(environment.observations)
        environment.observe(mine, seen)
        np.testing.assert_allclose(mine, theirs.unwrapped.state, atol=tolerance)
        np.testing.assert_allclose(seen, observation, atol=1e-5)
        assert my_reward == pytest.approx(float(reward), abs=1e-7)
        assert my_over == over
        length += 1
        ends += [length] if over else []
        assert truncated == (length == environment.horizon)
        mine = np.array(theirs.unwrapped.state, dtype=np.float64)  # rounding does not add up
        over = over or truncated
    return ends
