"""What the command line says about a mistake: one sentence with the option, its value and what is expected."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from lightning_polystep.host_cli import LightningArgumentParser

_KEY = re.compile(r'Parser key "(.+?)":')
_CLASS = re.compile(r"Problem with given class_path '(.+?)'")
_EXPECTED = re.compile(r"Expected an? (.+?)(?:\. Got value: (.*))?$")
_GIVEN = re.compile(r"Given value: (.*)$")
_NESTED = re.compile(r"NestedArg\(key='.*?', val=(.*)\)$")
_NO_OPTION = re.compile(r"Option '(.+?)' is not accepted|unrecognized arguments: --(\S+?)(?:=.*)?$")
_NO_ATTRIBUTE = re.compile(r"module '(.+?)' has no attribute '(.+?)'")
_NO_COMMAND = re.compile(
    r"expected \"subcommand\" to be one of \{(.+?)\}, .*|argument subcommand: invalid choice: '(.*?)' \((.+)\)"
)
_OF_NO_KIND = re.compile(r"Import path does not correspond to a subclass of (\w+)")
_REQUIRED = re.compile(r"the following arguments are required: (.+)")
_NO_YAML = re.compile(r"Problems parsing config: (.*)", re.DOTALL)
_NO_MAPPING = re.compile(r"Unexpected config:(.*)", re.DOTALL)
_PLACE = re.compile(r"line (\d+), column (\d+)")
# Commands that take no configuration of a Trainer, and are no subcommands of this parser.
OTHER_COMMANDS = ("solve", "export", "report")
# What a type is called in a configuration.
_TYPES = {"NoneType": "null", "collections.abc.Sequence": "list", "dict": "mapping"}


class ReadableParser(LightningArgumentParser):
    """Lightning's parser, which says in one sentence what is wrong, not all options and all that it has tried."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong, and end with code 2."""
        if not self.exit_on_error:  # a part of a setting is tried, and what is said of it becomes part of a message
            super().error(message, ex)
        text = readable(message, [name for action in self._actions for name in action.option_strings])
        program = self.prog.replace(" [options]", "")
        sys.stderr.write(f"error: {text}\ntip: {program} --help lists the options.\n")
        self.exit(2)
        raise AssertionError


@dataclass
class _Finding:
    """One thing that is wrong, and how deep in the settings it is.

    Args:
        path: The option.
        text: What is wrong with it; empty where it is a matter of types.
        value: What was given.
        types: What is expected.
    """

    path: tuple[str, ...]
    text: str = ""
    value: str = ""
    types: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        name = f"--{'.'.join(self.path)}"
        if self.text:
            return f"{name}: {self.text}{'' if self.text.endswith('?') else '.'}"
        return f"{name}={self.value}: {' or '.join(dict.fromkeys(self.types))} expected."


def readable(message: str, options: Sequence[str] = ()) -> str:
    """Return a sentence that says what a message of the parser says.

    Args:
        message: The message, of many lines where classes and unions of types are nested.
        options: Names of options that there are, each with its dashes.

    Returns:
        The sentence; the message itself where none of it is known.

    Example:
        >>> readable("unrecognized arguments: --optimiser.lr=3", ["--optimizer", "--model"])
        "--optimiser.lr is no option: did you mean '--optimizer.lr'?"
    """
    if (whole := _of_the_whole(message.strip())) is not None:
        return whole
    top = _NO_OPTION.fullmatch(message.strip())
    if top is not None:
        name = f"--{top.group(2) or top.group(1)}"
        head, _, rest = name.partition(".")
        meant = (
            _meant(name, options)
            if head in {each.partition(".")[0] for each in options}
            else _meant(head, options, rest)
        )
        return f"{name} is no option{meant or '.'}"
    found = _findings(message)
    if not found:
        return message
    deepest = max(found, key=lambda finding: (len(finding.path), bool(finding.text)))
    if not deepest.text:
        same = [finding for finding in found if finding.path == deepest.path and not finding.text]
        deepest.types = [kind for finding in same for kind in finding.types]
    return str(deepest)


def _of_the_whole(message: str) -> str | None:
    """Return what is wrong with the command as such, or with the text of a file."""
    if command := _NO_COMMAND.fullmatch(message):
        expected, given, choices = command.groups()
        names = [*re.findall(r"\w+", (expected or choices).replace("choose from", "")), *OTHER_COMMANDS]
        if expected:
            return f"name a command first: {', '.join(names)}."
        choose = f": choose from {', '.join(names)}."
        return f"{given!r} is no command{_meant(given, names, cutoff=0.6) or choose}"
    if (missing := _REQUIRED.fullmatch(message)) and (found := re.findall(r"(\w+)\.([\w.]+)", missing.group(1))):
        options = " and ".join(f"--{name}" for _, name in sorted(found, reverse=True))
        return f"{found[0][0]} needs {options}: give them, or --config FILE with a file that has them."
    if parsing := _NO_YAML.fullmatch(message):
        *_, (line, column) = _PLACE.findall(message) or [("?", "?")]
        said = [line.strip() for line in parsing.group(1).splitlines() if not _PLACE.search(line)]
        return f"--config: the file is no YAML at line {line}, column {column}: {said[-1]}."
    if text := _NO_MAPPING.fullmatch(message):
        given = f"is {text.group(1).strip()[:40]!r}" if text.group(1).strip() else "is empty"
        return f"--config: sections such as model, data and trainer are expected, and the file {given}."
    return None


def _findings(message: str) -> list[_Finding]:
    keys: list[tuple[int, str]] = []
    classes: list[tuple[int, str]] = []
    found: list[_Finding] = []
    for line in filter(str.strip, message.splitlines()):
        indent = len(line) - len(line.lstrip(" -"))
        keys = [(depth, key) for depth, key in keys if depth < indent]
        classes = [(depth, name) for depth, name in classes if depth < indent]
        path = tuple(key for _, key in keys)
        if key := _KEY.search(line):
            keys.append((indent, key.group(1)))
            if rest := line[key.end() :].strip(" ."):
                found.append(_Finding((*path, key.group(1)), rest))
        elif kind := _CLASS.search(line):
            classes.append((indent, kind.group(1)))
        elif (finding := _finding(line, path, classes[-1][1] if classes else "")) is not None:
            found.append(finding)
    given = _GIVEN.search(message)
    for finding in found:
        if not finding.value and given is not None:
            nested = _NESTED.search(given.group(1))
            finding.value = _quoted(nested.group(1) if nested else given.group(1))
    return found


def _finding(line: str, path: tuple[str, ...], class_path: str) -> _Finding | None:
    if option := _NO_OPTION.search(line):
        name = option.group(1) or option.group(2)
        text = f"{class_path} has no such option{_meant(name.partition('.')[0], _parameters(class_path))}"
        return _Finding((*path, *name.split(".")), text)
    if attribute := _NO_ATTRIBUTE.search(line):
        module, name = attribute.groups()
        names = [each for each in dir(sys.modules.get(module)) if not each.startswith("_")]
        return _Finding(path, f"{module}.{name} does not exist{_meant(name, names)}")
    if missing := re.search(r"No module named '(.+?)'", line):
        return _Finding(path, f"there is no module {missing.group(1)!r} to import {class_path} from")
    if needed := _REQUIRED.search(line):
        return _Finding((*path, needed.group(1).split(",")[0]), f"{class_path} needs it, and it is not given")
    line = _OF_NO_KIND.sub(r"Expected a subclass of \1", line)
    if expected := _EXPECTED.search(line.strip(" -")):
        kind, value = expected.groups()
        kind = "class path" if kind.startswith("dot import path") else kind
        return None if kind.startswith("path but") else _Finding(path, "", _quoted(value or ""), [_type(kind)])
    return None


def _type(kind: str) -> str:
    if named := re.fullmatch(r"<class '(.+?)'>", kind):
        return _TYPES.get(named.group(1), named.group(1).rpartition(".")[2])
    if literal := re.fullmatch(r"typing\.Literal\[(.+)\]", kind):
        return f"one of {literal.group(1)}"
    return kind


def _quoted(value: str) -> str:
    plain = not value or value[0] in "'\"[{" or re.fullmatch(r"[-+\d.eE]+|None|True|False", value)
    return value if plain else repr(value)


def _meant(name: str, names: Iterable[str], rest: str = "", cutoff: float = 0.7) -> str:
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=cutoff)
    return f": did you mean {'.'.join([close[0], *([rest] if rest else [])])!r}?" if close else ""


def _parameters(class_path: str) -> list[str]:
    """Return the arguments of a class that the arguments named, and that is imported therefore."""
    module, _, name = class_path.rpartition(".")
    kind = getattr(sys.modules.get(module) or importlib.import_module(module), name, None) if module else None
    return list(inspect.signature(kind).parameters) if callable(kind) else []
