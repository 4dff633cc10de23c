"""Checkpoint files that are whole or not there: written aside, synced, checksummed, then put in place."""

from __future__ import annotations

import hashlib
import io
import os
import re
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch

from lightning_polystep.host import _PATH, TorchCheckpointIO, get_filesystem, rank_zero_warn

# torch.save writes a zip archive, which may end with a comment that readers of archives pass over: the checksum.
_COMMENT = b"lightning_polystep sha256:"
_COMMENT_BYTES = len(_COMMENT) + 2 * hashlib.sha256().digest_size
# The last record of an archive; its last two bytes are the length of the comment.
_END_RECORD = b"PK\x05\x06"
_END_RECORD_BYTES = 22
_UNFINISHED = ".unfinished"


# How every file begins that torch.save wrote before it wrote archives; a header of pickle may come first.
_LEGACY_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")
_HEAD_BYTES = 4096
# The format's own limit.
_MOST_SAFETENSORS_HEADER = 100_000_000


class DamagedCheckpointError(ValueError):
    """A checkpoint file is not what was written; the message names the newest earlier one that is."""


class ForeignCheckpointError(ValueError):
    """A file is whole, but no checkpoint that can be checked and loaded; the message says what it is."""


class CheckedCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, with a checksum inside and never half-written under their own name.

    A checkpoint is written to a temporary file in the target folder, synced to the disk and renamed, so that a crash, a
    kill or a full disk leaves the earlier file as it was. The SHA-256 of all bytes is the comment of the zip archive
    that ``torch.save`` writes: ``torch.load(path, weights_only=True)``, ``load_from_checkpoint`` and ``unzip`` read the
    file without this package. Loading compares the checksum first, and unpickles nothing but tensors, numbers, strings
    and containers of them unless it is told ``weights_only=False``.

    Paths on remote file systems (``s3://...``) are left to Lightning, without a checksum.

    Example:
        >>> import tempfile
        >>> files = CheckedCheckpointIO()
        >>> path = Path(tempfile.mkdtemp()) / "last.ckpt"
        >>> files.save_checkpoint({"global_step": 3}, path)
        >>> files.load_checkpoint(path), torch.load(path, weights_only=True)
        ({'global_step': 3}, {'global_step': 3})
        >>> _ = path.write_bytes(path.read_bytes()[:-1])
        >>> files.load_checkpoint(path)
        Traceback (most recent call last):
        lightning_polystep.checkpoints.DamagedCheckpointError: The checkpoint last.ckpt is damaged ...
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Write a checkpoint; what was there before stays until all of it is on the disk.

        Args:
            checkpoint: What the Trainer collected.
            path: The file.
            storage_options: As in TorchCheckpointIO, which takes none.

        Raises:
            OSError: When the disk is full or the folder cannot be written; earlier files are as they were.
        """
        if storage_options is not None or not _is_local(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        # In memory first, as Lightning does: torch's archive writer does not survive a disk that fills up under it.
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        _replace(Path(path), _with_checksum(buffer))

    def load_checkpoint(
        self, path: _PATH, map_location: Any | None = lambda storage, _: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Check a file, and load it.

        Args:
            path: The file.
            map_location: As in :func:`torch.load`.
            weights_only: As in :func:`torch.load`; None means True.

        Raises:
            FileNotFoundError: When there is no such file.
            DamagedCheckpointError: When the file is not what was written.
            ForeignCheckpointError: When it was not written by torch.save, or by a very old one.
            ValueError: When it holds objects of classes that are not loaded unless asked for.
        """
        if not _is_local(path):
            return super().load_checkpoint(path, map_location, weights_only)
        path = Path(path)
        if path.is_dir():
            raise ForeignCheckpointError(f"The checkpoint {path} is a folder: give the path of one file of torch.save.")
        if not path.is_file():
            raise FileNotFoundError(f"There is no checkpoint {path}.")
        # One open file: what was checked is what is loaded, also when the path gets a new file meanwhile.
        with path.open("rb") as file:
            kind = foreign_kind(file)
            if kind:
                raise ForeignCheckpointError(f"The checkpoint {path.name} is {kind}.")
            problem = damage(file)
            if problem:
                raise DamagedCheckpointError(_refusal(path, problem))
            if _is_torchscript(file):
                raise ForeignCheckpointError(
                    f"The checkpoint {path.name} is a TorchScript archive, which holds code: give one that the Trainer "
                    "has saved."
                )
            file.seek(0)
            try:
                return torch.load(file, map_location=map_location, weights_only=weights_only is not False)
            except UnpicklingError as error:
                raise ValueError(
                    f"The checkpoint {path.name} holds objects beside tensors, numbers, strings and containers of them "
                    f"({_first_sentence(error)}): pass weights_only=False to fit, test or load_from_checkpoint, if you "
                    "trust whoever wrote it, because that runs code from the file."
                ) from error
            except _UNREADABLE as error:
                if "memory" in str(error):  # too little of it is no fault of the file
                    raise
                raise ForeignCheckpointError(
                    f"The checkpoint {path.name} is an archive, but not one that torch.save wrote "
                    f"({_first_line(error)}): give one that the Trainer has saved."
                ) from error


# What torch.load raises for archives of others: TorchScript, NumPy, documents, and records that are not what they seem.
_UNREADABLE = (RuntimeError, KeyError, IndexError, AttributeError, TypeError, ValueError, EOFError, AssertionError)


def check_content(checkpoint: Any, path: _PATH) -> None:
    """Refuse what a file held if it is no Trainer's checkpoint.

    Args:
        checkpoint: What was loaded.
        path: Of the file, for the message.

    Raises:
        ForeignCheckpointError: Saying what is missing.
    """
    needed = ("state_dict", "pytorch-lightning_version")
    if isinstance(checkpoint, Mapping) and all(name in checkpoint for name in needed):
        return
    what = f"a {type(checkpoint).__name__}"
    if isinstance(checkpoint, Mapping):
        weights = bool(checkpoint) and all(isinstance(value, torch.Tensor) for value in checkpoint.values())
        missing = ", ".join(name for name in needed if name not in checkpoint)
        what = "weights alone" if weights else f"entries without {missing}"
    raise ForeignCheckpointError(
        f"The file {Path(path).name} holds {what}, and no checkpoint of a Trainer: load weights with "
        "module.load_state_dict(torch.load(path, weights_only=True)), and resume from what the Trainer has saved."
    )


def foreign_kind(file: BinaryIO) -> str:
    """Return what an open file is if it is certainly no archive of torch.save, with the cure, or an empty string.

    Args:
        file: The file, opened for reading bytes.
    """
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    if _LEGACY_MAGIC in head[:64]:
        return (
            "of the legacy format of torch.save (before torch 1.6, or _use_new_zipfile_serialization=False), which "
            "holds nothing to check it by: if you trust it, save it anew with "
            "torch.save(torch.load(path, weights_only=True), path)"
        )
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS and not the file that it stands for: fetch that with `git lfs pull`"
    if head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") < _MOST_SAFETENSORS_HEADER:
        return "a file of safetensors, which holds weights alone: load them with safetensors.torch.load_file"
    return ""


def damage(file: BinaryIO) -> str:
    """Return what is wrong with an open checkpoint file, or an empty string.

    A file of another writer has no checksum; of that the archive's own check of each record is asked for.

    Args:
        file: The file, opened for reading bytes.
    """
    size = file.seek(0, os.SEEK_END)
    text = _as_text(file, size)
    if text:
        return f"it is a text that begins with {text!r}"
    if size < _END_RECORD_BYTES + _COMMENT_BYTES:
        return f"it has only {size} bytes"
    file.seek(-_END_RECORD_BYTES - _COMMENT_BYTES, os.SEEK_END)
    end = file.read()
    comment = end[_END_RECORD_BYTES:]
    if end.startswith(_END_RECORD) and comment.startswith(_COMMENT):
        file.seek(0)
        if _sha256(file, size - _COMMENT_BYTES) != comment[len(_COMMENT) :]:
            return "its checksum does not match its content"
        return ""
    if end[-_END_RECORD_BYTES:].startswith(_END_RECORD) and end[-2:] == b"\0\0":
        return _damage_of_archive(file)
    return "its end is missing or overwritten, or it is no file of torch.save"


def newest_intact(folder: Path, before: Path | None = None) -> Path | None:
    """Return the newest undamaged checkpoint (``*.ckpt``) of a folder, or None.

    Args:
        folder: Where to look.
        before: Only checkpoints no younger than this file, and not itself.
    """
    found = [(path.stat().st_mtime_ns, path) for path in folder.glob("*.ckpt") if path.is_file()]
    if before is not None:
        limit = before.stat().st_mtime_ns
        found = [(written, path) for written, path in found if written <= limit and path != before]
    for _, path in sorted(found, reverse=True):
        with path.open("rb") as file:
            if not damage(file):
                return path
    return None


def _with_checksum(buffer: io.BytesIO) -> memoryview:
    """Announce a comment in the archive's last record and append it."""
    buffer.seek(-2, os.SEEK_END)
    buffer.write(_COMMENT_BYTES.to_bytes(2, "little"))
    size = buffer.tell()
    buffer.seek(0)
    digest = _sha256(buffer, size)
    buffer.seek(size)
    buffer.write(_COMMENT + digest)
    return buffer.getbuffer()


def _sha256(file: BinaryIO, size: int) -> bytes:
    digest = hashlib.sha256()
    while size > 0:
        block = file.read(min(size, 2**20))
        if not block:
            break
        digest.update(block)
        size -= len(block)
    return digest.hexdigest().encode()


def _replace(path: Path, content: memoryview) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A fixed name: the next attempt to save the same checkpoint overwrites what a killed one left behind.
    unfinished = path.with_name(f".{path.name}{_UNFINISHED}")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Write the new name to the disk; Windows has no such call and does it by itself."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _damage_of_archive(file: BinaryIO) -> str:
    try:
        with zipfile.ZipFile(file) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError):
        return "its archive cannot be read"
    return f"the record {bad} of its archive does not match its own check" if bad else ""


def _is_torchscript(file: BinaryIO) -> bool:
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _refusal(path: Path, problem: str) -> str:
    earlier = newest_intact(path.parent, before=path)
    advice = (
        f"use {earlier}, the newest intact one before it"
        if earlier is not None
        else f"there is no earlier intact one in {path.parent}"
    )
    return f"The checkpoint {path.name} is damaged ({problem}): {advice}."


def _is_local(path: _PATH) -> bool:
    if "file" in get_filesystem(path).protocol:
        return True
    _warn_remote(str(path).split("://", 1)[0])
    return False


_warned_of: set[str] = set()


def _warn_remote(protocol: str) -> None:
    if protocol not in _warned_of:
        _warned_of.add(protocol)
        rank_zero_warn(f"Checkpoints on {protocol}:// are written by Lightning, without a checksum: keep a local copy.")


def _as_text(file: BinaryIO, size: int) -> str:
    """Return how a file begins if it is a text; what is left of a checkpoint is none, however little it is."""
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    if head.startswith(b"PK") or not head.strip():
        return ""
    try:
        # The last character may be cut in two.
        text = head.decode() if size <= len(head) else head.decode(errors="ignore")
    except UnicodeDecodeError:
        return ""
    if any(not character.isprintable() and not character.isspace() for character in text):
        return ""
    return text.split("\n", 1)[0].strip()[:40] or text.strip()[:40]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:80].rstrip(". ") if lines else type(error).__name__


def _first_sentence(error: Exception) -> str:
    named = re.search(r"Unsupported (?:global|class|operand)[^\n]*?(?=\s+was not|\n|$)", str(error))
    return named.group(0) if named else type(error).__name__
