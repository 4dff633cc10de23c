"""Slopes of the loss by the scores of a step, from forward passes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lightning_polystep.scoring import scores as scores_module
from lightning_polystep.scoring.scores import Scores
from lightning_polystep.tape import Apart
from tests.helpers.tapes import record


def slopes_of(recording):
    """Return the slopes by the one product that makes the scores."""
    (slopes,) = Scores.of(recording).slopes(recording).values()
    return slopes


def test_slopes_of_a_smooth_loss_are_nearly_its_derivative():
    torch.manual_seed(0)
    net, x, y = nn.Linear(6, 4).double(), torch.randn(9, 6).double(), torch.arange(9) % 4
    recording, _, _ = record(net, lambda: F.cross_entropy(0.1 * net(x), y))
    slopes = slopes_of(recording)
    exact = 0.1 * ((0.1 * net(x)).softmax(1) - F.one_hot(y, 4)).detach() / 9
    assert slopes.shape == (9, 4)
    torch.testing.assert_close(slopes, exact, rtol=0.02, atol=1e-5)


def test_a_threshold_between_radii_is_seen():
    """A loss that counts scores above a threshold has no derivative anywhere."""
    torch.manual_seed(0)
    net, x, threshold = nn.Linear(6, 2).double(), torch.randn(50, 6).double(), 0.05
    recording, _, _ = record(net, lambda: (net(x) < threshold).double().sum(1).mean())
    slopes, made = slopes_of(recording), net(x).detach()
    far = (made - threshold).abs() > 0.9 * made.std()
    assert far.any()
    assert not far.all()
    assert bool((slopes[far] == 0).all())
    assert bool((slopes[~far] < 0).all())


def test_dear_scores_are_moved_by_one_radius_a_step_in_turn(monkeypatch):
    torch.manual_seed(0)
    net, x, y = nn.Linear(6, 4).double(), torch.randn(9, 6).double(), torch.arange(9) % 4
    recording, _, _ = record(net, lambda: F.cross_entropy(3 * net(x), y))

    def measured(step):
        (slopes,) = Scores.of(recording)._together(recording, step).values()
        return slopes

    cheap = measured(0)
    assert torch.equal(cheap, measured(1))
    monkeypatch.setattr(scores_module, "_MOST_FORWARDS", 0.0)
    turns = [measured(step) for step in range(6)]
    assert all(torch.equal(turns[step], turns[step + 3]) for step in range(3))
    assert not torch.equal(turns[0], turns[1])
    torch.testing.assert_close(torch.stack(turns[:3]).mean(0), cheap)


def wide():
    return nn.Sequential(nn.Linear(6, 400), nn.Tanh(), nn.Linear(400, 3)).double()


def spikes_of(net, x, thresholds):
    """Spikes of three neurons over four steps of time; the loss is the cross-entropy of their counts."""
    membrane, counts, current = torch.zeros(len(x), 3).double(), 0, 2 * net(x)
    for _ in range(4):
        membrane = 0.9 * membrane + current
        fired = (membrane > thresholds).double()
        membrane, counts = membrane - fired * thresholds, counts + fired
    return counts


@pytest.mark.parametrize("threshold", [8.0, 16.0])
def test_a_score_that_answers_nowhere_is_told_what_it_would_gain(threshold):
    torch.manual_seed(0)
    net, x, y = wide(), torch.randn(60, 6).double(), torch.arange(60) % 3
    thresholds = torch.tensor([1.0, 1.0, threshold]).double()  # the third is silent

    def step():
        return F.cross_entropy(spikes_of(net, x, thresholds), y)

    assert bool((spikes_of(net, x, thresholds)[:, 2] == 0).all())
    recording, _, _ = record(net, step)
    slopes = slopes_of(recording)[:, 2]
    assert bool((slopes[y == 2] < 0).all()), "its own class gains if it fires"
    assert bool((slopes[y != 2] == 0).all()), "the others lose nothing while it does not"


def test_scores_that_answer_are_moved_no_wider():
    torch.manual_seed(0)
    net, x, y = wide(), torch.randn(60, 6).double(), torch.arange(60) % 3
    thresholds = torch.tensor([1.0, 1.0, 16.0]).double()
    recording, _, _ = record(net, lambda: F.cross_entropy(spikes_of(net, x, thresholds), y))
    scores = Scores.of(recording)
    narrow = scores._moved_by(recording, 0, scores.radii, Apart(60), None, torch.arange(3))
    moved = scores._moved(recording, 0, scores.radii, Apart(60))
    assert torch.equal(moved[:2], narrow[:2])
    assert bool((narrow[2] == 0).all())
    assert bool((moved[2] != 0).any())


class Standardised(nn.Module):
    """Takes the mean and the spread of all scores of a batch, as it was written by hand."""

    def forward(self, x):
        return (x - x.mean()) / (x.var(unbiased=False) + 1e-4).pow(0.5)


@pytest.mark.parametrize(
    ("norm", "cosine"),  # a layer norm of three numbers bends within the radii
    [(nn.LayerNorm(3), 0.85), (nn.Tanh(), 0.999), (Standardised(), 0.999)],
    ids=["layer norm", "tanh", "by hand"],
)
def test_what_lies_behind_the_scores_is_seen_in_their_slopes(norm, cosine):
    torch.manual_seed(0)
    net, x, y = wide(), torch.randn(60, 6).double(), torch.arange(60) % 3
    norm = norm.double()
    whole = nn.Sequential(net, norm)
    recording, _, _ = record(whole, lambda: F.cross_entropy(whole(x), y))
    slopes = slopes_of(recording)
    made = net(x).detach().requires_grad_()
    out = norm(made)
    if isinstance(norm, Standardised):  # whose statistics are kept
        out = (made - made.detach().mean()) / (made.detach().var(unbiased=False) + 1e-4).pow(0.5)
    F.cross_entropy(out, y).backward()
    assert F.cosine_similarity(slopes.flatten(), made.grad.flatten(), dim=0) > cosine
    assert cosine < 0.9 or 0.95 < slopes.norm() / made.grad.norm() < 1.05


@pytest.mark.parametrize("affine", [True, False])
def test_a_batch_norm_right_behind_the_scores_keeps_its_statistics_and_undoes_what_it_does(affine):
    """So slopes are those of its derivative, which knows that it undoes shifts and scalings of a score."""
    torch.manual_seed(0)
    net, x, y = wide(), torch.randn(60, 6).double(), torch.arange(60) % 3
    norm = nn.BatchNorm1d(3, affine=affine).double()
    if affine:
        norm.weight.data, norm.bias.data = torch.tensor([[0.2, -0.4, 0.3], [0.3, 0.0, -2.0]]).double()
    recording, _, _ = record(nn.Sequential(net, norm), lambda: F.cross_entropy(norm(net(x)), y))
    scores, made = Scores.of(recording), net(x).detach().requires_grad_()
    assert scores.program.as_recorded
    slopes = slopes_of(recording)
    F.cross_entropy(norm(made), y).backward()
    torch.testing.assert_close(slopes, made.grad, rtol=0.05, atol=0.02 * float(made.grad.abs().max()))
    assert slopes.sum(0).abs().max() < 1e-12
    assert (slopes * made.detach()).sum(0).abs().max() < 1e-12


def test_norms_behind_scores_run_as_they_are_where_that_leaves_samples_apart():
    torch.manual_seed(0)
    net, x, y = nn.Sequential(wide(), nn.LayerNorm(3).double()), torch.randn(60, 6).double(), torch.arange(60) % 3
    recording, _, _ = record(net, lambda: F.cross_entropy(net(x), y))
    assert not Scores.of(recording).program.as_recorded


def test_places_of_a_score_share_what_was_measured_of_all():
    torch.manual_seed(0)
    net, x = nn.Linear(6, 3).double(), torch.randn(5, 6).double()
    recording, _, _ = record(net, lambda: sum(net(x.roll(t, 1)).sum(1) for t in range(4)).mean())
    scores = Scores.of(recording)
    assert len(scores.made) == 4
    for slopes in scores.slopes(recording).values():
        torch.testing.assert_close(slopes, torch.full((5, 3), 1 / 5).double())


def test_a_loss_that_mixes_samples_has_no_slope_of_each():
    net, x = nn.Linear(6, 3), torch.randn(5, 6)
    recording, _, _ = record(net, lambda: net(x).std(0).sum())
    assert Scores.of(recording) is None


class Tokens(nn.Module):
    """Every token sees all others before the readout, so that samples are whole sequences."""

    def __init__(self, tokens, width, classes, tokens_first=False):
        super().__init__()
        self.mix, self.readout = nn.Linear(tokens, tokens), nn.Linear(width, classes)
        self.tokens_first = tokens_first

    def forward(self, x):
        mixed = self.mix(x.transpose(1, 2)).transpose(1, 2)
        if self.tokens_first:
            return self.readout(mixed.transpose(0, 1).contiguous()).transpose(0, 1)
        return self.readout(mixed)


def smooth(scores, targets, **options):
    return F.cross_entropy(0.1 * scores.reshape(-1, scores.shape[-1]), targets.reshape(-1), **options)


# By name a loss, and whether its places are told apart by their losses, one after the other, or not at all.
LOSSES = {
    "merged": (smooth, "losses"),
    "classes second": (lambda z, y: F.cross_entropy(0.1 * z.transpose(1, 2), y), "losses"),
    "squares": (lambda z, y: (z.mean(-1) - y).square().mean(), "losses"),
    "padding left out": (lambda z, y: smooth(z, y, ignore_index=0), "losses"),
    "masked": (lambda z, y: (smooth(z, y, reduction="none") * (y.reshape(-1) > 0)).sum() / (y > 0).sum(), "losses"),
    "mean of means": (lambda z, y: (z.mean(-1) - y).square().mean(1).mean(), "one by one"),
    "next token": (lambda z, y: smooth(z[:, :-1], y[:, 1:]), "one by one"),
    "last token": (lambda z, y: F.cross_entropy(0.1 * z[:, -1], y[:, -1]), "one by one"),
    "token by token": (
        lambda z, y: sum(F.cross_entropy(0.1 * z[:, t], y[:, t]) for t in range(z.shape[1])),
        "one by one",
    ),
    "mean of tokens": (lambda z, y: F.cross_entropy(0.1 * z.mean(1), y[:, 0]), "alike"),
}


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=4, deadline=None)
@given(
    seed=st.integers(0, 1000),
    samples=st.integers(7, 12),
    tokens=st.integers(2, 5),
    classes=st.integers(2, 4),
    tokens_first=st.booleans(),
)
def test_each_place_has_the_slope_of_its_own_loss(name, seed, samples, tokens, classes, tokens_first):
    loss, told_apart = LOSSES[name]
    torch.manual_seed(seed)
    net = Tokens(tokens, 6, classes, tokens_first).double()
    x, y = torch.randn(samples, tokens, 6).double(), torch.randint(0, classes, (samples, tokens))
    y[0] = 1  # not all are padding
    recording, _, _ = record(net, lambda: loss(net(x), y))
    scores = Scores.of(recording)
    (slopes,) = scores.slopes(recording).values()
    made = net(x).detach().requires_grad_(True)
    exact = torch.autograd.grad(loss(made, y), made)[0]
    exact = (exact.transpose(0, 1) if tokens_first else exact).reshape(slopes.shape)
    assert bool(scores.places) == (told_apart == "losses")
    assert bool(scores.each) == (told_apart != "losses")
    if scores.each and bool(recording.learned["places of scores"]["alike"]):
        assert F.cosine_similarity(slopes.flatten(), exact.flatten(), dim=0) > 0.94
    else:
        assert told_apart != "alike"
        torch.testing.assert_close(slopes, exact, rtol=0.1, atol=0.02 * float(exact.abs().max()))


def test_places_before_a_threshold_are_moved_together():
    """One step of time alone hardly makes a neuron fire."""
    torch.manual_seed(0)
    net, x, y = nn.Linear(6, 3).double(), torch.randn(6 * 40, 6).double(), torch.arange(40) % 3

    def loss():
        membrane, total = 0.0, 0.0
        for step, each in enumerate(net(x).reshape(6, 40, 3)):
            membrane = 0.9 * membrane + each
            spikes = (membrane > 1).to(membrane)
            membrane = membrane - spikes
            total = total + step * F.cross_entropy(spikes, y)
        return total

    recording, _, _ = record(net, loss)
    scores = Scores.of(recording)
    assert len(scores.each) == 6
    (slopes,) = scores.slopes(recording).values()
    assert bool(recording.learned["places of scores"]["alike"])
    apart = slopes.reshape(6, 40, 3)
    torch.testing.assert_close(apart, apart[:1].expand_as(apart))


def test_steps_of_time_that_are_products_of_their_own_are_moved_together():
    torch.manual_seed(0)
    net, x, y = nn.Linear(6, 3).double(), torch.randn(3, 8, 6).double(), torch.arange(8) % 3
    recording, _, _ = record(net, lambda: F.cross_entropy(0.1 * (net(x[0]) + 2.0 * net(x[1]) + net(x[2])), y))
    scores = Scores.of(recording)
    first, *others = scores.slopes(recording).values()
    assert scores.each == []
    assert all(torch.equal(first, each) for each in others)


def test_processes_that_divide_a_batch_move_all_places_at_once():
    torch.manual_seed(0)
    net, x, y = Tokens(4, 6, 3).double(), torch.randn(8, 4, 6).double(), torch.arange(8) % 3
    recording, _, _ = record(net, lambda: F.cross_entropy(0.1 * net(x)[:, -1], y))
    recording.divides_batches = True
    scores = Scores.of(recording)
    assert scores.each == []
    (slopes,) = scores.slopes(recording).values()
    apart = slopes.reshape(8, 4, 3)
    torch.testing.assert_close(apart, apart[:, :1].expand_as(apart))


def test_what_the_first_batch_showed_of_places_is_kept():
    torch.manual_seed(0)
    net, x, y = Tokens(4, 6, 3).double(), torch.randn(8, 4, 6).double(), torch.arange(8) % 3
    recording, _, _ = record(net, lambda: F.cross_entropy(0.1 * net(x).mean(1), y))
    recording.learned["places of scores"] = {"alike": torch.tensor(False)}
    (slopes,) = Scores.of(recording).slopes(recording).values()
    again, _, _ = record(net, lambda: F.cross_entropy(0.1 * net(x).mean(1), y))
    (alike,) = Scores.of(again).slopes(again).values()
    assert bool(again.learned["places of scores"]["alike"])
    torch.testing.assert_close(slopes, alike, rtol=0.1, atol=1e-3)
    assert not torch.equal(slopes, alike)
