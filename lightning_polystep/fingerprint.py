"""Fingerprints: one number that tells whether two processes hold the same tensors."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

# A float64 holds integers of so many bits exactly, and a sum with zeros keeps them.
BITS = 48
_MASK = (1 << BITS) - 1
_MULTIPLIER = 0x9E3779B97F4A7C15


def mix(*numbers: int) -> int:
    """Fold integers into one of 48 bits; their order counts.

    Example:
        >>> mix(1, 2) == mix(1, 2), mix(1, 2) == mix(2, 1)
        (True, False)
    """
    mixed = len(numbers)
    for number in numbers:
        mixed = ((mixed ^ (number & (1 << 64) - 1)) * _MULTIPLIER) & (1 << 64) - 1
        mixed ^= mixed >> 29
    return mixed >> (64 - BITS)


def fingerprint(values: Any) -> int:
    r"""Return a 48-bit hash of all tensors, arrays, numbers and strings in nested containers.

    A tensor is read as 64-bit words :math:`w_i` and hashed by :math:`\sum_i a_i w_i \bmod 2^{64}` with fixed odd
    :math:`a_i` (multilinear hashing), on its own device: one pass over the data. Objects of other types do not count.

    Args:
        values: What to hash: a batch, or parameters.

    Example:
        >>> batch = {"x": torch.arange(6.0), "y": [1, "name"]}
        >>> fingerprint(batch) == fingerprint({"x": torch.arange(6.0), "y": [1, "name"]})
        True
        >>> fingerprint(batch) == fingerprint({"x": torch.arange(6.0).flip(0), "y": [1, "name"]})
        False

    References:
        Lemire and Kaser, "Strongly universal string hashing is fast", The Computer Journal 57(11), 2014.
    """
    return mix(*_hashes(pytree.tree_leaves(values)))


def _hashes(leaves: Iterable[Any]) -> Iterable[int]:
    for leaf in leaves:
        if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biuf":
            leaf = torch.from_numpy(np.ascontiguousarray(leaf))  # noqa: PLW2901 - the same numbers
        if isinstance(leaf, Tensor):
            yield _hash_tensor(leaf.detach())
        elif isinstance(leaf, (bool, int, float, str, bytes)):
            yield zlib.crc32(repr(leaf).encode())


def _hash_tensor(tensor: Tensor) -> int:
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    shape = zlib.crc32(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    data = tensor.contiguous().reshape(-1).view(torch.uint8)
    if data.storage_offset() % 8:
        data = data.clone()  # words must be aligned
    words, tail = data[: len(data) // 8 * 8].view(torch.int64), data[len(data) // 8 * 8 :].to(torch.int64)
    total = (words * _factors(len(words), data.device)).sum() + (tail * _factors(len(tail) + 1, data.device)[1:]).sum()
    return mix(shape, int(total))


@lru_cache(maxsize=16)
def _factors(count: int, device: torch.device) -> Tensor:
    places = torch.arange(1, count + 1, device=device)
    mixed = places * (_MULTIPLIER - (1 << 64))
    mixed = (mixed ^ (mixed >> 32)) * (_MULTIPLIER - (1 << 64))
    return mixed | 1
