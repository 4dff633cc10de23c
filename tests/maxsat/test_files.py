"""Files of formulas: what is written is read again, and what is damaged is named with its line."""

import bz2
import gzip
import lzma

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_polystep.maxsat import FormulaError, WeightedCNF, memory, read_formula, write_formula
from tests.maxsat.formulas import formulas

CNF = b"c of two\np cnf 3 2\n1 -3 0\n2 3 -1 0\n"


def same(one, other):
    arrays = ("literals", "starts", "weights", "hard")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays)


def read(tmp_path, content, **options):
    file = tmp_path / "formula"
    file.write_bytes(content)
    return read_formula(file, **options)


@given(formula=formulas(hard=True))
@pytest.mark.parametrize("form", ["old wcnf", "wcnf"])
def test_weighted_formulas_survive_a_round_trip(tmp_path_factory, form, formula):
    file = tmp_path_factory.mktemp("files") / "formula.wcnf"
    # Neither header nor clause makes an empty file; an old file has no weight 0.
    if formula.clauses == 0 or (form == "old wcnf" and bool((formula.weights == 0).any())):
        return
    write_formula(formula, file, form)
    assert same(read_formula(file), formula)


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".bz2"])
def test_compressed_files(tmp_path, suffix):
    formula = WeightedCNF.of([[1, -3], [], [2, 3, -1]], variables=5)
    file = tmp_path / f"formula.cnf{suffix}"
    write_formula(formula, file)
    assert same(read_formula(file), formula)
    assert read_formula(file).variables == 5
    assert (file.read_bytes()[:1] == b"p") == (suffix == "")


def test_clauses_may_span_lines_and_share_them(tmp_path):
    found = read(tmp_path, b"c a\r\n\np  cnf 3\t3\r\n1 -3\r\n0 2 3 -1 0\nc between\n0\n%\n0\n")
    assert same(found, WeightedCNF.of([[1, -3], [2, 3, -1], []]))


def test_the_hard_weight_of_an_old_file_is_that_of_its_header(tmp_path):
    found = read(tmp_path, b"p wcnf 2 3 10\n10 1 0\n9 -1 0\n3 2 0\n")
    assert found.hard.tolist() == [True, False, False]
    assert found.weights.tolist() == [1, 9, 3]
    assert not read(tmp_path, b"p wcnf 1 1\n9223372 1 0\n").hard.any()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n  \n", "is empty"),
        (b"p cnf 3\n1 0\n", "line 1: the header is neither"),
        (b"c x\np dnf 3 1\n1 0\n", "line 2: the header is neither"),
        (b"p cnf 3 2\n1 2 0\n", "says 2 clauses and the file has 1"),
        (b"p cnf 3 1\n1 2 0\n3 0\n", "says 1 clauses and the file has 2"),
        (b"p cnf 3 1\n1 2\n", "line 2: the clause that begins here has no 0"),
        (b"p cnf 3 2\n1 2 0\n\n1 5 0\n", r"clause 2 \(line 4\): variable 5 is beyond the 3"),
        (b"p cnf 3 1\n1 x 0\n", "line 2: a number or the end"),
        (b"p cnf 3 1\n1 2- 0\n", "line 2: a number or the end"),
        (b"p cnf 3 1\n1 - 0\n", "line 2: a number or the end"),
        (b"p cnf 3 1\n1 99999999999999999999999 0\n", "line 2: a number is too large"),
        (b"p cnf 9999999999 1\n1 0\n", "more than the file can hold or than is supported"),
        (b"p cnf 3 99999999\n1 0\n", "more than the file can hold"),
        (b"p wcnf 3 1 99999999999999999999\n1 1 0\n", "line 1: the weight of hard clauses is 9+, and must be below"),
        (b"h 1 0 2 0\n3 -1 0\n", "line 1: something follows the 0 that ends a clause"),
        (b"p wcnf 3 1 5\n-2 1 0\n", "line 2: a weight must be at least 0"),
        (b"p wcnf 3 1 5\n0 1 0\n", "line 2: a weight must be at least 0, and at least 1"),
        (b"h 1 0\nhard 1 0\n", "line 2: a number or the end"),
        (b"3 1 0\n5 2\n", "line 2: the clause that begins here"),
        (b"4000000000000000000 1 0\n4000000000000000000 2 0\n", "sum to 2\\^62"),
        (b"\x00\xff\x13rubbish", "line 1: a number or the end"),
        (gzip.compress(CNF, mtime=0)[:-6], "compressed file is damaged or cut off"),
        (
            gzip.compress(CNF, mtime=0)[:12] + b"\xff\xff\xff" + gzip.compress(CNF, mtime=0)[15:],
            "compressed file is damaged",
        ),
        (lzma.compress(CNF)[:-9], "compressed file is damaged"),
        (bz2.compress(CNF)[:20], "compressed file is damaged"),
    ],
)
def test_what_is_wrong_is_said_with_the_line(tmp_path, content, message):
    with pytest.raises(FormulaError, match=message) as error:
        read(tmp_path, content)
    assert "\n" not in str(error.value)


def test_a_cnf_without_a_header_is_not_taken_for_weights(tmp_path):
    for name, says in (("formula.cnf", "begins with 'p cnf N M'"), ("formula.cnf.gz", "begins with 'p cnf N M'")):
        file = tmp_path / name
        file.write_bytes(b"c one\n1 -2 0\n")
        with pytest.raises(FormulaError, match=f"line 2: a .cnf {says}"):
            read_formula(file)
    assert read(tmp_path, b"1 -2 0\n").literals.tolist() == [-2]


def test_byte_order_mark_is_no_clause(tmp_path):
    assert same(read(tmp_path, b"\xef\xbb\xbf" + CNF), read(tmp_path, CNF))


def test_what_does_not_fit_into_memory_is_said_before_it_is_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "installed", lambda: 10_000)
    assert read(tmp_path, CNF).variables == 3
    for content in (b"p cnf 500 1\n1 0\n", b"2 500 0\n"):
        with pytest.raises(FormulaError, match=r"500 variables and .* bytes take about 0 GB of memory"):
            read(tmp_path, content)
    with pytest.raises(FormulaError, match="more than 1,250 bytes"):
        read(tmp_path, b"c " + b"x" * 2000)


def test_what_is_too_large_once_decompressed_is_not_read(tmp_path):
    with pytest.raises(FormulaError, match="more than 1,000 bytes"):
        read(tmp_path, gzip.compress(b"c " + b"x" * 100_000, mtime=0), most_bytes=1000)


@given(content=st.binary(max_size=200), cut=st.integers(0, 40))
def test_no_bytes_make_it_fail_otherwise(tmp_path_factory, content, cut):
    folder = tmp_path_factory.mktemp("files")
    for each in (content, CNF[:cut] + content, b"p wcnf 3 2 9\n" + content):
        try:
            formula = read(folder, each)
        except FormulaError:
            continue
        assert formula.clauses == len(formula.weights)


def test_a_cnf_holds_no_weights(tmp_path):
    with pytest.raises(ValueError, match="neither weights nor hard"):
        write_formula(WeightedCNF.of([[1]], weights=[2]), tmp_path / "formula.cnf")
