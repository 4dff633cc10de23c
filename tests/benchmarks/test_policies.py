"""The benchmark of policies: every method's step, what is counted, and what is said of runs."""

import json

import pytest
import torch

from benchmarks import policies
from lightning_polystep.environments import Policy, rollouts
from models import PolicyNet, PolicySearch


def problem(seed=0):
    torch.manual_seed(seed)
    search = policies.Counted("CartPole-v1", PolicyNet((4, 4, 2)))
    return policies.Problem(search, seed, episodes=2, pairs=3)


def test_moves_of_nothing_are_the_network_itself():
    made = problem()
    moves = torch.zeros(2, len(made.first), dtype=torch.float64)
    alone = rollouts(made.search.environment, Policy(made.search.network), made.seeds(4)).returns.mean()
    assert made.returns(moves, 4).tolist() == [float(alone)] * 2
    assert made.candidates == 2
    assert made.steps == 2 * 2 * float(alone), "each step earns 1"


def test_candidates_of_ours_are_the_rivals_in_the_same_units():
    made = problem()
    moves = torch.randn(3, len(made.first), dtype=torch.float64)
    rows = (made.first + made.units * moves).float()[:, None]
    named = dict(zip(made.block.parameter_names, made.block.split(rows), strict=True))
    made.search.loss(made.seeds(0))
    assert torch.allclose(-PolicySearch.evaluate_many(made.search, named).double(), made.returns(moves, 0))


@pytest.mark.parametrize("name", ["openai-es", "ars", "cma-es", "guess"])
def test_rivals_step_by_pairs_and_repeat_themselves(name):
    if name == "cma-es":
        pytest.importorskip("cma")
    ends = []
    for _ in range(2):
        made = problem()
        steps = policies.METHODS[name](made)
        ends.append([made.held_out(next(steps)) for _ in range(3)])
        assert made.candidates == 3 * 6
    assert ends[0] == ends[1]


def test_ours_counts_the_policy_itself_and_what_the_plan_tries_too():
    made = problem()
    steps = policies.METHODS["ours"](made)
    next(steps)
    assert made.candidates > 7
    before, played = made.candidates, made.steps
    next(steps)
    assert made.candidates == before + 7
    assert made.steps - played >= 2 * 7, "each of two episodes takes a step at least"


def test_quick_prints_a_record(capsys):
    policies.main(["--quick", "--threads", "1", "--methods", "ours", "guess"])
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    (found,) = record["results"].values()
    assert found["ours"]["of"] == 2
    assert found["ours"]["candidates"]["median"] is None or found["ours"]["candidates"]["median"] >= 16
