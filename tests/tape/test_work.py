"""The cost of a candidate is estimated by what it computes, the same on every machine."""

import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep.layers import ArgmaxAttention
from lightning_polystep.scoring.taped import TapeTier
from lightning_polystep.tape import Work
from tests.helpers.tapes import blocks_of, record


def works(width, depth=2):
    torch.manual_seed(0)
    layers = [nn.Linear(16, width), *[nn.Linear(width, width) for _ in range(depth - 1)], nn.Linear(width, 3)]
    network, x, y = nn.Sequential(*layers), torch.randn(32, 16), torch.randint(3, (32,))
    recording, _, _ = record(network, lambda: F.cross_entropy(network(x), y))
    return [TapeTier(block, recording).work() for block in blocks_of(network)]


def test_a_candidate_costs_less_than_the_step():
    for work in works(64):
        assert 0 < work.candidate < work.forward


def test_what_lies_behind_a_layer_costs():
    first, *_, last = works(64, depth=3)
    assert first.candidate > last.candidate


def test_a_wider_network_costs_more():
    assert works(256)[0].candidate > works(32)[0].candidate
    assert works(256)[0].widest > works(32)[0].widest


def test_the_estimate_is_the_same_each_time():
    assert works(32) == works(32)


def test_loops_that_would_write_an_outer_product_are_left_out():
    """Of attention by argmax behind a norm, axes of width met nowhere: a candidate took 1.6 GB."""

    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.first, self.attend = nn.LayerNorm(width), ArgmaxAttention(width)
            self.second, self.feed = nn.LayerNorm(width), nn.Linear(width, width)

        def forward(self, x):
            x = x + self.attend(self.first(x))
            return x + self.feed(self.second(x)).relu()

    torch.manual_seed(0)
    places, table = nn.Parameter(torch.randn(6, 16)), nn.Embedding(5, 16)
    net = nn.ModuleDict({"table": table, "body": nn.Sequential(Block(16), Block(16)), "head": nn.Linear(16, 5)})
    net.register_parameter("places", places)
    x = torch.randint(0, 5, (8, 6))
    recording, _, _ = record(net, lambda: net["head"](net["body"](net["table"](x) + net.places)).square().mean())
    for block in blocks_of(net):
        script = recording.script(block)
        assert script.work.widest <= 4 * Work.of(recording.taken(), script.program, script.plain).widest
