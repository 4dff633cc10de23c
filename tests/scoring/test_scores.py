"""Slopes of the loss by the scores of a step, from forward passes."""

import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep.scoring.scores import Scores
from tests.helpers.tapes import record


def test_slopes_of_a_smooth_loss_are_nearly_its_derivative():
    torch.manual_seed(0)
    net, x, y = nn.Linear(6, 4).double(), torch.randn(9, 6).double(), torch.arange(9) % 4
    recording, _, _ = record(net, lambda: F.cross_entropy(0.1 * net(x), y))
    slopes = Scores.of(recording).slopes(recording)
    exact = 0.1 * ((0.1 * net(x)).softmax(1) - F.one_hot(y, 4)).detach() / 9
    assert slopes.shape == (9, 4)
    torch.testing.assert_close(slopes, exact, rtol=0.02, atol=1e-5)


def test_a_threshold_between_radii_is_seen():
    """A loss that counts scores above a threshold has no derivative anywhere."""
    torch.manual_seed(0)
    net, x, threshold = nn.Linear(6, 2).double(), torch.randn(50, 6).double(), 0.05
    recording, _, _ = record(net, lambda: (net(x) < threshold).double().sum(1).mean())
    slopes, made = Scores.of(recording).slopes(recording), net(x).detach()
    far = (made - threshold).abs() > 0.9 * made.std()
    assert far.any()
    assert not far.all()
    assert bool((slopes[far] == 0).all())
    assert bool((slopes[~far] < 0).all())


def test_places_of_a_score_share_what_was_measured_of_all():
    torch.manual_seed(0)
    net, x = nn.Linear(6, 3).double(), torch.randn(5, 6).double()
    recording, _, _ = record(net, lambda: sum(net(x.roll(t, 1)).sum(1) for t in range(4)).mean())
    scores = Scores.of(recording)
    assert len(scores.made) == 4
    torch.testing.assert_close(scores.slopes(recording), torch.full((5, 3), 1 / 5).double())


def test_a_loss_that_mixes_samples_has_no_slope_of_each():
    net, x = nn.Linear(6, 3), torch.randn(5, 6)
    recording, _, _ = record(net, lambda: net(x).std(0).sum())
    assert Scores.of(recording) is None
