"""Values of some candidates, units and samples are read at their places."""

import torch
from torch import nn

from lightning_polystep.tape import Recorder, compile_program
from lightning_polystep.tape.frame import Frame, difference, merged_sizes, pick
from lightning_polystep.tape.program import Stage


def recorded():
    """Return a tape of two layers, its program, and the values of inputs, hidden units and outputs."""
    first, second, x = nn.Linear(4, 5, bias=False), nn.Linear(5, 3, bias=False), torch.randn(7, 4)
    with torch.no_grad(), Recorder() as recorder:
        hidden = torch.tanh(first(x))
        out = second(hidden)
        loss = out.square().mean()
    tape = recorder.tape
    program = compile_program(tape, {tape.leaves[id(first.weight)]: 0}, tape.find(loss))
    return tape, program, tape.find(hidden), tape.find(out)


def frames():
    tape, program, hidden, out = recorded()
    units = torch.tensor([4, 0, 2])
    everyone = torch.arange(3)
    local = Frame(tape, program, Stage.UNIT, everyone, units)
    candidates, samples = torch.tensor([0, 2, 2]), torch.tensor([6, 0, 3])
    pairs = Frame(
        tape, program, Stage.SAMPLE, candidates, units[candidates], samples, earlier=(local, candidates), everyone=3
    )
    return local, pairs, hidden, out


def test_a_recorded_value_is_read_at_the_unit_of_each_candidate():
    local, _, hidden, _ = frames()
    value, has_instances = local.recorded(hidden)
    assert has_instances
    assert torch.equal(value[:, :, 0], local.tape.values[hidden].tensor[:, local.units].T)
    assert list(value.shape) == [3, 7, 1] == [3, *local.shape(hidden)]


def test_a_recorded_value_is_read_at_the_sample_of_each_pair():
    _, pairs, _, out = frames()
    value, has_instances = pairs.recorded(out)
    assert has_instances
    assert torch.equal(value[:, 0], pairs.tape.values[out].tensor[pairs.samples])


def test_what_changes_at_a_unit_is_put_among_all_units():
    local, pairs, hidden, _ = frames()
    local.values[hidden] = local.recorded(hidden)[0] + 1
    assert pairs.enters(hidden)
    spread = pairs.read(hidden)[0]
    before = pairs.tape.values[hidden].tensor[pairs.samples][:, None]
    changed = torch.zeros_like(before).scatter(2, pairs.units[:, None, None], 1.0)
    torch.testing.assert_close(spread, before + changed)
    torch.testing.assert_close(pairs.change(hidden), torch.ones(3, 1, 1))


def test_changes_of_pairs_are_added_up_by_candidate():
    _, pairs, _, _ = frames()
    total = pairs.by_candidate(torch.tensor([[1.0], [10.0], [100.0]]))
    assert total.flatten().tolist() == [1.0, 0.0, 110.0]


def test_what_is_true_or_false_differs_by_numbers():
    assert difference(torch.tensor([True, False]), torch.tensor([False, False])).tolist() == [1, 0]


def test_one_place_of_a_merged_axis_leaves_the_others():
    x = torch.randn(6, 4)
    weight = nn.Parameter(torch.randn(3, 2, 4))
    with torch.no_grad(), Recorder() as recorder:
        out = x @ weight.view(6, 4).t()
        loss = out.sum()
    tape = recorder.tape
    program = compile_program(tape, {tape.leaves[id(weight)]: 0}, tape.find(loss))
    index = tape.find(out)
    picked = pick(program, index, out, {program.unit: torch.tensor([2, 0])})
    assert torch.equal(picked, torch.stack([out[:, 4:], out[:, :2]]))
    assert merged_sizes(program, index, {program.unit}, lambda label: program.labels.size((label,))) == [6, 2]
