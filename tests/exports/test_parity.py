import pytest
import torch

from lightning_polystep.exports.parity import compare, compare_closely


def test_every_bit_counts_but_the_sign_of_zero():
    one = torch.ones(3)
    one[1] = torch.nextafter(one[1], torch.tensor(2.0))
    assert compare("x", torch.ones(3), one).unequal == 1
    assert compare("x", torch.tensor([0.0]), torch.tensor([-0.0])).unequal == 0
    assert compare("x", torch.tensor([float("nan")]), torch.tensor([float("nan")])).unequal == 1


def test_rounding_is_forgiven_and_more_is_not():
    ours = torch.tensor([1.0, 2.0, 3.0])
    assert compare_closely("x", ours, ours * (1 + 1e-6)).unequal == 0
    assert compare_closely("x", ours, ours + torch.tensor([0.0, 0.01, 0.0])).unequal == 1


@pytest.mark.parametrize("shapes", [((2,), (3,)), ((0,), (0,))])
def test_what_cannot_be_compared_is_no_agreement(shapes):
    for counted in (compare, compare_closely):
        with pytest.raises(ValueError, match="cannot be compared"):
            counted("x", *(torch.zeros(shape) for shape in shapes))
