"""Memory that a step frees stays with the process, unless somebody has set the allocator up."""

import os
import subprocess
import sys

import pytest

from lightning_polystep import allocator

_FAULTS = """
import resource, runpy, sys
kept = runpy.run_path(sys.argv[1])["keep_memory"]()
def step():
    values = [b"1" * 2**23 for _ in range(8)]
for _ in range(3): step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10): step()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**environment):
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))}
    done = subprocess.run(
        [sys.executable, "-c", _FAULTS, allocator.__file__],
        env={**plain, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, count = done.stdout.split()
    return kept == "True", int(count)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_memory_stays():
    kept, few = faults()
    left, many = faults(LIGHTNING_POLYSTEP_FREES_MEMORY="1")
    assert kept
    assert not left
    assert few < 100 < many


def test_who_has_set_an_allocator_up_keeps_it():
    assert not faults(MALLOC_TRIM_THRESHOLD_="131072")[0]
