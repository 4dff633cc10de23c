"""Tables of which a batch reads a few rows: embeddings are probed where they are read, and nowhere else.

A row that no sample of the batch asks for changes nothing, so all its candidates cost the same; of 10,000 rows a batch
may read 100. The row of padding is left as it is, as under a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_polystep.particles import Block
from lightning_polystep.randomness import generator

if TYPE_CHECKING:
    from lightning_polystep.scoring.probe import Probe

_FORWARDS = {nn.Embedding.forward, nn.EmbeddingBag.forward}


def lookups_of(owners: Sequence[tuple[nn.Module, str]]) -> tuple[tuple[nn.Module, ...], int | None]:
    """Return the embeddings that are all of a table's owners, and the row that is padding for all of them.

    Args:
        owners: Modules that hold the table, each with its name there.

    Example:
        >>> embedding = nn.Embedding(5, 2, padding_idx=0)
        >>> lookups_of([(embedding, "weight")])
        ((Embedding(5, 2, padding_idx=0),), 0)
        >>> lookups_of([(embedding, "weight"), (nn.Linear(2, 5), "weight")])
        ((), None)
    """
    tables = [owner for owner, _ in owners if isinstance(owner, nn.Embedding | nn.EmbeddingBag)]
    if len(tables) < len(owners) or any(attribute != "weight" for _, attribute in owners):
        return (), None
    paddings = {table.padding_idx for table in tables}
    # Whoever gives another meaning to the numbers that it is asked for does not say which rows they are.
    plain = all(type(table).forward in _FORWARDS for table in tables)
    return tuple(tables) if plain else (), paddings.pop() if len(paddings) == 1 else None


def asked_for(args: tuple[Any, ...], named: dict[str, Any]) -> Tensor | None:
    """Return the rows that a call of an embedding asks for, shape (rows,), int64; None when that cannot be told.

    Args:
        args: Of the call.
        named: Those by name.
    """
    numbers = args[0] if args else named.get("input")
    if not isinstance(numbers, Tensor) or numbers.is_floating_point():
        return None
    return numbers.detach().unique().long()


def rows_to_probe(block: Block, used: Tensor | None) -> Tensor | None:
    """Return the rows of a block that are probed, ascending; None for all of them.

    Args:
        block: The block.
        used: Rows that the batch asked for; None when that is not known.
    """
    if block.padding is None and used is None:
        return None
    table = block.parameters[0].shape[0]
    rows = torch.arange(table) if used is None else used.cpu()
    rows = rows if block.padding is None else rows[rows != block.padding]
    parts = block.rows // table  # of a row, each a particle
    return (rows[:, None] * parts + torch.arange(parts)).flatten()


def is_something(rows: Tensor | None) -> bool:
    """Tell whether there is a row to probe."""
    return rows is None or len(rows) > 0


def follow_lookups(block: Block, used: Tensor | None, probe: Probe) -> None:
    """Find out, for the plan, how many rows of a table a batch reads, and whether embeddings alone read them.

    Args:
        block: Any block.
        used: Rows that embeddings were asked for; None when that is not known.
        probe: Of the first micro-batch.
    """
    block.usual_rows = None
    if used is None or not block.lookups:
        return
    if is_read_elsewhere(block, used, probe):
        block.lookups, block.remark = (), "its rows are read elsewhere too, as scores are"
    else:
        block.usual_rows = max(1, len(used)) * (block.rows // block.parameters[0].shape[0])


def is_read_elsewhere(block: Block, used: Tensor, probe: Probe) -> bool:
    """Tell whether rows that no embedding was asked for change the loss, as where a table also makes the scores.

    Args:
        block: The table.
        used: Rows that embeddings were asked for.
        probe: Of the micro-batch.
    """
    table = block.parameters[0]
    others = torch.ones(len(table), dtype=torch.bool, device=table.device).index_fill_(0, used.to(table.device), False)
    if not bool(others.any()):
        return False
    draw = generator(0, 0, f"elsewhere/{block.name}")
    moved = probe.start_of(table)
    moved[others] += torch.randn(moved.shape[1:], generator=draw).to(moved)
    with probe.isolated():
        return not torch.equal(probe.loss(), probe.loss({table: moved}))
