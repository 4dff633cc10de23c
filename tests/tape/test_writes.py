"""Every operator that writes in place is said by one of the same arguments that writes nothing, or by none."""

import pytest
import torch

from lightning_polystep.tape import Recorder
from lightning_polystep.tape.tape import Unknown, substitute
from lightning_polystep.tape.writes import facts_of

aten = torch.ops.aten


@pytest.mark.parametrize(
    ("function", "functional"),
    [
        (aten.add_.Tensor, aten.add.Tensor),
        (aten.mean.out, aten.mean.dim),
        (aten.add.out, aten.add.Tensor),
        (aten.div.out_mode, aten.div.Tensor_mode),
        (aten.sort.values, aten.sort.default),
        (aten.transpose_.default, aten.transpose.int),
        (aten.masked_fill_.Scalar, aten.masked_fill.Scalar),
        (aten.max.dim_max, aten.max.dim),
    ],
)
def test_the_operator_that_computes_the_same_has_the_same_arguments(function, functional):
    assert facts_of(function).functional is functional


def test_views_that_are_not_declared_are_known():
    assert all(facts_of(f).is_view for f in (aten.view.default, aten._unsafe_view.default, aten.unsafe_split.Tensor))
    assert not facts_of(aten.add.Tensor).is_view


def test_noise_comes_from_a_generator_alone():
    assert facts_of(aten.bernoulli_.float).random
    assert not facts_of(aten.bernoulli_.Tensor).random


WRITES = {
    "add": lambda t: t.add_(torch.ones(3), alpha=2),
    "a comparison": lambda t: t.gt_(0.2),
    "another type": lambda t: t.mul_(torch.ones((), dtype=torch.float64)),
    "a copy of another type": lambda t: t.copy_(torch.arange(3)),
    "a copy that is repeated": lambda t: t.copy_(torch.ones(1)),
    "a number": lambda t: t.fill_(3.0),
    "a mask": lambda t: t.__setitem__(t > 0.2, 5.0),
    "an index": lambda t: t.__setitem__(torch.tensor([0, 0]), 5.0),
    "a select": lambda t: t[0, 1].add_(1),
    "a slice": lambda t: t[:, ::2].mul_(2),
    "a transpose": lambda t: t.t()[1].neg_(),
    "a permutation": lambda t: t.unsqueeze(0).permute(2, 0, 1)[0].neg_(),
    "a chunk": lambda t: t.chunk(2, 1)[1].add_(1),
    "a split of sizes": lambda t: t.split([1, 3])[1].tanh_(),
    "a diagonal": lambda t: t.diagonal().zero_(),
    "an unbound row": lambda t: t.unbind()[2].exp_(),
    "a view and a squeeze": lambda t: t.view(2, 2, 1, 3).squeeze(2)[1].sub_(1),
    "detached": lambda t: t.detach().add_(1),
    "data": lambda t: t.data.mul_(3),
    "out": lambda t: torch.mul(t, 2, out=t),
    "out of another type": lambda t: torch.sum(t > 0, 0, dtype=torch.float64, out=torch.zeros(3, dtype=torch.float64)),
    "two at once": lambda t: torch.sort(t.clone(), 1, out=(t, torch.zeros(4, 3, dtype=torch.long))),
    "turned": lambda t: t.clone().t_().add_(1),
    "scattered": lambda t: t.scatter_add_(1, torch.tensor([[0, 1], [2, 0]]), torch.ones(2, 2)),
}


def replayed(tape):
    """Compute every value of a tape again from those that came from outside."""
    values = {index: value.tensor for index, value in enumerate(tape.values) if value.producer is None}
    for operation in tape.operations:
        assert not isinstance(operation.function, Unknown), operation.function
        function = aten.reshape if operation.function is aten.view.default else operation.function
        made = function(*substitute(operation.args, values.get), **substitute(operation.kwargs, values.get))
        results = made if isinstance(made, tuple | list) else (made,)
        values |= {index: each for index, each in zip(operation.outputs, results, strict=True) if index is not None}
    return values


@pytest.mark.parametrize("name", WRITES)
def test_a_tape_of_writes_computes_what_was_written(name):
    whole = torch.linspace(-1, 1, 12).reshape(4, 3)
    start = whole * 1
    view = start.view(-1)
    with torch.no_grad(), Recorder() as recorder:
        tensor = whole * 1
        other = tensor.view(-1)
        WRITES[name](tensor)
        result, seen = tensor * 1, other + 0
    values = replayed(recorder.tape)
    for each in (result, seen):
        assert torch.equal(values[recorder.tape.find(each)], each)
    for index, value in enumerate(recorder.tape.values):
        assert values[index].dtype == value.tensor.dtype
        assert torch.equal(values[index], value.tensor), f"value {index} is not what it was"
    WRITES[name](start)
    assert torch.equal(start, tensor)
    assert torch.equal(view, other)
