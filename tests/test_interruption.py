"""SIGTERM, Ctrl+C and exceptions: what is saved, and that it goes on exactly."""

import errno
import itertools
import os
import signal
import time
from collections.abc import Iterator

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from lightning_polystep.checkpoints import CheckedCheckpointIO
from tests.helpers.boring import BATCH, Boring, loader, polystep, separable, trainer
from tests.helpers.ranks import alike, fit, resume
from tests.helpers.resume import BATCHES, EPOCHS, Hashes, Noisy, run_rest, run_whole

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create"),
    pytest.mark.filterwarnings("ignore:Each run of the training step that scores a candidate moves on"),  # CALLS
]


@pytest.fixture(autouse=True)
def interruptible():
    """Take signals as an ordinary process does, also where the tests run in the background and SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def data():
    return loader(BATCHES, shuffle=True)


def interrupted(folder, module, batches=None, *, save_on_exception=False, **options):
    """Run until something stops the fit; return what ended it, and the hashes until then."""
    hashes = Hashes()
    saver = ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}", save_on_exception=save_on_exception)
    run = trainer(folder, max_epochs=EPOCHS, callbacks=[hashes, saver], enable_checkpointing=True, **options)
    pl.seed_everything(7, verbose=False)
    with pytest.raises(BaseException) as ended:  # noqa: PT011 - signals end a fit by SystemExit and KeyboardInterrupt
        run.fit(module, batches or data())
    return ended.value, hashes.seen


CALLS = dict[str, Iterator[int]]()  # of each stage: what a step writes is put back after each probe, but no iterator


class Signalled(Noisy):
    """Sends its process a signal in the middle of a step, while candidates are scored, or of a validation."""

    def __init__(self, number, at=25, stage="training"):
        super().__init__()
        self.number = number
        self.at = {stage: at}
        CALLS.update(training=itertools.count(1), validation=itertools.count(1))

    def loss(self, batch):
        stage = "training" if self.trainer.training else "validation"
        if next(CALLS[stage]) == self.at.get(stage):
            os.kill(os.getpid(), self.number)
        return super().loss(batch)


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 3}], ids=["each", "accumulating"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 1)], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_the_batch_saves_and_exits(tmp_path, number, code, options):
    whole = run_whole(tmp_path, Noisy(), data(), **options)
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    ended, seen = interrupted(tmp_path, Signalled(number), **options)
    assert isinstance(ended, SystemExit)
    assert ended.code == code
    assert 0 < len(seen) < len(whole)
    assert seen == whole[: len(seen)]
    assert run_rest(tmp_path / "interrupted.ckpt", Noisy(), data(), **options) == whole[len(seen) :]
    assert signal.getsignal(signal.SIGTERM) == handlers[0]


def test_a_signal_in_validation_keeps_the_training_exact(tmp_path):
    whole = run_whole(tmp_path, Noisy(), data())
    ended, seen = interrupted(tmp_path, Signalled(signal.SIGTERM, at=3, stage="validation"))
    assert ended.code == 143
    assert run_rest(tmp_path / "interrupted.ckpt", Noisy(), data()) == whole[len(seen) :]


class Pressed(pl.Callback):
    """Presses Ctrl+C at a hook, the n-th time that it is called, and takes note of what comes after."""

    def __init__(self, hook, at=1):
        self.left, self.after = at, []
        setattr(self, hook, self.press)
        for name in ("on_validation_batch_start", "on_train_batch_start"):
            if name != hook:
                setattr(self, name, lambda *_args, name=name: self.left > 0 or self.after.append(name))

    def press(self, *_args):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)  # the interpreter handles signals between instructions


HOOKS = [
    "on_validation_start",
    "on_validation_epoch_start",
    "on_validation_batch_start",
    "on_validation_batch_end",
    "on_validation_epoch_end",
    "on_validation_end",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_train_epoch_end",
    "on_train_end",
]


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize(("interval", "last"), [(0.4, False), (1.0, True)], ids=["within an epoch", "after the last"])
def test_ctrl_c_at_any_hook_stops_and_goes_on_exactly(tmp_path, hook, interval, last):
    options = {"val_check_interval": interval, "num_sanity_val_steps": 0}
    batches = {"on_validation_batch_start": 2, "on_validation_batch_end": 2, "on_train_batch_start": BATCHES}
    per_epoch = batches.get(hook, 1) * (2 if "validation" in hook and interval < 1 else 1)
    at = 1 if hook == "on_train_end" else per_epoch * EPOCHS if last else 2
    whole = run_whole(tmp_path, Noisy(), data(), **options)
    module, pressed, hashes = Noisy(), Pressed(hook, at), Hashes()
    saver = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    run = trainer(tmp_path, max_epochs=EPOCHS, callbacks=[pressed, hashes, saver], enable_checkpointing=True, **options)
    pl.seed_everything(7, verbose=False)
    with pytest.raises(SystemExit) as ended:
        run.fit(module, data())
    assert ended.value.code == 1
    assert pressed.left == 0
    # Between epochs the first batch of the next one is waited for.
    waits = hook == "on_train_epoch_start" or (hook == "on_train_epoch_end" and not last)
    assert pressed.after == ["on_train_batch_start"] * waits
    seen = hashes.seen
    assert seen == whole[: len(seen)]
    assert run_rest(tmp_path / "interrupted.ckpt", Noisy(), data(), **options) == whole[len(seen) :]
    assert signal.getsignal(signal.SIGINT) is not None


def test_ctrl_c_in_a_validation_step_stops_at_once(tmp_path):
    ended, seen = interrupted(tmp_path, Signalled(signal.SIGINT, at=6, stage="validation"), num_sanity_val_steps=0)
    assert (ended.code, len(seen)) == (1, 3 * BATCHES)
    assert next(CALLS["validation"]) == 7, "no other batch was validated"


def test_ctrl_c_after_an_epoch_that_was_cut_short_is_not_lost(tmp_path):
    class Short(Noisy):
        """Skips the rest of every epoch at its third batch."""

        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 2:
                if self.current_epoch == EPOCHS - 1:
                    os.kill(os.getpid(), signal.SIGINT)
                    time.sleep(0.01)
                return -1
            return None

    ended, _ = interrupted(tmp_path, Short(), limit_val_batches=0)
    assert isinstance(ended, SystemExit)


class SignalledRank(Boring):
    """One of several processes gets SIGTERM while it scores the seventh batch."""

    def loss(self, batch):
        trainer = self.trainer
        at_it = trainer.training and trainer.fit_loop.epoch_loop.batch_idx == 6
        if at_it and trainer.global_rank == self.struck and not trainer.strategy.processes.asked_to_stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().loss(batch)


def struck(rank):
    module = SignalledRank(polystep)
    module.struck = rank
    saver = ModelCheckpoint(save_top_k=-1, filename="{epoch}")
    return module, loader(16, shuffle=True), {"callbacks": [saver], "enable_checkpointing": True}


def struck_0():
    return struck(0)


def struck_1():
    return struck(1)


def struck_nowhere():
    return struck(None)


@pytest.mark.distributed
@pytest.mark.parametrize("task", [struck_0, struck_1])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_sigterm_in_any_process_stops_all_after_the_same_step(tmp_path, task, accumulate):
    options = {"accumulate_grad_batches": accumulate}
    whole = alike(fit(struck_nowhere, 2, tmp_path, options=options))
    seen = fit(task, 2, tmp_path, options=options)
    assert [rank.error for rank in seen] == ["SIGTERMException"] * 2
    assert seen[0].hashes == seen[1].hashes == whole[: len(seen[0].hashes)]
    (path,) = tmp_path.rglob("interrupted.ckpt")
    for ranks in (1, 2):
        (rest,) = resume(struck_nowhere, ranks, tmp_path, [path], options=options)
        assert alike(rest) == whole[len(seen[0].hashes) :]


def test_a_second_interrupt_stops_at_once(tmp_path):
    class Impatient(Noisy):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if self.global_step == 2 and torch.is_grad_enabled() is False:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
            return loss

    ended, seen = interrupted(tmp_path, Impatient())
    assert isinstance(ended, SystemExit)
    assert len(seen) == 2
    assert not (tmp_path / "interrupted.ckpt").exists()


class Bad(torch.utils.data.Dataset):
    """A sample that cannot be read while ``broken``."""

    def __init__(self, broken):
        self.data, self.broken = separable(BATCHES * BATCH), broken

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        if self.broken and index == 20:
            raise OSError("sample 20 cannot be read")
        return self.data[index]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_exception_in_the_loader_saves_what_was_trained(tmp_path, workers):
    def made(broken):
        return DataLoader(Bad(broken), batch_size=BATCH, num_workers=workers)

    options = {"use_distributed_sampler": False}
    whole = run_whole(tmp_path, Noisy(), made(False), **options)
    ended, seen = interrupted(tmp_path, Noisy(), made(True), **options)
    assert "sample 20 cannot be read" in str(ended)
    assert seen == whole[:2]
    assert run_rest(tmp_path / "interrupted.ckpt", Noisy(), made(False), **options) == whole[2:]


class Failing(Noisy):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if batch_idx == 3:
            raise ValueError("in the middle")
        return loss


def test_half_a_step_is_not_saved(tmp_path):
    interrupted(tmp_path, Failing())
    assert not list(tmp_path.glob("*.ckpt"))
    with pytest.warns(UserWarning, match=r"was not saved: the exception came in the middle of a batch"):
        ended, _ = interrupted(tmp_path, Failing(), save_on_exception=True)
    assert str(ended) == "in the middle"
    assert not list(tmp_path.glob("*.ckpt"))


def test_who_wants_no_checkpoints_gets_none(tmp_path):
    run = trainer(tmp_path, max_epochs=EPOCHS)
    with pytest.raises(SystemExit):
        run.fit(Signalled(signal.SIGTERM), data())
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_disk_that_is_still_full_does_not_hide_what_happened(tmp_path, monkeypatch):
    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(CheckedCheckpointIO, "save_checkpoint", full)
    with pytest.warns(UserWarning, match=r"interrupted.ckpt could not be saved .*No space left"):
        ended, _ = interrupted(tmp_path, Noisy())
    assert isinstance(ended, OSError)
