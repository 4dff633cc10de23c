"""The HardMoE module is its function around a router and its experts."""

import pytest
import torch
from torch import nn

from lightning_polystep.functional import MoEOutput, NonDifferentiableError, hard_moe
from lightning_polystep.layers import HardMoE, Sign
from tests.helpers.layers import COPIES, candidates_equal_the_loop, losses_of_training


def layer_of(**options):
    return HardMoE([nn.Linear(6, 8) for _ in range(4)], router=6, **options)


def test_equals_its_function():
    layer, x = layer_of(), torch.randn(9, 6)
    assert torch.equal(layer(x), hard_moe(x, layer.router(x), list(layer.experts)))
    assert layer(torch.randn(2, 3, 6)).shape == (2, 3, 8)


def test_a_router_of_ones_own():
    router = nn.Sequential(nn.Linear(6, 4), Sign())
    layer, x = HardMoE([nn.Linear(6, 8) for _ in range(4)], router), torch.randn(9, 6)
    assert layer.router is router
    assert torch.equal(layer(x), hard_moe(x, router(x), list(layer.experts)))


def test_routing_on_request():
    output, routing = layer_of(return_routing=True)(torch.randn(9, 6))
    assert isinstance(layer_of(return_routing=True)(torch.randn(9, 6)), MoEOutput)
    assert output.shape == (9, 8)
    assert routing.load.sum() == 9


@pytest.mark.parametrize("copied", COPIES)
def test_copies_behave_alike(copied):
    layer, x = layer_of(), torch.randn(9, 6)
    expected = layer(x)
    assert torch.equal(copied(layer)(x), expected)


def test_state_dict_round_trip():
    source, target, x = layer_of(), layer_of(), torch.randn(9, 6)
    target.load_state_dict(source.state_dict())
    assert torch.equal(target(x), source(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_follows_the_dtype_of_the_network(dtype):
    assert layer_of().to(dtype)(torch.randn(9, 6, dtype=dtype)).dtype == dtype


def test_vmap_over_parameters_equals_the_loop():
    assert candidates_equal_the_loop(layer_of(), torch.randn(9, 6), exact=False)


def test_backward_names_the_layer_or_gives_zeros():
    x = torch.randn(9, 6)
    with pytest.raises(NonDifferentiableError, match=r"HardMoE\(4 experts\)"):
        layer_of()(x).sum().backward()
    layer = layer_of(on_backward="zero")
    layer(x).sum().backward()
    assert torch.equal(layer.router.weight.grad, torch.zeros(4, 6))
    assert all(p.grad is None or not p.grad.any() for p in layer.parameters())


def test_bad_options_are_refused_when_built():
    with pytest.raises(ValueError, match=r"^HardMoE: on_backward must be .*[.]$"):
        layer_of(on_backward="ste")
    with pytest.raises(ValueError, match=r"^HardMoE: experts must hold .*[.]$"):
        HardMoE([], router=6)


def test_a_network_of_experts_learns():
    losses = losses_of_training(nn.Sequential(layer_of(), nn.Linear(8, 3)))
    assert sum(losses[-5:]) / 5 < 0.6 * losses[0]


@pytest.mark.filterwarnings("ignore:At pass .* experts have no sample")
def test_an_expert_without_samples_stands_by():
    module = nn.Sequential(layer_of(), nn.Linear(8, 3))
    with torch.no_grad():
        module[0].router.bias[3] = -1e6
    idle = module[0].experts[3].weight.detach().clone()
    losses = losses_of_training(module)
    assert sum(losses[-5:]) / 5 < 0.7 * losses[0]
    assert torch.allclose(module[0].experts[3].weight, idle, atol=1e-5), "moves by rounding errors at most"
