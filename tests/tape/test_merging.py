"""What a step does again with the same operands is one operation, and nothing else is."""

import torch
from torch.nn import functional

from lightning_polystep.tape import Recorder
from lightning_polystep.tape.merging import merge_equal, renamed

X, WEIGHT = torch.randn(5, 3), torch.randn(4, 3)


def merged(run):
    with torch.no_grad(), Recorder() as recorder:
        run()
    return recorder.tape, *merge_equal(recorder.tape)


def names(tape, numbers):
    return [str(tape.operations[number].function) for number in numbers]


def test_a_layer_on_the_same_inputs_at_each_time():
    tape, same, again = merged(lambda: [functional.linear(X, WEIGHT).tanh() for _ in range(3)])
    assert (
        names(tape, [number for number, _ in again]) == ["aten.t.default", "aten.mm.default", "aten.tanh.default"] * 2
    )
    first = {same.get(o, o) for operation in tape.operations for o in operation.outputs}
    assert len(first) == 3


def test_a_chain_reads_the_first_of_equal_values():
    tape, same, _ = merged(lambda: [functional.linear(X, WEIGHT), functional.linear(X, WEIGHT) * 2])
    last = renamed(tape.operations[-1], same)
    assert last.operands == (tape.operations[1].outputs[0],)
    assert tape.operations[-1].operands != last.operands
    assert renamed(tape.operations[1], {}) is tape.operations[1]


def test_other_numbers_other_operands_and_chance_are_no_repetition():
    assert merged(lambda: [X * 2, X * 3, X * 2.0])[2] == [], "2 and 2.0 may give numbers of another type"
    assert merged(lambda: [X + 1, WEIGHT + 1])[2] == []
    assert merged(lambda: [torch.rand_like(X), torch.rand_like(X)])[2] == []


def test_what_has_been_written_in_between_is_another_value():
    def step():
        x = X.clone()
        first = x.exp()
        x.add_(1)
        return first, x.exp()

    tape, _, again = merged(step)
    assert "aten.exp.default" not in names(tape, [number for number, _ in again])
