import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("matplotlib")

from lightning_polystep.pictures.steps import RowStep, cost_landscape, effective, history, polytope


def row_of(seed, candidates=8, dim=3, *, still=False):
    draw = torch.Generator().manual_seed(seed)
    displacements = torch.randn(candidates, dim, generator=draw, dtype=torch.float64)
    costs = torch.rand(candidates, generator=draw, dtype=torch.float64)
    weights = torch.softmax(-costs, 0)
    centre = weights @ displacements
    return RowStep("block, row 0", displacements, costs, 0.4, weights, centre, 0 * centre if still else 0.5 * centre)


@given(st.integers(0, 2**31), st.integers(2, 12), st.integers(1, 5))
@settings(max_examples=8)
def test_the_landscape_is_along_the_move(seed, candidates, dim):
    row = row_of(seed, candidates, dim)
    axes, ranked = cost_landscape(row).axes
    points = np.asarray(axes.collections[0].get_offsets())
    direction = row.move / row.move.norm()
    np.testing.assert_allclose(points[:, 0], row.displacements @ direction)
    np.testing.assert_allclose(points[:, 1], row.costs)
    barycentre, move, incumbent = axes.lines
    assert barycentre.get_xdata()[0] == pytest.approx(float(row.barycentre.norm()))
    assert move.get_xdata()[0] == pytest.approx(float(row.move.norm()))
    assert incumbent.get_ydata()[0] == 0.4
    heights = [bar.get_height() for bar in ranked.patches]
    assert heights == sorted(heights, reverse=True)  # the cheapest has the largest weight
    assert sum(heights) == pytest.approx(1)


@given(st.integers(0, 2**31), st.integers(2, 12), st.integers(1, 5))
@settings(max_examples=8)
def test_the_plane_of_the_polytope_keeps_lengths_of_the_move_and_never_stretches(seed, candidates, dim):
    row = row_of(seed, candidates, dim)
    axes = polytope(row).axes[0]
    points = np.asarray(axes.collections[0].get_offsets())
    assert (np.linalg.norm(points, axis=1) <= row.displacements.norm(dim=1).numpy() + 1e-9).all()
    _, origin, barycentre, move = axes.collections
    assert np.allclose(origin.get_offsets(), 0)
    assert np.asarray(move.get_offsets())[0] == pytest.approx((float(row.move.norm()), 0), abs=1e-9)
    assert np.linalg.norm(barycentre.get_offsets()) == pytest.approx(float(row.barycentre.norm()))


def test_a_row_that_stays_is_drawn_as_well():
    for draw in (cost_landscape, polytope):
        assert all(
            np.isfinite(np.asarray(c.get_offsets())).all() for c in draw(row_of(0, still=True)).axes[0].collections
        )


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=20))
def test_effective_candidates_are_between_one_and_all(weights):
    assert 1 - 1e-9 <= effective(torch.tensor(weights)) <= len(weights) + 1e-6
    assert effective(torch.ones(len(weights))) == pytest.approx(len(weights))


def test_history_has_an_axes_for_each_figure():
    figure = history([1, 2, 3], {"flat_rows": [1.0, 0.5, 0.0], "step_norm": [math.e, 2.0, 1.0]})
    assert [axes.get_ylabel() for axes in figure.axes] == ["flat rows", "step norm"]
    assert list(figure.axes[0].lines[0].get_ydata()) == [1.0, 0.5, 0.0]
