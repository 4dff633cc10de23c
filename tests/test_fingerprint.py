"""Fingerprints: equal for equal tensors, different after any change of value, order, shape or dtype."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_polystep.fingerprint import BITS, fingerprint, mix


@given(st.lists(st.integers(0, 2**63), max_size=5))
def test_a_float64_holds_it(numbers):
    assert 0 <= mix(*numbers) < 2**BITS
    assert int(float(mix(*numbers))) == mix(*numbers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8])
@pytest.mark.parametrize("count", [0, 1, 3, 8, 1001])
def test_equal_tensors_have_equal_fingerprints_wherever_they_start(dtype, count):
    whole = (torch.arange(count + 1) % 100).to(dtype)
    assert fingerprint(whole[1:]) == fingerprint(whole[1:].clone())


@given(st.integers(0, 40), st.integers(0, 7))
def test_one_changed_bit_changes_it(place, bit):
    data = torch.arange(41, dtype=torch.uint8)
    changed = data.clone()
    changed[place] ^= 1 << bit
    assert fingerprint(data) != fingerprint(changed)


def test_order_shape_and_dtype_count():
    data = torch.randn(6, 4)
    others = [data.flip(0), data.reshape(4, 6), data.double(), data.T.contiguous(), data[:5]]
    assert len({fingerprint(tensor) for tensor in [data, *others]}) == 6


def test_everything_in_a_batch_counts():
    batch = {"x": torch.ones(2), "n": np.arange(3.0), "names": ["a", "b"], "k": 1}
    changes = [{"x": torch.zeros(2)}, {"n": np.arange(3.0)[::-1]}, {"names": ["b", "a"]}, {"k": 2}]
    assert len({fingerprint(batch | change) for change in [{}, *changes]}) == 5


def test_sparse_tensors_count_by_value():
    dense = torch.eye(3)
    assert fingerprint(dense.to_sparse()) == fingerprint(dense)
