"""Every precision of the Trainer trains and resumes exactly; costs are summed in float64; compiled modules run."""

import pytest
import pytorch_lightning as pl
import torch

from lightning_polystep.results import parameters_sha256
from tests.helpers.boring import Boring, loader, polystep, spiking, trainer
from tests.helpers.resume import BATCHES, Noisy, run_rest, run_whole

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create"),
    pytest.mark.filterwarnings("ignore:.*AMP with fp16 is not supported on CPU"),  # bfloat16 takes its place
]

HALF = "the network computes in torch.bfloat16"
NETWORKS = {
    "32-true": "",
    "64-true": "",
    "bf16-mixed": HALF,
    # Its loss, rounded to eight bits, is not what the stack computes.
    "bf16-true": "the step returned a loss of",
    "16-mixed": HALF,
}
STOP = 3
SHORT = {"limit_train_batches": 2, "limit_val_batches": 0}


class Spiking(spiking(Boring)):
    """Computes in whatever precision the Trainer sets."""

    def __init__(self):
        super().__init__()
        self.network.float()

    def loss(self, batch):
        inputs, labels = batch
        return self.criterion(self.network(inputs), labels)


class Look(pl.Callback):
    """Sees the costs as they are gathered, and the plan."""

    def __init__(self):
        self.dtypes, self.notes = set(), []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.dtypes |= {costs.dtype for costs in optimizer.binding.pending.costs}
        self.notes = [assignment.note for assignment in trainer.strategy.engines[0].plan.assignments]


@pytest.mark.parametrize("precision", NETWORKS)
def test_a_precision_trains_and_resumes_exactly(tmp_path, precision):
    options = {"precision": precision, **SHORT}
    whole = run_whole(tmp_path, Noisy(), loader(BATCHES, shuffle=True), **options)
    assert len(set(whole)) == len(whole)
    look = Look()
    rest = run_rest(tmp_path / f"{STOP}.ckpt", Noisy(), loader(BATCHES, shuffle=True), more=[look], **options)
    assert rest == whole[STOP:]
    assert look.dtypes == {torch.float64}


@pytest.mark.parametrize(("precision", "reason"), NETWORKS.items())
def test_the_fast_tiers_name_the_precision_that_keeps_them_out(tmp_path, precision, reason):
    look = Look()
    trainer(tmp_path, precision=precision, limit_val_batches=0, callbacks=[look]).fit(Spiking(), loader(1))
    assert look.notes
    assert all(reason in note and bool(note) == bool(reason) for note in look.notes)


def test_deterministic_algorithms_change_nothing(tmp_path):
    whole = run_whole(tmp_path, Noisy(), loader(BATCHES), deterministic=True, **SHORT)
    rest = run_rest(tmp_path / f"{STOP}.ckpt", Noisy(), loader(BATCHES), deterministic=True, **SHORT)
    assert rest == whole[STOP:]


class Compiled(Noisy):
    def __init__(self):
        super().__init__(polystep)
        # The backend that compiles nothing: what may fail is the tracing.
        self.net = torch.compile(self.net, backend="eager")


@pytest.mark.slow
def test_a_compiled_network_trains_and_resumes(tmp_path):
    whole = run_whole(tmp_path, Compiled(), loader(BATCHES), **SHORT)
    assert len(set(whole)) == len(whole)
    # Tracing may show layers in one process and hide them in the next, which leads to other tiers and roundings.
    rest = run_rest(tmp_path / f"{STOP}.ckpt", Compiled(), loader(BATCHES), **SHORT)
    assert len(rest) == len(whole) - STOP


def scripted(network):
    return torch.jit.script(network)


def scripted_in_part(network):
    network[0] = torch.jit.script(network[0])
    return network


class JustInTime(Boring):
    """Compiled by torch.jit, all of it or a layer."""

    def __init__(self, compile_by, *, norm=False):
        super().__init__(polystep)
        if norm:
            self.net.insert(1, torch.nn.BatchNorm1d(6))
        self.net = compile_by(self.net)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("compile_by", [scripted, scripted_in_part, lambda net: torch.jit.trace(net, torch.ones(8, 4))])
def test_a_network_of_torch_jit_trains_and_the_plan_says_what_it_costs(tmp_path, compile_by):
    look = Look()
    module = JustInTime(compile_by)
    before = parameters_sha256(module)
    trainer(tmp_path, callbacks=[look]).fit(module, loader(batches=4))
    assert parameters_sha256(module) != before
    assert any("compiled by torch.jit, which hides its layers' inputs" in note for note in look.notes)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_candidates_leave_the_statistics_of_a_compiled_network_alone(tmp_path):
    module = JustInTime(scripted, norm=True)
    trainer(tmp_path).fit(module, loader(batches=4))
    assert int(dict(module.named_buffers())["net.1.num_batches_tracked"]) == 4
