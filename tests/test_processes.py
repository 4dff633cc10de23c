"""Sums over processes: alone, a process has its own; several, the sum, or the name of who did not come."""

import multiprocessing
import time
from datetime import timedelta

import pytest
import torch

from lightning_polystep.parallel import Axis, Layout
from lightning_polystep.processes import MissingProcessError, Processes, ProcessGroup


def test_alone_a_sum_is_the_own_contribution():
    parts = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3, dtype=torch.int64)}
    total = Processes().sum(parts)
    assert {name: part.tolist() for name, part in total.items()} == {"a": [1.0, 2.0], "b": 3.0}
    assert {part.dtype for part in total.values()} == {torch.float64}


def meet(rank, rounds, store, queue):
    """Come to so many sums, and tell what they were, or who was missing."""
    torch.set_num_threads(1)
    size = len(rounds)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    group = ProcessGroup(Layout(candidates=Axis(rank, size)), torch.device("cpu"), timedelta(seconds=3))
    own = {"x": torch.full((2,), float(rank + 1)), "y": torch.eye(size)[rank]}
    try:
        sums = [group.sum(own) for _ in range(rounds[rank])]
    except MissingProcessError as error:
        queue.put((rank, str(error)))
    else:
        queue.put((rank, [{name: part.tolist() for name, part in total.items()} for total in sums]))
        time.sleep(5 * (rounds[rank] < max(rounds)))
    group.close()


def told(tmp_path, rounds):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    store = tmp_path / "store"
    ranks = [context.Process(target=meet, args=(rank, rounds, store, queue)) for rank in range(len(rounds))]
    for process in ranks:
        process.start()
    answers = dict(queue.get(timeout=60) for _ in ranks)
    for process in ranks:
        process.join(20)
    return answers


@pytest.mark.distributed
def test_several_have_the_sum(tmp_path):
    answers = told(tmp_path, [2, 2, 2])
    assert answers == {rank: [{"x": [6.0, 6.0], "y": [1.0, 1.0, 1.0]}] * 2 for rank in range(3)}


@pytest.mark.distributed
def test_who_did_not_come_is_named(tmp_path):
    answers = told(tmp_path, [2, 2, 1])
    for rank in (0, 1):
        assert "missing: rank(s) 2." in answers[rank]
        assert f"Rank {rank} waited" in answers[rank]
