"""Several processes: the same bits on 1, 2 and 4 of them, by every launcher, and clear errors where they disagree."""

import pytest
import pytorch_lightning as pl

from tests.helpers.boring import loader
from tests.helpers.ranks import alike, fit, foreign_task, spiking_task

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings("ignore:.*does not have many workers")]


# --- candidate layout: 1 = 2 = 4 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [spiking_task, foreign_task])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_number_of_processes_does_not_change_a_bit(tmp_path, task, accumulate):
    options = {"accumulate_grad_batches": accumulate}
    one, two, four = (alike(fit(task, ranks, tmp_path, options=options)) for ranks in (1, 2, 4))
    assert one == two == four


def shuffled_on_rank_1():
    module, _, options = spiking_task()

    class OneRankShuffled(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_rank == 1 and batch_idx == 2:
                for tensor in batch:
                    tensor.copy_(tensor.flip(0))

    return module, loader(8), {**options, "callbacks": [OneRankShuffled()]}


def test_a_shuffled_batch_stops_all_processes_in_its_step(tmp_path):
    seen = fit(shuffled_on_rank_1, 2, tmp_path)
    assert [len(rank.hashes) for rank in seen] == [2, 2]
    for rank in seen:
        assert rank.error.startswith("At step 2 rank(s) 1 saw another batch than rank 0")
