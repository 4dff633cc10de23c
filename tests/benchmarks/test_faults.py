"""Ten kills and one of every other fault; ``--kills 200`` is the long version."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks.common import REPOSITORY

OWN_FAULTS = {"disk full": 1, "exception in the loader": 1, "non-finite batch": 1, "out of memory": 1}
# Of two processes the second one may be struck as well, and either may hang.
OF_TWO = {**OWN_FAULTS, "exception in the loader": 2, "out of memory": 2, "process that hangs": 4}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked")
@pytest.mark.parametrize(
    ("processes", "own"),
    [(1, OWN_FAULTS), pytest.param(2, OF_TWO, marks=pytest.mark.distributed)],
)
def test_nothing_is_lost_at_ten_random_points(processes, own):
    # In a process of its own: threads of other tests would not survive the fork.
    command = [sys.executable, "-m", "benchmarks.faults", "--quick", "--kills", "10", "--seed", "1"]
    command += ["--processes", str(processes)]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    results = json.loads(run.stdout.splitlines()[-1])["results"]
    assert not results["anything_lost"]
    hits = {}
    for row in results["rows"]:
        hits[row["fault"]] = hits.get(row["fault"], 0) + row["hits"]
        assert row["equal"] == row["runs"] > 0
    assert hits == {"kill -9": 10, "SIGTERM": 2, **own}
