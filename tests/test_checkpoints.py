"""Checkpoint files: whole or not there, checked before they are read."""

import argparse
import errno
import json
import os
import pickle
import random
import zipfile

import numpy as np
import pytest
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.plugins.io import AsyncCheckpointIO

from lightning_polystep import PolyStepStrategy, checkpoints
from lightning_polystep.checkpoints import (
    CheckedCheckpointIO,
    DamagedCheckpointError,
    ForeignCheckpointError,
    newest_intact,
)
from tests.helpers.boring import Boring, loader, polystep, trainer

STATE = {"global_step": 7, "state_dict": {"weight": torch.arange(300.0).reshape(3, 100)}, "names": ["a", "b"]}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "step=7.ckpt"
    CheckedCheckpointIO().save_checkpoint(STATE, path)
    return path


def write_at(path, content, seconds):
    """Write a file with a time of its own: two writes may fall into one tick of the file system's clock."""
    path.write_bytes(content)
    os.utime(path, (seconds, seconds))


def same(loaded):
    return loaded["global_step"] == 7 and torch.equal(
        loaded["state_dict"]["weight"], torch.arange(300.0).reshape(3, 100)
    )


def test_what_was_saved_is_loaded_with_the_plugin_and_without(saved):
    assert same(CheckedCheckpointIO().load_checkpoint(saved))
    assert same(torch.load(saved, weights_only=True))
    assert same(torch.load(saved, weights_only=True, mmap=True))
    assert same(TorchCheckpointIO().load_checkpoint(saved))
    assert os.listdir(saved.parent) == [saved.name]


def test_a_checkpoint_of_another_writer_is_loaded(tmp_path):
    torch.save(STATE, tmp_path / "plain.ckpt")
    assert same(CheckedCheckpointIO().load_checkpoint(tmp_path / "plain.ckpt"))


def test_a_file_cut_at_any_offset_is_refused(saved):
    content = saved.read_bytes()
    offsets = {0, 1, len(content) - 1} | set(random.Random(0).sample(range(len(content)), 50))
    for offset in offsets:
        saved.write_bytes(content[:offset])
        with pytest.raises(DamagedCheckpointError, match=r"step=7.ckpt is damaged"):
            CheckedCheckpointIO().load_checkpoint(saved)


def test_a_file_with_one_flipped_bit_is_refused(saved):
    content = saved.read_bytes()
    draw = random.Random(0)
    # All over the file, and in the checksum and the record before it.
    bits = [draw.randrange(8 * len(content)) for _ in range(50)] + [8 * len(content) - 1 - i * 7 for i in range(100)]
    for bit in bits:
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        saved.write_bytes(flipped)
        with pytest.raises(DamagedCheckpointError, match=r"step=7.ckpt is damaged"):
            CheckedCheckpointIO().load_checkpoint(saved)


def test_a_damaged_file_of_another_writer_is_refused(tmp_path):
    path = tmp_path / "plain.ckpt"
    torch.save(STATE, path)
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(300.0).numpy().tobytes()) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match="does not match its own check"):
        CheckedCheckpointIO().load_checkpoint(path)


def test_the_refusal_names_the_newest_intact_checkpoint_before_it(saved):
    content, folder = saved.read_bytes(), saved.parent
    write_at(folder / "step=5.ckpt", content, 1)
    write_at(folder / "step=6.ckpt", content, 2)
    write_at(folder / "broken.ckpt", content[:-9], 3)
    write_at(saved, content[:-9], 4)
    write_at(folder / "later.ckpt", content, 5)
    with pytest.raises(DamagedCheckpointError) as refused:
        CheckedCheckpointIO().load_checkpoint(saved)
    assert str(folder / "step=6.ckpt") in str(refused.value)
    assert newest_intact(folder) == folder / "later.ckpt"
    assert newest_intact(folder, before=folder / "step=5.ckpt") is None


def test_the_refusal_says_that_there_is_no_other(saved):
    saved.write_bytes(b"")
    with pytest.raises(DamagedCheckpointError, match=r"it has only 0 bytes.*there is no earlier intact one"):
        CheckedCheckpointIO().load_checkpoint(saved)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*gone.ckpt"):
        CheckedCheckpointIO().load_checkpoint(tmp_path / "gone.ckpt")


def numpy_archive(path):
    np.savez(path.with_suffix(".npz"), a=np.arange(300))
    path.with_suffix(".npz").rename(path)


def zip_archive(path, records=(("readme.txt", "words " * 100),)):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records:
            archive.writestr(name, content)


def safetensors(path):
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))


def without_a_record(path):
    torch.save(STATE, path)
    with zipfile.ZipFile(path) as archive:
        kept = [(name, archive.read(name)) for name in archive.namelist() if not name.endswith("data/0")]
    zip_archive(path, kept)


def legacy(protocol):
    return lambda path: torch.save(STATE, path, _use_new_zipfile_serialization=False, pickle_protocol=protocol)


# Files that are whole, but no checkpoints: how they are made, and words that name them.
KINDS = {
    "legacy": (legacy(2), "of the legacy format of torch.save"),
    "legacy, other protocol": (legacy(4), "of the legacy format of torch.save"),
    "TorchScript": (lambda path: torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(path), "TorchScript"),
    "NumPy": (numpy_archive, "not one that torch.save wrote"),
    "zip": (zip_archive, "not one that torch.save wrote"),
    "missing record": (without_a_record, "not one that torch.save wrote"),
    "LFS": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d\n"),
        "git lfs pull",
    ),
    "safetensors": (safetensors, "safetensors"),
    "folder": (lambda path: path.mkdir(), "is a folder"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_checkpoint_is_named_and_not_called_damaged(tmp_path, kind):
    path = tmp_path / "a.ckpt"
    write, words = KINDS[kind]
    write(path)
    with pytest.raises(ForeignCheckpointError) as refused:
        CheckedCheckpointIO().load_checkpoint(path)
    message = str(refused.value)
    assert words in message
    assert "damaged" not in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it has only 0 bytes"),
        (b"loss: 0.3\n", "it is a text that begins with 'loss: 0.3'"),
        (b"<!DOCTYPE html>\n" + b"<p>" * 3000, "it is a text that begins with '<!DOCTYPE html>'"),
        ("größer\n".encode() * 900, "it is a text that begins with 'größer'"),
        (bytes(5000), "its end is missing or overwritten"),
        (pickle.dumps({"a": 1}), "it has only"),
        (pickle.dumps(list(range(500))), "its end is missing or overwritten, or it is no file of torch.save"),
    ],
    ids=["empty", "text", "web page", "umlauts", "zeros", "small pickle", "pickle"],
)
def test_what_is_no_archive_is_refused_in_one_sentence(tmp_path, content, words):
    path = tmp_path / "a.ckpt"
    path.write_bytes(content)
    with pytest.raises(DamagedCheckpointError) as refused:
        CheckedCheckpointIO().load_checkpoint(path)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"w": torch.ones(2)}, "holds weights alone"),
        ({"state_dict": {}}, "entries without pytorch-lightning_version"),
        ({"epoch": 3}, "entries without state_dict, pytorch-lightning_version"),
        ([1, 2], "holds a list"),
        (torch.ones(2), "holds a Tensor"),
    ],
    ids=["weights", "no version", "neither", "list", "tensor"],
)
@pytest.mark.parametrize("way", ["fit", "validate", "test", "predict"])
def test_what_is_no_checkpoint_of_a_trainer_is_refused_on_every_way_in(tmp_path, content, words, way):
    path = tmp_path / "a.ckpt"
    torch.save(content, path)
    run = getattr(trainer(tmp_path), way)
    with pytest.raises(ForeignCheckpointError, match=words):
        run(Boring(polystep), loader(batches=2), ckpt_path=path)


class Full:
    """A file on a disk that has room for a few bytes more."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def __enter__(self):
        return self

    def __exit__(self, *_raised):
        self.file.close()

    def write(self, content):
        self.file.write(content[: self.room])
        if len(content) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_a_full_disk_loses_nothing_and_leaves_nothing(saved, monkeypatch, failing):
    earlier = saved.read_bytes()

    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    if failing == "write":
        opened = checkpoints.Path.open
        monkeypatch.setattr(checkpoints.Path, "open", lambda path, mode: Full(opened(path, mode), room=200))
    else:
        monkeypatch.setattr(os, failing, full)
    for path in (saved, saved.with_name("other.ckpt")):
        with pytest.raises(OSError, match="No space left"):
            CheckedCheckpointIO().save_checkpoint({"global_step": 8}, path)
    monkeypatch.undo()
    assert os.listdir(saved.parent) == [saved.name]
    assert saved.read_bytes() == earlier


def test_what_a_killed_save_left_behind_is_overwritten(saved):
    left = saved.with_name(f".{saved.name}.unfinished")
    left.write_bytes(b"half")
    CheckedCheckpointIO().save_checkpoint(STATE, saved)
    assert not left.exists()
    assert same(CheckedCheckpointIO().load_checkpoint(saved))


def test_the_folder_is_synced_after_the_file(tmp_path, monkeypatch):
    order, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (order.append("sync"), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda *paths: (order.append("replace"), replace(*paths)))
    CheckedCheckpointIO().save_checkpoint(STATE, tmp_path / "new" / "a.ckpt")
    assert order == ["sync", "replace", "sync"]


class Grudge:
    """Runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    path = tmp_path / "a.ckpt"
    CheckedCheckpointIO().save_checkpoint({"state_dict": Grudge(tmp_path / "hacked")}, path)
    with pytest.raises(ValueError, match=r"holds objects beside tensors.*weights_only=False.*if you trust"):
        CheckedCheckpointIO().load_checkpoint(path)
    assert not (tmp_path / "hacked").exists()


def test_a_class_in_a_checkpoint_is_loaded_when_asked_for(tmp_path):
    path = tmp_path / "a.ckpt"
    CheckedCheckpointIO().save_checkpoint({"options": argparse.Namespace(width=3)}, path)
    with pytest.raises(ValueError, match=r"argparse\.Namespace"):
        CheckedCheckpointIO().load_checkpoint(path)
    assert CheckedCheckpointIO().load_checkpoint(path, weights_only=False)["options"].width == 3


def test_a_remote_path_is_left_to_lightning_and_said_so_once():
    files = CheckedCheckpointIO()
    with pytest.warns(UserWarning, match="on memory:// are written by Lightning, without a checksum"):
        files.save_checkpoint(STATE, "memory://folder/a.ckpt")
    assert same(files.load_checkpoint("memory://folder/a.ckpt"))


def test_the_strategy_writes_them_unless_it_is_given_something_else(tmp_path):
    run = trainer(tmp_path)
    run.fit(Boring(polystep), loader(batches=2))
    run.save_checkpoint(tmp_path / "now.ckpt")
    content = (tmp_path / "now.ckpt").read_bytes()
    assert checkpoints._COMMENT in content
    (tmp_path / "now.ckpt").write_bytes(content[:-1])
    with pytest.raises(DamagedCheckpointError):
        trainer(tmp_path, max_epochs=2).fit(Boring(polystep), loader(batches=2), ckpt_path=tmp_path / "now.ckpt")
    own = TorchCheckpointIO()
    assert trainer(tmp_path, strategy=PolyStepStrategy(checkpoint_io=own)).strategy.checkpoint_io is own
    plugin = TorchCheckpointIO()
    assert trainer(tmp_path, plugins=[plugin]).strategy.checkpoint_io is plugin


def test_asynchronous_saving_writes_them_too(tmp_path):
    run = trainer(tmp_path, plugins=[AsyncCheckpointIO()])
    run.fit(Boring(polystep), loader(batches=2))
    run.save_checkpoint(tmp_path / "now.ckpt")
    run.strategy.checkpoint_io.teardown()
    assert checkpoints._COMMENT in (tmp_path / "now.ckpt").read_bytes()
