"""Rules for arguments: what they let through, and the sentence for what they do not."""

from datetime import timedelta
from fractions import Fraction

import numpy as np
import pytest
import torch

from lightning_polystep import PolyStepStrategy
from lightning_polystep.values import ArgumentTypeError, Rule, at_least, check, flag, one_of

NUMBER = Rule("x", "number", "it must be above 0", lambda value: value > 0)
GOOD = [1, 0.5, np.float32(2), np.int64(3), torch.tensor(1.0), torch.tensor([2]), Fraction(1, 3)]
BAD = [True, "1", None, [1], torch.ones(2), torch.tensor(True), 1j, torch.tensor(1j)]


@pytest.mark.parametrize("value", GOOD)
def test_every_kind_of_number_is_one(value):
    NUMBER.check("Owner", value)


@pytest.mark.parametrize("value", BAD)
def test_what_is_no_number(value):
    with pytest.raises(ArgumentTypeError, match=r"Owner\(x=.*it must be above 0; it must be a number"):
        NUMBER.check("Owner", value)


def test_a_long_value_is_cut_and_stays_on_one_line():
    with pytest.raises(ArgumentTypeError) as raised:
        NUMBER.check("Owner", torch.randn(50, 50))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 200


def test_the_other_rules():
    rules = [at_least("n", 1, optional=True, others=("auto",)), one_of("way", ("a", "b")), flag("on")]
    for good in ({}, {"n": 1}, {"n": None}, {"n": "auto"}, {"n": np.int32(4)}, {"way": "a"}, {"on": False}, {"z": 3}):
        check("Owner", good, rules)
    for bad in ({"n": 0}, {"way": "c"}):
        with pytest.raises(ValueError, match=r"Owner\("):
            check("Owner", bad, rules)
    for bad in ({"n": "Auto"}, {"n": 1.0}, {"way": None}, {"way": ["a"]}, {"on": 1}):
        with pytest.raises(ArgumentTypeError, match=r"Owner\("):
            check("Owner", bad, rules)


def test_a_patience_may_be_given_in_both_ways():
    assert PolyStepStrategy(timeout=timedelta(seconds=3))._patience == PolyStepStrategy(timeout=3)._patience
    with pytest.raises(ValueError, match="seconds above 0"):
        PolyStepStrategy(timeout=timedelta(0))
