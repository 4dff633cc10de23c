import pytest


@pytest.mark.filterwarnings("ignore:.torch.jit.* is deprecated")  # Norse, when it is imported
def test_silent_networks_are_warned_of_and_cured(quick):
    results = quick("silent")
    for threshold in (5, 10, 50):
        entry = results[f"LIF, threshold {threshold}"]
        assert "never fires" in entry["as it is"]["warned"][0][1]
        assert entry["cured"]["warned"] == []
        assert entry["cured"]["steps"] == 2
        assert set(entry["gains"]) == {"1", "3"}
    for entry in results.values():
        assert entry["as it is"]["warned"]
        assert not entry["cured"]["warned"]
