"""The tape: what a step did, as a list of pure operations on tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from torch import Tensor


class Ref(NamedTuple):
    """Stands for a tensor in the arguments of an operation.

    Args:
        index: Of the value in :attr:`Tape.values`.
    """

    index: int  # type: ignore[assignment] # of a tuple it is a method, which nobody calls here


@dataclass(frozen=True)
class Unknown:
    """Takes the place of an operator whose effect the tape does not know; what depends on it cannot be replayed.

    Args:
        reason: What it did.
        blind: Whether it may depend on more than the operands that the tape shows.
    """

    reason: str
    blind: bool = False


@dataclass(slots=True)
class Value:
    """A tensor at one moment: what is written in place later is another value.

    Args:
        tensor: What it was.
        producer: Index of the operation that made it; None where it came from outside the step, or by chance.
    """

    tensor: Tensor
    producer: int | None = None


@dataclass(slots=True)
class Operation:
    """One call of an operator, without a side effect: writes in place are recorded as what they compute.

    Args:
        function: The operator.
        args: Its arguments, tensors as :class:`Ref`.
        kwargs: Those by name.
        outputs: Indices of the values that it made; None for an output that is no tensor.
        operands: Indices of the values that it reads, in the order of its arguments.
    """

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[int | None, ...]
    operands: tuple[int, ...]
    _fractions: tuple[str, ...] | None = field(default=None, init=False, repr=False, compare=False)

    def fractions(self) -> tuple[str, ...]:
        """Return the fractions among its arguments, in their order."""
        if self._fractions is None:
            flat = _flat((self.args, self.kwargs))
            self._fractions = tuple([str(each) for each in flat if isinstance(each, float)])
        return self._fractions


class Escape(NamedTuple):
    """Numbers that left the tape: what Python makes of them, no replay follows.

    Args:
        value: Index of the value that was read.
        place: File and line of the user's code.
    """

    value: int
    place: str


class StepStructure:
    """What two tapes have in common whose operators, arguments and shapes are equal: a key to look programs up by.

    There is one of each kind, so that most look-ups compare no more than identities: a step makes hundreds of them, and
    has thousands of operations.

    Args:
        key: Of a tape.
    """

    __slots__ = ("__weakref__", "_hash", "key")

    def __init__(self, key: list[Any]) -> None:
        self.key = tuple(key)
        few = self.key[:: max(1, len(self.key) // 64)]
        self._hash = hash((len(self.key), few))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, StepStructure) and self._hash == other._hash and self.key == other.key
        )

    @classmethod
    def of(cls, key: list[Any]) -> StepStructure:
        """Return the structure of a key; the same object for equal ones."""
        made = cls(key)
        known = _structures.get(made._hash)
        if known == made:
            return known
        _structures[made._hash] = made
        return made


_structures: WeakValueDictionary[int, StepStructure] = WeakValueDictionary()


@dataclass
class Tape:
    """What one run of a step did.

    Args:
        values: All tensors that were read or made.
        operations: In the order in which they ran.
        index_of: The value that a tensor holds now, by the identity of the tensor.
        leaves: What tensors from outside the step held at its start, likewise.
        held: Values that are constants of all candidates, though they were computed from parameters.
        escapes: Numbers that Python has read.
        bound: Operations as programs read them, by program and number.
        arrays: What replays have made of its values, to be read again.
        key: Equal for two tapes of the same structure: operators, arguments and shapes, but for tensors and fractions.
    """

    values: list[Value] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    index_of: dict[int, int] = field(default_factory=dict)
    leaves: dict[int, int] = field(default_factory=dict)
    held: set[int] = field(default_factory=set)
    escapes: list[Escape] = field(default_factory=list)
    key: list[Any] = field(default_factory=list)
    bound: dict[Any, dict[int, Operation]] = field(default_factory=dict)
    arrays: dict[Any, Any] = field(default_factory=dict)
    _structure: StepStructure | None = field(default=None, init=False, repr=False, compare=False)
    _fractions: tuple[int, tuple[str, ...]] = field(default=(0, ()), init=False, repr=False, compare=False)

    def find(self, tensor: Tensor) -> int | None:
        """Return the index of the value that a tensor held at the end of the step; None where it is not on the tape."""
        return self.index_of.get(id(tensor))

    def structure(self) -> StepStructure:
        """Return :attr:`key`, to look programs up by."""
        if self._structure is None or len(self._structure.key) != len(self.key):
            self._structure = StepStructure.of(self.key)
        return self._structure

    def fractions(self) -> tuple[str, ...]:
        """Return the fractions in the arguments of all operations, in their order."""
        if self._fractions[0] != len(self.operations):
            found = chain.from_iterable([operation.fractions() for operation in self.operations])
            self._fractions = len(self.operations), tuple(found)
        return self._fractions[1]


def _flat(arguments: Any) -> list[Any]:
    if isinstance(arguments, tuple | list):
        return [each for argument in arguments for each in _flat(argument)]
    if isinstance(arguments, dict):
        return _flat(list(arguments.values()))
    return [arguments]


def references(arguments: Any) -> Iterator[int]:
    """Yield the values that arguments refer to, in their order."""
    if isinstance(arguments, Ref):
        yield arguments.index
    elif isinstance(arguments, tuple | list):
        for argument in arguments:
            yield from references(argument)
    elif isinstance(arguments, dict):
        for argument in arguments.values():
            yield from references(argument)


def substitute(arguments: Any, find: Callable[[int], Any]) -> Any:
    """Return arguments with each :class:`Ref` replaced.

    Args:
        arguments: Of an operation.
        find: Returns what takes the place of a value.

    Example:
        >>> substitute((Ref(3), [Ref(4), 1], 0.5), lambda index: 10 * index)
        (30, [40, 1], 0.5)
    """
    if isinstance(arguments, Ref):
        return find(arguments.index)
    if isinstance(arguments, tuple):
        return tuple(substitute(argument, find) for argument in arguments)
    if isinstance(arguments, list):
        return [substitute(argument, find) for argument in arguments]
    if isinstance(arguments, dict):
        return {name: substitute(argument, find) for name, argument in arguments.items()}
    return arguments
