import pytest


@pytest.mark.filterwarnings("ignore:Nothing trains what lies before a silent layer")  # random images, few steps
def test_every_sweep_has_points_tiers_and_an_exponent(quick, tmp_path):
    results = quick("scaling", "--plot", tmp_path / "picture.png")
    for name in ("batch", "units", "rank", "num_steps", "depth"):
        assert len(results[name]["points"]) == 2
        assert (results[name]["exponent"] is None) == (name == "depth")
        assert all(point["tiers"] and point["candidates"] > 0 for point in results[name]["points"])
    assert len(results["depth"]["points"][1]["tiers"]) == 3
    assert (tmp_path / "picture.png").stat().st_size > 0
