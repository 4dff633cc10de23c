"""Small networks, what they are to learn, and engines that train them in plain PyTorch."""

import hashlib

import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep.engine import Engine
from lightning_polystep.layers import LIF, SpikeCount
from lightning_polystep.optimizer import PolyStep


def digest(module):
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in module.parameters())).hexdigest()


def problem(samples=96):
    draw = torch.Generator().manual_seed(1)
    inputs = torch.randn(samples, 6, generator=draw)
    return inputs, (inputs @ torch.randn(6, 3, generator=draw)).argmax(1)


def spiking():
    return nn.Sequential(
        nn.Linear(6, 16),
        LIF(0.9, 1.0, num_steps=8, learn_beta=True, learn_threshold=True),
        nn.Linear(16, 3),
        LIF(0.9, 1.0),
        SpikeCount(),
    )


def network():
    return nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Dropout(0.2), nn.Linear(10, 3))


def engine_of(module, *, seed=0, rank=4, lr=0.1, optimizer=None, **options):
    optimizer = optimizer or PolyStep(module.parameters(), seed=seed, rank=rank, lr=lr)
    return Engine(module, optimizer, **{"announce": None, **options})


def train(steps, build=network, **options):
    torch.manual_seed(0)
    module, (inputs, targets) = build(), problem()
    engine = engine_of(module, **options)
    losses = [float(engine.step(lambda: F.cross_entropy(module(inputs), targets))) for _ in range(steps)]
    return module, losses, engine
