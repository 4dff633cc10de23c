import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")

from lightning_polystep.pictures import attention_choices, flips, loads, membrane_traces, spike_raster, spike_rates


def test_every_spike_has_a_mark_at_its_step_and_neuron():
    train = torch.zeros(4, 2, 3)
    train[1, 0, 2] = train[3, 1, 0] = 1
    figure = spike_raster({"hidden": train, "none": torch.zeros(4, 5)})
    marks = figure.axes[0].collections[0].get_offsets()
    assert sorted(map(tuple, np.asarray(marks))) == [(2.0, 2.0), (4.0, 3.0)]
    assert [axes.get_title() for axes in figure.axes] == ["hidden: 2 spikes", "none: 0 spikes"]
    assert len(figure.axes[1].collections[0].get_offsets()) == 0


def test_rates_are_counted_in_twentieths():
    figure = spike_rates({"hidden": torch.tensor([0.0, 0.0, 0.5, 1.0])})
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights[0] == 2
    assert heights[10] == 1
    assert heights[-1] == 1
    assert sum(heights) == 4


def test_membranes_are_drawn_as_they_are_with_a_common_threshold():
    traces = torch.rand(5, 2)
    shared = membrane_traces({"a": traces}, {"a": torch.full((2,), 0.7)}).axes[0]
    for line, trace in zip(shared.lines, traces.T, strict=False):
        assert np.allclose(line.get_ydata(), trace)
    assert shared.lines[-1].get_ydata()[0] == pytest.approx(0.7)
    assert len(membrane_traces({"a": traces}, {"a": torch.tensor([0.7, 0.8])}).axes[0].lines) == 2


def test_loads_are_bars_beside_their_mean():
    axes = loads({"mixture": torch.tensor([6, 0, 3])}, "expert").axes[0]
    assert [bar.get_height() for bar in axes.patches] == [6, 0, 3]
    assert axes.lines[0].get_ydata()[0] == 3
    assert axes.get_xlabel() == "expert"


def test_choices_are_an_image_of_shares():
    share = torch.rand(4, 6)
    assert np.allclose(attention_choices({"attention": share}).axes[0].images[0].get_array(), share)


def test_flips_have_a_line_for_each_layer():
    axes = flips([5, 10], {"a": [0.5, 0.25], "b": [0.0, 1.0]}).axes[0]
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.5, 0.25], [0.0, 1.0]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
