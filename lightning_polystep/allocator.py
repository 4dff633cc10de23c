"""Keep memory that a step has freed, because the next one asks for as much again.

Values of a convolution's step take tens of megabytes. The C library gives such memory back to the kernel as soon
as it is free, and the kernel fills it with zeros when it is asked for again: on a spiking convolutional network that
took a quarter of a step.
"""

from __future__ import annotations

import ctypes
import os
import sys

# Names of the parameters in malloc.h of glibc, and the values that they get: blocks up to the largest size that it
# allows come from the heap, and of the heap so much stays when it is free.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_BLOCK, _KEPT = 2**25, 2**30
# Whoever sets one of these has an allocator set up already, or does not want this one to be.
_SETTINGS = (
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_MMAP_THRESHOLD_",
    "GLIBC_TUNABLES",
    "LD_PRELOAD",
    "LIGHTNING_POLYSTEP_FREES_MEMORY",
)


def keep_memory() -> bool:
    """Have glibc keep up to 1 GiB of what this process has freed; tell whether it does.

    It is left as it is on other systems, and where one of its own variables in the environment, ``LD_PRELOAD`` or
    ``LIGHTNING_POLYSTEP_FREES_MEMORY`` is set.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _SETTINGS):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(
        bool(mallopt(name, size)) for name, size in ((_MMAP_THRESHOLD, _LARGEST_BLOCK), (_TRIM_THRESHOLD, _KEPT))
    )
