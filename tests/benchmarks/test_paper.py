import pytest
import torch

from benchmarks.paper import CONTENDERS, FAMILIES, Budget, Contender, train
from datamodules import Digits
from lightning_polystep import PolyStep

DATA = Digits(batch_size=256, drop_last=True)
BASELINES = ["PolyStep", "PolyStep, 128 a step", "SPSA", "MeZO", "OpenAIES", "EGGROLL", "CMAES", "Adam"]


def test_all_contenders_run_at_both_budgets(quick, tmp_path):
    results = quick("paper", "--families", "staircase", "--seeds", 2, "--plot", tmp_path / "picture.png")
    assert list(results) == ["candidates", "seconds"]
    assert list(results["seconds"]["staircase"]) == BASELINES
    assert list(results["candidates"]["staircase"]) == BASELINES[:-1], "Adam scores no candidates"
    for unit, least in (("candidates", 64), ("seconds", 0.03)):
        for found in results[unit]["staircase"].values():
            assert [run["seed"] for run in found["runs"]] == [0, 1]
            assert all(run[unit] >= least for run in found["runs"])
            assert all(0 <= run["test"] <= 1 for run in found["runs"])
    assert (tmp_path / "picture.png").stat().st_size > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_trained_by_candidates_and_by_a_gradient(family):
    DATA.setup()
    budget = Budget("seconds", 0.05)
    ours = train(family, Contender(PolyStep, ({"lr": 0.2},), 64), {"lr": 0.2}, 0, DATA, budget)
    gradient = train(family, CONTENDERS["Adam"], {"lr": 0.01}, 0, DATA, budget)
    assert ours["candidates"] > 0
    assert gradient["candidates"] == 0
    assert gradient["steps"] > 1


@pytest.mark.parametrize("name", [name for name in CONTENDERS if name not in BASELINES])
def test_every_option_is_trained(name):
    DATA.setup()
    contender = CONTENDERS[name]
    budget = Budget("candidates", 100)
    found = train("staircase", contender, contender.settings[-1] | {"rank": 4}, 0, DATA, budget)
    assert found["steps"] >= 1
    assert found["candidates"] >= 100
    assert torch.tensor(found["val"]).isfinite()


def test_a_run_that_diverges_ends():
    DATA.setup()
    found = train("staircase", CONTENDERS["SPSA"], {"lr": 1e38, "pairs": 2}, 0, DATA, Budget("candidates", 10**9))
    assert found["candidates"] < 10**6
