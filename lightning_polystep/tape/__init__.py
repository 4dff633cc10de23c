"""Observe and score: the tape of a step, and its replay for candidates.

``recorder.py`` records what a step does, ``flow.py`` knows how axes go through kinds of operations, ``compilation.py``
reads off what depends on a parameter and how, ``replay.py`` runs it again for many candidates, by the rules of
``execute.py``.
"""

from lightning_polystep.tape import flow_rules, products  # noqa: F401 - they register rules
from lightning_polystep.tape.compilation import compile_program, whole_program
from lightning_polystep.tape.dense import Dense, last_products
from lightning_polystep.tape.entries import (
    Entries,
    Entry,
    added_by_rows,
    entries_of,
    product_of,
    products_of,
    products_with,
    summed_over_places,
)
from lightning_polystep.tape.execute import replays
from lightning_polystep.tape.expected import Call
from lightning_polystep.tape.factors import factors_of
from lightning_polystep.tape.flow import Flow, Site, elementwise, flows, is_elementwise
from lightning_polystep.tape.frame import Apart, Blend
from lightning_polystep.tape.fuse import MOST_WIDER, Loops, Region
from lightning_polystep.tape.merging import operations_towards
from lightning_polystep.tape.norms import but_for_what_it_undoes, is_norm
from lightning_polystep.tape.pause import unrecorded
from lightning_polystep.tape.places import Layout, Relation
from lightning_polystep.tape.program import NotOnTapeError, Program, Stage
from lightning_polystep.tape.recorder import Recorder, hold, moving
from lightning_polystep.tape.replay import mixes_changes, places_kept_apart, replay
from lightning_polystep.tape.run_again import Rerun
from lightning_polystep.tape.schedule import Segment, schedule
from lightning_polystep.tape.shifts import Shifted, shifted_products
from lightning_polystep.tape.signs import acts_by_signs, opposites
from lightning_polystep.tape.tape import Operation, Tape, substitute
from lightning_polystep.tape.ways_back import (
    goes_back,
    has_way_back,
    is_looked_at_apart,
    moves,
    never_answers,
    told_afterwards,
    way_back,
)
from lightning_polystep.tape.work import Work

__all__ = [
    "MOST_WIDER",
    "Apart",
    "Blend",
    "Call",
    "Dense",
    "Entries",
    "Entry",
    "Flow",
    "Layout",
    "Loops",
    "NotOnTapeError",
    "Operation",
    "Program",
    "Recorder",
    "Region",
    "Relation",
    "Rerun",
    "Segment",
    "Shifted",
    "Site",
    "Stage",
    "Tape",
    "Work",
    "acts_by_signs",
    "added_by_rows",
    "but_for_what_it_undoes",
    "compile_program",
    "elementwise",
    "entries_of",
    "factors_of",
    "flows",
    "goes_back",
    "has_way_back",
    "hold",
    "is_elementwise",
    "is_looked_at_apart",
    "is_norm",
    "last_products",
    "mixes_changes",
    "moves",
    "moving",
    "never_answers",
    "operations_towards",
    "opposites",
    "places_kept_apart",
    "product_of",
    "products_of",
    "products_with",
    "replay",
    "replays",
    "schedule",
    "shifted_products",
    "substitute",
    "summed_over_places",
    "told_afterwards",
    "unrecorded",
    "way_back",
    "whole_program",
]
