"""Folding batch normalisation changes no output beyond rounding, and no code of a quantised weight but its sign."""

import pytest
import torch
from torch import nn

from lightning_polystep.interop import ConversionError, fold_batch_norm
from lightning_polystep.layers import Heaviside, QuantActivation, QuantConv2d, QuantLinear, Sign

FORMATS = ("int8", "int4", "ternary", "binary", "float")


def seen(network, x):
    """Statistics and gains as after some training, of both signs."""
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.affine:
                part.weight.uniform_(0.3, 1.5)
                part.weight[::3] *= -1
                part.bias.uniform_(-0.5, 0.5)
        for _ in range(20):
            network(x)
    return network.eval()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("weight_format", FORMATS)
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_outputs_are_equal_up_to_rounding(weight_format, granularity, bias):
    options = {"weight_format": weight_format, "granularity": granularity, "bias": bias}
    network = nn.Sequential(
        QuantConv2d(2, 6, 3, **options), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Sequential(nn.Flatten(), QuantLinear(24, 5, **options), nn.BatchNorm1d(5)),
    )  # fmt: skip
    x = torch.randn(64, 2, 4, 4)
    folded = fold_batch_norm(seen(network, x))
    assert not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in folded.modules())
    with torch.no_grad():
        assert torch.allclose(folded(x), network(x), atol=1e-4)
        if weight_format != "float":
            sign = network[1].weight.sign().view(-1, 1, 1, 1)
            assert torch.equal(folded[0].weight_codes(), sign * network[0].weight_codes())


@pytest.mark.parametrize("step", [Sign, Heaviside])
def test_before_a_sign_only_the_threshold_is_left(step):
    network = nn.Sequential(
        QuantLinear(32, 12, weight_format="binary", granularity="per_tensor"), nn.BatchNorm1d(12), step()
    )
    x = torch.randn(256, 32).sign()
    with torch.no_grad():
        network[0].weight[0, :3] = 0  # counts as positive, also where the row changes its sign
    folded = fold_batch_norm(seen(network, x))
    assert torch.equal(folded[0].weight_scale, network[0].weight_scale)
    assert folded[0].granularity == "per_tensor"
    with torch.no_grad():
        assert (folded(x) == network(x)).double().mean() > 0.999


def test_plain_layers_and_norms_without_gains():
    network = nn.Sequential(
        nn.Conv1d(2, 4, 2), nn.BatchNorm1d(4, affine=False), nn.Flatten(), nn.Linear(12, 3), nn.BatchNorm1d(3)
    )
    x = torch.randn(32, 2, 4)
    folded = fold_batch_norm(seen(network, x))
    assert [type(layer) for layer in folded] == [nn.Conv1d, nn.Flatten, nn.Linear]
    assert torch.allclose(folded(x), network(x), atol=1e-5)
    assert not {p.data_ptr() for p in folded.parameters()} & {p.data_ptr() for p in network.parameters()}


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(4, 2), QuantActivation(scale=1.0), nn.BatchNorm1d(2)),
        nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2, track_running_stats=False)),
    ],
)
def test_what_cannot_be_folded_stays_with_a_warning(network):
    x = torch.randn(8, 4)
    with pytest.warns(UserWarning, match="stays: only batch normalisation with running statistics, right behind"):
        folded = fold_batch_norm(network.eval())
    assert torch.equal(folded(x), network(x))


def test_a_gain_of_zero():
    def network(weight_format):
        net = nn.Sequential(QuantLinear(4, 2, weight_format=weight_format), nn.BatchNorm1d(2), nn.ReLU())
        with torch.no_grad():
            net[1].weight[0] = 0
            net[1].bias.fill_(0.5)
        return net.eval()

    x = torch.randn(8, 4)
    net = network("int8")
    assert torch.allclose(fold_batch_norm(net)(x), net(x), atol=1e-5)
    with pytest.raises(ConversionError, match="binary weights cannot be 0"):
        fold_batch_norm(network("binary"))


def test_modes_are_kept():
    network = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2), nn.Dropout()).train()
    network[2].eval()
    folded = fold_batch_norm(network)
    assert [folded.training, *[layer.training for layer in folded]] == [True, True, False]
