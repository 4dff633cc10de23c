"""Formulas in files: DIMACS .cnf, .wcnf old and new, plain or compressed."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from lightning_polystep.kernels.simd import compiled
from lightning_polystep.maxsat import memory
from lightning_polystep.maxsat.formula import MOST_VARIABLES, MOST_WEIGHT, WeightedCNF

Format = Literal["cnf", "old wcnf", "wcnf"]

_MAGIC: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ\x00": lzma.open, b"BZh": bz2.open}
_BY_NAME: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
_BROKEN = (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error)
_CHUNK = 2**24
_HEADER = re.compile(rb"^p[ \t]+(cnf|wcnf)[ \t]+(\d+)[ \t]+(\d+)(?:[ \t]+(\d+))?[ \t]*\r?$", re.MULTILINE)

# What the parser finds wrong; the messages are in the order of their numbers.
_FINE, _NO_NUMBER, _TOO_LARGE, _NO_WEIGHT, _BAD_WEIGHT, _OPEN, _INSIDE = range(7)
_PROBLEMS = (
    "",
    "a number or the end of a clause (0) is expected.",
    "a number is too large (variables up to 2^30, weights below 2^62).",
    "a clause needs its weight first, or h where it is hard.",
    "a weight must be at least 0, and at least 1 in an old .wcnf.",
    "the clause that begins here has no 0 at its end: is the file cut off?",
    "something follows the 0 that ends a clause: a literal 0, or a line end that is missing?",
)


class FormulaError(ValueError):
    """Says in one sentence what is wrong with a file, and in which line."""


def read_formula(path: str | Path, *, most_bytes: int = 2**33) -> WeightedCNF:
    r"""Read a formula; its format is told by what is in the file, not by the name.

    ``p cnf`` begins a DIMACS .cnf, all of whose clauses become soft, of weight 1; ``p wcnf`` an old .wcnf, whose hard
    clauses have the weight that the header ends with; without a header it is a new .wcnf, in which each line begins
    with a weight or ``h``. Lines that begin with ``c`` are comments.

    Args:
        path: Of a file, plain or compressed by gzip, xz or bzip2.
        most_bytes: Largest size of the file, once decompressed, that is read; an eighth of the memory at the most.

    Raises:
        FormulaError: When the file is damaged, empty, cut off, too large or no formula.
        OSError: When it cannot be opened.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "tiny.wcnf"
        >>> _ = file.write_text("c two wishes and a rule\nh 1 2 0\n3 -1 0\n4 -2 0\n")
        >>> formula = read_formula(file)
        >>> formula.weights.tolist(), formula.hard.tolist()
        ([1, 3, 4], [True, False, False])

    References:
        DIMACS 1993, "Satisfiability: suggested format"; MaxSAT Evaluation 2022, input format.
    """
    text = _read(Path(path), min(most_bytes, memory.most_bytes())).removeprefix(codecs.BOM_UTF8)
    if not text.strip():
        raise FormulaError(f"{path} is empty: a formula has at least a header or a clause.")
    kind, variables, clauses, top, begin = _header(path, text)
    _check_memory(path, text, variables or 0)
    data = np.frombuffer(text, np.uint8)[begin:]
    line = 1 + text[:begin].count(b"\n")
    literals, starts, weights, hard, problem, where = _parse(data, line, kind != "cnf", top, kind == "wcnf")
    if problem != _FINE:
        raise FormulaError(f"{path}, line {where}: {_PROBLEMS[problem]}")
    if clauses is not None and clauses != len(weights):
        raise FormulaError(
            f"{path}: the header says {clauses} clauses and the file has {len(weights)}: is it cut off or damaged?"
        )
    largest = int(np.abs(literals).max(initial=0))
    if variables is not None and largest > variables:
        # Found here, not in the parser, which is for speed: read once more up to the literal.
        beyond = int(np.argmax(np.abs(literals) > variables))
        clause = int(np.searchsorted(starts, beyond, side="right"))
        raise FormulaError(
            f"{path}, clause {clause} (line {_line_of(data, line, kind != 'cnf', top, clause)}): variable {largest} "
            f"is beyond the {variables} of the header."
        )
    _check_memory(path, text, largest)
    if float(weights[~hard].sum(dtype=np.float64)) >= MOST_WEIGHT:
        raise FormulaError(f"{path}: the soft weights sum to 2^62 or more, which is not supported.")
    weights[hard] = 1
    return WeightedCNF(largest if variables is None else variables, literals, starts, weights, hard)


def write_formula(formula: WeightedCNF, path: str | Path, form: Format | None = None) -> None:
    """Write a formula, compressed if the name ends in .gz, .xz or .bz2.

    Args:
        formula: The formula.
        path: Of the file.
        form: "cnf" (no weights), "old wcnf" or "wcnf"; by default "cnf" for a name with ``.cnf`` in it, else "wcnf".

    Raises:
        ValueError: When "cnf" is asked for and clauses are hard or have another weight than 1.
    """
    path = Path(path)
    form = form or ("cnf" if ".cnf" in path.suffixes else "wcnf")
    if form == "cnf" and (bool(formula.hard.any()) or bool((formula.weights != 1).any())):
        raise ValueError("A .cnf holds neither weights nor hard clauses: write a .wcnf.")
    opener: Any = _BY_NAME.get(path.suffix, open)
    top = formula.soft_weight + 1
    with opener(path, "wb") as file:
        if form == "cnf":
            file.write(f"p cnf {formula.variables} {formula.clauses}\n".encode())
        elif form == "old wcnf":
            file.write(f"p wcnf {formula.variables} {formula.clauses} {top}\n".encode())
        for begin in range(0, formula.clauses, _LINES):
            file.write(_lines(formula, range(begin, min(begin + _LINES, formula.clauses)), form, top).encode())


_LINES = 65_536


def _lines(formula: WeightedCNF, clauses: range, form: Format, top: int) -> str:
    begin, end = formula.starts[clauses.start], formula.starts[clauses.stop]
    words = list(map(str, formula.literals[begin:end].tolist()))
    starts = (formula.starts[clauses.start : clauses.stop + 1] - begin).tolist()
    heads = [""] * len(clauses)
    if form != "cnf":
        always = "h " if form == "wcnf" else f"{top} "
        part = slice(clauses.start, clauses.stop)
        pairs = zip(formula.weights[part].tolist(), formula.hard[part].tolist(), strict=True)
        heads = [always if hard else f"{weight} " for weight, hard in pairs]
    return "".join(f"{head}{' '.join([*words[starts[i] : starts[i + 1]], '0'])}\n" for i, head in enumerate(heads))


def _read(path: Path, most_bytes: int) -> bytes:
    with path.open("rb") as plain:
        magic = plain.read(6)
    opener: Any = next((opener for start, opener in _MAGIC.items() if magic.startswith(start)), open)
    try:
        with opener(path, "rb") as file:
            return _read_up_to(file, path, most_bytes)
    except _BROKEN as error:
        raise FormulaError(f"{path}: the compressed file is damaged or cut off ({error}).") from error
    except MemoryError as error:
        raise FormulaError(f"{path} does not fit into memory.") from error
    except OSError as error:
        if opener is open:
            raise
        raise FormulaError(f"{path}: the compressed file is damaged ({error}).") from error


def _read_up_to(file: IO[bytes], path: Path, most_bytes: int) -> bytes:
    parts, size = list[bytes](), 0
    while part := file.read(_CHUNK):
        size += len(part)
        if size > most_bytes:
            raise FormulaError(f"{path} holds more than {most_bytes:,} bytes, which is the largest file that is read.")
        parts.append(part)
    return b"".join(parts)


def _check_memory(path: str | Path, text: bytes, variables: int) -> None:
    if wanting := memory.wanting(variables, len(text)):
        raise FormulaError(f"{path}: {wanting}")


def _header(path: str | Path, text: bytes) -> tuple[Format, int | None, int | None, int, int]:
    """Return format, variables, clauses, the weight of hard clauses (-1: none), and where the clauses begin."""
    begin = 0
    while text[begin : begin + 1] in {b"c", b"\n", b"\r"}:  # comments and empty lines before the header
        end = text.find(b"\n", begin)
        begin = len(text) if end < 0 else end + 1
    line = 1 + text[:begin].count(b"\n")
    if text[begin : begin + 1] != b"p":
        if ".cnf" in Path(path).suffixes:  # its clauses would be taken for those of a new .wcnf, weights first
            raise FormulaError(f"{path}, line {line}: a .cnf begins with 'p cnf N M', and only a new .wcnf does not.")
        return "wcnf", None, None, -1, begin
    found = _HEADER.match(text, begin)
    if found is None:
        raise FormulaError(f"{path}, line {line}: the header is neither 'p cnf N M' nor 'p wcnf N M TOP'.")
    variables, clauses = int(found[2]), int(found[3])
    top = int(found[4]) if found[4] is not None else -1
    if top >= 2**63:
        raise FormulaError(f"{path}, line {line}: the weight of hard clauses is {top}, and must be below 2^63.")
    if variables > MOST_VARIABLES or clauses > len(text):
        raise FormulaError(
            f"{path}: the header says {variables} variables and {clauses} clauses, which is more than the file can "
            "hold or than is supported (2^30 variables)."
        )
    return ("cnf" if found[1] == b"cnf" else "old wcnf"), variables, clauses, top, found.end()


def _line_of(data: NDArray[np.uint8], line: int, weighted: bool, top: int, clause: int) -> int:
    """Return the line in which a clause (from 1) ends."""
    low, high = 0, len(data)
    while low < high:  # the shortest beginning of the file that holds the clause
        middle = (low + high) // 2
        if len(_parse(data[:middle], line, weighted, top, False)[2]) >= clause:
            high = middle
        else:
            low = middle + 1
    return line + int((data[:low] == ord("\n")).sum())


@compiled()
def _parse(  # noqa: C901, PLR0912 - one pass over the bytes, as fast as memory allows
    data: NDArray[np.uint8], line: int, weighted: bool, top: int, by_lines: bool
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_], int, int]:
    """Return literals, starts, weights, which clauses are hard, what is wrong, and in which line."""
    most = len(data) // 2 + 1  # of a digit and a blank each
    literals, starts = np.empty(most, np.int32), np.empty(most + 1, np.int64)
    weights, hard = np.empty(most, np.int64), np.empty(most, np.bool_)
    count, clauses, begun, place, problem = 0, 0, 0, 0, _FINE
    starts[0] = 0
    fresh = True  # at the start of a line
    while place < len(data) and problem == _FINE:
        byte = data[place]
        if byte == 10:
            line, fresh, place = line + 1, True, place + 1
        elif byte in (32, 9, 13):
            place += 1
        elif fresh and byte == 99:  # c: a comment
            while place < len(data) and data[place] != 10:
                place += 1
        elif fresh and byte == 37 and not weighted:  # %: how the files of SATLIB end
            break
        elif by_lines and begun == 0 and not fresh:
            problem = _INSIDE
        elif byte == 104 and weighted and begun == 0 and top < 0:  # h
            weights[clauses], hard[clauses], begun, fresh, place = 1, True, line, False, place + 1
            if place < len(data) and data[place] > 32:
                problem = _NO_NUMBER
        else:
            fresh = False
            number, place, problem = _number(data, place)
            if problem != _FINE:
                break
            if weighted and begun == 0:
                if number < 0 or (number == 0 and top >= 0):
                    problem = _BAD_WEIGHT
                weights[clauses], hard[clauses], begun = number, top >= 0 and number >= top, line
            elif number == 0:
                clauses, begun = clauses + 1, 0
                starts[clauses] = count
            elif -MOST_VARIABLES <= number <= MOST_VARIABLES:
                if begun == 0:
                    weights[clauses], hard[clauses], begun = 1, False, line
                literals[count] = number
                count += 1
            else:
                problem = _TOO_LARGE
            if not weighted and number == 0:  # an empty clause has no literal to give it a weight
                weights[clauses - 1], hard[clauses - 1] = 1, False
    if problem == _FINE and begun != 0:
        problem, line = _OPEN, begun
    return (
        literals[:count].copy(),
        starts[: clauses + 1].copy(),
        weights[:clauses].copy(),
        hard[:clauses].copy(),
        problem,
        line,
    )


@compiled()
def _number(data: NDArray[np.uint8], place: int) -> tuple[int, int, int]:
    """Return the number at a place, the place behind it, and what is wrong."""
    negative = data[place] == 45
    if negative:
        place += 1
    first, number = place, 0
    while place < len(data) and 48 <= data[place] <= 57:
        if number > MOST_WEIGHT // 10:  # one digit more could overflow
            return 0, place, _TOO_LARGE
        number = 10 * number + int(data[place] - 48)
        place += 1
    if number >= MOST_WEIGHT:
        return 0, place, _TOO_LARGE
    if place == first or (place < len(data) and data[place] > 32):
        return 0, place, _NO_NUMBER
    return (-number if negative else number), place, _FINE
