import pytest

from lightning_polystep.maxsat import memory


@pytest.mark.parametrize(("variables", "size"), [(2**30, 0), (0, 2**30)])
def test_what_is_wanting_is_said_with_both_sizes(monkeypatch, variables, size):
    monkeypatch.setattr(memory, "installed", lambda: 2 * 10**9)
    assert memory.wanting(variables, size).endswith("GB of memory, and this machine has 2 GB.")
    assert f"{variables:,} variables and {size:,} bytes" in memory.wanting(variables, size)
    assert memory.wanting(1000, 1000) == ""
    assert memory.wanting(0, memory.most_bytes()) == "" != memory.wanting(0, memory.most_bytes() + 1)


def test_a_system_that_does_not_tell_has_room(monkeypatch):
    def unknown(name):
        raise ValueError(name)

    assert 2**20 < memory.installed() < 2**62
    monkeypatch.setattr(memory.os, "sysconf", unknown)
    assert memory.installed() == 2**62
