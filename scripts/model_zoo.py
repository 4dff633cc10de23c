"""Write the table of docs/model_zoo.md from what runs left: ``python scripts/model_zoo.py runs``.

Each configuration of configs/ is a row, with the figures of the newest ``results.json`` of its runs. One without a
run of this version says so.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import yaml

from lightning_polystep import __version__

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "model_zoo.md"
BEGIN, END = "<!-- table -->", "<!-- end of the table -->"
HEADER = ["configuration", "learns", "test", "epochs", "processor seconds", "MiB", "options"]
# How the figure of a test is written.
TESTS = {
    "test/accuracy": lambda value: f"{100 * value:.1f} %",
    "test/return": lambda value: f"return {value:.0f}",
    "test/satisfied": lambda value: f"{100 * value:.2f} % of the clauses",
    "test/mse": lambda value: f"mean squared error {value:.3f}",
}


def row(path: Path, runs: Path) -> list[str]:
    """Return a row of the table.

    Args:
        path: The configuration.
        runs: Folder of runs, each below the name of its configuration's logger.
    """
    text = path.read_text("utf-8")
    settings = yaml.safe_load(text)
    comment = " ".join(line.lstrip("# ") for line in text.splitlines()[:3] if line.startswith("#"))
    sentence = re.split(r"[;.](?= |$)|:(?= *python)", comment)[0]
    name = path.relative_to(ROOT / "configs").with_suffix("").as_posix()
    folder = settings["trainer"]["logger"]["init_args"]["name"]
    options = "`--data.root path/to/data`" if "root" in settings["data"].get("init_args", {}) else ""
    record = newest(runs / folder)
    if record is None:
        return [f"`{name}`", sentence, "not run", *[""] * 3, options]
    [shown] = [show(record["test_metrics"][key]) for key, show in TESTS.items() if key in record["test_metrics"]]
    costs = [f"{record['processor_seconds']:.0f}", f"{record['peak_memory_mib']:,.0f}"]
    return [f"`{name}`", sentence, shown, str(record["epochs"]), *costs, options]


def newest(folder: Path) -> dict[str, Any] | None:
    """Return the record of the newest whole run of this version; None if there is none."""
    files = sorted(folder.glob("version_*/results.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    for record in (json.loads(file.read_text("utf-8")) for file in files):
        known = record["packages"]["lightning-polystep"] == __version__ and "peak_memory_mib" in record
        if known and "test_metrics" in record:
            return dict(record)
    return None


def table(runs: Path) -> str:
    """Return the table as Markdown."""
    configurations = sorted((ROOT / "configs").glob("*.yaml")) + sorted((ROOT / "configs" / "paper").glob("*.yaml"))
    rows = [HEADER, ["---"] * len(HEADER), *(row(path, runs) for path in configurations)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def main() -> None:
    """Put the table into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="the folder of runs, as the configurations name it: runs")
    options = parser.parse_args()
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(options.runs)}\n\n{END}{after}", "utf-8")


if __name__ == "__main__":
    main()
