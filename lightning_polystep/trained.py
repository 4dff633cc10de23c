"""Which parameters of a module are trained, as which blocks, and what its parts need; found anew when it changes."""

from __future__ import annotations

from torch import nn

from lightning_polystep.hosted import HostedOptimizer
from lightning_polystep.interop.adapters import adapters_for
from lightning_polystep.particles import Block
from lightning_polystep.scoring.recognised import Recognised
from lightning_polystep.structure import Structure, warn_of_changes


class Trained:
    """A module as its optimizer trains it.

    Args:
        module: The module.
        optimizer: Holds the parameters.
        recognises: Whether the module may be recognised as a stack.

    Attributes:
        adapters: What modules of other libraries need.
        recognised: The stack that the module is, or why it is none.
        blocks: What candidates change; empty until :meth:`follow` is called.
        parameters: Those that are not frozen.

    Example:
        >>> from lightning_polystep import PolyStep
        >>> module = nn.Sequential(nn.Linear(4, 2))
        >>> trained = Trained(module, PolyStep(module.parameters(), seed=0), recognises=True)
        >>> trained.follow(planned=False), trained.follow(planned=False)
        (True, False)
        >>> [block.name for block in trained.blocks]
        ['0']
    """

    def __init__(self, module: nn.Module, optimizer: HostedOptimizer, *, recognises: bool) -> None:
        self.module = module
        self.adapters = adapters_for(module)
        self.recognised = Recognised(module)
        self.blocks: list[Block] = []
        self.parameters: frozenset[nn.Parameter] = frozenset()
        self._optimizer = optimizer
        self._structure = Structure(module)
        self._recognises = recognises
        if not recognises:
            self.recognised.give_up("not asked for")

    def follow(self, *, planned: bool) -> bool:
        """Look whether parameters were frozen, unfrozen or added, or parts replaced, and tell so; warn of new parts.

        Args:
            planned: Whether there is a plan, which has to be made anew then.
        """
        groups = self._optimizer.param_groups
        changes = self._structure.changes()
        unfrozen = frozenset(p for group in groups for p in group["params"] if p.requires_grad)
        if changes:
            warn_of_changes(changes, self.module, groups, planned=planned)
            self.adapters = adapters_for(self.module)
            if self._recognises:
                self.recognised = Recognised(self.module)
        if unfrozen == self.parameters and not changes:
            return False
        names = self.adapters.held()
        held = {parameter for name, parameter in self.module.named_parameters() if name in names}
        self.blocks = self._optimizer.blocks(self.module, held)
        self.parameters = unfrozen
        return True

    def held(self) -> dict[str, str]:
        """Return the names of unfrozen parameters that are not probed, each with the reason."""
        unfrozen = {name for name, parameter in self.module.named_parameters() if parameter in self.parameters}
        return {name: reason for name, reason in self.adapters.held().items() if name in unfrozen}
