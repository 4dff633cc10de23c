"""Weighted partial formulas beside RC2: ours has its optima, and what RC2 does not end is said."""

import json
import sys

import pytest

from benchmarks import maxsat_exact

pytest.importorskip("pysat")


def test_quick_finds_the_optima(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["maxsat_exact", "--quick", "--threads", "1", "--most-seconds", "600"])
    maxsat_exact.main()
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert record["results"]["ended"] == record["results"]["equal"] == 2


def test_what_does_not_end_in_time_is_none():
    # Of 3,000 variables RC2 ends in no hour.
    assert maxsat_exact.optimum(maxsat_exact.partial(3000, 4.0, 0), 1e-3) == (None, 1e-3)
