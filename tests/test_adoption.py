import copy

import pytest
import torch
from pytorch_lightning.callbacks import BaseFinetuning, LearningRateFinder, LearningRateMonitor
from pytorch_lightning.core.optimizer import _MockOptimizer
from pytorch_lightning.tuner import Tuner
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CyclicLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    SequentialLR,
    StepLR,
)

from lightning_polystep import Engine, PolyStep
from lightning_polystep.adoption import Adoption, adopt, adopt_all
from lightning_polystep.results import parameters_sha256
from tests.helpers.boring import Boring, CountingLogger, loader, trainer

REPLACED = pytest.mark.filterwarnings("ignore:configure_optimizers returned .*, which needs gradients")


@pytest.fixture
def module():
    return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))


def replaced(foreign, module, schedulers=(), **options):
    with pytest.warns(UserWarning, match=f"returned {type(foreign).__name__}"):
        return adopt(foreign, module, "replace", options, schedulers)


def radii(adoption):
    """What the next step is made with."""
    adoption.follow_schedule()
    return [group["lr"] for group in adoption.optimizer.param_groups]


def test_polystep_is_kept(module):
    optimizer = PolyStep(module.parameters(), lr=0.3)
    adoption = adopt(optimizer, module, "error", {"lr": 7.0})
    assert adoption.optimizer is optimizer
    assert adoption.foreign is None
    optimizer.param_groups[0]["lr"] = 0.2
    adoption.follow_schedule()
    adoption.restore_schedule()
    assert optimizer.param_groups[0]["lr"] == 0.2


def test_none_means_every_trainable_parameter(module):
    module[0].requires_grad_(False)
    adoption = adopt(_MockOptimizer(), module, "error", {"lr": 0.4})
    (group,) = adoption.optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in module[1].parameters()]
    assert group["lr"] == 0.4


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p, lr=1e-3),
        lambda p: torch.optim.AdamW(p, lr=1e-3),
        lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9, nesterov=True),
        torch.optim.RMSprop,
        torch.optim.Adadelta,
        torch.optim.Rprop,
    ],
    ids=["Adam", "AdamW", "SGD", "RMSprop", "Adadelta", "Rprop"],
)
def test_others_are_replaced_over_the_same_groups(module, make):
    foreign = make([{"params": layer.parameters()} for layer in module])
    adoption = replaced(foreign, module, lr=0.2, rank=3)
    assert isinstance(adoption.optimizer, PolyStep)
    assert adoption.foreign is foreign
    ours = [[id(p) for p in group["params"]] for group in adoption.optimizer.param_groups]
    assert ours == [[id(p) for p in layer.parameters()] for layer in module]
    assert {(group["lr"], group["rank"]) for group in adoption.optimizer.param_groups} == {(0.2, 3)}


def test_the_warning_names_every_ignored_setting(module):
    with pytest.warns(UserWarning, match="PolyStep trains the same parameters") as caught:
        adopt(torch.optim.SGD(module.parameters(), lr=0.1), module, "replace", {})
    (warning,) = caught
    ignored = str(warning.message).split("Ignored: ")[1].split(";")[0].split(", ")
    assert {"momentum", "dampening", "weight_decay", "nesterov"} <= set(ignored)
    assert {"lr", "maximize", "params"}.isdisjoint(ignored)


def test_a_replaced_optimizer_that_climbs_still_climbs(module):
    groups = [{"params": module[0].parameters(), "maximize": True}, {"params": module[1].parameters()}]
    adoption = replaced(torch.optim.Adam(groups), module)
    assert [group["maximize"] for group in adoption.optimizer.param_groups] == [True, False]
    adoption = replaced(torch.optim.Adam(module.parameters()), module, maximize=True)
    assert adoption.optimizer.param_groups[0]["maximize"] is True


def test_error_instead_of_replacement(module):
    with pytest.raises(MisconfigurationException, match=r"returned Adam: return PolyStep, or set .*'replace'"):
        adopt(torch.optim.Adam(module.parameters()), module, "error", {})


def test_lbfgs_is_refused(module):
    with pytest.raises(MisconfigurationException, match=r"LBFGS .*return lightning_polystep\.PolyStep"):
        adopt(torch.optim.LBFGS(module.parameters()), module, "replace", {})


@pytest.mark.parametrize("kind", [PolyStep, torch.optim.Adam])
@pytest.mark.filterwarnings("ignore:.*returned Adam")
def test_parameters_of_something_else_are_refused(module, kind):
    stranger = nn.Parameter(torch.zeros(5, 4))
    adoption = adopt(kind([*module.parameters(), stranger]), module, "replace", {})
    with pytest.raises(ValueError, match=r"PolyStep holds .*\(5, 4\).* not the module's: assign"):
        Engine(module, adoption.optimizer)


# --- schedules as ratios ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "ratios"),
    [
        (lambda o: StepLR(o, 1, gamma=0.5), [1, 0.5, 0.25]),
        (lambda o: LinearLR(o, 0.1, total_iters=2), [0.1, 0.55, 1]),  # warm-up
        (lambda o: LambdaLR(o, lambda epoch: epoch / 2), [0, 0.5, 1]),  # warm-up from zero
        (lambda o: CosineAnnealingLR(o, 2), [1, 0.5, 0]),
        (lambda o: OneCycleLR(o, 1e-2, total_steps=3, pct_start=2 / 3), [0.04, 1, 4e-6]),  # never above its peak
        (lambda o: CyclicLR(o, 1e-3, 1e-2, step_size_up=2), [0.1, 0.55, 1, 0.55, 0.1, 0.55]),  # likewise
        (lambda o: CyclicLR(o, 1e-3, 1e-2, step_size_up=1, mode="triangular2"), [0.1, 1, 0.1, 0.55, 0.1]),
        (lambda o: ChainedScheduler([CyclicLR(o, 1e-3, 1e-2, step_size_up=1)]), [0.1, 1, 0.1]),
        (lambda o: SequentialLR(o, [ConstantLR(o, 0.5), CyclicLR(o, 1e-3, 1e-2, 1)], [1]), [0.05, 0.1, 1, 0.1]),
    ],
    ids=["step", "warm-up", "from zero", "cosine", "one cycle", "cycles", "lower cycles", "chained", "sequential"],
)
def test_the_radius_follows_the_ratio(module, make, ratios):
    foreign = torch.optim.Adam(module.parameters(), lr=1e-3)
    scheduler = make(foreign)
    adoption = replaced(foreign, module, [scheduler], lr=0.2)
    found = []
    for _ in ratios:
        found += radii(adoption)
        scheduler.step()
    assert found == pytest.approx([0.2 * ratio for ratio in ratios], abs=1e-9)


def test_the_cycles_of_another_optimizer_do_not_count(module):
    ours, other = (torch.optim.Adam(layer.parameters(), lr=1e-3) for layer in module)
    cycles = CyclicLR(other, 1e-3, 1e-2)
    assert radii(replaced(ours, module, [cycles, StepLR(ours, 1)], lr=0.2)) == [0.2]


def test_every_group_follows_its_own_schedule(module):
    foreign = torch.optim.Adam([{"params": module[0].parameters(), "lr": 1.0}, {"params": module[1].parameters()}])
    scheduler = LambdaLR(foreign, [lambda epoch: 0.5**epoch, lambda _: 1.0])
    adoption = replaced(foreign, module)
    adoption.follow_schedule()
    scheduler.step()
    adoption.follow_schedule()
    assert [group["lr"] for group in adoption.optimizer.param_groups] == pytest.approx([0.05, 1e-4])


def grouped(module, *rates, kind=torch.optim.Adam):
    return kind([{"params": layer.parameters(), "lr": rate} for layer, rate in zip(module, rates, strict=True)])


@pytest.mark.parametrize(
    ("rates", "expected"),
    [((1e-5, 1e-3), [0.002, 0.2]), ((0.0, 1e-3), [0.0, 0.2]), ((1e-3, 0.0), [0.2, 0.0]), ((3.0, 3.0), [0.2, 0.2])],
)
def test_the_ratios_of_the_groups_count_and_zero_freezes(module, rates, expected):
    adoption = replaced(grouped(module, *rates), module, lr=0.2)
    assert [group["lr"] for group in adoption.optimizer.param_groups] == pytest.approx(expected, abs=0)


def test_a_group_of_zero_may_be_set_free_later(module):
    foreign = grouped(module, 0.0, 1e-3)
    adoption = replaced(foreign, module, lr=0.2)
    foreign.param_groups[0]["lr"] = 5e-4
    assert radii(adoption) == pytest.approx([0.1, 0.2])


def test_the_ratios_of_optimizers_of_one_class_count(module):
    returned = [torch.optim.Adam(module[0].parameters(), 1e-4), torch.optim.Adam(module[1].parameters(), 4e-4)]
    with pytest.warns(UserWarning, match="returned Adam"):
        first, second = adopt_all(returned, module, "replace", {"lr": 0.2})
    assert (*radii(first), *radii(second)) == pytest.approx((0.05, 0.2))
    returned[1] = torch.optim.SGD(module[1].parameters(), 10.0)  # of another class: rates cannot be compared
    with pytest.warns(UserWarning, match="returned"):
        first, second = adopt_all(returned, module, "replace", {"lr": 0.2})
    assert (*radii(first), *radii(second)) == pytest.approx((0.2, 0.2))


def test_a_learning_rate_of_zero_holds_still_and_says_so(module):
    foreign = torch.optim.SGD(module.parameters(), lr=0.0)
    with pytest.warns(UserWarning, match="learning rate of SGD is 0, so nothing moves"):
        adoption = replaced(foreign, module)
    assert radii(adoption) == [0.0]
    foreign.param_groups[0]["lr"] = 1.0
    assert radii(adoption) == [0.1]


@REPLACED
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD])
def test_a_frozen_group_keeps_its_bits(tmp_path, kind):
    module = Boring(lambda m: grouped([m.net[0], m.net[3]], 0.0, 1e-3, kind=kind))
    before = [parameters_sha256(layer) for layer in (module.net[0], module.net[3])]
    trainer(tmp_path).fit(module, loader())
    after = [parameters_sha256(layer) for layer in (module.net[0], module.net[3])]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False]


# --- who looks at the radius ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1e-3, torch.tensor(1e-3)], ids=["float", "tensor"])
def test_the_radius_is_up_to_date_as_soon_as_the_schedule_is(module, rate):
    foreign = torch.optim.Adam(module.parameters(), lr=rate)
    scheduler = StepLR(foreign, 1, gamma=0.5)
    group = replaced(foreign, module, lr=0.2).optimizer.param_groups[0]
    for ratio in (0.5, 0.25):
        scheduler.step()
        assert group["lr"] == group.get("lr") == pytest.approx(0.2 * ratio)


@REPLACED
@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_a_monitor_logs_the_radius_that_is_used(tmp_path, interval):
    class Scheduled(Boring):
        used = ()

        def configure_optimizers(self):
            optimizer = torch.optim.Adam(self.parameters(), lr=1e-3)
            scheduler = StepLR(optimizer, 1, gamma=0.5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval}}

        def on_before_optimizer_step(self, optimizer):
            self.used += (optimizer.param_groups[0]["lr"],)

    module, logger = Scheduled(), CountingLogger()
    callbacks = [LearningRateMonitor(logging_interval=interval)]
    trainer(tmp_path, max_epochs=4, logger=logger, callbacks=callbacks, log_every_n_steps=1).fit(module, loader(1))
    assert module.used == pytest.approx((0.1, 0.05, 0.025, 0.0125))
    assert tuple(logger.history["lr-PolyStep"]) == module.used


def test_a_copy_of_an_adopted_optimizer_follows_nothing(module):
    adoption = replaced(torch.optim.Adam(module.parameters(), lr=1e-3), module, lr=0.2)
    copied = copy.deepcopy(adoption.optimizer)
    assert type(copied.param_groups[0]) is dict
    assert copied.param_groups[0]["lr"] == 0.2


# --- resume -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.1, 0.3, 1e-3, 0.7])
@pytest.mark.parametrize("gamma", [0.1, 0.3, 0.9])
def test_a_restored_schedule_has_the_same_bits(module, rate, gamma):
    def adopted():
        foreign = torch.optim.Adam(module.parameters(), lr=rate)
        return StepLR(foreign, 1, gamma=gamma), replaced(foreign, module)

    scheduler, adoption = adopted()
    for _ in range(5):
        continued, resumed = adopted()
        resumed.optimizer.load_state_dict(adoption.optimizer.state_dict())
        resumed.restore_schedule()
        continued.load_state_dict(scheduler.state_dict())
        for each in (scheduler, continued):
            each.step()
        assert radii(resumed) == radii(adoption)


def test_restoring_brings_the_foreign_rate_to_the_same_ratio(module):
    foreign = torch.optim.Adam(module.parameters(), lr=1e-3)
    adoption = replaced(foreign, module, lr=0.2)
    state = adoption.optimizer.state_dict()
    state["param_groups"][0]["lr"] = 0.05
    del state["param_groups"][0]["foreign_lr"]  # as an earlier version saved it
    adoption.optimizer.load_state_dict(state)
    adoption.restore_schedule()
    assert foreign.param_groups[0]["lr"] == pytest.approx(2.5e-4)
    adoption.follow_schedule()
    assert adoption.optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


def test_restoring_keeps_the_peak_of_cycles(module):
    def adopted():
        foreign = torch.optim.Adam(module.parameters(), lr=1e-3)
        cycles = CyclicLR(foreign, 1e-3, 1e-2, step_size_up=2)
        return foreign, cycles, replaced(foreign, module, [cycles], lr=0.2)

    _, cycles, adoption = adopted()
    assert radii(adoption) == pytest.approx([0.02])
    cycles.step()
    assert radii(adoption) == pytest.approx([0.11])
    foreign, _, resumed = adopted()
    resumed.optimizer.load_state_dict(adoption.optimizer.state_dict())
    resumed.restore_schedule()
    assert foreign.param_groups[0]["lr"] == pytest.approx(5.5e-3)
    assert radii(resumed) == pytest.approx([0.11])


def test_a_group_added_later_keeps_its_radius(module):
    foreign = torch.optim.Adam(module[1].parameters(), lr=1e-3)
    scheduler = StepLR(foreign, 1, gamma=0.5)
    adoption = replaced(foreign, module)
    adoption.optimizer.add_param_group({"params": list(module[0].parameters()), "lr": 0.01})
    adoption.follow_schedule()
    scheduler.step()
    adoption.follow_schedule()
    adoption.restore_schedule()
    assert [group["lr"] for group in adoption.optimizer.param_groups] == pytest.approx([0.05, 0.01])


def test_an_adoption_without_a_schedule_is_constant(module):
    foreign = torch.optim.Adam(module.parameters())
    adoption = Adoption(PolyStep(module.parameters(), lr=0.3), foreign)
    adoption.follow_schedule()
    assert adoption.optimizer.param_groups[0]["lr"] == 0.3


# --- radii set by hand ------------------------------------------------------------------------------------------------

SET_BY_HAND = "that replaced Adam was set by hand, from"


def halving(module):
    """An adoption with two groups, whose schedule halves both at each of its steps."""
    foreign = torch.optim.Adam([{"params": layer.parameters()} for layer in module], lr=1e-3)
    scheduler = LambdaLR(foreign, lambda epoch: 0.5**epoch)
    return replaced(foreign, module, [scheduler], lr=0.2), scheduler


def test_a_radius_set_by_hand_is_used_and_scheduled_from_then_on(module):
    adoption, scheduler = halving(module)
    assert radii(adoption) == [0.2, 0.2]
    scheduler.step()
    with pytest.warns(UserWarning, match=f"{SET_BY_HAND} 0.1 to 0.3") as caught:
        adoption.optimizer.param_groups[0]["lr"] = 0.3
    assert radii(adoption) == [0.3, 0.1]
    assert radii(adoption) == [0.3, 0.1]
    scheduler.step()
    assert radii(adoption) == pytest.approx([0.15, 0.05])
    adoption.optimizer.param_groups[1]["lr"] *= 2
    assert radii(adoption) == pytest.approx([0.15, 0.1]), "without another warning, which would be an error here"
    assert len(caught) == 1


def test_a_radius_set_by_hand_where_the_schedule_is_at_zero(module):
    foreign = torch.optim.Adam(module.parameters(), lr=1e-3)
    scheduler = LambdaLR(foreign, lambda epoch: epoch / 2)
    adoption = replaced(foreign, module, lr=0.2)
    assert radii(adoption) == [0]
    with pytest.warns(UserWarning, match=SET_BY_HAND):
        adoption.optimizer.param_groups[0]["lr"] = 0.3
    assert radii(adoption) == [0.3]
    scheduler.step()
    assert radii(adoption) == pytest.approx([0.15])


def test_a_radius_set_by_hand_survives_a_resume(module):
    adoption, scheduler = halving(module)
    assert radii(adoption) == [0.2, 0.2]
    scheduler.step()
    with pytest.warns(UserWarning, match=SET_BY_HAND):
        adoption.optimizer.param_groups[0]["lr"] = 0.3
    resumed, continued = halving(module)
    resumed.optimizer.load_state_dict(adoption.optimizer.state_dict())
    resumed.restore_schedule()
    continued.load_state_dict(scheduler.state_dict())
    assert radii(resumed) == pytest.approx([0.3, 0.1])
    for scheduled in (scheduler, continued):
        scheduled.step()  # computes the rate from the initial one, and so forgets what it was
    assert radii(resumed) == radii(adoption) == pytest.approx([0.15, 0.05])


@REPLACED
@pytest.mark.filterwarnings(f"ignore:.*{SET_BY_HAND}")
def test_a_user_may_set_the_radius_in_a_hook(tmp_path):
    class ByHand(Boring):
        used = ()

        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 2:
                self.optimizers().param_groups[0]["lr"] *= 0.1

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.used += (self.optimizers().param_groups[0]["lr"],)

    module = ByHand(lambda m: torch.optim.Adam(m.parameters(), lr=1e-3))
    trainer(tmp_path).fit(module, loader(batches=4))
    assert module.used == pytest.approx((0.1, 0.1, 0.01, 0.01))


@REPLACED
def test_cycles_of_a_module_never_step_farther_than_the_radius(tmp_path):
    class Cyclic(Boring):
        used = ()

        def configure_optimizers(self):
            optimizer = torch.optim.Adam(self.parameters(), lr=1e-3)
            cycles = CyclicLR(optimizer, 1e-3, 1e-2, step_size_up=2)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycles, "interval": "step"}}

        def on_before_zero_grad(self, optimizer):
            self.used += (optimizer.param_groups[0]["lr"],)

    module = Cyclic()
    trainer(tmp_path).fit(module, loader(batches=6))
    assert max(module.used) == pytest.approx(0.1)
    assert min(module.used) == pytest.approx(0.01)


# --- the learning rate finder -----------------------------------------------------------------------------------------


class Tunable(Boring):
    """Its learning rate is an attribute, which the finder sets."""

    def __init__(self, make):
        super().__init__(lambda module: make(module, module.lr))
        self.lr = 1e-3


def tuned(tmp_path, module, *, same_trainer=True):
    """Find a learning rate, then fit; return the finder's suggestion and the radii that the fit starts with."""
    options = {"max_epochs": 2, "limit_val_batches": 0}
    run = trainer(tmp_path, **options)
    found = Tuner(run).lr_find(module, loader(16), num_training=16, min_lr=1e-3).suggestion()
    assert module.lr == found
    run = run if same_trainer else trainer(tmp_path, **options)
    run.fit(module, loader(2))
    return found, [group["lr"] for group in run.optimizers[0].param_groups]


@REPLACED
@pytest.mark.parametrize("same_trainer", [True, False])
@pytest.mark.parametrize(
    ("make", "ratios"),
    [
        (lambda m, lr: torch.optim.Adam(m.parameters(), lr=lr), [1]),
        (lambda m, lr: PolyStep(m.parameters(), lr=lr), [1]),
        (lambda m, lr: None, [1]),
        (lambda m, lr: grouped([m.net[0], m.net[3]], 0.1 * lr, lr), [0.1, 1]),
    ],
    ids=["Adam", "PolyStep", "None", "groups"],
)
def test_a_learning_rate_that_was_found_is_the_step_radius(tmp_path, make, ratios, same_trainer):
    found, used = tuned(tmp_path, Tunable(make), same_trainer=same_trainer)
    assert used == pytest.approx([found * ratio for ratio in ratios], rel=1e-12)


@REPLACED
def test_a_learning_rate_that_was_found_and_is_not_used_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match=r"finder has found a step radius of .* so it is ignored: return .*PolyStep"):
        _, used = tuned(tmp_path, Tunable(lambda m, lr: torch.optim.Adam(m.parameters(), lr=3e-3)))
    assert used == [0.1]


@REPLACED
def test_a_finder_among_the_callbacks_sets_the_radius_of_its_own_fit(tmp_path):
    module = Tunable(lambda m, lr: torch.optim.Adam(m.parameters(), lr=lr))
    finder = LearningRateFinder(num_training_steps=16, min_lr=1e-3)
    run = trainer(tmp_path, callbacks=[finder], limit_val_batches=0)
    run.fit(module, loader(16))
    assert run.optimizers[0].param_groups[0]["lr"] == finder.optimal_lr.suggestion() == module.lr


# --- fine-tuning ------------------------------------------------------------------------------------------------------


class Backbone(BaseFinetuning):
    """Train the head for one epoch, then everything, as Lightning's BackboneFinetuning does."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.net[0])

    def finetune_function(self, pl_module, epoch, optimizer):
        self.weights.append(pl_module.net[0].weight.detach().clone())
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net[0], optimizer, initial_denom_lr=2)


def trainable(module):
    return [p for p in module.parameters() if p.requires_grad]


@REPLACED
@pytest.mark.parametrize(
    "make",
    [None, lambda m: PolyStep(trainable(m), rank=4), lambda m: torch.optim.Adam(trainable(m), lr=1e-3)],
    ids=["None", "PolyStep", "Adam"],
)
def test_a_finetuning_callback_unfreezes_the_backbone(tmp_path, make):
    module, callback = Boring(make), Backbone()
    run = trainer(tmp_path, max_epochs=3, callbacks=[callback])
    run.fit(module, loader(batches=4))
    first, second, third = callback.weights
    assert torch.equal(first, second), "frozen parameters moved"
    assert not torch.equal(second, third), "unfrozen parameters did not move"
    assert [group["lr"] for group in run.optimizers[0].param_groups] == pytest.approx([0.1, 0.05])
    assert {a.block.name for a in run.strategy.engines[0].plan.assignments} == {"net.0", "net.3"}


@REPLACED
def test_parameters_frozen_in_mid_run_stay_where_they_are(tmp_path):
    class Freeze(BaseFinetuning):
        weights = None

        def freeze_before_training(self, pl_module):
            pass

        def finetune_function(self, pl_module, epoch, optimizer):
            if epoch == 1:
                self.freeze(pl_module.net[0])
                self.weights = pl_module.net[0].weight.detach().clone(), pl_module.net[3].weight.detach().clone()

    module, callback = Boring(lambda m: torch.optim.Adam(m.parameters())), Freeze()
    start = module.net[0].weight.detach().clone()
    trainer(tmp_path, max_epochs=3, callbacks=[callback]).fit(module, loader(batches=4))
    frozen, head = callback.weights
    assert not torch.equal(start, frozen)
    assert torch.equal(module.net[0].weight, frozen)
    assert not torch.equal(module.net[3].weight, head)


@pytest.mark.parametrize("make", [None, lambda m: PolyStep(m.parameters())], ids=["None", "PolyStep"])
def test_biases_train_alone(tmp_path, make):
    module = Boring(make)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    trainer(tmp_path).fit(module, loader())
    moved = {name for name, parameter in module.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {"net.0.bias", "net.3.bias"}
