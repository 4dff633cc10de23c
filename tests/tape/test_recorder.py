"""What a step does is on the tape, whatever Python did to do it, and runs as it would without."""

import pytest
import torch
from torch import nn

from lightning_polystep.tape import Recorder, hold, moving
from lightning_polystep.tape.tape import Unknown

aten = torch.ops.aten


def record(run):
    with torch.no_grad(), Recorder() as recorder:
        result = run()
    return recorder.tape, result


def functions(tape):
    return [operation.function for operation in tape.operations]


def test_a_step_runs_as_it_would_without():
    network, x = (
        nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(inplace=True), nn.Dropout(0.3)),
        torch.randn(8, 4),
    )
    torch.manual_seed(1)
    with torch.no_grad():
        expected = network(x)
        mean = network[1].running_mean.clone()
        network[1].reset_running_stats()
    torch.manual_seed(1)
    _, result = record(lambda: network(x))
    assert torch.equal(result, expected)
    assert torch.equal(network[1].running_mean, mean)


def test_leaves_are_what_they_were_at_the_start():
    weight = nn.Parameter(torch.ones(3))

    def step():
        out = weight * 2
        weight.data.mul_(5)
        return out.sum()

    tape, _ = record(step)
    assert torch.equal(tape.values[tape.leaves[id(weight)]].tensor, torch.ones(3))
    assert torch.equal(weight, torch.full((3,), 5.0))


def test_statistics_that_batch_norm_writes_are_new_values():
    norm, x = nn.BatchNorm1d(3), torch.randn(8, 3)
    before = norm.running_mean.clone()
    tape, _ = record(lambda: norm(x))
    assert torch.equal(tape.values[tape.leaves[id(norm.running_mean)]].tensor, before)
    assert torch.equal(tape.values[tape.find(norm.running_mean)].tensor, norm.running_mean)
    assert tape.find(norm.running_mean) != tape.leaves[id(norm.running_mean)]


def test_noise_has_no_producer():
    tape, mask = record(lambda: torch.empty(3).bernoulli_(0.5))
    assert tape.values[tape.find(mask)].producer is None


def test_views_of_one_leaf_are_views_of_it():
    weight = torch.randn(2, 3)
    flat, same = weight.view(-1), weight.detach()
    tape, _ = record(lambda: (weight.sum(), flat.sum(), same.sum()))
    assert len(tape.leaves) == 1
    assert aten.view.default in functions(tape)


def test_parts_of_one_leaf_that_do_not_meet_are_leaves():
    weight = torch.randn(4, 3)
    upper, lower = weight[:2], weight[2:]
    tape, _ = record(lambda: upper.sum() + lower.sum())
    assert len(tape.leaves) == 2


def test_a_part_of_a_leaf_is_unknown():
    weight = torch.randn(4, 3)
    part = weight[1:3]
    tape, _ = record(lambda: weight.sum() + part.sum())
    assert any(isinstance(function, Unknown) for function in functions(tape))


def test_reading_memory_that_nothing_has_written_is_unknown():
    tape, _ = record(lambda: torch.empty(3) + 1)
    (unknown,) = [function for function in functions(tape) if isinstance(function, Unknown)]
    assert unknown.blind
    tape, _ = record(lambda: torch.empty(3).copy_(torch.ones(3)) + 1)
    assert not any(isinstance(function, Unknown) for function in functions(tape))


def test_writes_that_are_not_known_concern_what_they_write():
    def step():
        x, total = torch.ones(3), torch.zeros(3)
        total.resize_(2)
        return x.sum()

    tape, loss = record(step)
    assert any(isinstance(function, Unknown) for function in functions(tape))
    assert tape.find(loss) is not None


@pytest.mark.parametrize("read", [lambda t: t.item(), lambda t: t.tolist(), float, bool, lambda t: t.numpy()])
def test_numbers_that_leave_are_noted_with_their_place(read):
    x = torch.ones(())
    tape, _ = record(lambda: read(x * 2))
    assert [escape.place.split(":")[0] for escape in tape.escapes] == ["test_recorder.py"]
    tape, _ = record(lambda: read(x))
    assert not tape.escapes, "what was there before the step is the same for all candidates"


def test_what_is_held_is_a_constant():
    x = torch.ones(2)

    def step():
        scale = x.abs().max()
        hold(scale)
        return (x / scale).sum()

    tape, _ = record(step)
    assert len(tape.held) == 1


def test_what_has_moved_beside_the_tape_comes_from_outside():
    weight, x = nn.Parameter(torch.ones(3)), torch.ones(3)

    def step():
        first = (weight * x).sum()
        with moving([weight]):
            weight.add_(1)
        return first, (weight * x).sum()

    tape, (first, second) = record(step)
    latest = tape.leaves[id(weight)]
    assert torch.equal(tape.values[latest].tensor, torch.full((3,), 2.0))
    (product,) = [o for o in tape.operations if o.function is aten.mul.Tensor and latest in o.operands]
    assert float(tape.values[tape.find(first)].tensor) == 3.0
    assert float(second) == 6.0
    assert product.outputs[0] in tape.operations[tape.values[tape.find(second)].producer].operands


def test_an_error_in_the_step_ends_the_tape():
    with pytest.raises(ZeroDivisionError), torch.no_grad(), Recorder():
        raise ZeroDivisionError
    tape, _ = record(lambda: torch.ones(2) * 2)
    assert tape.operations
