"""Initial weights: pre-activations of root mean square 1 for inputs of the given mean square."""

import pytest
import torch

from models import BinaryMLP, Int8MLP, MoENet, SlotAttentionNet, StaircaseMLP
from models.initialisation import PIXELS, unit_preactivations_


@pytest.mark.parametrize("mean_square", [0.1, 1.0, 4.0])
def test_preactivations_have_a_root_mean_square_of_one(mean_square):
    layer = unit_preactivations_(torch.nn.Linear(300, 200), mean_square)
    seen = layer.requires_grad_(False)(mean_square**0.5 * torch.randn(500, 300))
    assert float(seen.square().mean().sqrt()) == pytest.approx(1, abs=0.05)
    assert layer.bias.abs().sum() == 0


def test_a_layer_without_bias():
    assert unit_preactivations_(torch.nn.Linear(4, 3, bias=False), 1.0).bias is None


@pytest.mark.parametrize("kind", [StaircaseMLP, Int8MLP, BinaryMLP, SlotAttentionNet, MoENet])
def test_every_layer_of_a_network_starts_near_one(kind):
    network, images = kind(), (torch.rand(300, 784) < PIXELS).float()  # as sparse and as bright as handwriting
    sizes = {}
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(
                lambda _module, _inputs, output, name=name: sizes.update({name: float(output.square().mean().sqrt())})
            )
    with torch.no_grad():
        network(images)
    assert len(sizes) >= 3
    assert all(0.5 < size < 2 for size in sizes.values()), sizes
