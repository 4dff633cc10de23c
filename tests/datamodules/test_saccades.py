"""Saccade events: the camera's path and lens against plain loops, the pixels' memory, and what is refused."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules.saccades import _BLACK, _FRAMES_PER_BIN, _frames, _path, saccade_events


def events_by_hand(image, num_steps, amplitude, contrast):
    """One image, pixel by pixel and frame by frame, from the equations."""
    size = len(image)

    def brightness(row, column):
        inside = 0 <= row < size and 0 <= column < size
        return float(image[row, column]) if inside else 0.0

    def seen(row, column, place):
        y, x = row + float(place[0]), column + float(place[1])
        top, left = math.floor(y), math.floor(x)
        down, right = y - top, x - left
        upper = (1 - right) * brightness(top, left) + right * brightness(top, left + 1)
        lower = (1 - right) * brightness(top + 1, left) + right * brightness(top + 1, left + 1)
        return math.log((1 - down) * upper + down * lower + _BLACK)

    path = _path(_FRAMES_PER_BIN * num_steps, amplitude)
    events = torch.zeros(num_steps, 2, size, size)
    for row in range(size):
        for column in range(size):
            known = seen(row, column, path[0])
            for frame, place in enumerate(path[1:]):
                count = int((seen(row, column, place) - known) / contrast)
                known += count * contrast
                if count:
                    events[frame // _FRAMES_PER_BIN, 0 if count > 0 else 1, row, column] = 1
    return events


@given(
    num_steps=st.integers(1, 5),
    amplitude=st.sampled_from([0.7, 2.0, 3.5]),
    contrast=st.sampled_from([0.29, 0.83]),
    seed=st.integers(0, 99),
)
def test_equals_a_plain_loop(num_steps, amplitude, contrast, seed):
    image = torch.rand(6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    events = saccade_events(image[None, None], num_steps, amplitude=amplitude, contrast=contrast)
    by_hand = events_by_hand(image, num_steps, amplitude, contrast)
    # A brightness that rounding puts on the other side of a threshold.
    assert int((events[0] != by_hand).sum()) <= 1


def test_the_path_is_an_isosceles_triangle_at_constant_pace_per_saccade():
    path = _path(11, 4.0)
    assert len(path) == 12
    assert torch.equal(path[[0, 4, 8]], torch.tensor([[-2.0, -2.0], [2.0, 0.0], [-2.0, 2.0]]))
    steps = torch.cat([path, path[:1]]).diff(dim=0).norm(dim=1).reshape(3, 4)
    torch.testing.assert_close(steps, steps[:, :1].expand(3, 4))
    torch.testing.assert_close(steps[0], steps[1])


def test_a_large_pixel_sees_the_mean_of_small_ones():
    images, path = torch.rand(2, 1, 8, 12), _path(6, 3.0)
    means = torch.nn.functional.avg_pool2d(_frames(images, path, 1), 2)
    torch.testing.assert_close(_frames(images, path, 2), means)


def test_a_dot_leaves_one_pixel_for_another():
    dot = torch.zeros(1, 1, 9, 9)
    dot[..., 4, 4] = 1
    first = saccade_events(dot, 3, amplitude=2.0)[0, 0]
    # The camera goes from one up and left to one down, so the dot goes up in the picture.
    assert first[1, 5, 5] == 1  # OFF where it was seen at the start
    assert first[0, 3, 4] == 1  # ON where it is seen at the end of the first saccade
    assert first[0, 5, 5] == 0


def test_an_even_picture_has_no_events_inside():
    events = saccade_events(torch.full((1, 1, 12, 12), 0.5))
    assert events[..., 3:-3, 3:-3].sum() == 0
    assert saccade_events(torch.zeros(2, 1, 12, 12)).sum() == 0


def test_a_higher_threshold_gives_fewer_events():
    images = torch.rand(3, 1, 12, 12)
    few, many = (saccade_events(images, contrast=contrast) for contrast in (1.0, 0.2))
    assert 0 < few.sum() < many.sum()


def test_samples_do_not_depend_on_their_batch():
    images = torch.rand(5, 1, 12, 12)
    events = saccade_events(images, 4)
    assert events.shape == (5, 4, 2, 12, 12)
    assert set(events.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(saccade_events(images[2:3], 4)[0], events[2])
    assert saccade_events(images.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1 time bin, got 0"),
        ({"amplitude": 0.0}, "a camera at rest sees no events"),
        ({"amplitude": float("nan")}, "amplitude must be above 0"),
        ({"contrast": 0.0}, "contrast must be above 0"),
        ({"pixel": 0}, "pixel must be at least 1"),
        ({"pixel": 5}, r"pixels of side 5 do not tile images of \(12, 12\)"),
    ],
)
def test_a_blind_camera_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        saccade_events(torch.rand(1, 1, 12, 12), **options)


@pytest.mark.parametrize("shape", [(12, 12), (1, 3, 12, 12)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"images must be \(N, 1, H, W\)"):
        saccade_events(torch.rand(shape))
