from benchmarks import peer

KEYS = {"candidates_per_step", "candidates_per_second", "candidate_samples_per_second", "seconds_per_step"}


def test_ours_alone(quick, monkeypatch):
    monkeypatch.setattr(peer, "missing", lambda: "left out")
    results = quick("throughput")
    assert set(results["ours"]) >= KEYS
    assert set(results["ours"]["seconds_by_verb"]) == {"observe", "propose", "score", "transport", "move"}
    assert results["peer_missing"] == "left out"
    assert "ratio" not in results
    assert "random" in results["data"]


def test_against_the_peer(quick, with_peer, tmp_path):
    results = quick("throughput", "--plot", tmp_path / "picture.png")
    assert set(results["peer"]) >= KEYS
    assert set(results["ratio"]) == {"median", "low", "high"}
    assert results["peer_settings"]["rank"] == 4
    assert results["peer_settings"]["samples_with_our_scores"] == 1.0
    assert (tmp_path / "picture.png").stat().st_size > 0
