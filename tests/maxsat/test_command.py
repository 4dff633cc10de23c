"""``solve``: what a checker reads on standard output, and that it reads nothing where there is no answer."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from lightning_polystep import cli
from lightning_polystep.maxsat import command, random_ksat, read_formula, write_formula
from lightning_polystep.maxsat.command import OPTIMUM, SATISFIABLE, UNKNOWN, UNSATISFIABLE, WRONG, main


def run(capsys, tmp_path, content, *options):
    file = tmp_path / "formula.wcnf"
    file.write_text(content)
    status = main([str(file), *options])
    printed = capsys.readouterr()
    return status, printed.out.splitlines(), printed.err


def lines(out, letter):
    return [line.partition(" ")[2] for line in out if line.startswith(f"{letter} ")]


def check(file, out):
    """Read what was printed as a checker does: the values have the last cost that was printed."""
    formula = read_formula(file)
    (values,) = lines(out, "v")
    assignment = np.array([value == "1" for value in values])
    assert formula.violated(assignment) == 0
    costs = [int(cost) for cost in lines(out, "o")]
    assert formula.cost(assignment) == costs[-1]
    assert costs == sorted(set(costs), reverse=True)
    assert {line[:2] for line in out} <= {"c ", "o ", "s ", "v "}


def test_an_answer(capsys, tmp_path):
    content = "h 1 2 0\n3 -1 0\n4 -2 0\n2 3 0\n"
    run(capsys, tmp_path, content, "--sweeps", "1")  # so that no time goes into loading kernels
    status, out, err = run(capsys, tmp_path, content, "--seconds", "0.5")
    assert (status, err) == (SATISFIABLE, "")
    assert lines(out, "o")[-1] == "3"
    assert lines(out, "s") == ["SATISFIABLE"]
    assert lines(out, "v") == ["101"]
    check(tmp_path / "formula.wcnf", out)


def test_literals_as_before_2022(capsys, tmp_path):
    _, out, _ = run(capsys, tmp_path, "h 1 0\n3 -2 0\n", "--sweeps", "9", "--values", "literals")
    assert lines(out, "v") == ["1 -2"]


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        ("1 1 0\n1 2 0\n", OPTIMUM, "OPTIMUM FOUND"),
        ("h 0\n1 2 0\n", UNSATISFIABLE, "UNSATISFIABLE"),
        ("h 1 0\nh -1 0\n", UNKNOWN, "UNKNOWN"),
    ],
)
def test_status(capsys, tmp_path, content, status, says):
    found, out, _ = run(capsys, tmp_path, content, "--seconds", "0.1")
    assert (found, lines(out, "s")) == (status, [says])
    assert bool(lines(out, "v")) == (status == OPTIMUM)


@pytest.mark.parametrize("content", ["", "p cnf 3 9\n1 0\n", "p cnf 99999999999 1\n1 0\n", "h 1 0\n2 x 0\n"])
def test_a_wrong_file_gets_one_sentence_and_prints_no_answer(capsys, tmp_path, content):
    status, out, err = run(capsys, tmp_path, content)
    assert (status, out) == (WRONG, [])
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_no_file_and_a_folder(capsys, tmp_path):
    for path in (tmp_path / "none.cnf", tmp_path):
        assert main([str(path)]) == WRONG
        printed = capsys.readouterr()
        assert printed.out == ""
        assert "cannot be read" in printed.err


@pytest.mark.parametrize("options", [["--seconds", "0"], ["--sweeps", "0"], ["--values", "hex"]])
def test_wrong_options(capsys, options):
    with pytest.raises(SystemExit) as ended:
        main(["file.cnf", *options])
    assert ended.value.code == WRONG
    assert capsys.readouterr().out == ""


def test_the_command_line_knows_it(capsys, tmp_path):
    file = tmp_path / "formula.cnf"
    file.write_text("p cnf 1 1\n1 0\n")
    with pytest.raises(SystemExit) as ended:
        cli.main(["solve", str(file)])
    assert ended.value.code == OPTIMUM
    assert "s OPTIMUM FOUND" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_prints_the_best_so_far(tmp_path, number):
    file = tmp_path / "formula.cnf"
    write_formula(random_ksat(2000, 6.0, seed=1), file)
    command = [sys.executable, "-m", "lightning_polystep", "solve", str(file), "--seconds", "1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ.copy(), bufsize=1) as process:
        out = [process.stdout.readline()]
        while not out[-1].startswith("o "):
            out.append(process.stdout.readline())
        time.sleep(0.2)
        process.send_signal(number)
        rest, _ = process.communicate(timeout=60)
    assert process.returncode == SATISFIABLE
    check(file, "".join([*out, rest]).splitlines())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_file_is_read_leaves_no_answer(capsys, monkeypatch, tmp_path, number):
    def reading(path):
        signal.raise_signal(number)
        raise AssertionError(f"{path} was read on")

    before = signal.getsignal(number)
    monkeypatch.setattr(command, "read_formula", reading)
    status, out, err = run(capsys, tmp_path, "h 1 0\n")
    assert (status, err) == (UNKNOWN, "")
    assert lines(out, "s") == ["UNKNOWN"]
    assert not lines(out, "v")
    assert signal.getsignal(number) is before
