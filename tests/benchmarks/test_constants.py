import pytest


def test_constants_are_learned_and_fixed_by_all(quick):
    pytest.importorskip("snntorch")
    results = quick("constants")
    assert list(results) == ["PolyStep, 64", "Adam"]
    for each in results.values():
        assert 0 <= each["fixed"][0]["test accuracy"] <= 1
        assert each["fixed"][0]["constants"] == {}
        assert len(each["learned"][0]["constants"]) == 4
