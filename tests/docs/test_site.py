"""The site that `make docs` builds leaves out no page, and its reference no public name."""

import importlib
import re
import runpy
import shutil
from pathlib import Path

import pytest

import lightning_polystep

DOCS = Path(__file__).resolve().parents[2] / "docs"
INDEX = (DOCS / "index.md").read_text(encoding="utf-8")
TOCTREES = re.findall(r"```\{toctree\}\n(.*?)```", INDEX, flags=re.DOTALL)
LISTED = [line for tree in TOCTREES for line in tree.splitlines() if line and not line.startswith(":")]


def test_the_index_lists_every_page_once():
    pages = {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")} - {"index"}
    notebooks = {f"notebooks/{path.stem}" for path in (DOCS.parent / "notebooks").glob("*.ipynb")}
    assert sorted(LISTED) == sorted(pages | notebooks)


def test_the_configuration_reads_these_pages_the_notebooks_and_the_docstrings(tmp_path):
    # It copies the notebooks to where it lies.
    shutil.copy(DOCS / "conf.py", tmp_path)
    shutil.copytree(DOCS.parent / "notebooks", tmp_path / "notebooks")
    (tmp_path / "docs").mkdir()
    configuration = runpy.run_path(str(shutil.move(tmp_path / "conf.py", tmp_path / "docs")))
    copied = {path.name for path in (tmp_path / "docs" / "notebooks").iterdir()}
    assert copied == {path.name for path in (DOCS.parent / "notebooks").glob("*.ipynb")}
    assert {"myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"} <= set(configuration["extensions"])
    assert configuration["release"] == lightning_polystep.__version__
    assert not configuration.get("exclude_patterns")


def test_the_reference_names_all_of_the_package():
    page = (DOCS / "api" / "training.md").read_text(encoding="utf-8")
    named = re.findall(r"^\.\. auto(?:class|function):: (\w+)$", page, flags=re.MULTILINE)
    assert sorted(named) == sorted(name for name in lightning_polystep.__all__ if name != "__version__")


@pytest.mark.parametrize("name", ["layers", "functional", "callbacks"])
def test_the_reference_takes_every_public_name_of_a_module(name):
    page = (DOCS / "api" / f"{name}.md").read_text(encoding="utf-8")
    # With `__all__` autodoc takes exactly what it lists, if names from other files are allowed.
    assert f".. automodule:: lightning_polystep.{name}\n   :imported-members:\n" in page
    module = importlib.import_module(f"lightning_polystep.{name}")
    assert all(getattr(module, public).__doc__ for public in module.__all__)
