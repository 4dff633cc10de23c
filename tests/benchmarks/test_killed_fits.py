"""Fits are struck, and what differs is noticed; the fits here are a few lines that copy checkpoints."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import killed_fits

_FIT = """
import shutil, sys, time
from pathlib import Path
source, saved = map(Path, sys.argv[1:])
saved.mkdir(exist_ok=True)
for step in range(len(list(saved.iterdir())), 6):
    shutil.copy(source / f"{step}.ckpt", saved / f"unfinished-{step}")
    (saved / f"unfinished-{step}").rename(saved / f"{step}.ckpt")
    time.sleep(0.05)
"""


def checkpoints(folder, scale):
    folder.mkdir()
    for step in range(6):
        held = {"state_dict": {"w": torch.full((3,), scale * step)}, "optimizer_states": [], "epoch": 0}
        torch.save(held | {"global_step": step}, folder / f"{step}.ckpt")


@pytest.mark.parametrize("scale", [1.0, 1.0000001])
def test_a_fit_that_resumes_with_other_bits_is_noticed(tmp_path, monkeypatch, capsys, scale):
    checkpoints(tmp_path / "whole", 1.0)
    checkpoints(tmp_path / "struck", scale)

    def start(config, folder, passed_on):
        assert (config, passed_on) == (Path("any.yaml"), ["--data.variables", "9"])
        folder.mkdir(exist_ok=True)
        return subprocess.Popen([sys.executable, "-c", _FIT, tmp_path / folder.name, folder / "saved"])

    monkeypatch.setattr(killed_fits, "start", start)
    monkeypatch.setattr(killed_fits, "_LATEST_SECONDS", 0.01)
    monkeypatch.setattr(killed_fits, "_MOST_SAVED", 1)
    arguments = ["any.yaml", "--kills", "2", "--threads", "1", "--data.variables", "9"]
    if scale == 1.0:
        killed_fits.main(arguments)
    else:
        with pytest.raises(SystemExit, match="1"):
            killed_fits.main(arguments)
    (found,) = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]["fits"]
    assert found == {"config": "any.yaml", "kills": 2, "steps": 5, "same": scale == 1.0}


def test_a_fit_that_fails_is_no_result(tmp_path):
    (tmp_path / "log").write_text("no such file")
    with (
        subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]) as process,
        pytest.raises(RuntimeError, match="ended with 3: no such file"),
    ):
        killed_fits.ended(process, tmp_path)


def test_alike_looks_at_shapes_values_and_structure():
    one = {"a": [torch.tensor([1.0, 2.0]), 3], "b": "x"}
    assert killed_fits.alike(one, {"a": [torch.tensor([1.0, 2.0]), 3], "b": "x"})
    for other in (
        {"a": [torch.tensor([1.0, 2.5]), 3], "b": "x"},
        {"a": [torch.tensor([1.0, 2.0]), 4], "b": "x"},
        {"b": "x"},
    ):
        assert not killed_fits.alike(one, other)
