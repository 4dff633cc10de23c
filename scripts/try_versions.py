"""Run the core of the tests in a fresh environment of another Python, or of the lowest versions that are supported.

python scripts/try_versions.py --lowest
python scripts/try_versions.py --python python3.13

Each environment takes about 6.5 GB for the time of the run, because of torch. With ``--lowest`` the dependencies of
pyproject.toml are installed at the versions behind ``>=``; else at the newest that it allows.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What the tests below import beside the package, without Lightning's second name and the libraries of extras.
TOOLS = ["pytest>=8.2", "pytest-timeout>=2.3", "hypothesis>=6.100", "scikit-learn", "torchvision"]
TESTS = [
    "tests/test_engine.py",
    "tests/test_optimizer.py",
    "tests/test_strategy.py",
    "tests/test_checkpoints.py",
    "tests/test_cli.py",
    "tests/test_cli_messages.py",
    "tests/test_mistakes.py",
    "tests/scoring/test_stack_tier.py",
    "tests/tape/test_tape.py",
    "tests/kernels/test_lif_train_costs.py",
]


def lowest(requirements: list[str]) -> list[str]:
    """Return requirements at the lowest version that each allows.

    >>> lowest(["torch>=2.6", "jsonargparse[signatures]>=4.40,<5"])
    ['torch==2.6', 'jsonargparse[signatures]==4.40']
    """
    return [re.sub(r">=([^,]+).*", r"==\1", requirement) for requirement in requirements]


def main() -> int:
    """Make the environment, run the tests, and say which versions these were."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="of the environment (default: this one)")
    parser.add_argument("--lowest", action="store_true", help="install the lowest versions that are supported")
    parser.add_argument("tests", nargs="*", default=TESTS, help="what to run (default: the core)")
    options = parser.parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    needed = project["dependencies"]
    with tempfile.TemporaryDirectory(prefix="versions-") as folder:
        python = str(Path(folder) / "bin" / "python")
        subprocess.run([options.python, "-m", "venv", folder], check=True)
        pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-input"]
        subprocess.run([*pip, *(lowest(needed) if options.lowest else needed), *TOOLS], check=True)
        subprocess.run([*pip, "--no-deps", str(ROOT)], check=True)
        subprocess.run([python, "-m", "pip", "check"], check=True)
        names = [re.split(r"[\[>=]", requirement)[0] for requirement in needed]
        show = f"from importlib.metadata import version as v; print(*(f'{{n}} {{v(n)}}' for n in {names}), sep=', ')"
        subprocess.run([python, "-c", f"import sys; print('Python', sys.version.split()[0]); {show}"], check=True)
        command = [python, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", *options.tests]
        return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
