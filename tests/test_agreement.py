"""What processes make of what they told one another, here with the other's part played by hand."""

import pytest
import torch
from torch import nn

from lightning_polystep import Engine, PolyStep
from lightning_polystep.agreement import Agreement, Notes
from lightning_polystep.parallel import Axis, Layout
from lightning_polystep.processes import Processes


class Played(Processes):
    """Two processes, of which the other says what ``answer`` makes of our message."""

    def __init__(self, answer, layout=Layout(candidates=Axis(0, 2))):  # noqa: B008 - frozen
        super().__init__(layout)
        self.answer = answer

    def sum(self, parts, dtype=torch.float64):
        parts = super().sum(parts, dtype)
        return {name: parts[name] + told for name, told in self.answer(parts).items()}


def same(parts, **changes):
    """The message of a process that saw what we saw, and has nothing to add."""
    other = {name: torch.zeros_like(part) for name, part in parts.items()}
    other["marks"][1] = parts["marks"][0]
    return {**other, **changes}


def agreement(answer, parameters=7, **options):
    return Agreement(Played(answer, **options), lambda: parameters, check_every=10)


def test_notes_depend_on_batches_losses_and_their_order():
    def seen(*batches):
        notes = Notes()
        for batch, loss in batches:
            notes.see(batch, torch.tensor(loss))
        return notes.batches, notes.losses

    assert seen((1, 0.5), (2, 0.25)) == seen((1, 0.5), (2, 0.25))
    assert len({seen((1, 0.5), (2, 0.25)), seen((2, 0.5), (1, 0.25)), seen((1, 0.25), (2, 0.5)), seen((1, 0.5))}) == 4


def test_alone_nothing_is_asked():
    alone = Agreement(Processes(), lambda: 0, 1)
    assert not alone.several
    assert (alone.ready(finite=True), alone.ready(finite=False)) == (True, False)
    assert alone.slowest([0, 3]) == [0, 3]


def test_a_plan_waits_for_a_batch_that_is_finite_everywhere():
    assert agreement(same).ready(finite=True)
    assert not agreement(same).ready(finite=False)
    assert not agreement(lambda parts: same(parts, unfit=torch.ones(1))).ready(finite=True)


def test_the_slowest_choice_counts():
    def answer(parts):
        return {"choices": torch.stack([torch.zeros(3), torch.tensor([0.0, 3.0, 1.0])])}

    assert agreement(answer).slowest([0, 1, 2]) == [0, 3, 2]


@pytest.mark.parametrize(
    ("mark", "message"),
    [(0, "the parameters of rank.s. 1 differ"), (1, "rank.s. 1 saw another batch"), (2, "rank.s. 1 got another loss")],
)
def test_what_differs_is_named(mark, message):
    def answer(parts):
        other = same(parts)
        other["marks"][1, mark] += 1
        return other

    with pytest.raises(RuntimeError, match=message):
        agreement(answer).ready(finite=True)


def test_shards_of_the_data_may_differ_but_not_the_parameters():
    def answer(parts):
        other = same(parts)
        other["marks"][1, 1:] += 1
        return other

    data = Layout(data=Axis(0, 2))
    assert agreement(answer, layout=data).ready(finite=True)


def step(answer, layout, *, half=False):
    """One step of a small model among the processes, or half of it."""
    torch.manual_seed(0)
    model, inputs, labels = nn.Linear(3, 2), torch.randn(16, 3), torch.tensor([0, 1] * 8)
    optimizer = PolyStep(model.parameters(), seed=0)

    def everything(parts):
        if "costs" in parts:
            return answer(parts)
        if "marks" in parts:
            return same(parts)
        # The other needs the tiers that we need; it has nothing to add about the inputs.
        return {"choices": parts["choices"].flip(0)} if "choices" in parts else {n: 0 * p for n, p in parts.items()}

    engine = Engine(model, optimizer, announce=None, processes=Played(everything, layout))

    def loss():
        return nn.functional.cross_entropy(model(inputs), labels)

    if half:
        with engine.observing():
            incumbent = loss()
        engine.probe(loss, incumbent)
    else:
        engine.step(loss)
    return engine


def test_a_tier_that_failed_elsewhere_is_left_here_too():
    def answer(parts):
        return same(parts, demoted=torch.ones_like(parts["demoted"]))

    engine = step(answer, Layout(candidates=Axis(0, 2)))
    assert {a.tier.name for a in engine.plan.assignments} == {"loop"}
    assert "failed on another process" in str(engine.plan)


def test_a_second_shard_counts_as_much_as_the_first():
    """Both shards see the same here, so the sums are twice ours and the step is that of one process."""

    def answer(parts):
        return same(parts, **{name: parts[name].clone() for name in ("costs", "incumbents", "counts")})

    double = step(answer, Layout(data=Axis(0, 2)))
    alone = step(same, Layout())
    for ours, theirs in zip(double.module.parameters(), alone.module.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert double.optimizer.progress.candidates == 2 * alone.optimizer.progress.candidates


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_shard_that_knows_nothing_is_told_what_the_others_know_bit_for_bit(dtype):
    moment = torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=dtype)
    moment = moment + moment.T
    messages = []

    def tell(parts):
        messages.append(parts["site"])
        return {"site": torch.zeros_like(parts["site"])}

    def shards(index, own, answer):
        layout = Layout(data=Axis(index, 2))
        return agreement(answer, layout=layout).shards(own, {"site": 5}, count=2, dtype=dtype)

    first, second = shards(1, {"site": moment}, tell)
    assert first == {}
    assert torch.equal(second["site"], moment)
    assert messages[0].shape == (2, 1 + 15)
    first, second = shards(0, {}, lambda _: {"site": messages[0]})
    assert first == {}
    assert torch.equal(second["site"], moment)
    assert second["site"].dtype == dtype


def test_half_a_step_is_gathered_without_ending_it():
    """What a checkpoint takes are the sums of both; what this process goes on with is its own."""

    def answer(parts):
        return same(parts, **{name: parts[name].clone() for name in ("costs", "incumbents", "counts")})

    engine = step(answer, Layout(data=Axis(0, 2)), half=True)
    optimizer = engine.optimizer
    own, counted = optimizer.binding.pending.state_dict(), dict(vars(optimizer.progress))
    state = optimizer.state_dict()
    engine.complete(state)
    saved = state["polystep"]
    assert saved["pending"]["weight"] == 2 * own["weight"] == 2
    for name, block in own["blocks"].items():
        assert torch.equal(saved["pending"]["blocks"][name]["costs"], 2 * block["costs"])
        assert block["costs"].count_nonzero() > 0
    assert saved["progress"]["candidates"] > counted["candidates"]
    assert dict(vars(optimizer.progress)) == counted
    assert torch.equal(optimizer.binding.pending.costs[0], own["blocks"][""]["costs"])


def test_a_state_that_one_process_made_alone_says_what_it_lacks():
    engine = step(same, Layout(data=Axis(0, 2)), half=True)
    assert engine.optimizer.state_dict()["polystep"]["pending"] == {"weight": 1.0, "blocks": {}}


def test_who_is_asked_to_stop_stops_all():
    def answer(parts):
        return same(parts, stop=torch.ones_like(parts["stop"]))

    layout = Layout(candidates=Axis(0, 2))
    assert [step(told, layout)._agreement.processes.stopping for told in (same, answer)] == [False, True]
