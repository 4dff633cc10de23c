"""What every test starts from: clean global state, one thread, fixed seeds; and where the data is."""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import settings
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from pytorch_lightning.utilities.seed import isolate_rng

REPOSITORY = Path(__file__).resolve().parent.parent

# Without a deadline, because the first example compiles kernels; derandomized in CI, so that a failure there repeats.
settings.register_profile("polystep", deadline=None, max_examples=25, derandomize=bool(os.environ.get("CI")))
settings.load_profile("polystep")


def pytest_collectstart(collector: pytest.Collector) -> None:
    """What a file draws when it is imported is the same whatever was collected before it."""
    if isinstance(collector, pytest.Module):
        _seed()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests come first: of two processes, none then waits for one that the other began last."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def clean_environment() -> Iterator[None]:
    """Undoes what Lightning writes into the environment: seeds, ranks, addresses, cuBLAS settings."""
    with mock.patch.dict(os.environ):
        for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
            os.environ.pop(name, None)
        yield


@pytest.fixture(autouse=True)
def clean_torch() -> Iterator[None]:
    """One thread per test, and the global settings of torch as they were."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    deterministic, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    cudnn_benchmark = torch.backends.cudnn.benchmark
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    torch.backends.cudnn.benchmark = cudnn_benchmark


@pytest.fixture(autouse=True)
def clean_ranks() -> Iterator[None]:
    """No process group outlives its test, and the next one runs as rank zero again."""
    rank = rank_zero_only.rank
    yield
    rank_zero_only.rank = rank
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Every test draws the same numbers, alone or after others."""
    with isolate_rng(include_cuda=False):  # asking for its state would start CUDA, and forked ranks could not use it
        _seed()
        yield


def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder that holds ``MNIST/raw``: ``$POLYSTEP_DATA``, or ``shared/data`` beside the repository."""
    root = Path(os.environ.get("POLYSTEP_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (root / "MNIST" / "raw" / "train-images-idx3-ubyte").is_file():
        pytest.skip(f"MNIST is not in {root}: set POLYSTEP_DATA to the folder that holds MNIST/raw")
    return root
