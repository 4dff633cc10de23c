"""How Sphinx makes a site of these pages, of the notebooks and of the docstrings: ``make docs``."""

import shutil
from pathlib import Path

from lightning_polystep import __version__

project = "lightning_polystep"
author = "The lightning_polystep developers"
version = release = __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]

html_theme = "furo"
html_title = f"{project} {version}"

# Pages link to each other's headings as on GitHub.
myst_heading_anchors = 3

autodoc_typehints = "none"  # the sections "Args" and "Returns" say what the signature does not
autodoc_member_order = "bysource"
# What classes inherit from torch and Lightning is documented there.
autodoc_default_options = {"members": True, "inherited-members": False, "show-inheritance": True}
autodoc_class_signature = "mixed"

# Sphinx reads only what lies in its folder. Notebooks are shown as they were run; the tests run them again.
HERE = Path(__file__).parent
shutil.copytree(HERE.parent / "notebooks", HERE / "notebooks", dirs_exist_ok=True)
nb_execution_mode = "off"
