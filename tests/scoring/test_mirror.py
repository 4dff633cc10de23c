"""What products do to changes, learned from random inputs."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep.scoring.mirror import Mirror
from lightning_polystep.tape import product_of
from tests.helpers.tapes import record

PRODUCTS = {
    "linear": (lambda: nn.Linear(6, 5), (7, 6)),
    "linear without a bias": (lambda: nn.Linear(6, 5, bias=False), (7, 6)),
    "images": (lambda: nn.Conv2d(3, 5, (2, 3), stride=2, padding=(1, 0), dilation=(1, 2)), (4, 3, 8, 9)),
    "images that do not fit": (lambda: nn.Conv2d(3, 5, 2, stride=3), (4, 3, 7, 9)),
    "series": (lambda: nn.Conv1d(3, 5, 4, stride=2, padding=1), (4, 3, 11)),
}


def setting(kind):
    make, shape = PRODUCTS[kind]
    torch.manual_seed(0)
    layer, x = make().double(), torch.randn(shape).double()
    recording, _, _ = record(layer, lambda: layer(x).square().flatten(1).sum(1).mean())
    tape = recording.taken()
    (product,) = [each for each in (product_of(tape, one) for one in tape.operations) if each is not None]
    return layer, x, tape, product


def learned(mirror, tape, product, steps):
    for step in range(steps):
        mirror.learn(tape, product, (0, step, 0))
    return mirror


@pytest.mark.parametrize("kind", sorted(PRODUCTS))
def test_slopes_go_back_as_the_layer_would_send_them(kind):
    layer, x, tape, product = setting(kind)
    mirror = learned(Mirror("layer", {}), tape, product, 40)
    x = x.clone().requires_grad_()
    made = layer(x)
    slopes = torch.randn(made.shape).double()
    (exact,) = torch.autograd.grad(made, x, slopes)
    torch.testing.assert_close(mirror.back(tape, product, (0, 40, 0), slopes), exact, rtol=1e-4, atol=1e-4)


def test_a_new_mirror_starts_with_many_inputs_and_each_step_halves_what_is_left():
    layer, _, tape, product = setting("linear")
    mirror, errors = Mirror("layer", {}), []
    for step in range(6):
        mirror.learn(tape, product, (0, step, 0))
        errors.append(float((mirror.memory["matrix"] - layer.weight.detach()).norm() / layer.weight.detach().norm()))
    assert errors[0] < 0.2
    assert errors[-1] < 0.5 * errors[0]


def test_weights_that_move_are_followed():
    layer, _, tape, product = setting("linear")
    mirror = learned(Mirror("layer", {}), tape, product, 10)
    with torch.no_grad():
        layer.weight.neg_()
    for step in range(10, 22):
        mirror.learn(tape, product, (0, step, 0))
    assert float((mirror.memory["matrix"] - layer.weight.detach()).norm() / layer.weight.detach().norm()) < 0.1


def test_it_learns_once_a_step_whatever_samples_a_process_sees():
    _, _, tape, product = setting("linear")
    mirror, other = Mirror("layer", {}), Mirror("layer", {})
    mirror.learn(tape, product, (0, 3, 0))
    once = mirror.memory["matrix"].clone()
    mirror.learn(tape, product, (0, 3, 1))
    assert torch.equal(mirror.memory["matrix"], once)
    other.learn(tape, product, (0, 3, 5))
    assert torch.equal(other.memory["matrix"], once)


def test_a_trial_keeps_nothing():
    _, _, tape, product = setting("linear")
    mirror = Mirror("layer", {})
    tried = mirror.matrix(tape, product, (0, 0, 0))
    assert not mirror.memory
    mirror.learn(tape, product, (0, 0, 0))
    assert torch.equal(mirror.matrix(tape, product, (0, 0, 0)), tried)


def test_what_a_quantiser_makes_of_weights_is_what_is_learned():
    class Rounded(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 6))

        def forward(self, x):
            return F.linear(x, self.weight.round())

    torch.manual_seed(0)
    net, x = Rounded(), torch.randn(7, 6)
    recording, _, _ = record(net, lambda: net(x).square().sum(1).mean())
    tape = recording.taken()
    (product,) = [each for each in (product_of(tape, one) for one in tape.operations) if each is not None]
    mirror = learned(Mirror("weight", {}), tape, product, 40)
    torch.testing.assert_close(mirror.memory["matrix"], net.weight.detach().round(), rtol=0, atol=1e-3)
