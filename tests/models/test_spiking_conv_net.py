"""The convolutional spiking network: its equations, and that nothing but the last layer has a gradient."""

import pytest
import torch
from torch.nn import functional as F

from datamodules import MNIST
from lightning_polystep import Engine, PolyStep
from lightning_polystep.audit import audit
from lightning_polystep.functional import lif
from models import Classifier, SpikingConvNet


def small():
    return SpikingConvNet((1, 9, 8), (2, 3), num_classes=4, num_steps=3, beta=0.7, threshold=0.5)


def test_equals_its_equations():
    network, images = small(), torch.rand(5, 1, 9, 8)
    first, second, last = network[0], network[3].layer, network[-1]
    spikes = lif(first(images), 0.7, 0.5, num_steps=3)
    currents = torch.stack([second(F.max_pool2d(now, 2)) for now in spikes])
    rates = torch.stack([F.max_pool2d(now, 2) for now in lif(currents, 0.7, 0.5)]).mean(0)
    assert 0 < rates.mean() < 1
    torch.testing.assert_close(network(images), last(rates.flatten(1)))


def test_the_network_of_the_configs_is_12c5_p2_32c5_p2_10():
    network = SpikingConvNet(channels=(12, 32), kernel_sizes=(5, 5), stride=1, padded=False)
    assert network[0].weight.shape == (12, 1, 5, 5)
    assert network[3].layer.weight.shape == (32, 12, 5, 5)
    assert network[-1].in_features == 32 * 4 * 4
    assert network(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_the_default_network_fires_on_digits_from_the_first_step(data_root):
    data = MNIST(data_root)
    data.setup("test")
    layers = list(SpikingConvNet())
    with torch.no_grad():
        first = torch.nn.Sequential(*layers[:3])(data.test_set.images[:50])
        second = torch.nn.Sequential(*layers[3:6])(first)
    for spikes in (first, second):
        assert 0.1 < spikes.mean() < 0.6


def test_only_the_scores_have_a_gradient():
    module = Classifier(small(), 4)
    found = audit(module, lambda: module.criterion(module(torch.rand(9, 1, 9, 8)), torch.randint(4, (9,))))
    assert {row.name for row in found.rows if row.nonzero} == {"network.7.weight", "network.7.bias"}


def test_all_layers_are_scored_by_shifts():
    module, images, labels = Classifier(small(), 4), torch.rand(20, 1, 9, 8), torch.randint(4, (20,))
    engine = Engine(module, PolyStep(module.parameters(), rank=2, seed=0), announce=None)
    losses = [float(engine.step(lambda: module.criterion(module(images), labels))) for _ in range(15)]
    assert {assignment.tier.name for assignment in engine.plan.assignments} == {"tape"}
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": (8,)}, "channels must be two"),
        ({"kernel_sizes": (5, 5, 5)}, "kernel_sizes must be two"),
        ({"image_shape": (1, 28, 6)}, "too small for two poolings"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=f"SpikingConvNet: .*{message}"):
        SpikingConvNet(**options)
