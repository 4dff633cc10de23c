"""Runs of elementwise operations become one loop where that says the same, and are left to torch elsewhere."""

import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep.tape.fuse import Region
from tests.helpers.tapes import blocks_of, record


def regions(layers, step):
    recording, _, _ = record(layers, step)
    return {
        block.name: [s.work for s in recording.script(block).fused if isinstance(s.work, Region)]
        for block in blocks_of(layers)
    }


def spiking(steps=6):
    layers, x, y = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)), torch.randn(6, 4), torch.randint(3, (6,))

    def step():
        membrane, out = torch.zeros(6, 8), 0
        for _ in range(steps):
            membrane = 0.9 * membrane + layers[0](x)
            spikes = (membrane > 1).float()
            membrane = membrane - spikes
            out = out + layers[1](spikes)
        return F.cross_entropy(out, y)

    return layers, step


def test_neurons_over_all_their_steps_are_one_loop():
    found = regions(*spiking())
    first = found["0"][0]
    assert len(first.steps) > 6 * 4
    assert {each.kind for each in first.inputs} >= {"unit", "shift"}


def test_a_loop_grows_with_the_steps_and_no_array_does():
    short, long = regions(*spiking(4))["0"][0], regions(*spiking(8))["0"][0]
    assert len(long.statements) > len(short.statements)
    assert len(long.inputs) == len(short.inputs)


def test_short_runs_are_left_to_torch():
    layers, x = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)), torch.randn(6, 4)
    assert not regions(layers, lambda: layers[1](layers[0](x).erf()).erf().mean())["0"]


def test_bits_of_another_type_are_left_to_torch():
    layers, x = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)), torch.randn(6, 4)

    def step():
        h = layers[0](x) * 2 + 1
        return layers[1]((h.view(torch.int32) > 3).float() * 2 + h).square().mean()

    for region in regions(layers, step)["0"]:
        assert not any("view.dtype" in str(s) for s in region.statements)
