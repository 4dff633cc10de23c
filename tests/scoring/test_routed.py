"""What the parts of a network with a choice saw: each sample under each expert, and the pass explained or not."""

import pytest
import torch
from torch import nn

from lightning_polystep.layers import HardMoE, SlotArgmaxAttention
from lightning_polystep.scoring.recognise import recognise
from lightning_polystep.scoring.routed import SeenBehind, SeenByExpert
from lightning_polystep.scoring.stack import Capture, capturing, disagreement
from tests.helpers.parity import Stacked


def mixture():
    experts = [nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)) for _ in range(3)]
    return HardMoE(experts, router=6)


class Run:
    """A network with a batch and its captured pass."""

    def __init__(self, choice, *behind):
        self.module = Stacked(nn.Linear(4, 6), nn.ReLU(), choice, *behind)
        self.stack, self.capture = recognise(self.module), Capture()
        self.x, self.y = torch.randn(40, 4), torch.randint(3, (40,))
        self.problem = self.run()

    def run(self):
        with torch.no_grad(), capturing(self.stack, self.capture):
            loss = self.module.criterion(self.module.network(self.x), self.y)
        return disagreement(self.stack, self.capture, loss)

    @property
    def seen(self):
        return next(self.capture.slices(self.stack))

    @property
    def route(self):
        return self.stack.logits(self.seen).argmax(-1)


RUNS = {
    "mixture": lambda: Run(mixture(), nn.ReLU(), nn.Linear(4, 3)),
    "mixture of scores": lambda: Run(HardMoE([nn.Linear(6, 3) for _ in range(3)], router=6)),
    "slots": lambda: Run(SlotArgmaxAttention(6, 3), nn.Linear(6, 3)),
    "slots and two layers": lambda: Run(SlotArgmaxAttention(6, 3), nn.ReLU(), nn.Linear(6, 4), nn.Linear(4, 3)),
}


@pytest.fixture(params=RUNS)
def run(request):
    return RUNS[request.param]()


def test_a_plain_pass_is_explained(run):
    assert run.problem is None
    assert len(run.capture.currents) == len(run.stack.layers)


def test_each_sample_has_the_scores_of_its_own_expert(run):
    passes = [run.stack.under(expert, run.seen) for expert in range(len(run.stack.experts))]
    own = torch.stack([seen.scores for seen in passes])[run.route, torch.arange(len(run.x))]
    torch.testing.assert_close(own, run.seen.scores)
    losses = run.stack.losses(passes).gather(1, run.route[:, None])
    torch.testing.assert_close(losses.mean(), run.capture.loss(run.stack))


def test_parts_see_what_reaches_them(run):
    for expert in range(len(run.stack.experts)):
        part = SeenByExpert(run.capture, run.stack, expert)
        samples = (run.route == expert).nonzero().squeeze(1)
        scores = [seen.scores for seen in part.slices(run.stack.experts[expert])]
        assert len(scores) == min(1, len(samples))
        for own in scores:
            torch.testing.assert_close(own, run.seen.scores[samples])
        assert part.samples == len(run.x)
        assert part.loss(run.stack) == run.capture.loss(run.stack)
    if run.stack.behind is not None:
        (seen,) = SeenBehind(run.capture, run.stack).slices(run.stack.behind)
        assert len(seen.inputs) == len(seen.currents) == len(run.stack.behind.layers)
        assert seen.currents[-1] is run.capture.currents[-1]


def test_an_expert_without_samples_saw_nothing():
    run = RUNS["mixture"]()
    with torch.no_grad():
        run.module.network[2].router.bias[1] = -100
    assert run.run() is None
    assert list(SeenByExpert(run.capture, run.stack, 1).slices(run.stack.experts[1])) == []


@pytest.mark.parametrize(
    ("part", "place"),
    [
        (lambda network: network[2], 2),
        (lambda network: network[2].experts[0], 2),
        (lambda network: network[2].experts[0][2], 2),
        (lambda network: network[1], 1),
    ],
)
def test_a_hook_that_changes_an_output_is_found_out(part, place):
    run = RUNS["mixture"]()
    with torch.no_grad():
        run.module.network[2].router.bias[0] = 100  # so that the checked samples pass the first expert
    part(run.module.network).register_forward_hook(lambda *a: a[-1] + 1)
    assert run.run() == f"something beside the activation or the choice behind layer {place} had a hand in its output"
