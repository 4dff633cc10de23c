"""Seeds of episodes: new ones for training, fixed and disjoint ones for validation and test."""

import pytest
import torch

from datamodules import Episodes


def seeds(loader):
    return torch.cat(list(loader))


def test_an_epoch_has_as_many_batches_as_it_says_and_no_seed_twice():
    loader = Episodes(batch_size=8, steps_per_epoch=25).train_dataloader()
    batches = list(loader)
    assert [batch.shape for batch in batches] == [(8,)] * 25
    assert batches[0].dtype == torch.int64
    assert len(torch.cat(batches).unique()) == 200
    assert not set(seeds(loader).tolist()) & set(torch.cat(batches).tolist()), "the next epoch has others"


def test_training_seeds_are_a_function_of_the_global_generator():
    loader = Episodes().train_dataloader()
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(seeds(loader))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_validation_and_test_are_fixed_and_have_nothing_in_common():
    data, again, other = Episodes(val_episodes=50), Episodes(val_episodes=50), Episodes(val_episodes=50, data_seed=1)
    val, test = seeds(data.val_dataloader()), seeds(data.test_dataloader())
    assert (len(val), len(test)) == (50, 100)
    assert torch.equal(val, seeds(again.val_dataloader()))
    assert not set(val.tolist()) & (set(test.tolist()) | set(seeds(other.val_dataloader()).tolist()))


@pytest.mark.parametrize("name", ["batch_size", "steps_per_epoch", "val_episodes", "test_episodes"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        Episodes(**{name: 0})
