"""Candidates scored from the tape, beside the loop that runs the step again for each of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_polystep.blocks import find_blocks
from lightning_polystep.optimizer import PolyStep
from lightning_polystep.particles import Block, Proposal
from lightning_polystep.randomness import noise_frame
from lightning_polystep.scoring.loop import LoopTier
from lightning_polystep.scoring.probe import Probe
from lightning_polystep.scoring.taped import Recording, TapeTier
from lightning_polystep.snapshot import Snapshot
from lightning_polystep.tape import NotOnTapeError, Program, Recorder, Tape, compile_program

NOISE_KEY = (5, 0, 0)
# A step so late that loops have paid for their compilation.
LATE = (5, 10**12, 0)


def interpreted(source: str) -> Callable[..., None]:
    """Return a generated loop as plain Python: compiling takes a second, and does not look where it reads."""
    lines = [line for line in source.splitlines() if not line.startswith(("@njit", "from numba"))]
    names: dict[str, Any] = {"prange": range}
    exec("\n".join(lines), names)
    return names["loop"]


# In float64 rounding flips no threshold but by a coincidence of one in 10^9, so it may explain no difference.
_EXPECTED = ("does not depend on it", "how many values")
TOLERANCE = {"rtol": 1e-9, "atol": 1e-11}


@dataclass
class Scored:
    """What candidates of one block cost by the tape, by its loops and by the step itself; and the incumbent."""

    block: Block
    taped: Tensor
    fused: Tensor
    looped: Tensor
    incumbent: Tensor
    tier: TapeTier


def blocks_of(module: nn.Module, **group: Any) -> list[Block]:
    optimizer = PolyStep(module.parameters(), seed=0, **group)
    return find_blocks(module, optimizer.param_groups)


def trial(block: Block, radius: float = 0.5, rows: int = 3, vertices: int = 2, seed: int = 0) -> Proposal:
    """Return candidates of some rows, the first and the last among them, in random directions."""
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(block.rows, generator=draw)[: max(1, rows - 2)].tolist()
    places = torch.tensor(sorted({0, block.rows - 1, *chosen}))
    parameter = block.parameters[0]
    directions = torch.randn(1, vertices, block.dim, generator=draw, dtype=torch.float64).to(parameter.dtype)
    reach = torch.linspace(1.0, 2.0, len(places)).to(parameter.dtype)
    return Proposal(block, places, reach, directions, block.dim, radius)


def record(module: nn.Module, step: Callable[[], Tensor]) -> tuple[Recording, Probe, Tensor]:
    """Run a step once, recorded, and return the tape with what runs the step again."""
    recording, before = Recording(), Snapshot(module)
    with torch.no_grad(), noise_frame(*NOISE_KEY), recording.recording():
        loss = step()
    recording.ends_in(loss)
    # The loop is to start where the recorded step did.
    before.restore()
    return recording, Probe(module, step, NOISE_KEY), loss


def compiled(run: Callable[[], Tensor], *parameters: nn.Parameter, axis: int = 0) -> tuple[Tape, Program]:
    """Return the tape of a step, and what of it depends on some parameters."""
    with torch.no_grad(), Recorder() as recorder:
        loss = run()
    tape = recorder.tape
    rows = {tape.leaves[id(parameter)]: axis for parameter in parameters}
    return tape, compile_program(tape, rows, tape.find(loss))


def refusal_of(recording: Recording, block: Block) -> NotOnTapeError | None:
    """Return why the tape does not carry a block; None where it does."""
    try:
        recording.script(block)
    except NotOnTapeError as error:
        return error
    return None


def score(
    module: nn.Module,
    step: Callable[[], Tensor],
    *,
    radius: float = 0.5,
    seed: int = 0,
    directions: Callable[[Tensor], Tensor] = lambda directions: directions,
    **group: Any,
) -> dict[str, Scored | NotOnTapeError]:
    """Score a few candidates of every block by the tape and by the loop."""
    recording, probe, loss = record(module, step)
    found: dict[str, Scored | NotOnTapeError] = {}
    for block in blocks_of(module, **group):
        proposal = trial(block, radius, seed=seed)
        proposal.directions = directions(proposal.directions)
        tier = TapeTier(block, recording)
        with probe.isolated():
            looped = LoopTier().score(proposal, probe, 0, proposal.candidates)
        refusal = refusal_of(recording, block)
        if refusal is not None:
            unread = "does not depend on it" in str(refusal)
            assert not unread or looped.nan_to_num().unique().numel() == 1, f"{block.name}: {refusal}"
            found[block.name] = refusal
            continue
        with torch.no_grad():
            taped = tier.score(proposal, probe, 0, proposal.candidates)
            fused = tier.score(proposal, replace(probe, noise_key=LATE), 0, proposal.candidates)
        found[block.name] = Scored(block, taped, fused, looped, loss.double(), tier)
    return found


def assert_parity(
    module: nn.Module, step: Callable[[], Tensor], *, unread: bool = False, context: str = "", **options: Any
) -> dict[str, Scored | NotOnTapeError]:
    """Assert that the tape takes every block and costs candidates what the loop does.

    Args:
        module: The module.
        step: Returns its loss.
        unread: Whether the loss may do without some of the blocks, or have shapes that depend on them, as the tape then
            has to say.
        context: Printed with a failure.
        options: Of :func:`score`.
    """
    found = score(module, step, **options)
    for name, scored in found.items():
        if isinstance(scored, NotOnTapeError):
            assert unread, f"{name}: {scored}\n{context}"
            assert any(reason in str(scored) for reason in _EXPECTED), f"{name}: {scored}\n{context}"
            continue
        for taped in (scored.taped, scored.fused):
            torch.testing.assert_close(
                taped, scored.looped, **TOLERANCE, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}\n{context}"
            )
    return found
