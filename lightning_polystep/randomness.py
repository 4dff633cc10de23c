"""Counter-based randomness: every draw is a function of (seed, step, micro-batch, role).

Nothing here depends on how often another draw was made, on the number of processes or on the order of evaluation, so a
run can be stopped, resumed and split over devices without changing one bit.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def derive_seed(seed: int, step: int, micro_batch: int, role: str) -> int:
    """Return the 63-bit seed of one draw.

    Args:
        seed: Seed of the run.
        step: Optimizer step, counted from 0.
        micro_batch: Index of the micro-batch inside the step (``accumulate_grad_batches``), counted from 0.
        role: What the draw is for, for example ``"rotation/network.fc1"``. Two roles never share a draw.

    Returns:
        An integer in ``[0, 2**63)``.

    Example:
        >>> derive_seed(0, 3, 0, "noise") == derive_seed(0, 3, 0, "noise")
        True
        >>> derive_seed(0, 3, 0, "noise") == derive_seed(0, 4, 0, "noise")
        False
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{micro_batch}/{role}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, step: int, role: str, micro_batch: int = 0) -> torch.Generator:
    """Return a CPU generator for one draw; CPU, because accelerator generators differ between device models.

    Example:
        >>> a = torch.randn(2, generator=generator(0, 1, "rotation"))
        >>> b = torch.randn(2, generator=generator(0, 1, "rotation"))
        >>> bool((a == b).all())
        True
    """
    return torch.Generator().manual_seed(derive_seed(seed, step, micro_batch, role))


@contextmanager
def noise_frame(seed: int, step: int, micro_batch: int, role: str = "noise") -> Iterator[None]:
    """Run the body on noise of its own and leave every global generator as it was found.

    The commit pass and all candidates of a micro-batch enter the same frame, so that dropout masks and other noise are
    common to all of them: a difference of two losses then comes from the parameters alone.

    Args:
        seed: Seed of the run.
        step: Optimizer step.
        micro_batch: Micro-batch inside the step.
        role: What the noise is for.
    """
    value = derive_seed(seed, step, micro_batch, role)
    with preserved_generators():
        _seed_torch(value)
        np.random.seed(value & 0xFFFFFFFF)
        random.seed(value)
        yield


@contextmanager
def preserved_generators() -> Iterator[None]:
    """Restore the global generators of torch (CPU and accelerators), NumPy and Python on leaving the body."""
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    device_states = _accelerator_states()
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        if device_states:
            torch.cuda.set_rng_state_all(device_states)


def _seed_torch(value: int) -> None:
    """Seed the generators in use: ``torch.manual_seed`` also notes the call stack for those that are not, in 0.5 ms."""
    if torch.cuda.is_initialized() or torch.xpu.is_initialized() or torch.backends.mps.is_available():
        torch.manual_seed(value)
    else:
        torch.default_generator.manual_seed(value)


def _accelerator_states() -> list[Tensor] | Any:
    # Not is_available(), which loads the driver's library again at each call.
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def generator_states() -> dict[str, Any]:
    """Return the states of the global generators of Python, NumPy and torch, as tensors and numbers.

    They load with ``weights_only=True``, which arrays of NumPy do not.

    Example:
        >>> states = generator_states()
        >>> drawn = random.random(), np.random.rand(), float(torch.rand(()))
        >>> restore_generators(states)
        >>> drawn == (random.random(), np.random.rand(), float(torch.rand(())))
        True
    """
    version, words, gauss = random.getstate()
    array: Any = np.random.get_state(legacy=False)
    return {
        "python": {"version": version, "words": torch.tensor(words), "gauss": gauss},
        "numpy": {
            "kind": array["bit_generator"],
            "keys": torch.from_numpy(array["state"]["key"].astype(np.int64)),
            "position": int(array["state"]["pos"]),
            "has_gauss": int(array["has_gauss"]),
            "cached": float(array["gauss"]),
        },
        "torch": torch.get_rng_state(),
        "cuda": list(_accelerator_states()),
    }


def restore_generators(states: dict[str, Any]) -> None:
    """Set the global generators to states that :func:`generator_states` returned.

    CUDA's are left alone when the states come from another number of devices.
    """
    python, array = states["python"], states["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    keys = array["keys"].numpy().astype(np.uint32)
    np.random.set_state((array["kind"], keys, array["position"], array["has_gauss"], array["cached"]))
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available() and torch.cuda.device_count() == len(states["cuda"]):
        torch.cuda.set_rng_state_all(states["cuda"])
