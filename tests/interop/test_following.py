"""Scales that follow the training move between two steps, alike for all candidates of one."""

import pytest
import torch
from torch import nn

from lightning_polystep import Engine, PolyStep
from lightning_polystep.functional import activation_scale
from lightning_polystep.interop.adapters import adapters_for
from lightning_polystep.interop.following import FollowingScales, follows
from lightning_polystep.layers import QuantActivation, QuantLinear
from lightning_polystep.layers.following import scales_are_frozen
from tests.helpers.boring import FEATURES, Boring, loader, polystep
from tests.helpers.resume import run_rest, run_whole


def network(follow=True):
    return nn.Sequential(
        QuantLinear(6, 8, follow=follow, input_quant=QuantActivation(8, signed=True, scale=1.0, follow=follow)),
        QuantActivation(4, scale=1.0, follow=follow),
        QuantLinear(8, 3, follow=follow, weight_format="int4"),
    )


def test_only_trees_with_such_layers_get_an_adapter():
    assert follows(network())
    assert not follows(network(False))
    assert [type(part) for part in adapters_for(network()).parts] == [FollowingScales]
    assert adapters_for(network(False)).parts == ()


def test_an_activation_goes_a_tenth_of_the_way_at_the_next_pass():
    model, x = network(), torch.randn(32, 6)
    follower = FollowingScales(model)
    with follower.observing():
        hidden = model[0](x)
        model(x)
    assert [float(model[0].input_quant.scale), float(model[1].scale)] == [1, 1]
    with follower.observing():
        pass
    first = 0.9 + 0.1 * activation_scale(x, 8, signed=True)
    assert torch.allclose(model[0].input_quant.scale, first)
    assert torch.allclose(model[1].scale, 0.9 + 0.1 * activation_scale(hidden, 4))
    with follower.observing():  # nothing was measured in the pass before
        pass
    assert torch.allclose(model[0].input_quant.scale, first)


@pytest.mark.parametrize("case", ["evaluation", "candidates", "not finite", "not calibrated"])
def test_what_does_not_count_moves_nothing(case):
    model, x = nn.Sequential(QuantActivation(4, scale=1.0, follow=True)), torch.randn(32, 6)
    follower = FollowingScales(model)
    if case == "evaluation":
        model.eval()
    elif case == "not calibrated":
        model[0].forget_scale()
    with follower.observing():
        if case == "candidates":
            with follower.probing():
                assert scales_are_frozen()
                model(x)
        elif case != "not calibrated":
            model(x * torch.nan if case == "not finite" else x)
    with follower.observing():
        pass
    assert float(model[0].scale if case != "not calibrated" else 1.0) == 1.0
    assert not model[0]._forward_pre_hooks


@pytest.mark.parametrize("evaluation", ["auto", "loop", "tape"])
def test_all_candidates_of_a_step_have_the_scales_of_its_commit_pass(evaluation):
    model, x, y = network(), torch.randn(32, 6), torch.randint(3, (32,))
    seen = []

    class Task(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.criterion = model, nn.CrossEntropyLoss()

        def forward(self):
            loss = self.criterion(self.network(x), y)
            scale = model[2].weight_scale
            if torch._C._functorch.is_batchedtensor(scale):  # a copy for every candidate
                scale = torch._C._functorch.get_unwrapped(scale)
            seen.append((scales_are_frozen(), scale.clone()))
            return loss

    task = Task()
    optimizer = PolyStep(task.parameters(), lr=0.3, seed=0)
    engine = Engine(task, optimizer, evaluation=evaluation, max_candidates=60, announce=None)
    losses = []
    for _ in range(5):
        seen.clear()
        losses.append(float(engine.step(task)))
        assert not seen[0][0]
        assert all(frozen for frozen, _ in seen[1:])
        assert all(bool((scale == seen[0][1]).all()) for _, scale in seen)
    assert not torch.equal(seen[0][1], network()[2].weight_scale)


def test_the_tiers_agree_on_scales_that_follow():
    """The plan would send what does not agree with the loop to the loop."""
    model, x, y = network(), torch.randn(64, 6), torch.randint(3, (64,))

    class Task(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.criterion = model, nn.CrossEntropyLoss()

    task = Task()
    engine = Engine(task, PolyStep(task.parameters(), lr=0.1, seed=0), max_candidates=60, announce=None)
    for _ in range(3):
        engine.step(lambda: task.criterion(model(x), y))
    assert "loop" not in {assignment.tier.name for assignment in engine.plan.assignments}


def test_a_state_between_two_steps_moves_on_alike():
    x, models = torch.randn(32, 6), [network(), network()]
    follower = FollowingScales(models[0])
    with follower.observing():
        models[0](x)
    models[1].load_state_dict(models[0].state_dict())
    for model in models:
        with FollowingScales(model).observing():
            pass
    assert torch.equal(models[0][1].scale, models[1][1].scale)
    assert float(models[0][1].scale) != 1.0
    frozen = network(False)
    frozen.load_state_dict(models[0].state_dict())
    models[0].load_state_dict(frozen.state_dict())
    assert torch.equal(models[0][1].scale, frozen[1].scale)


class Following(Boring):
    def __init__(self):
        super().__init__(polystep)
        self.net = nn.Sequential(
            QuantLinear(FEATURES, 6, follow=True),
            QuantActivation(4, scale=0.5, follow=True),
            QuantLinear(6, 2, follow=True, weight_format="int4"),
        )


def test_a_resumed_run_moves_its_scales_as_the_uninterrupted_one(tmp_path):
    torch.manual_seed(0)
    whole = run_whole(tmp_path, Following(), loader(batches=5))
    for batch in (3, 7):
        assert run_rest(tmp_path / f"{batch}.ckpt", Following(), loader(batches=5)) == whole[batch:]
