"""The module of policies: what a step costs, its batched tier, and runs that stop and go on."""

import pytest
import torch
from torch import nn

from datamodules import Episodes
from lightning_polystep import Engine, PolyStep
from lightning_polystep.environments import gymnasium_environment
from models import PolicyNet, PolicySearch
from tests.helpers.ranks import fit
from tests.helpers.resume import run_rest, run_whole


def optimizer_of(module):
    return PolyStep(module.parameters(), subspace="joint", rank=4, lr=1.0, probe_radius=1.0, epsilon=0.5, momentum=0.5)


class Search(PolicySearch):
    """With an optimizer of its own, and first weights that are always the same."""

    def __init__(self, units="tanh"):
        torch.manual_seed(0)
        super().__init__("CartPole-v1", PolicyNet((4, 8, 2), units))

    def configure_optimizers(self):
        return optimizer_of(self)

    def on_train_epoch_end(self):
        self.report = {name: float(value) for name, value in self.trainer.callback_metrics.items()}


def engine_of(search, **options):
    optimizer = optimizer_of(search)
    optimizer.seed = 3
    return Engine(search, optimizer, announce=None, **options)


@pytest.mark.parametrize(("units", "weights"), [("tanh", "float"), ("sign", "binary"), ("int8", "int8")])
def test_all_candidates_are_rolled_out_at_once_to_what_each_gives_alone(units, weights):
    ends = []
    for evaluation in ("auto", "loop"):
        torch.manual_seed(0)
        search = PolicySearch("Acrobot-v1", PolicyNet((6, 5, 3), units, weights))
        engine = engine_of(search, evaluation=evaluation)
        for step in range(3):
            engine.step(lambda s=search, n=step: s.loss(torch.arange(4) + n))
        (assignment,) = engine.plan.assignments
        assert assignment.tier.name == ("evaluate_many" if evaluation == "auto" else "loop")
        ends.append(torch.cat([parameter.flatten() for parameter in search.parameters()]))
    assert torch.equal(*ends)


def test_it_learns_to_balance_a_pole():
    search = Search()
    engine, held_out = engine_of(search), torch.arange(100) + 10**6
    before = -float(search.loss(held_out))
    for step in range(40):
        engine.step(lambda n=step: search.loss(torch.arange(4) + 4 * n))
    assert before < 100
    assert -float(search.loss(held_out)) > 400


def test_the_loss_is_minus_the_mean_return():
    search = Search()
    each = torch.stack([search.loss(seed[None]) for seed in torch.arange(5)])
    torch.testing.assert_close(search.loss(torch.arange(5)), each.mean())
    assert float(each.max()) <= -1.0


def test_a_resumed_run_gives_the_same_bits(tmp_path):
    whole = run_whole(tmp_path, Search(), Episodes(steps_per_epoch=5, val_episodes=3, test_episodes=3))
    assert len(set(whole)) > 15
    for batches in (3, 5, 12):
        data = Episodes(steps_per_epoch=5, val_episodes=3, test_episodes=3)
        rest = run_rest(tmp_path / f"{batches}.ckpt", Search(), data)
        assert rest == whole[batches:]


def balancing():
    return Search(), Episodes(steps_per_epoch=4, val_episodes=6), {"max_epochs": 2, "limit_val_batches": 1.0}


@pytest.mark.distributed
def test_two_processes_divide_the_candidates_to_the_same_bits(tmp_path):
    (alone,), both = (fit(balancing, ranks, tmp_path) for ranks in (1, 2))
    assert len(alone.hashes) == 8
    assert [rank.hashes for rank in both] == [alone.hashes] * 2
    # Each plays half of the validation's episodes.
    assert [rank.report["val/return"] for rank in both] == pytest.approx([alone.report["val/return"]] * 2)


@pytest.mark.parametrize(
    ("environment", "network", "message"),
    [
        ("Acrobot-v1", PolicyNet((4, 2)), "Acrobot-v1 gives 6 observations and takes 3 outputs"),
        ("CartPole-v1", nn.LSTM(4, 2), "a policy is a Linear"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(environment, network, message):
    with pytest.raises(ValueError, match=message):
        PolicySearch(environment, network)


def test_an_unknown_environment_is_refused_with_gymnasium_and_without():
    with pytest.raises(
        (ValueError, ModuleNotFoundError), match=r"^gymnasium makes no CartPole|^CartPole has no compiled"
    ):
        PolicySearch("CartPole", PolicyNet((4, 2)))


@pytest.mark.parametrize("units", ["tanh", "sign"])
def test_environments_of_gymnasium_are_a_tier_too(units):
    pytest.importorskip("gymnasium", minversion="1.1")
    ends = []
    for evaluation in ("auto", "loop"):
        torch.manual_seed(0)
        search = PolicySearch("Acrobot-v1", PolicyNet((6, 5, 3), units))
        search.environment = gymnasium_environment("Acrobot-v1")
        engine = engine_of(search, evaluation=evaluation)
        for step in range(2):
            engine.step(lambda s=search, n=step: s.loss(torch.arange(2) + n))
        (assignment,) = engine.plan.assignments
        assert assignment.tier.name == ("evaluate_many" if evaluation == "auto" else "loop")
        ends.append(torch.cat([parameter.flatten() for parameter in search.parameters()]))
    assert torch.equal(*ends)
