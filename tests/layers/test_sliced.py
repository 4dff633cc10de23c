"""A sliced sequence is nn.Sequential, a slice of the batch at a time."""

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_polystep.layers import LIF, Sliced, SpikeCount
from lightning_polystep.layers.sliced import Rows


def layers():
    return [nn.Flatten(), nn.Linear(6, 5), LIF(0.9, 0.4, num_steps=7), nn.Linear(5, 3), LIF(0.9, 0.3), SpikeCount()]


class Sizes(nn.Module):
    """Notes how many samples come by."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(len(x))
        return x


@given(count=st.integers(1, 12), samples=st.none() | st.integers(1, 13), autograd=st.booleans())
def test_equals_the_layers_on_the_whole_batch(count, samples, autograd):
    parts, batch = layers(), torch.randn(count, 2, 3).double()
    with torch.set_grad_enabled(autograd):
        assert torch.equal(Sliced(*parts, samples=samples).double()(batch), nn.Sequential(*parts)(batch))


def test_rows_are_copied_into_memory_that_the_first_reserves():
    rows, parts = Rows(5), list(torch.randn(5, 2).split(2))
    assert rows.room == 5
    kept = [rows.add(part) for part in parts]
    assert rows.room == 0
    assert torch.equal(rows.whole, torch.cat(parts))
    assert {part.untyped_storage().data_ptr() for part in kept} == {rows.whole.untyped_storage().data_ptr()}


@pytest.mark.parametrize(
    ("samples", "sizes", "cut"), [(None, [7], None), (7, [7], None), (8, [7], None), (6, [4, 3], 4), (3, [3, 3, 1], 3)]
)
def test_slices_are_even_and_none_is_larger_than_asked(samples, sizes, cut):
    look = Sizes()
    network, batch = Sliced(look, nn.Linear(2, 2), samples=samples), torch.randn(7, 2)
    assert network.slice_size(batch) == cut
    assert network(batch).shape == (7, 2)
    assert look.seen == sizes


def test_an_empty_batch_stays_empty():
    assert Sliced(nn.Linear(2, 3), samples=2)(torch.randn(0, 2)).shape == (0, 3)


def test_the_parameters_have_the_names_that_a_sequence_gives_them():
    parts = layers()
    sliced, sequence = Sliced(*parts, samples=2), nn.Sequential(*parts)
    assert list(sliced.state_dict()) == list(sequence.state_dict())
    assert pickle.loads(pickle.dumps(sliced)).samples == 2
    assert "samples=2" in repr(sliced)


def test_gradients_flow_through_slices():
    layer, batch = nn.Linear(3, 2).double(), torch.randn(5, 3, dtype=torch.float64)
    Sliced(layer, samples=2)(batch).square().sum().backward()
    expected = torch.autograd.grad(layer(batch).square().sum(), layer.weight)[0]
    torch.testing.assert_close(layer.weight.grad, expected)


def test_vmap_over_weights_equals_the_loop():
    network, batch = Sliced(*layers(), samples=2).double(), torch.randn(5, 2, 3, dtype=torch.float64)
    weights = torch.randn(4, 5, 6, dtype=torch.float64)

    def run(weight):
        return torch.func.functional_call(network, {"1.weight": weight}, (batch,))

    with torch.no_grad():
        assert torch.equal(torch.func.vmap(run)(weights), torch.stack([run(weight) for weight in weights]))


@pytest.mark.parametrize("count", [2, 5])
def test_batch_statistics_are_refused_whatever_the_batch(count):
    network, batch = Sliced(nn.Linear(2, 3), nn.Sequential(nn.BatchNorm1d(3)), samples=4), torch.randn(count, 2)
    with pytest.raises(ValueError, match=r"1\.0 \(BatchNorm1d\) needs the statistics of the whole batch"):
        network(batch)
    assert network.eval()(batch).shape == (count, 3)
    network.train().samples = None
    assert network(batch).shape == (count, 3)
    with pytest.raises(ValueError, match="statistics"):
        Sliced(nn.BatchNorm1d(2, track_running_stats=False), samples=4).eval()(batch)


def test_an_output_with_time_first_is_refused():
    with pytest.raises(ValueError, match="2 samples became 7; the batch has to stay first"):
        Sliced(*layers()[:-1], samples=2)(torch.randn(4, 2, 3))


@pytest.mark.parametrize("samples", [0, -1])
def test_slices_of_nothing_are_refused(samples):
    with pytest.raises(ValueError, match="samples must be at least 1"):
        Sliced(nn.Linear(2, 2), samples=samples)
