"""Compiled loops give what the operations that they stand for give, and never read beside their arrays."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep.tape.fuse import cpu
from tests.helpers.tapes import assert_parity, blocks_of, interpreted, record, score
from tests.tape.fuse.test_region import spiking


def neurons():
    torch.manual_seed(1)
    layers = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)]).double()
    x, y = torch.randn(5, 12, 4).double(), torch.randint(3, (12,))

    def step():
        first = second = torch.zeros(12, 6).double()
        out = 0
        for current in x:
            first = 0.8 * first + layers[0](current)
            spikes = (first > 0.5).to(first.dtype)
            first = first * (1 - spikes)
            second = torch.sigmoid(second) + layers[1](spikes)
            out = out + layers[2]((second - 0.6 > 0).to(first.dtype))
        return F.cross_entropy(out, y)

    return layers, step


def test_compiled_loops_cost_what_the_loop_says():
    """The one test that compiles: all others run the same source as Python."""
    layers, step = neurons()
    found = assert_parity(layers, step)
    recording, _, _ = record(layers, step)
    assert any(recording.script(block).loops for block in blocks_of(layers))
    assert all(torch.equal(each.fused.isnan(), each.taped.isnan()) for each in found.values())


def test_the_source_is_python():
    layers, step = spiking()
    recording, _, _ = record(layers, step)
    region = recording.script(blocks_of(layers)[0]).fused
    source = next(cpu.source_of(s.work, len(s.work.lanes)) for s in region if hasattr(s.work, "statements"))
    assert callable(interpreted(source))
    assert "boundscheck=False" in source


def test_arrays_of_another_size_are_refused_before_a_loop_reads_them(monkeypatch):
    monkeypatch.setattr(cpu, "compiled", interpreted)
    layers, step = neurons()
    whole = cpu._packed

    def cut(*args, **kwargs):
        packed = whole(*args, **kwargs)
        return packed[:, :, :1] if packed.shape[2] > 1 else packed

    monkeypatch.setattr(cpu, "_packed", cut)
    with pytest.raises(ValueError, match="was given"):
        score(layers, step)


def test_a_loop_that_differs_from_torch_is_told_and_not_used(monkeypatch):
    def wrong(source):
        return interpreted(source.replace("= (membrane", "= (").replace(" + ", " - ", 1))

    monkeypatch.setattr(cpu, "compiled", wrong)
    layers, step = neurons()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = score(layers, step)
    assert any("compiled loops differ from torch" in str(each.message) for each in caught)
    assert set(found) == {"0", "1", "2"}
