"""What of arguments belongs to the structure of a tape."""

import pytest
import torch

from lightning_polystep.tape import Recorder
from lightning_polystep.tape.arguments import shape_of, structure_of, values_of
from lightning_polystep.tape.tape import Ref


def test_fractions_are_data_and_whole_numbers_are_not():
    assert structure_of((Ref(0), 0.5)) == structure_of((Ref(0), 0.25))
    assert structure_of((Ref(0), 1)) != structure_of((Ref(0), 2))
    assert structure_of({"alpha": 0.5}) == structure_of({"alpha": 2.5})
    assert structure_of({"alpha": 0.5}) != structure_of({"beta": 0.5})


def test_a_structure_can_be_a_key():
    arguments = ([Ref(1), None], {"dims": [0, 1]}, torch.float32, torch.strided, "mean")
    assert {structure_of(arguments): 1}[structure_of(arguments)] == 1
    assert structure_of([Ref(1)]) != structure_of([Ref(2)])


@pytest.mark.parametrize(
    ("arguments", "values"), [((Ref(3), 1, Ref(2)), [3, 2]), (([Ref(1), Ref(4)], Ref(0)), [1, 4, 0]), ((1, "x"), [])]
)
def test_values_are_told_in_their_order_however_nested(arguments, values):
    assert list(values_of(arguments)) == values


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_what_is_nested_has_no_shape():
    assert shape_of(torch.ones(2, 3)) == (2, 3)
    assert shape_of(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])) == (-1,)


def key_of(run):
    with torch.no_grad(), Recorder() as recorder:
        run()
    return recorder.tape.key[-1]


def test_arguments_that_are_nothing_are_told_apart():
    """No dimension, the first one and a flag that is off are three structures."""
    x = torch.ones(2, 2)
    keys = [key_of(lambda dim=dim: torch.ops.aten.sum.dim_IntList(x, dim, False)) for dim in (None, [], [0])]
    assert len(set(keys)) == 3
