"""What slopes by what operations make say of what goes in, against the derivative."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep.tape import goes_back, has_way_back, is_looked_at_apart, moves, told_afterwards, way_back
from lightning_polystep.tape import ways_back as module
from lightning_polystep.tape.merging import operations_towards
from tests.helpers.tapes import record

aten = torch.ops.aten

OPERATIONS = {
    "add": (torch.add, (4, 3), (4, 3)),
    "add some": (lambda a, b: a + b, (4, 3), (3,)),
    "sub": (lambda a, b: a - b, (4, 3), (4, 1)),
    "mul": (lambda a, b: a * b, (4, 3), (3,)),
    "bmm": (lambda a, b: a.bmm(b), (4, 3, 2), (4, 2, 5)),
    "attention": (lambda a, b: F.scaled_dot_product_attention(a, b, a * b), (2, 3, 5, 4), (2, 3, 5, 4)),
    "attention to what came before": (
        lambda a, b: F.scaled_dot_product_attention(a, b, a * b, is_causal=True),
        (2, 3, 5, 4),
        (2, 3, 5, 4),
    ),
    "softmax": (lambda a, b: (a + b).softmax(-1), (4, 3), (4, 3)),
    "mean": (lambda a, b: (a + b).mean(1), (4, 3, 5), (4, 3, 5)),
    "mean of two axes": (lambda a, b: (a + b).mean((1, 2), keepdim=True), (4, 3, 5), (4, 3, 5)),
    "sum": (lambda a, b: (a + b).sum(-1), (4, 3, 5), (4, 3, 5)),
    "average": (lambda a, b: F.avg_pool2d(a + b, 2), (4, 3, 4, 6), (4, 3, 4, 6)),
    "average of windows that overlap": (lambda a, b: F.avg_pool2d(a + b, 3, 2, 1), (4, 3, 5, 7), (4, 3, 5, 7)),
    "to a size": (lambda a, b: F.adaptive_avg_pool2d(a + b, 2), (4, 3, 5, 7), (4, 3, 5, 7)),
    "largest": (lambda a, b: F.max_pool2d(a + b, 2), (4, 3, 4, 6), (4, 3, 4, 6)),
    "largest of windows that overlap": (lambda a, b: F.max_pool2d(a + b, 3, 2, 1), (4, 3, 5, 7), (4, 3, 5, 7)),
    "stack": (lambda a, b: torch.stack([a, b], 1), (4, 3), (4, 3)),
    "cat": (lambda a, b: torch.cat([a, b], 1), (4, 3), (4, 2)),
}


class Two(nn.Module):
    def __init__(self, run, one, other):
        super().__init__()
        self.one, self.other, self.run = nn.Parameter(torch.randn(one)), nn.Parameter(torch.randn(other)), run

    def forward(self):
        return self.run(self.one, self.other)


@pytest.mark.parametrize("kind", sorted(OPERATIONS))
def test_slopes_go_back_as_by_the_derivative(kind):
    run, *shapes = OPERATIONS[kind]
    torch.manual_seed(0)
    net = Two(run, *shapes).double()
    recording, _, _ = record(net, lambda: net().square().sum())
    tape = recording.taken()
    found = {tape.leaves[id(each)]: each for each in net.parameters()}
    with torch.enable_grad():
        made = net()
    slopes = torch.randn(made.shape).double()
    exact = dict(zip(found, torch.autograd.grad(made, list(found.values()), slopes), strict=True))
    operations = [each for each in operations_towards(tape, recording.loss) if has_way_back(each)]
    last = max(i for i, each in enumerate(operations) if tape.values[each.outputs[0]].tensor.shape == made.shape)
    known = {operations[last].outputs[0]: slopes}
    for operation in reversed(operations[: last + 1]):
        for place, index in enumerate(operation.operands):
            if operation.outputs[0] in known:
                own = way_back(tape, operation, place, known[operation.outputs[0]])
                known[index] = known[index] + own if index in known else own
    for index, wanted in exact.items():
        torch.testing.assert_close(known[index], wanted)


def test_what_takes_places_together_is_looked_at_apart_but_for_a_first_pooling():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.AvgPool2d(2, 1), nn.Flatten())
    recording, _, _ = record(net, lambda: net(torch.randn(3, 1, 8, 8)).mean(1).sum())
    largest, average = (
        next(each for each in recording.taken().operations if each.function is kind)
        for kind in (aten.max_pool2d_with_indices.default, aten.avg_pool2d.default)
    )
    assert is_looked_at_apart(largest, is_first=False)
    assert not is_looked_at_apart(largest, is_first=True)
    assert is_looked_at_apart(average, is_first=True), "its windows overlap"


def test_of_a_window_the_largest_gets_all_that_its_places_were_told():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2))
    recording, _, _ = record(net, lambda: net(torch.randn(3, 1, 8, 8)).flatten(1).sum(1).mean())
    tape = recording.taken()
    operation = next(each for each in tape.operations if each.function is aten.max_pool2d_with_indices.default)
    given = tape.values[operation.operands[0]].tensor
    of_windows = torch.randn(3, 4, 3, 3)
    told = told_afterwards(tape, operation, of_windows.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4)
    assert ((told != 0).sum((2, 3)) == 9).all()
    torch.testing.assert_close(F.avg_pool2d(told, 2) * 4, of_windows)
    largest = tape.values[operation.outputs[0]].tensor.flatten(2)
    assert torch.equal(given[told != 0].reshape(3, 4, 9).sort().values, largest.sort().values)


def test_moves_say_where_numbers_are_put():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 8, bias=False)

        def forward(self, x):
            one, two = self.layer(x).chunk(2, -1)
            return (one * two.reshape(3, 2, 2).transpose(1, 2).flatten(1)).sum(1)

    net = Cut()
    recording, _, _ = record(net, lambda: net(torch.randn(3, 6)).mean())
    tape = recording.taken()
    made = next(each for each in tape.operations if "mm" in str(each.function)).outputs[0]
    whole = tape.values[made].tensor
    moved = {made: torch.arange(whole.numel()).reshape(whole.shape)}
    for operation in tape.operations:
        if operation.operands and operation.operands[0] in moved:
            moved.update(moves(tape, operation, moved[operation.operands[0]]) or {})
    assert len(moved) > 4
    for index, places in moved.items():
        assert torch.equal(whole.flatten()[places], tape.values[index].tensor)


def test_a_package_adds_a_rule(monkeypatch):
    monkeypatch.setattr(module, "_WAYS_BACK", dict(module._WAYS_BACK))
    net = Two(lambda a, b: (a * b).tanh(), (4, 3), (4, 3)).double()
    recording, _, _ = record(net, lambda: net().sum())
    tape = recording.taken()
    operation = next(each for each in tape.operations if each.function is aten.tanh.default)
    assert not has_way_back(operation)

    @goes_back(aten.tanh)
    def _(tape, operation, place, slopes):
        return slopes * (1 - tape.values[operation.outputs[0]].tensor ** 2)

    assert has_way_back(operation)
    assert way_back(tape, operation, 0, torch.ones(4, 3).double()).shape == (4, 3)
