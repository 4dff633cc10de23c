import pytest


@pytest.mark.slow
def test_each_method_is_measured_at_each_number_of_time_steps(quick, tmp_path):
    results = quick("memory", "--time-steps", 2, 4, "--plot", tmp_path / "picture.png")
    for method in ("ours", "bptt"):
        assert [point["T"] for point in results[method]["points"]] == [2, 4]
        assert all(point["process_bytes"] > 0 for point in results[method]["points"])
        assert set(results[method]["growth"]) == {"process", "step"}
    assert (tmp_path / "picture.png").stat().st_size > 0
