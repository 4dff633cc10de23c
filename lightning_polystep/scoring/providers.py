"""Score: which ways of scoring there are for a module, fastest first; packages of users may add some.

An installed package adds a way of scoring by an entry point of the group ``lightning_polystep.tiers`` that names a
function: it is given the module and returns a :class:`~lightning_polystep.scoring.tier.Provider`, or None. Its tiers
are compared with the loop before they are used, as all others. One of the group ``lightning_polystep.rules`` names a
module that is imported, so that it can register rules for operations (docs/extending.md).
"""

from __future__ import annotations

from functools import partial
from importlib.metadata import entry_points
from typing import Literal

from torch import nn

from lightning_polystep.scoring.by_rows import knows_rows, offer_rows
from lightning_polystep.scoring.evaluate_many import offer_many
from lightning_polystep.scoring.grid import offer_from_tape
from lightning_polystep.scoring.loop import LoopTier
from lightning_polystep.scoring.node_perturbation import offer_nodes
from lightning_polystep.scoring.operands import offer_operands
from lightning_polystep.scoring.product_feedback import offer_feedback
from lightning_polystep.scoring.recognised import Recognised
from lightning_polystep.scoring.taped import Recording
from lightning_polystep.scoring.tier import Provider
from lightning_polystep.scoring.unit_response import offer_units

Evaluation = Literal["auto", "tape", "loop"]

TIERS, RULES = "lightning_polystep.tiers", "lightning_polystep.rules"


def providers_of(
    module: nn.Module, recognised: Recognised, recording: Recording, evaluation: Evaluation
) -> list[Provider]:
    """Return the ways of scoring that may be used, fastest first.

    Args:
        module: What is trained.
        recognised: Its stack, if it has one.
        recording: Its latest commit pass.
        evaluation: ``"auto"`` for all; ``"tape"`` or ``"loop"`` for that one.
    """
    # Of a module that does not say that it is a stack nobody needs to read that it is none.
    recording.of_stack = hasattr(module, "network") and hasattr(module, "criterion")
    recording.names = {id(parameter): name for name, parameter in module.named_parameters()}
    loop = Provider(LoopTier.name, lambda _block: LoopTier())
    units = Provider("by the answers of units", partial(offer_units, recording), optional=True)
    operands = Provider("as operands", partial(offer_operands, recording), optional=True)
    feedback = Provider("by learned feedback", partial(offer_feedback, recording), optional=True)
    nodes = Provider("by node perturbation", partial(offer_nodes, recording), optional=True)
    tape = Provider("from the tape", partial(offer_from_tape, recording))
    if evaluation == "loop":
        return [loop]
    for entry in entry_points(group=RULES):
        entry.load()
    if evaluation == "tape":
        return [units, operands, feedback, nodes, tape]
    added = [provider for entry in entry_points(group=TIERS) if (provider := entry.load()(module)) is not None]
    own = [Provider("by evaluate_many", partial(offer_many, module))] if hasattr(module, "evaluate_many") else []
    own += [Provider("by evaluate_rows", partial(offer_rows, module))] if knows_rows(module) else []
    stack = [Provider("as part of a stack", recognised.offer)] if recording.of_stack else []
    return [*own, *added, *stack, units, operands, feedback, nodes, tape, loop]
