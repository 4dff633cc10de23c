"""Packages as a formula: its optimum is the largest set that installs."""

import sys

import pytest

from benchmarks import debian_packages
from benchmarks.debian_packages import formula_of
from lightning_polystep.maxsat import read_formula
from lightning_polystep.maxsat.solver import Solver
from tests.maxsat.formulas import least_cost

INDEX = """Package: shell
Priority: required
Depends: libc (>= 2.36),
 editor | vi

Package: libc
Version: 2.36
Conflicts: old-libc (<< 2.0)

Package: nano
Provides: editor
Conflicts: editor

Package: emacs
Provides: editor (= 1), text:any
Breaks: vi

Package: vi
Provides: editor

Package: broken
Depends: nowhere

Package: old-libc
"""


def test_the_largest_set_that_installs():
    names, formula = formula_of(INDEX.splitlines())
    assert names == ["shell", "libc", "nano", "emacs", "vi", "broken", "old-libc"]
    assert formula.soft_weight == 16 + 6
    # Of the three editors one stays (nano meets no other, emacs breaks vi), and what depends on nothing there is goes.
    answer = Solver(formula).search(sweeps=50)
    assert answer.feasible
    assert answer.cost == least_cost(formula) == 3
    installed = dict(zip(names, answer.values.tolist(), strict=True))
    assert installed["shell"]
    assert installed["libc"]
    assert not installed["broken"]
    assert installed["old-libc"], "a conflict with a version is about another one"
    assert sum(installed[name] for name in ("nano", "emacs", "vi")) == 1


def test_the_file_that_it_writes(tmp_path, monkeypatch, capsys):
    (tmp_path / "Packages").write_text(INDEX, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["debian_packages", str(tmp_path / "Packages"), str(tmp_path / "out.wcnf")])
    debian_packages.main()
    assert "7 packages" in capsys.readouterr().out
    assert read_formula(tmp_path / "out.wcnf").equals(formula_of(INDEX.splitlines())[1])


def test_an_empty_index_is_refused():
    with pytest.raises(ValueError, match="No package in the index"):
        formula_of(["", "# nothing"])
