"""Optimizers that move all parameters at once are hosted as PolyStep is: Trainer, checkpoints, processes, YAML."""

import copy
import json
import pickle
from functools import partial

import pytest
import torch
from torch import nn

from lightning_polystep import Engine, PolyStep, PolyStepStrategy
from lightning_polystep.baselines import CMAES, EGGROLL, SPSA, MeZO, OpenAIES
from lightning_polystep.cli import main
from tests.helpers import ranks
from tests.helpers.boring import Boring, BoringByHand, CountingLogger, loader, trainer
from tests.helpers.quadratics import Quadratic
from tests.helpers.resume import BATCHES, Noisy, run_rest, run_whole

pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create")

MAKE = {
    "SPSA": lambda module: SPSA(module.parameters(), lr=0.1, seed=0),
    "MeZO": lambda module: MeZO(module.parameters(), lr=0.05, pairs=2, seed=0),
    "OpenAIES": lambda module: OpenAIES(module.parameters(), lr=0.05, pairs=4, seed=0),
    "EGGROLL": lambda module: EGGROLL(module.parameters(), lr=0.05, pairs=4, rule="adam", seed=0),
    "CMAES": lambda module: CMAES(module.parameters(), seed=0),
}
each = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)


@each
def test_a_trainer_with_the_strategy_trains_by_it(tmp_path, make):
    module, logged = Boring(make), CountingLogger()
    strategy = PolyStepStrategy(show_plan=False)
    trainer(tmp_path, strategy=strategy, max_epochs=5, logger=logged, log_every_n_steps=1).fit(module, loader())
    (engine,) = strategy.engines
    assert engine.optimizer is module.optimizers().optimizer
    assert engine.optimizer.progress.step == 40
    assert torch.stack(module.losses[-8:]).mean() < torch.stack(module.losses[:8]).mean()
    assert logged.history["polystep/candidates"] == [engine.optimizer.population(44)] * 40
    assert all(parameter.grad is None for parameter in module.parameters())


@each
def test_a_run_resumed_after_any_batch_has_the_same_hashes_from_there_on(tmp_path, make):
    options = {"accumulate_grad_batches": 3}
    whole = run_whole(tmp_path, Noisy(make), loader(BATCHES, shuffle=True), **options)
    assert len(set(whole)) > BATCHES // 3
    for stop in (1, 4, 5, 6, 13):
        rest = run_rest(tmp_path / f"{stop}.ckpt", Noisy(make), loader(BATCHES, shuffle=True), **options)
        assert rest == whole[stop:], f"stopped after batch {stop}"


def task_of(name, shards):
    module = Boring(MAKE[name])
    return ranks.dealt(module) if shards > 1 else (module, loader(6, shuffle=True), {})


@pytest.mark.parametrize(("name", "shards"), [("OpenAIES", 1), ("CMAES", 1), ("SPSA", 2)])
def test_two_processes_make_the_steps_of_one(tmp_path, name, shards):
    """They divide the candidates, or the batch: then one process accumulates over what two see at once."""
    task = partial(task_of, name, shards)
    (alone,) = ranks.fit(task, 1, tmp_path, options={"accumulate_grad_batches": shards})
    both = ranks.fit(task, 2, tmp_path, data_parallel_size=shards)
    assert not any(rank.error for rank in (alone, *both))
    assert len(alone.hashes) > 2
    assert [rank.hashes for rank in both] == [alone.hashes] * 2


def test_a_manual_step_moves_by_it(tmp_path):
    module = BoringByHand(MAKE["OpenAIES"])
    before = sum(module.loss(batch) for batch in loader())
    trainer(tmp_path, max_epochs=5).fit(module, loader())
    assert sum(module.loss(batch) for batch in loader()) < before


def test_micro_batches_are_averaged_for_the_same_candidates():
    inputs, targets = torch.randn(8, 3, dtype=torch.float64), torch.randn(8, 1, dtype=torch.float64)
    moved = []
    for cuts in ([slice(0, 8)], [slice(0, 4), slice(4, 8)]):
        torch.manual_seed(0)
        model = nn.Linear(3, 1, dtype=torch.float64)
        engine = Engine(model, MeZO(model.parameters(), lr=0.1, seed=0), announce=None)
        for cut in cuts:

            def loss(model=model, cut=cut):
                return (model(inputs[cut]) - targets[cut]).square().mean()

            with engine.observing():
                committed = loss()
            engine.probe(loss, committed)
        engine.optimizer.step()
        moved.append(model.weight.detach().clone())
    torch.testing.assert_close(*moved)


@pytest.mark.parametrize("evaluation", ["loop", "tape"])
def test_the_tape_and_the_loop_lead_to_the_same_place(evaluation):
    expected = Quadratic(lambda ps: OpenAIES(ps, pairs=4, seed=0)).run(5)
    points = Quadratic(lambda ps: OpenAIES(ps, pairs=4, seed=0), evaluation=evaluation).run(5)
    torch.testing.assert_close(torch.stack(points), torch.stack(expected))


def test_all_parameters_are_one_block_and_frozen_ones_stay():
    problem = Quadratic(lambda ps: SPSA(ps, seed=0))
    problem.module[0].requires_grad_(False)
    start, end = problem.run(1)
    (assignment,) = problem.engine.plan.assignments
    assert (assignment.block.dim, assignment.block.parameter_names) == (6, ("1",))
    assert problem.engine.plan.last_candidates == {"all": 2}
    assert torch.equal(start[:3], end[:3])
    assert (start[3:] != end[3:]).all()
    assert "a candidate changes all parameters" in str(problem.engine.plan)


@each
def test_climbing_is_descending_on_the_negated_loss(make):
    points = []
    for climb in (False, True):
        problem = Quadratic(lambda ps: make(nn.ParameterList(ps)))
        problem.optimizer.param_groups[0]["maximize"] = climb
        if climb:
            problem.loss = partial(lambda loss: -loss(), problem.loss)
        points.append(torch.stack(problem.run(3)))
    torch.testing.assert_close(*points)
    assert not torch.equal(points[0][0], points[0][-1])


def test_groups_that_climb_and_descend_at_once_are_refused():
    groups = [{"params": [nn.Parameter(torch.zeros(2))], "maximize": climb} for climb in (False, True)]
    with pytest.raises(ValueError, match=r"SPSA\(maximize=\.\.\.\): candidates move all groups"):
        SPSA(groups)


@each
def test_copies_and_pickles_go_on_alike(make):
    ends = []
    for duplicate in (copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))):
        problem = Quadratic(lambda ps: make(nn.ParameterList(ps)))
        problem.run(2)
        module, optimizer = duplicate((problem.module, problem.optimizer))
        problem.module, problem.optimizer = module, optimizer
        problem.engine = Engine(module, optimizer, announce=None)
        ends.append(problem.run(2)[-1])
    problem = Quadratic(lambda ps: make(nn.ParameterList(ps)))
    torch.testing.assert_close(ends, [problem.run(4)[-1]] * 2, rtol=0, atol=0)


def test_the_state_of_one_kind_is_refused_by_another():
    saved = Quadratic(lambda ps: SPSA(ps, seed=0)).optimizer.state_dict()
    for kind in (MeZO, PolyStep):
        with pytest.raises(ValueError, match="state of another optimizer"):
            Quadratic(lambda ps, kind=kind: kind(ps, seed=0)).optimizer.load_state_dict(saved)


def test_it_is_chosen_in_a_yaml_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = """
    trainer:
      strategy: {class_path: lightning_polystep.PolyStepStrategy, init_args: {show_plan: false}}
      accelerator: cpu
      devices: 1
      max_epochs: 1
      limit_train_batches: 2
      enable_progress_bar: false
      logger: {class_path: pytorch_lightning.loggers.CSVLogger, init_args: {save_dir: runs}}
    model:
      class_path: models.Classifier
      init_args: {network: {class_path: models.SpikingMLP, init_args: {sizes: [64, 8, 10], num_steps: 4}}}
    data: {class_path: datamodules.Digits, init_args: {batch_size: 64}}
    optimizer: {class_path: lightning_polystep.baselines.SPSA, init_args: {lr: 0.05, pairs: 3}}
    """
    (tmp_path / "spsa.yaml").write_text(text, encoding="utf-8")
    trained = main(["fit", "--config", "spsa.yaml"])
    (engine,) = trained.trainer.strategy.engines
    assert type(engine.optimizer) is SPSA
    assert (engine.optimizer.pairs, engine.optimizer.progress.candidates) == (3, 12)
    record = json.loads(next(tmp_path.glob("runs/**/results.json")).read_text())
    assert [row["block"] for row in record["plan"]] == ["all"]
