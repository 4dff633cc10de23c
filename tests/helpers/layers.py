"""What the tests of several layers share: copies that must behave alike, and a small problem to learn."""

import copy
import pickle

import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep.engine import Engine
from lightning_polystep.optimizer import PolyStep

COPIES = [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))]


def problem(samples=96, features=6, classes=3):
    """Return inputs and labels of a linear problem."""
    draw = torch.Generator().manual_seed(1)
    inputs = torch.randn(samples, features, generator=draw)
    return inputs, (inputs @ torch.randn(features, classes, generator=draw)).argmax(1)


def losses_of_training(module: nn.Module, steps=25, *, lr=0.3, rank=4, inputs=None, targets=None):
    """Train on the problem by forward passes alone; return the loss of every step."""
    if inputs is None:
        inputs, targets = problem()
    engine = Engine(module, PolyStep(module.parameters(), seed=0, rank=rank, lr=lr), announce=None)
    return [float(engine.step(lambda: F.cross_entropy(module(inputs), targets))) for _ in range(steps)]


def candidates_equal_the_loop(module: nn.Module, *inputs, count=3, exact=True):
    """Whether a batch of perturbed parameters under vmap gives what one forward each gives."""
    perturbed = {
        name: parameter.detach() + 0.3 * torch.randn(count, *parameter.shape, dtype=parameter.dtype)
        for name, parameter in module.named_parameters()
    }

    def run(parameters):
        return torch.func.functional_call(module, parameters, inputs)

    with torch.no_grad():
        together = torch.func.vmap(run)(perturbed)
        alone = torch.stack([run({name: value[i] for name, value in perturbed.items()}) for i in range(count)])
    return torch.equal(together, alone) if exact else torch.allclose(together, alone, atol=1e-5)
