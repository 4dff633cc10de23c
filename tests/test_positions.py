"""Effects on the world outside of Python, and where objects stand that are not put back."""

import os
import subprocess
import sys

import numpy as np
import pytest

from lightning_polystep.positions import effects_outside, position


def run_a_program(_folder):
    subprocess.run([sys.executable, "-c", ""], check=True)


EFFECTS = {
    "appending": (lambda folder: (folder / "log").open("a").close(), "log' (written)"),
    "NumPy": (lambda folder: np.save(folder / "x.npy", np.ones(1)), "x.npy' (written)"),
    "low level": (lambda folder: os.close(os.open(folder / "raw", os.O_CREAT | os.O_WRONLY)), "raw') (written)"),
    "removing": (lambda folder: (folder / "there").unlink(), "there') (removed)"),
    "a folder": (lambda folder: (folder / "new").mkdir(), "new') (made)"),
    "another program": (run_a_program, "another program"),
}


@pytest.mark.parametrize("name", EFFECTS)
def test_what_code_does_to_the_world_is_noticed(tmp_path, name):
    (tmp_path / "there").write_text("x")
    act, told = EFFECTS[name]
    with effects_outside() as seen:
        act(tmp_path)
    assert any(told.replace("')", "'") in each.replace("')", "'") for each in seen), list(seen)


def test_reading_and_what_comes_later_is_no_effect(tmp_path):
    (tmp_path / "there").write_text("x")
    with effects_outside() as seen, effects_outside() as inner:
        (tmp_path / "there").read_text()
    (tmp_path / "later").write_text("x")
    assert not seen
    assert not inner


def test_objects_that_cannot_tell_are_nowhere():
    class Shy:
        def __getattribute__(self, name):
            raise ValueError(name)

    assert position(Shy()) is None
    assert position(lambda: None) is None
