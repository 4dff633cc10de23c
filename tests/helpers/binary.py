"""Networks whose weights act by their signs, as somebody who brings them would write them."""

import torch
from torch import nn
from torch.nn.utils import parametrize


class Sign(torch.autograd.Function):
    """The sign, with a straight-through gradient."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0).to(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (x.abs() <= 1)


class Signs(nn.Module):
    """Weights, or activations, as their signs."""

    def forward(self, x):
        return Sign.apply(x)


def signed(layer):
    parametrize.register_parametrization(layer, "weight", Signs())
    return layer


def binary_net(bias=True, norm=False):
    """A network for the digits."""
    norms = [nn.BatchNorm1d(width) if norm else nn.Identity() for width in (64, 10)]
    return nn.Sequential(signed(nn.Linear(64, 64, bias)), norms[0], Signs(), signed(nn.Linear(64, 10, bias)), norms[1])
