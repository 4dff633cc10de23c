"""Formulas as data: one batch is all of it."""

import numpy as np
import pytest

from datamodules import FormulaFile, RandomKSAT
from datamodules.formulas import SameFormula
from lightning_polystep.maxsat import random_ksat, write_formula


def test_a_random_formula_is_that_of_its_seed_and_served_as_often_as_asked():
    data = RandomKSAT(30, 5.0, 4, data_seed=2, max_weight=3, steps_per_epoch=4)
    with pytest.raises(RuntimeError, match="call it first"):
        data.train_dataloader()
    data.setup("fit")
    formula = data.formula
    data.setup("test")
    assert data.formula is formula
    expected = random_ksat(30, 5.0, k=4, seed=2, max_weight=3)
    assert np.array_equal(formula.literals, expected.literals)
    assert np.array_equal(formula.weights, expected.weights)
    loaders = (data.train_dataloader, data.val_dataloader, data.test_dataloader, data.predict_dataloader)
    assert [len(list(loader())) for loader in loaders] == [4, 1, 1, 1]
    assert all(batch is formula for batch in data.train_dataloader())


def test_a_file(tmp_path):
    write_formula(random_ksat(20), tmp_path / "formula.cnf.gz")
    data = FormulaFile(str(tmp_path / "formula.cnf.gz"))
    data.setup()
    assert data.formula.clauses == 85


def test_no_step_and_no_such_batch():
    with pytest.raises(ValueError, match="steps_per_epoch must be at least 1"):
        RandomKSAT(steps_per_epoch=0)
    with pytest.raises(IndexError):
        SameFormula(random_ksat(10), 2)[2]
