"""Observe: which rows of which parameter are particles."""

from __future__ import annotations

from collections import ChainMap
from typing import Any, cast

import torch
from torch import nn

from lightning_polystep.constants import constant_of
from lightning_polystep.joining import joined
from lightning_polystep.layers.quantised import QuantisedWeight
from lightning_polystep.lookups import lookups_of
from lightning_polystep.particles import Block
from lightning_polystep.subspaces import SUBSPACES

_FULL_SPACE_DIM = 2
# Directions in which a vector of constants of neurons is probed.
_CONSTANTS_RANK = 4

UNSPANNED = "not a Linear or Conv2d weight: no inputs to span"
FLIPPED = "its weights act by their signs alone, so each is flipped"


def find_blocks(module: nn.Module, param_groups: list[dict[str, Any]]) -> list[Block]:
    """Cut every unfrozen parameter of the groups into blocks of particles; none is left out.

    Weights (with their biases) of ``nn.Linear`` and ungrouped ``nn.Conv2d`` become sites; every other parameter (leaks,
    thresholds, norm scales, embeddings, recurrent weights) becomes a block of its own. In the subspace "joint" these
    become one block per group, in "layer" and "factored" one row each, but for tables and constants of neurons.

    Args:
        module: The module that holds the parameters.
        param_groups: The optimizer's groups.

    Returns:
        The blocks, in the order in which the module names them.
    """
    group_of = {parameter: group for group in param_groups for parameter in group["params"]}
    # A second name for the same module is no second place.
    modules = dict(module.named_modules())
    owners: dict[nn.Parameter, list[str]] = {}
    for prefix, part in modules.items():
        for attribute, parameter in part.named_parameters(recurse=False, remove_duplicate=False):
            owners.setdefault(parameter, []).append(f"{prefix}.{attribute}" if prefix else attribute)
    blocks: list[Block] = []
    taken: set[nn.Parameter] = set()
    for parameter, names in owners.items():
        if parameter in taken or parameter not in group_of or not parameter.requires_grad or not parameter.numel():
            continue  # an empty one has nothing to probe
        owner_name, _, attribute = names[0].rpartition(".")
        owner = modules[owner_name]
        group = group_of[parameter]
        site = _site_block(owner_name, owner, group, group_of, owners) if attribute == "weight" else None
        block = site or _free_block(names[0], owner, attribute, parameter, group)
        places = [name.rpartition(".") for name in names]
        block.lookups, block.padding = lookups_of([(modules[prefix], last) for prefix, _, last in places])
        taken.update(block.parameters)
        blocks.append(block)
    return joined(blocks)


def _site_block(
    name: str,
    owner: nn.Module,
    group: dict[str, Any],
    group_of: dict[nn.Parameter, dict[str, Any]],
    owners: dict[nn.Parameter, list[str]],
) -> Block | None:
    if group["subspace"] == "full" or not isinstance(owner, nn.Linear | nn.Conv2d):
        return None
    if isinstance(owner, nn.Conv2d) and owner.groups != 1:
        return None
    weight, bias = cast("nn.Parameter", owner.weight), cast("nn.Parameter | None", owner.bias)
    shared = len(owners[weight]) > 1
    bias_moves_along = bias is not None and bias.requires_grad and group_of.get(bias) is group
    parameters: tuple[nn.Parameter, ...] = (weight,)
    if bias is not None and bias_moves_along and not shared and len(owners[bias]) == 1:
        parameters = (weight, bias)
    own_forward = type(owner).forward not in {nn.Linear.forward, nn.Conv2d.forward}
    remark = "weight shared between modules" if shared else "module computes its output itself" if own_forward else ""
    subspace = group["subspace"]
    if subspace == "flips" and not is_binary(owner):
        subspace, remark = "inputs", "its weights are not binary, so there is nothing to flip"
    rows = weight.shape[0]
    return Block(
        name=name,
        parameters=parameters,
        parameter_names=tuple(owners[parameter][0] for parameter in parameters),
        group=group,
        rows=rows,
        dim=sum(parameter.numel() for parameter in parameters) // rows,
        subspace=subspace,
        site=owner,
        shiftable=not (shared or own_forward),
        shared=shared,
        remark=remark,
    )


def is_binary(module: nn.Module) -> bool:
    """Tell whether the weights of a module act by their signs alone."""
    return isinstance(module, QuantisedWeight) and module.weight_format == "binary"


def flipped_one_by_one(block: Block) -> list[Block]:
    """Return blocks in the place of one whose weights act by their signs alone: the weights, and their bias.

    Args:
        block: The rows of a layer, of which the tape has shown that.
    """
    weight, *biases = block.parameters
    name, *names = block.parameter_names
    dim = weight.numel() // block.rows
    found = [Block(name, (weight,), (name,), block.group, block.rows, dim, "signs", remark=FLIPPED, by_signs=True)]
    for bias, its_name in zip(biases, names, strict=True):
        found.append(Block(its_name, (bias,), (its_name,), block.group, bias.numel(), 1, "full", remark=UNSPANNED))
    return found


def _free_block(name: str, owner: nn.Module, attribute: str, parameter: nn.Parameter, group: dict[str, Any]) -> Block:
    constant = constant_of(owner, attribute, parameter)
    is_table = isinstance(owner, nn.Embedding | nn.EmbeddingBag)
    remark = UNSPANNED if group["subspace"] in {"inputs", "flips"} else ""
    # A module may say itself how one of its own parameters is to be searched.
    chosen = getattr(owner, "own_subspaces", {}).get(attribute)
    if group["subspace"] == "full" and chosen is None:
        # A particle is in one row of a table: rows are read, or are padding.
        divided = parameter[0].numel() if is_table else parameter.numel()
        dim = _largest_divisor(divided, group["particle_dim"] or _FULL_SPACE_DIM)
        rows, subspace = parameter.numel() // dim, "full"
    elif chosen is not None:
        rows, dim, subspace = parameter.shape[0], parameter[0].numel(), chosen
    elif constant is not None:
        # One particle: each by itself would take a step of its own whether it matters or not, and of all candidates of
        # a small network more than its weights.
        rows, dim, subspace = 1, parameter.numel(), "full"
    elif parameter.dim() <= 1:
        rows, dim, subspace = parameter.numel(), 1, "full"
    else:
        rows, dim, subspace = parameter.shape[0], parameter.numel() // parameter.shape[0], "gaussian"
    if subspace == "gaussian" or SUBSPACES[group["subspace"]].spans != "row":
        subspace, remark = _subspace_of(parameter, group["subspace"], subspace, constant is not None, is_table)
    remark = "as its module asks" if chosen is not None else remark
    if isinstance(owner, torch.jit.ScriptModule):
        remark = "compiled by torch.jit, which hides its layers' inputs: compile after training"
    block = Block(name, (parameter,), (name,), group, rows, dim, subspace, remark=remark)
    if constant is not None:
        block.scale, block.constant, block.bounds = constant.scale, True, (constant.low, constant.high)
        if group["rank"] is None and group["subspace"] != "full":
            # On top of the budget that blocks share: a vector of constants is no reason to probe weights less.
            block.group = cast("dict[str, Any]", ChainMap({"rank": _CONSTANTS_RANK}, group))
    return block


def _subspace_of(
    parameter: nn.Parameter, wanted: str, subspace: str, is_constant: bool, is_table: bool
) -> tuple[str, str]:
    """Return the subspace of a parameter that no layer multiplies as a site does, and what the plan says of it."""
    if SUBSPACES[wanted].spans != "row":
        if is_constant or is_table:
            apart = "a table" if is_table else "a constant has a scale of its own"
            return subspace, f"apart from the {wanted} particle: {apart}"
        return wanted, ""
    if wanted not in {"inputs", "flips"}:
        return wanted, ""
    if parameter.dim() in {2, 3, 4} and not is_table:
        return "inputs", ""  # the tape may show what its rows are multiplied with
    return subspace, UNSPANNED


def _largest_divisor(number: int, at_most: int) -> int:
    return next(divisor for divisor in range(min(at_most, number), 0, -1) if number % divisor == 0)
