"""Stop anywhere, resume, and go on with the same data to the same bits."""

import itertools
from datetime import timedelta
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from datamodules import Digits
from tests.helpers.boring import Boring, loader, polystep, sampled, spiking, trainer
from tests.helpers.resume import BATCHES, EPOCHS, STEPS, Hashes, Noisy, drop, run_rest, run_whole, seeded

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create")

EVERY_BATCH = range(1, STEPS)
SOME_BATCHES = (1, 4, 5, 6, 13)
CASES = {
    "unshuffled": (Noisy, False, SOME_BATCHES, {"use_distributed_sampler": False}),
    "shuffled": (Noisy, True, SOME_BATCHES, {"use_distributed_sampler": False}),
    "shuffled by Lightning's sampler": (Noisy, True, EVERY_BATCH, {}),
    "accumulating": (Noisy, True, EVERY_BATCH, {"accumulate_grad_batches": 3}),
    "spiking": (spiking(Boring), True, EVERY_BATCH, {}),
    "some samples": (partial(spiking(Boring), sampled), True, SOME_BATCHES, {"accumulate_grad_batches": 3}),
    "64-true": (Noisy, True, SOME_BATCHES, {"precision": "64-true"}),
}


@pytest.mark.filterwarnings("ignore:Nothing trains what lies before a silent layer")
@pytest.mark.parametrize(("kind", "shuffle", "stops", "options"), CASES.values(), ids=CASES)
def test_a_run_resumed_after_any_batch_has_the_same_hashes_from_there_on(tmp_path, kind, shuffle, stops, options):
    whole = run_whole(tmp_path, kind(), loader(BATCHES, shuffle=shuffle), **options)
    assert len(whole) == STEPS
    for stop in stops:
        rest = run_rest(tmp_path / f"{stop}.ckpt", kind(), loader(BATCHES, shuffle=shuffle), **options)
        assert rest == whole[stop:], f"stopped after batch {stop}"


@pytest.mark.parametrize("stops", [(3, 5, 9, 11), (5, 10, 11), (1, 2, 15, 16, 19)], ids=str)
def test_a_run_resumed_again_and_again_has_the_same_hashes(tmp_path, stops):
    class Epochs(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            begun.append(trainer.current_epoch)

    whole, begun = run_whole(tmp_path, Noisy(), loader(BATCHES, shuffle=True)), []
    path = tmp_path / f"{stops[0]}.ckpt"
    for at, stop in itertools.pairwise((*stops, STEPS)):
        folder = tmp_path / f"after-{at}"
        rest = run_rest(path, Noisy(), loader(BATCHES, shuffle=True), save_in=folder, more=[Epochs()])
        assert rest == whole[at:], f"stopped after batch {at} of {stops}"
        path = folder / f"{stop - at}.ckpt"
    assert begun[-1] == EPOCHS - 1 or stops[-1] > STEPS - BATCHES


OWN = ("optimizer_states", 0, "polystep")
KEYS = {
    "momentum and reach": ("optimizer_states", 0, "state"),
    "seed": (*OWN, "seed"),
    "step": (*OWN, "progress", "step"),
    "micro-batch": (*OWN, "progress", "micro_batch"),
    "statistics of inputs": (*OWN, "statistics"),
    "costs gathered so far": (*OWN, "pending"),
    "order of the data": ("polystep_run", "data_seed"),
    "place in the epoch": ("loops", "fit_loop", "epoch_loop.batch_progress", "current", "processed"),
    "generators": ("polystep_run", "generators", "torch"),
}


@pytest.mark.filterwarnings("ignore:.*is probed in only one of the two runs")
@pytest.mark.parametrize("path", KEYS.values(), ids=KEYS)
def test_without_any_of_its_parts_a_resumed_run_differs(tmp_path, path):
    """The test above can fail: every part of the state that it relies on counts."""
    options = {"accumulate_grad_batches": 3, "use_distributed_sampler": False}
    whole = run_whole(tmp_path, seeded(Noisy), loader(BATCHES, shuffle=True), **options)
    saved = torch.load(tmp_path / "7.ckpt", weights_only=True)
    if path[-1] == "torch":
        saved["polystep_run"]["generators"]["torch"] = torch.get_rng_state()
    else:
        drop(path)(saved)
    torch.save(saved, tmp_path / "changed.ckpt")
    rest = run_rest(tmp_path / "changed.ckpt", seeded(Noisy), loader(BATCHES, shuffle=True), **options)
    assert rest != whole[7:]
    rest = run_rest(tmp_path / "7.ckpt", seeded(Noisy), loader(BATCHES, shuffle=True), **options)
    assert rest == whole[7:]


def test_steps_saved_by_lightnings_own_callback_resume_as_well(tmp_path):
    saving = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=2, save_top_k=-1, filename="{step}")
    hashes = Hashes()
    run = trainer(tmp_path, max_epochs=EPOCHS, callbacks=[hashes, saving], enable_checkpointing=True)
    pl.seed_everything(7, verbose=False)
    run.fit(Noisy(), loader(BATCHES, shuffle=True))
    for stop in (4, 10, 14):
        path = tmp_path / "saved" / f"step={stop}.ckpt"
        assert run_rest(path, Noisy(), loader(BATCHES, shuffle=True)) == hashes.seen[stop:]
    minutes = ModelCheckpoint(tmp_path / "timed", train_time_interval=timedelta(0), save_top_k=-1, filename="{step}")
    timed = trainer(tmp_path, max_epochs=1, callbacks=[minutes], enable_checkpointing=True)
    pl.seed_everything(7, verbose=False)
    timed.fit(Noisy(), loader(BATCHES, shuffle=True))
    path = tmp_path / "timed" / "step=3.ckpt"
    assert run_rest(path, Noisy(), loader(BATCHES, shuffle=True)) == hashes.seen[3:]


def test_augmented_images_come_back_the_same(tmp_path):
    class Digits8(Boring):
        def __init__(self):
            super().__init__(polystep)
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def data():
        return Digits(batch_size=256, shift=2)

    whole = run_whole(tmp_path, Digits8(), data(), limit_val_batches=0)
    for stop in (3, len(whole) // 2, len(whole) - 1):
        assert run_rest(tmp_path / f"{stop}.ckpt", Digits8(), data(), limit_val_batches=0) == whole[stop:]
