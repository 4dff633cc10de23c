"""What a module is made of, so that a plan that was made for other parts is noticed."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

CHANGED = "The network has changed since the plan was made ({}), so a new plan is made."
UNTRAINED = (
    "{} came into the network after the optimizer was made, which does not hold {}, so {} stay as they are: hand them "
    "over with optimizer.add_param_group."
)


class Structure:
    """The parts of a module and their parameters, by identity.

    Buffers are left out, because neurons make theirs in the first pass, and so are values.

    Args:
        module: Root of the tree.

    Example:
        >>> from torch.nn.utils import prune
        >>> network = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> structure = Structure(network)
        >>> structure.changes()
        []
        >>> network[1], _ = nn.Tanh(), prune.random_unstructured(network[0], "weight", 0.5)
        >>> structure.changes()
        ['0.weight is gone', '0.weight_orig is new', '1 is another Tanh']
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._parts, self._parameters = _of(module)

    def changes(self) -> list[str]:
        """Return what has changed since the last time, in words; later changes are counted from now."""
        parts, parameters = _of(self._module)
        before, self._parts = self._parts, parts
        known, self._parameters = self._parameters, parameters
        others = [name for name in parts if name in before and parts[name] is not before[name]]
        under = tuple(f"{name}." for name in others)
        found = [f"{name} is gone" for name in known if name not in parameters and not name.startswith(under)]
        for name, parameter in parameters.items():
            if parameter is not known.get(name) and not name.startswith(under):
                found.append(f"{name} is {'another parameter' if name in known else 'new'}")
        inner = [name for name in others if not any(name.startswith(each) for each in under if each != f"{name}.")]
        found += [f"{name or 'the module'} is another {type(parts[name]).__name__}" for name in inner]
        for verb, some, than in (("new", parts, before), ("gone", before, parts)):
            # Of a part that comes or goes with parameters these have been named.
            found += [
                f"{name} is {verb}"
                for name, part in some.items()
                if name not in than and not name.startswith(under) and not any(True for _ in part.parameters())
            ]
        return found


def said(changes: list[str]) -> str:
    """Return changes as one clause, the first few of them.

    Args:
        changes: What :meth:`Structure.changes` returned.

    Example:
        >>> said(["a is new", "b is new", "c is new", "d is gone"])
        'a is new, b is new, c is new and 1 more'
    """
    more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
    return ", ".join(changes[:3]) + more


def untrained(names: list[str]) -> str:
    """Say which parameters no optimizer holds.

    Args:
        names: Of the parameters.

    Example:
        >>> untrained(["head.weight"])[:70]
        'head.weight came into the network after the optimizer was made, which '
    """
    one = len(names) == 1
    return UNTRAINED.format(said(names), "it" if one else "them", "it" if one else "they").replace(
        "it stay as they are: hand them", "it stays as it is: hand it"
    )


def warn_of_changes(changes: list[str], module: nn.Module, groups: list[dict[str, Any]], *, planned: bool) -> None:
    """Say that a new plan is made, and which new parameters nobody trains.

    Args:
        changes: What :meth:`Structure.changes` returned.
        module: Root of the tree.
        groups: The optimizer's.
        planned: Whether there was a plan.
    """
    if planned:
        warnings.warn(CHANGED.format(said(changes)), stacklevel=6)
    held = {parameter for group in groups for parameter in group["params"]}
    others = [name for name, each in module.named_parameters() if each.requires_grad and each not in held]
    starts = tuple(change.partition(" is ")[0] for change in changes)
    if new := [name for name in others if name.startswith(starts)]:
        warnings.warn(untrained(new), stacklevel=6)


def _of(module: nn.Module) -> tuple[dict[str, nn.Module], dict[str, nn.Parameter]]:
    return dict(module.named_modules()), dict(module.named_parameters())
