"""The deeper convolutional network: its equations, what has a gradient, and that all of its layers are looked at."""

import pytest
import torch
from torch.nn import functional as F

from lightning_polystep import Engine, PolyStep
from lightning_polystep.audit import audit
from lightning_polystep.functional import staircase
from models import Classifier, ResidualConvNet


def normed(x):
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt()


def test_equals_its_equations():
    torch.manual_seed(0)
    network, images = ResidualConvNet((2, 9, 8), 3, num_classes=4).double(), torch.rand(5, 2, 9, 8).double()
    convolutions = [layer.weight for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert [tuple(weight.shape) for weight in convolutions] == [(3, 2, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (6, 3, 3, 3)]
    first, one, two, last = (lambda x, w=weight: normed(F.conv2d(x, w, padding=1)) for weight in convolutions)
    x = F.max_pool2d(staircase(first(images)), 2)
    x = F.max_pool2d(staircase(x + two(staircase(one(x)))), 2)
    x = F.max_pool2d(staircase(last(x)), 2)
    torch.testing.assert_close(network(images), network[-1](x.flatten(1)))


def test_only_the_scores_have_a_gradient():
    torch.manual_seed(0)
    module = Classifier(ResidualConvNet((1, 8, 8), 2, 4), 4)
    found = audit(module, lambda: module.criterion(module(torch.rand(9, 1, 8, 8)), torch.randint(4, (9,))))
    assert {row.name for row in found.rows if row.nonzero} == {"network.9.weight", "network.9.bias"}


def test_all_layers_are_looked_at_and_it_learns():
    torch.manual_seed(0)
    module, labels = Classifier(ResidualConvNet((1, 16, 16), 8, 4), 4), torch.arange(64) % 4
    images = torch.rand(64, 1, 16, 16)
    for label in range(4):
        images[labels == label, :, 4 * label : 4 * label + 3] += 1  # a bar at a height of its own
    engine = Engine(module, PolyStep(module.parameters(), seed=0), announce=None)
    losses = [float(engine.step(lambda: module.criterion(module(images), labels))) for _ in range(12)]
    tiers = {assignment.block.name: assignment.tier.name for assignment in engine.plan.assignments}
    assert {tiers[f"network.{layer}"] for layer in ("3.first.0", "3.second.0", "5.0")} == {"units"}
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("options", "said"), [({"image_shape": (1, 7, 28)}, "too small"), ({"channels": 0}, "at least 1, got 0")]
)
def test_sizes_that_make_no_network_are_refused(options, said):
    with pytest.raises(ValueError, match=f"ResidualConvNet: .*{said}"):
        ResidualConvNet(**options)
