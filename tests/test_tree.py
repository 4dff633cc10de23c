"""The shape of the source tree: short files, short functions, a test file for every module, no private paths."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "lightning_polystep"
SOURCES = sorted(
    path for folder in ("lightning_polystep", "models", "datamodules") for path in REPOSITORY.glob(f"{folder}/**/*.py")
)

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 80

NOTHING_TO_TEST = {"__init__", "__main__", "__about__"}
# Modules without a test file of their own, each with the file that tests it.
TESTED_ELSEWHERE: dict[str, str] = {}

HOME_DIRECTORY = re.compile(r"(?<![\w.])/(?:home|Users|root|work)/\w|[A-Z]:\\Users\\")


def relative(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def mirror(module: Path) -> str:
    """The test file of a module; the files of one kernel share one, because they are tested against each other."""
    parts = module.relative_to(PACKAGE).with_suffix("").parts
    if parts[0] == "kernels" and len(parts) > 2:
        parts = parts[:2]
    return "/".join(("tests", *parts[:-1], f"test_{parts[-1]}.py"))


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    lines = len(text.splitlines())
    assert lines <= MAX_FILE_LINES, f"{relative(path)} has {lines} lines: split it by subject"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            # A docstring may be long: it is read, not followed.
            documented = len((ast.get_docstring(node, clean=False) or "").splitlines())
            lines = node.end_lineno - node.lineno + 1 - documented
            assert lines <= MAX_FUNCTION_LINES, f"{relative(path)}: {node.name} has {lines} lines: name its parts"


def test_every_module_has_a_test_file():
    modules = [path for path in PACKAGE.rglob("*.py") if path.stem not in NOTHING_TO_TEST]
    expected = {relative(path): TESTED_ELSEWHERE.get(relative(path), mirror(path)) for path in modules}
    missing = {module: test for module, test in expected.items() if not (REPOSITORY / test).is_file()}
    assert not missing, f"modules without their test file: {missing}"
    assert set(TESTED_ELSEWHERE) <= set(expected), "TESTED_ELSEWHERE names a module that is gone"


def test_no_file_names_a_home_directory():
    if not (REPOSITORY / ".git").exists():
        pytest.skip("git lists the files of the project, and this is not a clone")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.split("\0")
    files = [REPOSITORY / name for name in names if name and (REPOSITORY / name).is_file()]
    guilty = [
        relative(path) for path in files if HOME_DIRECTORY.search(path.read_text(encoding="utf-8", errors="ignore"))
    ]
    assert not guilty, f"absolute paths of one machine in {guilty}"
