"""Run notebooks and keep what they print and draw: ``python scripts/run_notebooks.py notebooks/*.ipynb``.

Their outputs are those of a run, never written by hand. What goes to stderr (warnings, hints of other packages) is left
out: it is about the machine, and names its folders.
"""

import argparse
import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
SECONDS = 240


def run(path: Path, folder: Path) -> nbformat.NotebookNode:
    """Return the notebook as a fresh kernel ran it, from top to bottom.

    Args:
        path: The notebook; it is not changed.
        folder: Where the kernel runs; what it imports is found as from here.

    Raises:
        nbclient.exceptions.CellExecutionError: With the traceback, if a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=SECONDS, resources=where, record_timing=False).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    return notebook


def main() -> None:
    """Run each notebook that the command line names, and write it with its outputs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="+", type=Path)
    # A processor that sums in another order draws other curves; one thread is the order that everybody has.
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    for path in parser.parse_args().notebooks:
        nbformat.write(run(path, path.parent), path)
        print(f"ran {path}")


if __name__ == "__main__":
    main()
