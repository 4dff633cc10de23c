"""What the step before has done changes how fast a step is recorded, and nothing of what is recorded."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lightning_polystep.tape import Recorder
from tests.helpers.tapes import blocks_of, record, score

WEIGHT = torch.linspace(-1, 1, 12).reshape(3, 4)
INPUTS = torch.arange(20.0).reshape(5, 4)


def in_place(x, times):
    total = torch.zeros(len(x), 3)
    for _ in range(times):
        total += F.linear(x, WEIGHT)
        total[:, 0].mul_(0.5)
    return total.sum()


def uninitialised(x, times):
    out = torch.empty(len(x), 3)
    out.copy_(F.linear(x, WEIGHT))
    return (out * times).sum()


STEPS = {
    "a number": lambda: torch.sum(INPUTS * 2),
    "a fraction": lambda: torch.sum(INPUTS * 2.0),
    "another fraction": lambda: torch.sum(INPUTS * 2.5),
    "zero": lambda: torch.sum(INPUTS * 0.0),
    "minus zero": lambda: torch.sum(INPUTS * -0.0),
    "a flag": lambda: torch.sum(torch.sum(INPUTS, dim=1, keepdim=True)),
    "another flag": lambda: torch.sum(torch.sum(INPUTS, dim=1, keepdim=False)),
    "fewer samples": lambda: torch.sum(INPUTS[:3] * 2),
    "another operand": lambda: torch.sum(WEIGHT * WEIGHT) + torch.sum(INPUTS),
    "operands exchanged": lambda: torch.sum(WEIGHT @ INPUTS.T) + torch.sum(INPUTS),
    "kinds by name": lambda: torch.sum(INPUTS.to(torch.float64)).float(),
    "another kind": lambda: torch.sum(INPUTS.to(torch.int64)).float(),
    "views": lambda: torch.sum(INPUTS.T.reshape(2, 10)[1]),
    "in place": lambda: in_place(INPUTS, 3),
    "in place, longer": lambda: in_place(INPUTS, 4),
    "in place, fewer samples": lambda: in_place(INPUTS[:2], 3),
    "uninitialised memory": lambda: uninitialised(INPUTS, 2),
    "lists": lambda: torch.sum(torch.stack([INPUTS.sum(0), INPUTS.mean(0)])),
    "nothing": lambda: INPUTS,
}


def recorded(step, calls=None):
    with torch.no_grad(), Recorder(calls) as recorder:
        result = step()
    return recorder, result


def assert_same(tape, expected, *, written=True):
    assert tape.key == expected.key
    assert tape.operations == expected.operations
    assert all(str(a.args) == str(b.args) for a, b in zip(tape.operations, expected.operations, strict=True))
    assert [value.producer for value in tape.values] == [value.producer for value in expected.values]
    for mine, its in zip(tape.values, expected.values, strict=True):
        assert mine.tensor.dtype == its.tensor.dtype
        assert not written or torch.equal(mine.tensor, its.tensor)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=2, max_size=4))
def test_whatever_was_expected_the_tape_is_the_same(names):
    calls = None
    for name in names:
        recorder, result = recorded(STEPS[name], calls)
        plain, expected = recorded(STEPS[name])
        assert torch.equal(result, expected)
        assert_same(recorder.tape, plain.tape, written=name != "uninitialised memory")
        assert recorder.calls.keys() == plain.calls.keys()
        calls = recorder.calls


@pytest.mark.parametrize("name", ["a fraction", "views", "kinds by name"])
def test_what_is_repeated_is_not_written_down_anew(name):
    first, _ = recorded(STEPS[name])
    again, _ = recorded(STEPS[name], first.calls)
    assert len(first.calls) == len(first.tape.operations) > 1
    # But for the first, which takes in a tensor that the tape has not seen.
    assert all(a is b for a, b in zip(again.tape.operations[1:], first.tape.operations[1:], strict=True))


def test_an_input_that_another_tensor_takes_the_place_of_is_seen():
    """Python gives a new tensor the identity of one that is gone."""
    first, _ = recorded(lambda: torch.sum(torch.ones(4) + INPUTS))
    again, result = recorded(lambda: torch.sum(torch.full((4,), 3.0) + INPUTS), first.calls)
    plain, expected = recorded(lambda: torch.sum(torch.full((4,), 3.0) + INPUTS))
    assert result == expected
    assert_same(again.tape, plain.tape)


def test_candidates_of_a_repeated_step_cost_what_the_loop_says():
    torch.manual_seed(0)
    net, batches = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double(), torch.randn(3, 6, 4).double()
    current = [batches[0]]

    def step():
        return F.cross_entropy(net(current[0]), torch.arange(6) % 3)

    recording, _, _ = record(net, step)
    for batch in batches[1:]:
        current[0] = batch
        before = recording.taken().operations
        with torch.no_grad(), recording.recording():
            loss = step()
        recording.ends_in(loss)
        assert sum(a is b for a, b in zip(recording.taken().operations, before, strict=True)) >= len(before) / 2
    for scored in score(net, step).values():
        torch.testing.assert_close(scored.taped, scored.looped, rtol=1e-9, atol=1e-11)
    assert {block.name for block in blocks_of(net)} == {"0", "2"}
