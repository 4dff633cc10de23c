import pytest


@pytest.mark.distributed
def test_every_layout_is_timed_by_verb_and_the_candidate_layout_changes_no_bit(quick, tmp_path):
    results = quick("ranks", "--plot", tmp_path / "picture.png")
    for name in ("one", "candidates", "data"):
        assert set(results[name]["seconds_by_verb"]) == {"observe", "propose", "score", "transport", "move"}
        assert results[name]["seconds_per_step"]["median"] > 0
    assert results["same_parameters"]
    assert results["one"]["bytes_in_sums"] == 0 < results["candidates"]["bytes_in_sums"]
    assert results["candidates"]["sums"] == 1
    assert (tmp_path / "picture.png").stat().st_size > 0
