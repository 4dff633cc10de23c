"""``python -m lightning_polystep report RUN_FOLDER``: one page of HTML on a run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_polystep.cli_parsers import OneSentenceParser
from lightning_polystep.report.page import page
from lightning_polystep.report.run import ReportError, read_run

WRITTEN, REFUSED = 0, 2

_DESCRIPTION = """Write one page of HTML on a run: results, curves, plan, times, health of the layers, pictures,
environment, and the command that repeats it. The page needs no network and no other file."""


def report(folder: str | Path, path: str | Path | None = None) -> Path:
    """Write the page of a run.

    Args:
        folder: The log folder of the run.
        path: The file; ``report.html`` in the folder by default.

    Returns:
        The file.

    Raises:
        ReportError: If the folder holds no run.
        ModuleNotFoundError: Without matplotlib: ``pip install "lightning-polystep[pictures]"``.
    """
    run = read_run(folder)
    target = Path(path) if path is not None else run.folder / "report.html"
    target.write_text(page(run), encoding="utf-8")
    return target


def main(arguments: Sequence[str]) -> int:
    """Write the page, and say where.

    Args:
        arguments: Of the command line, behind ``report``.

    Returns:
        The exit status: 0, or 2 if there is nothing to write.
    """
    parser = OneSentenceParser(prog="python -m lightning_polystep report", description=_DESCRIPTION)
    parser.add_argument("folder", help="log folder of a run, or a folder whose newest version_* is meant")
    parser.add_argument("--out", help="the file (default: report.html in the folder)")
    options = parser.parse_args(list(arguments))
    try:
        path = report(options.folder, options.out)
    except ModuleNotFoundError as error:
        print(f'error: {error.name} is not installed: pip install "lightning-polystep[pictures]".', file=sys.stderr)
        return REFUSED
    except (ReportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    print(f"{path}: {path.stat().st_size:,} bytes")
    return WRITTEN
