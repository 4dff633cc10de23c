"""Chunks change neither the order nor the values of the losses, and give way when memory runs out."""

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_polystep.scoring.chunks import Chunking, is_out_of_memory


class Device:
    """Scores candidates by their number, up to ``room`` at once."""

    def __init__(self, room, error=None):
        self.room, self.calls = room, []
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    def __call__(self, start, stop):
        if stop - start > self.room:
            raise self.error
        self.calls.append((start, stop))
        return torch.arange(start, stop, dtype=torch.float64)


@given(st.integers(1, 100), st.integers(0, 50), st.integers(1, 60))
def test_every_candidate_is_scored_once_in_order(size, start, count):
    device = Device(room=size)
    losses = Chunking(size).run(device, range(start, start + count))
    assert losses.tolist() == list(range(start, start + count))
    assert [stop - begin for begin, stop in device.calls][:-1] == [size] * (len(device.calls) - 1)


def test_halves_for_good_with_one_warning():
    chunking, device = Chunking(8), Device(room=5)
    with pytest.warns(UserWarning, match="Out of memory while scoring: evaluating 4 candidates at once") as caught:
        losses = chunking.run(device, range(20))
    assert len(caught) == 1
    assert losses.tolist() == list(range(20))
    assert chunking.size == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chunking.run(device, range(20)).tolist() == list(range(20))


def test_halves_as_often_as_it_must_in_the_middle_of_a_share():
    chunking, device = Chunking(13), Device(room=13)
    scored = chunking.run(device, range(13, 26))
    device.room = 1
    with pytest.warns(UserWarning, match="Out of memory") as caught:
        rest = chunking.run(device, range(26, 30))
    assert len(caught) == 2, "from the 4 that were tried, not from 13"
    assert chunking.size == 1
    assert torch.cat([scored, rest]).tolist() == list(range(13, 30))


@pytest.mark.filterwarnings("ignore:Out of memory")
def test_gives_up_when_not_even_one_fits():
    chunking = Chunking(4)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        chunking.run(Device(room=0), range(4))
    assert chunking.size == 1


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory of past events")])
def test_other_errors_are_not_retried(error):
    chunking = Chunking(4)
    with pytest.raises(type(error), match=str(error)):
        chunking.run(Device(room=0, error=error), range(4))
    assert chunking.size == 4


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("x"),
        MemoryError(),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4000000000000 bytes."),
    ],
)
def test_the_errors_that_mean_memory(error):
    assert is_out_of_memory(error)


def test_torch_itself_says_so():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert is_out_of_memory(caught.value)
