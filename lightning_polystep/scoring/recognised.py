"""Score: the stack that a module was recognised as, for as long as it explains the losses of the user's step."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

from lightning_polystep.particles import Block
from lightning_polystep.randomness import generator
from lightning_polystep.scoring.fastest import fastest_tier
from lightning_polystep.scoring.recognise import recognise
from lightning_polystep.scoring.stack import Capture, NotAStackError, Stack, capturing, disagreement
from lightning_polystep.scoring.tier import Tier


class Recognised:
    """A module's stack with what its layers saw, or why it has none.

    Args:
        module: With the attributes ``network`` and ``criterion``, or without.

    Example:
        >>> from lightning_polystep.layers import Sign
        >>> module = nn.Module()
        >>> module.network = nn.Sequential(nn.Linear(4, 3), Sign(), nn.Linear(3, 2))
        >>> module.criterion = nn.CrossEntropyLoss()
        >>> Recognised(module).reason, Recognised(nn.Linear(2, 2)).reason
        ('', 'the module has no attributes network and criterion')
    """

    def __init__(self, module: nn.Module) -> None:
        self._stack: Stack | None = None
        self.reason = ""
        # What kept this process's shard from being scored; told the others with the step.
        self.objection = ""
        self._capture = Capture()
        try:
            self._stack = recognise(module)
        except NotAStackError as error:
            self.reason = str(error)

    @property
    def squares(self) -> bool:
        """Whether it is a stack whose loss is one of squares, not a cross-entropy."""
        return self._stack is not None and self._stack.squares

    @property
    def holds(self) -> bool:
        """Whether there is a stack."""
        return self._stack is not None

    def capturing(self) -> AbstractContextManager[None]:
        """Wrap the commit pass: keep what the layers see."""
        return nullcontext() if self._stack is None else capturing(self._stack, self._capture)

    def clear(self) -> None:
        """Forget the latest commit pass."""
        self._capture.clear()

    def offer(self, block: Block) -> Tier:
        """Return the tier that scores a block.

        Raises:
            NotAStackError: Where there is none.
        """
        if self._stack is None:
            raise NotAStackError(self.reason)
        return fastest_tier(block, self._stack, self._capture)

    def select_samples(self, certain_error: float, noise_key: tuple[int, int, int]) -> None:
        """Draw the samples on which candidates are scored, if fewer than all are asked for.

        Args:
            certain_error: Samples whose error is at least that are always scored; 0 asks for all.
            noise_key: (seed, step, micro-batch).
        """
        if certain_error and self._stack is not None and not self._stack.squares:
            seed, step, micro_batch = noise_key
            self._capture.select(self._stack, certain_error, generator(seed, step, "samples", micro_batch))

    def disagreement(self, loss: Tensor) -> str | None:
        """Return why the stack does not explain the loss of the commit pass; None when it does, or there is none.

        Args:
            loss: That of the commit pass.
        """
        return None if self._stack is None else disagreement(self._stack, self._capture, loss)

    def give_up(self, problem: str) -> None:
        """Be no stack from now on.

        Args:
            problem: Why.
        """
        self._stack, self.reason = None, problem
