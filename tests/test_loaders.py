"""Loaders of every kind give the same batches after a resume."""

import copy

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import CombinedLoader
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    WeightedRandomSampler,
)

from lightning_polystep.loaders import ReplayableLoader
from tests.helpers.boring import BATCH, Boring, loader, polystep, separable, trainer
from tests.helpers.resume import BATCHES, Noisy, run_rest, run_whole

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create")

OWN_SAMPLER = {"use_distributed_sampler": False}


class Jittered(Dataset):
    """Augmentation by torch's global generator, where the samples are fetched."""

    def __init__(self):
        self.data = separable(BATCHES * BATCH)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        inputs, label = self.data[index]
        return inputs + 0.1 * torch.randn_like(inputs), label


class Stream(IterableDataset):
    """Samples without a length, drawn as they come."""

    def __iter__(self):
        for inputs, label in separable(BATCHES * BATCH):
            yield inputs + 0.1 * torch.randn_like(inputs), label


def own_generator():
    return DataLoader(Jittered(), batch_size=BATCH, shuffle=True, generator=torch.Generator().manual_seed(3))


def samplers_generator():
    data = separable(BATCHES * BATCH)
    order = RandomSampler(data, generator=torch.Generator().manual_seed(3))
    return DataLoader(data, batch_sampler=BatchSampler(order, BATCH, drop_last=False))


def weighted():
    data = separable(BATCHES * BATCH)
    return DataLoader(data, batch_size=BATCH, sampler=WeightedRandomSampler(torch.rand(len(data)), len(data)))


def workers():
    return DataLoader(Jittered(), batch_size=BATCH, shuffle=True, num_workers=1)


def stream():
    return DataLoader(Stream(), batch_size=BATCH)


class FirstOfTwo(Noisy):
    """Trains on the batches of two loaders, of which the shorter is run through twice in an epoch."""

    def loss(self, batch):
        if isinstance(batch, dict):
            return super().loss(batch["long"]) + super().loss(batch["short"])
        return super().loss(batch)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch


def two_loaders():
    short = DataLoader(separable(3 * BATCH, seed=1), batch_size=BATCH, shuffle=True)
    return CombinedLoader({"long": loader(BATCHES, shuffle=True), "short": short}, "max_size_cycle")


LOADERS = {
    "own generator": (Noisy, own_generator, OWN_SAMPLER),
    "generator of the sampler": (Noisy, samplers_generator, OWN_SAMPLER),
    "weighted sampler": (Noisy, weighted, OWN_SAMPLER),
    "augmenting worker": (Noisy, workers, {}),
    "stream without a length": (Noisy, stream, {}),
    "two loaders": (FirstOfTwo, two_loaders, OWN_SAMPLER),
}


@pytest.mark.parametrize(("kind", "make", "options"), LOADERS.values(), ids=LOADERS)
def test_a_resumed_run_sees_the_same_batches(tmp_path, kind, make, options):
    whole = run_whole(tmp_path, kind(), make(), **options)
    for stop in (2, BATCHES, BATCHES + 3):
        assert run_rest(tmp_path / f"{stop}.ckpt", kind(), make(), **options) == whole[stop:], f"after batch {stop}"


class Order(pl.Callback):
    """A feature of the samples, in the order of training."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen += batch[0][:, 0].tolist()


class Backwards(Sampler):
    """An order of the user's own."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __iter__(self):
        return iter(range(len(self.data))[::-1])


@pytest.mark.parametrize("make", [loader, lambda: loader(shuffle=True)], ids=["unshuffled", "shuffled"])
def test_lightnings_sampler_shuffles_what_the_user_shuffles(tmp_path, make):
    order, data = Order(), make()
    run = trainer(tmp_path, callbacks=[order])
    run.fit(Boring(polystep), data)
    in_order = data.dataset.tensors[0][:, 0].tolist()
    assert sorted(order.seen) == sorted(in_order)
    assert (order.seen == in_order) == (not isinstance(data.sampler, RandomSampler))
    assert "_prepare_dataloader" not in vars(run._data_connector)


def test_a_samplers_own_order_is_kept(tmp_path):
    order, data = Order(), separable(4 * BATCH)
    trainer(tmp_path, callbacks=[order]).fit(
        Boring(polystep), DataLoader(data, batch_size=BATCH, sampler=Backwards(data))
    )
    assert order.seen == data.tensors[0][:, 0].flip(0).tolist()


class Positioned:
    """A loader that keeps its own position, as torchdata's StatefulDataLoader does."""

    def __init__(self):
        self.batches, self.next = list(loader(BATCHES)), 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        while self.next < len(self.batches):
            self.next += 1
            yield self.batches[self.next - 1]
        self.next = 0

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


def test_a_loader_that_keeps_its_position_is_left_alone(tmp_path):
    whole = run_whole(tmp_path, Noisy(), Positioned())
    for stop in (2, BATCHES + 3):
        assert run_rest(tmp_path / f"{stop}.ckpt", Noisy(), Positioned()) == whole[stop:]


@pytest.mark.filterwarnings("ignore:.*set_vital. is deprecated")
def test_torchdatas_loader_resumes(tmp_path):
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def make():
        return stateful(separable(BATCHES * BATCH), batch_size=BATCH)

    whole = run_whole(tmp_path, Noisy(), make(), **OWN_SAMPLER)
    for stop in (2, BATCHES + 3):
        assert run_rest(tmp_path / f"{stop}.ckpt", Noisy(), make(), **OWN_SAMPLER) == whole[stop:]


def test_fetching_again_is_said_once(tmp_path, caplog):
    run_whole(tmp_path, Boring(polystep), loader(BATCHES))
    with caplog.at_level("INFO"):
        run_rest(tmp_path / "7.ckpt", Boring(polystep), loader(BATCHES))
    said = [record.message for record in caplog.records if "Fetching the first 2 batches" in record.message]
    assert len(said) == 1
    caplog.clear()
    with caplog.at_level("INFO"):
        run_rest(tmp_path / "10.ckpt", Boring(polystep), loader(BATCHES))
    assert "Fetching" not in caplog.text


def test_the_trainers_loader_is_still_the_users(tmp_path):
    data = loader(BATCHES)

    class Look(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            seen = trainer.train_dataloader
            assert isinstance(seen, ReplayableLoader)
            assert seen.dataset is data.dataset
            assert (len(seen), seen.batch_size) == (BATCHES, BATCH)
            assert seen.worker_init_fn is None
            assert copy.copy(seen).dataset is data.dataset

        def on_validation_start(self, trainer, pl_module):
            assert isinstance(trainer.val_dataloaders, DataLoader)

    trainer(tmp_path, callbacks=[Look()]).fit(Boring(polystep), data)
