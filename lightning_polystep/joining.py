"""One row for a whole layer, or for all layers of a group: blocks whose candidates move all of that at once."""

from __future__ import annotations

from lightning_polystep.particles import Block
from lightning_polystep.subspaces import SUBSPACES


def joined(blocks: list[Block]) -> list[Block]:
    r"""Make one block of one row of all blocks of a parameter group whose subspace spans the group, as "joint" does.

    Blocks of a subspace that spans a layer get one row each. A parameter keeps the scale that it has by itself,
    :math:`s = 1 / \sqrt D` with D the numbers in a row of its own block, the bias included: a radius is then in units
    of pre-activation for inputs about 1, whatever the sizes.

    Args:
        blocks: Of any subspaces; those of others stay as they are.

    Returns:
        The blocks, each in the place of its first part.

    Example:
        >>> import torch
        >>> from lightning_polystep import PolyStep
        >>> from lightning_polystep.blocks import find_blocks
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
        >>> (block,) = find_blocks(network, PolyStep(network.parameters(), subspace="joint").param_groups)
        >>> block.name, block.rows, block.dim
        ('0 and 1 more', 1, 23)
    """
    parts: dict[int, list[Block]] = {}
    for block in blocks:
        if _spans(block) == "group":
            parts.setdefault(id(block.group), []).append(block)
        elif _spans(block) == "layer":
            parts[id(block)] = [block]
    whole = {id(members[0]): _join(members) for members in parts.values()}
    return [whole.get(id(block), block) for block in blocks if _spans(block) == "row" or id(block) in whole]


def _spans(block: Block) -> str:
    return SUBSPACES[block.subspace].spans


def _join(parts: list[Block]) -> Block:
    parameters = tuple(parameter for part in parts for parameter in part.parameters)
    return Block(
        name=parts[0].name if len(parts) == 1 else f"{parts[0].name} and {len(parts) - 1} more",
        parameters=parameters,
        parameter_names=tuple(name for part in parts for name in part.parameter_names),
        group=parts[0].group,
        rows=1,
        dim=sum(parameter.numel() for parameter in parameters),
        subspace=parts[0].subspace,
        scales=tuple(part.scale / part.dim**0.5 for part in parts for _ in part.parameters),
    )
