"""The site that `make docs` builds leaves out no page, and its reference no public name."""

import importlib
import re
import runpy
from pathlib import Path

import pytest

import lightning_polystep

DOCS = Path(__file__).resolve().parents[2] / "docs"
INDEX = (DOCS / "index.md").read_text(encoding="utf-8")
TOCTREES = re.findall(r"```\{toctree\}\n(.*?)```", INDEX, flags=re.DOTALL)
LISTED = [line for tree in TOCTREES for line in tree.splitlines() if line and not line.startswith(":")]


def test_the_index_lists_every_page_once():
    pages = {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")} - {"index"}
    assert sorted(LISTED) == sorted(pages)


def test_the_configuration_reads_these_pages_and_the_docstrings():
    configuration = runpy.run_path(str(DOCS / "conf.py"))
    assert {"myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"} <= set(configuration["extensions"])
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
