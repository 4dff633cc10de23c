from benchmarks.reversal import WAYS


def test_every_way_takes_steps(quick):
    results = quick("reversal")
    assert set(results) == set(WAYS)
    for (run,) in results.values():
        assert run["steps"] >= 1
        assert 0 <= run["right"] <= 1
