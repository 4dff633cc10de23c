"""A network as the row of layers that it runs, which is all that the formats for exchange can hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from lightning_polystep.interop.snntorch_conversion import ConversionError
from lightning_polystep.layers import OverTime, Sliced


class Link(NamedTuple):
    """One layer of a row.

    Args:
        name: Where it is in the network, as in a ``state_dict``.
        layer: The layer.
        every_step: Whether it is applied to each time step for itself (it was in an ``OverTime``).
    """

    name: str
    layer: nn.Module
    every_step: bool = False


def chain_of(network: nn.Module) -> list[Link]:
    """Return the layers of a network in the order in which they run.

    Args:
        network: An ``nn.Sequential`` or :class:`~lightning_polystep.layers.Sliced`, nested or not, or one layer.

    Raises:
        ConversionError: If a part with layers inside has a ``forward`` of its own, which cannot be read.

    Example:
        >>> from lightning_polystep.layers import LIF
        >>> [link.name for link in chain_of(nn.Sequential(nn.Linear(4, 3), nn.Sequential(LIF(), OverTime(nn.ReLU()))))]
        ['0', '1.0', '1.1.layer']
    """
    return list(_links(network, ""))


def _links(part: nn.Module, name: str, every_step: bool = False) -> Iterator[Link]:
    if type(part) is OverTime:
        yield from _links(part.layer, f"{name}.layer".lstrip("."), every_step=True)
    elif isinstance(part, nn.Sequential):
        # What a Sliced does, sample by sample, is what its layers do.
        if type(part).forward not in (nn.Sequential.forward, Sliced.forward):
            raise _own_forward(part, name)
        for child_name, child in part.named_children():
            yield from _links(child, f"{name}.{child_name}".lstrip("."), every_step)
    elif type(part).__module__.startswith(("torch.", "lightning_polystep.", "snntorch", "brevitas")):
        yield Link(name or type(part).__name__, part, every_step)
    elif any(True for _ in part.children()):
        raise _own_forward(part, name)
    else:
        yield Link(name or type(part).__name__, part, every_step)


def network_of(module: nn.Module, name: str | None = None) -> tuple[str, nn.Module]:
    """Return the part of a LightningModule that computes, with its name.

    Args:
        module: The module.
        name: Of the part; by default that of the one ``nn.Sequential`` among the module's children, or of the child
            called "network".

    Raises:
        ConversionError: If there is no such part, or more than one.

    Example:
        >>> network_of(nn.ModuleDict({"network": nn.Linear(4, 3), "loss": nn.MSELoss()}))
        ('network', Linear(in_features=4, out_features=3, bias=True))
    """
    children = dict(module.named_children())
    if name is not None:
        if name not in dict(module.named_modules()):
            raise ConversionError(f"{type(module).__name__} has no part {name!r}: its parts are {', '.join(children)}.")
        return name, module.get_submodule(name)
    if isinstance(module, nn.Sequential):
        return "", module
    rows = [child for child, part in children.items() if isinstance(part, nn.Sequential)]
    if "network" in children:
        rows = ["network"]
    if len(rows) != 1:
        raise ConversionError(
            f"{type(module).__name__} has {len(rows)} parts that are an nn.Sequential: name the one to export (--part)."
        )
    return rows[0], children[rows[0]]


def _own_forward(part: nn.Module, name: str) -> ConversionError:
    place = f"{name!r} ({type(part).__name__})" if name else type(part).__name__
    return ConversionError(
        f"{place} has a forward of its own, which cannot be read: put its layers into an nn.Sequential, in the order "
        "in which forward calls them, and export that."
    )
