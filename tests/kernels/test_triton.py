"""Triton kernels against the references: in the interpreter everywhere, on a GPU where there is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.triton_cases import all_cases, compare

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def started(module, text="", **environment):
    """What a process of its own prints: whether Triton interprets is decided when it is imported."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", f"tests.kernels.{module}"]
    inherited = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    result = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**inherited, **environment},
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.slow
def test_kernels_agree_with_the_references_and_compile():
    launches = started("triton_cases", TRITON_INTERPRET="1")
    assert started("triton_compiler", launches) == "all compile"


@pytest.mark.gpu
def test_kernels_agree_with_the_references_on_a_gpu():
    for case in all_cases():
        compare(case, "cuda")
