"""A real formula: which packages of a Debian index can be installed together?

    apt-cache dumpavail > Packages && python -m benchmarks.debian_packages Packages packages.wcnf

A variable is a package, true if it is installed. Hard: what it depends on (one of the alternatives, or of what provides
it) and what it must not meet. Soft: each package is wished for, with a weight by its priority. Co-installability of
packages is a classic of weighted partial MAX-SAT (Mancinelli et al. 2006, "Managing the complexity of large free and
open source package-based software distributions"; Argelich and Lynce 2008).

An index holds one version of each package, so versions are not compared: a dependency counts as met by the version at
hand, and a conflict that names a version, as they do of older ones, is left out.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from lightning_polystep.maxsat import WeightedCNF
from lightning_polystep.maxsat.files import write_formula

_WEIGHTS = {"required": 16, "important": 8, "standard": 4}
_NAME = re.compile(r"^([^\s:(\[]+)")

Record = dict[str, str]


def records(lines: Iterable[str]) -> Iterator[Record]:
    """Yield the packages of an index, field by field.

    Args:
        lines: Of a file "Packages".

    Example:
        >>> [record["Package"] for record in records(["Package: a", "Depends: b,", " c", "", "Package: b"])]
        ['a', 'b']
    """
    record, field = Record(), ""
    for line in lines:
        text = line.rstrip("\n")
        if not text.strip():
            if record:
                yield record
            record, field = Record(), ""
        elif text[0] in " \t":
            record[field] = record.get(field, "") + " " + text.strip()
        else:
            field, _, value = text.partition(":")
            record[field] = value.strip()
    if record:
        yield record


def formula_of(lines: Iterable[str]) -> tuple[list[str], WeightedCNF]:
    """Return the packages by their numbers, and the formula of what can be installed together.

    Args:
        lines: Of a file "Packages".

    Raises:
        ValueError: When there is no package in it.

    Example:
        >>> names, formula = formula_of(["Package: a", "Conflicts: b", "", "Package: b"])
        >>> names, formula.literals.tolist(), formula.hard.tolist()
        (['a', 'b'], [-1, -2, 1, 2], [True, False, False])
    """
    found = {record["Package"]: record for record in records(lines) if "Package" in record}
    if not found:
        raise ValueError("No package in the index: a line that begins with 'Package:' is expected.")
    number = {name: index for index, name in enumerate(found, 1)}
    offered: dict[str, list[int]] = {name: [index] for name, index in number.items()}
    for name, record in found.items():
        for given, _ in _relations(record.get("Provides", "")):
            offered.setdefault(given, []).append(number[name])
    # A dict keeps the order and each clause once.
    hard = {clause: None for name, record in found.items() for clause in _rules(number[name], record, offered)}
    clauses = [*map(list, hard), *([index] for index in number.values())]
    wishes = [_WEIGHTS.get(record.get("Priority", ""), 1) for record in found.values()]
    kinds = [True] * len(hard) + [False] * len(wishes)
    return list(found), WeightedCNF.of(clauses, [1] * len(hard) + wishes, kinds)


def _rules(own: int, record: Record, offered: dict[str, list[int]]) -> Iterator[tuple[int, ...]]:
    """Yield what a package depends on, and what it must not meet, as hard clauses."""
    for group in ",".join(record.get(field, "") for field in ("Pre-Depends", "Depends")).split(","):
        choices = {index for wanted, _ in _relations(group, "|") for index in offered.get(wanted, [])}
        if group.strip() and own not in choices:
            yield -own, *sorted(choices)
    for other, versioned in _relations(",".join(record.get(field, "") for field in ("Conflicts", "Breaks"))):
        for index in [] if versioned else offered.get(other, []):
            if index != own:
                yield -min(own, index), -max(own, index)


def _relations(text: str, separator: str = ",") -> Iterator[tuple[str, bool]]:
    """Yield the names that a field lists, each with whether it names a version."""
    for part in text.split(separator):
        name = _NAME.match(part.strip())
        if name is not None:
            yield name[1], "(" in part


def main() -> None:
    """Read an index, write a formula."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, help='an index "Packages", not compressed')
    parser.add_argument("formula", type=Path, help="the .wcnf to write")
    options = parser.parse_args()
    with options.packages.open(encoding="utf-8") as lines:
        names, formula = formula_of(lines)
    write_formula(formula, options.formula)
    hard = int(formula.hard.sum())
    print(f"{len(names)} packages, {hard} hard clauses, weight of all packages {formula.soft_weight}")


if __name__ == "__main__":
    main()
