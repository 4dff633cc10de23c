"""Pieces of values into which other pieces were written."""

import torch
from torch import nn

from lightning_polystep.tape import Recorder
from lightning_polystep.tape.merging import merge_equal


def recorded(run):
    with torch.no_grad(), Recorder() as recorder:
        run()
    tape = recorder.tape
    return tape, merge_equal(tape)[0]


def test_what_was_put_there_is_read_and_what_was_there_before():
    def step():
        x = torch.randn(3, 8).exp()
        a, b = x.split(4, 1)
        a.sigmoid_()
        return x, a.tanh(), b.tanh()

    tape, same = recorded(step)
    for operation in tape.operations:
        for index in operation.outputs:
            if index in same:
                assert torch.equal(tape.values[index].tensor, tape.values[same[index]].tensor)
    sigmoid = next(each for each in tape.operations if each.function is torch.ops.aten.sigmoid.default)
    read = [same.get(each.operands[0], each.operands[0]) for each in tape.operations if "tanh" in str(each.function)]
    assert read[0] == sigmoid.outputs[0]
    first = next(each for each in tape.operations if "split" in str(each.function))
    assert read[1] in first.outputs


def test_pieces_that_overlap_are_left_as_they_are():
    def step():
        x = torch.randn(3, 8).exp()
        x[:, 2:6].zero_()
        return [each.tanh() for each in x.split(4, 1)]

    tape, same = recorded(step)
    tanhs = [each for each in tape.operations if "tanh" in str(each.function)]
    assert all(each.operands[0] not in same for each in tanhs)


def test_gates_of_torchs_cells_are_apart():
    for cell in (nn.LSTMCell(6, 4), nn.GRUCell(6, 4)):
        tape, same = recorded(lambda cell=cell: cell(torch.randn(5, 6)))
        pairs = [(index, same[index]) for each in tape.operations for index in each.outputs if index in same]
        assert pairs
        assert all(torch.equal(tape.values[one].tensor, tape.values[other].tensor) for one, other in pairs)
