"""Read what a run has left in its folder: results, curves, configuration and pictures."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class ReportError(ValueError):
    """A folder holds no run that can be told of; the message says what is missing."""


@dataclass
class Series:
    """A figure over time.

    Args:
        steps: When it was logged.
        values: What it was.
    """

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """What a run has left.

    Args:
        folder: Where.
        results: The content of ``results.json``; empty where the run did not end, or did not go through the command
            line.
        series: What was logged, by name.
        config: The text of ``config.yaml``; empty for a run of a script.
        pictures: Files of ``pictures/``, by name, as PNG.
    """

    folder: Path
    results: Mapping[str, Any]
    series: Mapping[str, Series]
    config: str
    pictures: Mapping[str, bytes]


def read_run(folder: str | Path) -> Run:
    """Read the folder of a run, or the newest ``version_*`` of a folder of runs.

    Curves come from ``metrics.csv`` (CSVLogger), or from event files where there are none (TensorBoard, if installed).

    Args:
        folder: The log folder: that of ``results.json``, ``metrics.csv`` and ``config.yaml``.

    Raises:
        ReportError: If there is no such folder, or nothing in it to tell of, or a file cannot be read.
    """
    place = Path(folder)
    if not place.is_dir():
        raise ReportError(f"There is no folder {place}.")
    if not _tells(place):
        versions = sorted(
            (each for each in place.glob("version_*") if _tells(each)), key=lambda each: each.stat().st_mtime
        )
        if not versions:
            raise ReportError(
                f"{place} holds no results.json, metrics.csv or event file: give the log folder of a run, which its "
                "last line names (Results: ...)."
            )
        place = versions[-1]
    pictures = {path.stem: path.read_bytes() for path in sorted((place / "pictures").glob("*.png"))}
    config = place / "config.yaml"
    return Run(
        place,
        _results(place / "results.json"),
        _from_csv(place / "metrics.csv") or _from_events(place),
        config.read_text(encoding="utf-8") if config.is_file() else "",
        pictures,
    )


def _tells(folder: Path) -> bool:
    names = ("results.json", "metrics.csv")
    return any((folder / name).is_file() for name in names) or any(folder.glob("events.out.tfevents.*"))


def _results(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReportError(f"{path} is no JSON: {error}.") from error
    if not isinstance(results, dict):
        raise ReportError(f"{path} holds no figures by name.")
    return results


def _from_csv(path: Path) -> dict[str, Series]:
    found: dict[str, Series] = {}
    if not path.is_file():
        return found
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            try:
                step = int(float(row["step"]))
                for name, text in row.items():
                    if text and name not in ("step", "epoch"):
                        _add(found, name, step, float(text))
            except (KeyError, TypeError, ValueError) as error:
                raise ReportError(f"{path}, line {number}, is not what CSVLogger writes ({error}).") from error
    return found


def _from_events(folder: Path) -> dict[str, Series]:
    """Read TensorBoard's scalars; its readers are there where its logger was."""
    if not any(folder.glob("events.out.tfevents.*")):
        return {}
    try:
        from tensorboard.backend.event_processing.event_accumulator import (  # noqa: PLC0415 - an extra
            EventAccumulator,
        )
    except ModuleNotFoundError as error:
        raise ReportError(f"{folder} holds event files, which need tensorboard: pip install tensorboard.") from error
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    found: dict[str, Series] = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            if name not in ("epoch", "hp_metric"):
                _add(found, name, event.step, event.value)
    return found


def _add(found: dict[str, Series], name: str, step: int, value: float) -> None:
    series = found.setdefault(name, Series())
    series.steps.append(step)
    series.values.append(value)
