"""Loops are compiled when they pay, compared once, and given up where they differ."""

import warnings

import pytest
import torch
from torch.nn import functional as F

from lightning_polystep.scoring.script import Script
from lightning_polystep.tape import compile_program, last_products
from lightning_polystep.tape.fuse import cpu
from tests.helpers.tapes import interpreted, record
from tests.tape.fuse.test_region import spiking


def scores_of(layers, step):
    recording, _, _ = record(layers, step)
    tape = recording.taken()
    made = last_products(tape, recording.loss)
    program = compile_program(tape, dict.fromkeys(made, 1), recording.loss)
    return tape, made, Script.of("Scores", tape, program)


def moved(tape, made):
    rows = torch.tensor([0, 1, 1])
    changed = {index: tape.values[index].tensor.T[rows].unsqueeze(2) + 0.3 for index in made}
    return rows, changed


@pytest.fixture
def sources(monkeypatch):
    seen = []

    def compiled(source):
        seen.append(source)
        return interpreted(source)

    monkeypatch.setattr(cpu, "compiled", compiled)
    return seen


def test_loops_are_compiled_once_they_pay(sources):
    tape, made, script = scores_of(*spiking())
    rows, changed = moved(tape, made)
    early = script.losses(tape, 0, 3, rows, changed, {})
    assert not sources
    late = script.losses(tape, 10**9, 3, rows, changed, {})
    assert sources
    torch.testing.assert_close(late, early)


def test_operations_that_are_called_often_pay_as_those_that_compute_much_do(sources):
    tape, made, script = scores_of(*spiking())
    rows, changed = moved(tape, made)
    calls = script.loops.compiling / (len(script.plain) * 4e-5)
    script.losses(tape, int(calls / 2), 3, rows, changed, {})
    assert not sources
    script.losses(tape, int(calls) + 1, 3, rows, changed, {})
    assert sources


def test_a_loop_that_differs_is_told_by_its_name_and_not_used_again(monkeypatch):
    tape, made, script = scores_of(*spiking())
    rows, changed = moved(tape, made)
    plain = script.losses(tape, 0, 3, rows, changed, {})
    monkeypatch.setattr(cpu, "compiled", lambda source: interpreted(source.replace(" + ", " - ")))
    with pytest.warns(UserWarning, match="Scores: compiled loops differ"):
        script.losses(tape, 10**9, 3, rows, changed, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(script.losses(tape, 10**9, 3, rows, changed, {}), plain)


def test_numbers_that_have_changed_since_are_followed(sources):
    """They stand in a loop's source."""
    layers, _ = spiking()
    strength, (x, y) = [2.0], (torch.randn(5, 4), torch.arange(5) % 3)

    def step():
        return F.cross_entropy((strength[0] * layers[0](x)[:, :3]).sigmoid().mul(3.0).sub(1.0), y)

    _, _, script = scores_of(layers, step)
    strength[0] = 5.0
    tape, made, fresh = scores_of(layers, step)
    rows, changed = moved(tape, made)
    expected = fresh.losses(tape, 0, 3, rows, changed, {})
    assert torch.equal(script.losses(tape, 10**9, 3, rows, changed, {}), expected)
    assert not sources
