"""The shares of the processes are a partition of the candidates, and one process keeps what it has."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_polystep.parallel import Layout


@given(st.integers(0, 300), st.integers(1, 20))
def test_every_candidate_has_exactly_one_scorer_in_order(candidates, world_size):
    shares = [Layout(rank, world_size).share(candidates) for rank in range(world_size)]
    assert [candidate for share in shares for candidate in share] == list(range(candidates))


@given(st.integers(0, 300), st.integers(1, 20))
def test_no_process_scores_more_than_its_part_rounded_up(candidates, world_size):
    assert max(len(Layout(rank, world_size).share(candidates)) for rank in range(world_size)) == -(
        -candidates // world_size
    )


def test_one_process_keeps_all():
    costs = torch.randn(5)
    assert Layout().share(5) == range(5)
    assert Layout().gather(costs) is costs


def test_several_processes_are_refused():
    with pytest.raises(NotImplementedError, match="use devices=1"):
        Layout(rank=0, world_size=2).gather(torch.zeros(1))
