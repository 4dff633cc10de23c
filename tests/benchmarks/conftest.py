"""Runs a benchmark in its quick mode; no test looks at a time."""

import json
from importlib import import_module

import pytest

from benchmarks import peer


@pytest.fixture
def quick(capsys, monkeypatch):
    def run(name, *arguments):
        # Lightning's command line warns when sys.argv holds arguments that are not its own.
        monkeypatch.setattr("sys.argv", [name])
        import_module(f"benchmarks.{name}").main(["--quick", "--threads=1", *map(str, arguments)])
        record = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert record["benchmark"] == name
        assert {"versions", "machine", "threads", "seeds", "settings", "results"} <= set(record)
        assert record["threads"] == 1
        assert record["versions"]["torch"]
        return record["results"]

    return run


@pytest.fixture
def with_peer():
    if peer.missing():
        pytest.skip(peer.missing())
