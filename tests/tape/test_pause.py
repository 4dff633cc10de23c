"""What runs beside the tape is not on it, and the pause ends where its body does."""

import pytest
import torch

from lightning_polystep.tape import Recorder, unrecorded
from lightning_polystep.tape.pause import pauses


def test_what_runs_beside_the_tape_is_not_recorded():
    with torch.no_grad(), Recorder() as recorder:
        one = torch.ones(2) * 2
        with unrecorded():
            one * 3
        one * 4
    assert [operation.args[1] for operation in recorder.tape.operations if len(operation.args) > 1] == [2, 4]


def test_a_tape_within_a_pause_records_what_is_its_own():
    with torch.no_grad(), Recorder() as outer, unrecorded(), Recorder() as inner:
        torch.ones(2) * 2
    assert not outer.tape.operations
    assert inner.tape.operations


def test_a_pause_ends_with_an_error_too():
    with pytest.raises(ZeroDivisionError), unrecorded():
        raise ZeroDivisionError
    assert pauses() == 0


def test_tapes_of_the_same_step_record_it_both():
    """As those of two optimizers do."""
    with torch.no_grad(), Recorder() as one, Recorder() as other:
        torch.ones(2) * 2
    assert len(one.tape.operations) == len(other.tape.operations) > 1
