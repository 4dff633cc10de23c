"""What a change of each unit does to each score, learned from random changes."""

import torch

from lightning_polystep.scoring.feedback import Feedback


def changes(seed, width, samples=400):
    draw = torch.Generator().manual_seed(seed)
    return 2 * torch.randint(0, 2, (samples, width), generator=draw).double() - 1


def test_a_linear_network_is_learned_and_gives_the_credit_of_its_weights():
    torch.manual_seed(0)
    weights, feedback = torch.randn(6, 3).double(), Feedback({})
    assert feedback.is_new
    for seed in range(20):
        passed_on = changes(seed, 6)
        feedback.learn([passed_on], passed_on @ weights)
    assert not feedback.is_new
    slopes = torch.randn(5, 3).double()
    exact = slopes @ weights.T
    error = (feedback.credit(0, slopes) - exact).norm() / exact.norm()
    assert error < 0.05


def test_what_changes_later_replaces_what_was_known():
    torch.manual_seed(0)
    old, new, feedback = torch.randn(4, 2).double(), torch.randn(4, 2).double(), Feedback({})
    slopes = torch.eye(2).double()
    for seed in range(400):
        passed_on = changes(seed, 4)
        feedback.learn([passed_on], passed_on @ (old if seed < 100 else new))
    near_new = (feedback.credit(0, slopes) - new.T).norm() / new.norm()
    assert near_new < 0.1


def test_units_that_never_answer_are_worth_nothing():
    passed_on = changes(0, 3)
    passed_on[:, 1] = 0
    feedback = Feedback({})
    feedback.learn([passed_on], passed_on.sum(1, keepdim=True))
    assert feedback.credit(0, torch.ones(2, 1).double())[:, 1].tolist() == [0.0, 0.0]


def test_many_times_are_taken_together():
    widths = [4000, 4000]
    assert Feedback.ties(widths)
    assert not Feedback.ties([4000, 3999])
    assert not Feedback.ties([40, 40])
    assert not Feedback.ties([9000])
    feedback, passed_on = Feedback({}), changes(0, 4000, samples=20)
    feedback.learn([passed_on, passed_on], 2 * passed_on[:, :3])
    slopes = torch.ones(1, 3).double()
    assert sorted(feedback.memory) == ["met/0", "own/0"]
    assert torch.equal(feedback.credit(1, slopes), feedback.credit(0, slopes))


def test_a_layer_draws_eight_rounds_at_first_and_one_later_each_by_step_and_name():
    feedback = Feedback({})

    def drawn(key, name):
        return [float(torch.rand((), generator=draw)) for draw in feedback.draws(key, name)]

    first = drawn((0, 1, 0), "layer")
    assert len(set(first)) == 8
    feedback.learn([changes(0, 3)], changes(1, 2))
    assert drawn((0, 1, 0), "layer") == first[:1]
    assert drawn((0, 2, 0), "layer") != first[:1]
    assert drawn((0, 1, 0), "other") != first[:1]
