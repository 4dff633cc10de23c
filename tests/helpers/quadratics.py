"""A quadratic of one vector and one matrix, and what a step of an optimizer does to it."""

import torch
from torch import nn

from lightning_polystep.engine import Engine
from lightning_polystep.randomness import generator

CURVATURES = torch.tensor([1.0, 2.0, 3.0, 1.0, 0.5, 4.0, 1.0, 2.0, 1.5], dtype=torch.float64)
GOAL = torch.linspace(-1.0, 1.0, 9, dtype=torch.float64)
SHAPES = [torch.Size([3]), torch.Size([2, 3])]


def loss_at(point):
    """The loss of all nine numbers in one vector; what a reference calls."""
    return float(0.5 * (CURVATURES * (point - GOAL).square()).sum())


class Quadratic:
    """The problem as a module with two parameters, trained by an engine.

    Args:
        make: Makes an optimizer of parameters.
        options: Of the engine.
    """

    def __init__(self, make, **options):
        self.module = nn.ParameterList([torch.zeros(shape, dtype=torch.float64) for shape in SHAPES])
        self.optimizer = make(self.module.parameters())
        self.engine = Engine(self.module, self.optimizer, announce=None, **options)

    @property
    def point(self):
        return torch.cat([parameter.detach().flatten() for parameter in self.module])

    def loss(self):
        return 0.5 * (CURVATURES * (torch.cat([p.flatten() for p in self.module]) - GOAL).square()).sum()

    def run(self, steps):
        """All points, from the first on."""
        points = [self.point]
        for _ in range(steps):
            self.engine.step(self.loss)
            points.append(self.point)
        return points


def draws(seed, step):
    """The source of randomness of a step."""
    return generator(seed, step, "joint")


def agree(points, expected):
    torch.testing.assert_close(torch.stack(points), torch.stack(expected), rtol=1e-6, atol=1e-8)
