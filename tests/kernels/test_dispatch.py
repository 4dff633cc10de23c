"""Which implementation runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_polystep import kernels
from lightning_polystep.kernels.dispatch import choose

REPOSITORY = Path(__file__).resolve().parent.parent.parent
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_the_device_chooses(monkeypatch):
    monkeypatch.delenv("POLYSTEP_KERNELS", raising=False)
    assert choose(CPU, "op") == "cpu"
    assert choose(CUDA, "op") == "triton"


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_the_variable_overrides(monkeypatch, name):
    monkeypatch.setenv("POLYSTEP_KERNELS", name)
    assert choose(CPU, "op") == name


@pytest.mark.parametrize(
    ("asked", "device", "problem"),
    [
        ("fast", CPU, "POLYSTEP_KERNELS=fast is no kernel"),
        ("triton", CPU, "POLYSTEP_KERNELS=triton cannot run"),
        ("cpu", CUDA, "POLYSTEP_KERNELS=cpu cannot run"),
        ("", torch.device("meta"), "there is no kernel"),
    ],
)
def test_what_cannot_run_is_refused_with_the_choices(monkeypatch, asked, device, problem):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("POLYSTEP_KERNELS", asked)
    with pytest.raises(RuntimeError, match=rf"op: {problem}.*reference: .*cpu: .*triton: "):
        choose(device, "op")


def test_a_compilation_is_announced_once_and_a_cached_kernel_not_at_all(tmp_path):
    script = """
import torch
from lightning_polystep.kernels import lif_spikes
one = torch.ones(1)
for _ in range(2):
    lif_spikes(torch.ones(1, 2), one, one, 3)
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", script]
    lines = [
        subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True).stderr
        for _ in range(2)
    ]
    assert lines[0].count("compiling lif_spikes") == 1
    assert "compiling" not in lines[1]


def test_a_kernel_leaves_the_number_of_threads_as_it_was():
    torch.set_num_threads(1)
    kernels.lif_spikes(torch.rand(3, 20), torch.ones(1), torch.ones(1), 3)
    assert torch.get_num_threads() == 1
