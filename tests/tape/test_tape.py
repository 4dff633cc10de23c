"""A tape knows its tensors, and is looked up by its structure."""

import torch

from lightning_polystep.tape import Recorder
from lightning_polystep.tape.tape import Ref, references, substitute


def tape_of(run, *inputs):
    with torch.no_grad(), Recorder() as recorder:
        run(*inputs)
    return recorder.tape


def test_references_are_found_in_the_order_of_the_arguments():
    assert list(references((Ref(1), [Ref(2), (3, Ref(4))], {"a": Ref(5)}))) == [1, 2, 4, 5]
    assert substitute({"a": [Ref(5)]}, str) == {"a": ["5"]}


def test_a_tensor_is_found_by_what_it_is():
    x = torch.ones(2)
    with torch.no_grad(), Recorder() as recorder:
        y = x * 2
    assert recorder.tape.find(y) is not None
    assert recorder.tape.find(torch.ones(2)) is None


def test_tapes_of_other_numbers_have_the_same_structure():
    one = tape_of(lambda x: (x * 0.5).sum(), torch.ones(3))
    other = tape_of(lambda x: (x * 0.7).sum(), torch.zeros(3))
    assert one.structure() == other.structure()
    assert hash(one.structure()) == hash(other.structure())


def test_other_shapes_axes_types_and_operators_are_another_structure():
    base = tape_of(lambda x: x.sum(0), torch.ones(3, 3)).structure()
    for run, x in [
        (lambda x: x.sum(0), torch.ones(4, 3)),
        (lambda x: x.sum(1), torch.ones(3, 3)),
        (lambda x: x.mean(0), torch.ones(3, 3)),
        (lambda x: x.sum(0), torch.ones(3, 3, dtype=torch.float64)),
    ]:
        assert tape_of(run, x).structure() != base
