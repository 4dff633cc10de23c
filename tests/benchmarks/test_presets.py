import pytest

from benchmarks.presets import NETS
from tests.test_configs import REPOSITORY


@pytest.mark.filterwarnings("ignore:Seed")
def test_both_settings_are_trained(quick, tmp_path):
    results = quick("presets", "--nets", "staircase", "--seeds", 2, "--plot", tmp_path / "picture.png")
    assert list(results) == ["staircase"]
    for found in results["staircase"].values():
        assert [(run["seed"], run["steps"]) for run in found["runs"]] == [(0, 2), (1, 2)]
        assert all(run["candidates"] > 0 and 0 <= run["test"] <= 1 for run in found["runs"])
    assert (tmp_path / "picture.png").stat().st_size > 0


@pytest.mark.filterwarnings("ignore:Seed")
def test_the_clock_ends_a_run(quick):
    results = quick("presets", "--nets", "staircase", "--seeds", 1, "--seconds", 1e-9)
    assert [found["runs"][0]["steps"] for found in results["staircase"].values()] == [1, 1]


@pytest.mark.parametrize("net", NETS)
def test_every_network_has_both_configs(net):
    for path in (f"paper/{net}.yaml", f"{NETS[net]}_{net}.yaml"):
        assert (REPOSITORY / "configs" / path).is_file()
