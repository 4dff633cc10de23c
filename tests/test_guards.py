"""Every refusal names the argument, its value and what to do."""

import pytest
import torch
from torch import nn

from lightning_polystep import Engine
from lightning_polystep.guards import check_group, check_loss, check_owned, check_parameters, check_state
from lightning_polystep.optimizer import PolyStep
from lightning_polystep.results import parameters_sha256
from lightning_polystep.schedules import Linear
from lightning_polystep.transport import Sinkhorn


@pytest.fixture
def group():
    return dict(PolyStep([nn.Parameter(torch.zeros(1))]).defaults)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("lr", -1e-9, r"lr=-1e-09\): the step radius must be at least 0"),
        ("lr", float("nan"), "the step radius must be at least 0"),
        ("probe_radius", 0.0, r"probe_radius=0\.0\): candidates need a radius above 0"),
        ("probe_radius", -0.3, "candidates need a radius above 0"),
        ("epsilon", 0.0, "the temperature must be above 0"),
        ("momentum", 1.0, r"momentum=1\.0\): the memory must be in \[0, 1\)"),
        ("momentum", -0.1, "the memory must be in"),
        ("cost_memory", 1.0, r"cost_memory=1\.0\): the memory must be in \[0, 1\)"),
        ("weight_decay", -0.1, "the decay must be at least 0"),
        ("whitening", 1.1, r"the exponent must be in \[0, 1\]"),
        ("whitening", -0.1, r"the exponent must be in \[0, 1\]"),
        ("anchor_every", 0, r"anchor_every=0\): a basis is kept for at least 1 step"),
        ("rotation_bias", 1.5, r"the lean must be in \[0, 1\]"),
        ("span_floor", 1.0, r"the share must be in \[0, 1\)"),
        ("rank", 0, r"rank=0\): at least one direction must be probed, or None"),
        ("particle_dim", 0, r"particle_dim=0\): use at least 1, or None"),
        ("subspace", "input", r"subspace='input'\): choose from inputs, gaussian, full"),
        ("polytope", "sphere", r"polytope='sphere'\): choose from simplex, orthoplex, cube"),
        ("transport", "hard", r"transport='hard'\): choose from softmax, sinkhorn, kl, sample, or give one of"),
        ("transport", None, r"transport=None\): choose from softmax"),
        ("transport", {"class_path": "Sinkhorn"}, "choose from softmax"),
        ("transport", Sinkhorn, r"choose from softmax, sinkhorn, kl, sample, or give one of"),
        ("epsilon", Linear(1.0, 0.0, steps=3), r"epsilon=Linear\(.*: the temperature must be above 0"),
    ],
)
def test_values_out_of_range_are_refused(group, name, value, message):
    with pytest.raises(ValueError, match=message):
        check_group({**group, name: value})


INFINITE = [float("inf"), float("nan"), torch.tensor(float("inf"))]


@pytest.mark.parametrize("name", ["lr", "probe_radius", "epsilon", "momentum", "weight_decay", "whitening"])
@pytest.mark.parametrize("value", INFINITE, ids=["inf", "nan", "tensor"])
def test_numbers_have_to_be_finite(group, name, value):
    with pytest.raises(ValueError, match=rf"PolyStep\({name}=.*(inf|nan).*\): [^\n]*, and finite\.$"):
        check_group({**group, name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", "0.1"),
        ("lr", True),
        ("lr", None),
        ("lr", [0.1]),
        ("lr", torch.ones(2)),
        ("weight_decay", "none"),
        ("momentum", 1j),
        ("rank", 2.5),
        ("rank", "4"),
        ("rotations", None),
        ("response_grid", 9.0),
        ("particle_dim", True),
        ("subspace", ["inputs"]),
        ("polytope", None),
        ("transport", 3),
        ("maximize", "yes"),
    ],
)
def test_wrong_types_are_refused_in_one_sentence(group, name, value):
    message = rf"PolyStep\({name}=[^\n]*\): [^\n]*; it must be a [a-z ]+, and this is of type \w+\.$"
    for error in (TypeError, ValueError):
        with pytest.raises(error, match=message):
            check_group({**group, name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("importance_sampling", "x"), ("importance_sampling", -1), ("seed", 1.5), ("seed", "a"), ("lr", "a")],
)
def test_the_optimizer_refuses_them_as_well(name, value):
    with pytest.raises(ValueError, match=rf"PolyStep\({name}="):
        PolyStep([nn.Parameter(torch.zeros(1))], **{name: value})


def test_a_module_in_the_place_of_its_parameters():
    with pytest.raises(TypeError, match=r"PolyStep\(Linear\(\.\.\.\)\): it takes parameters"):
        PolyStep(nn.Linear(1, 1))


def test_the_arguments_of_an_engine():
    model = nn.Linear(1, 1)
    optimizer = PolyStep(model.parameters())
    for options in ({"evaluation": "Auto"}, {"memory_budget": 0}, {"max_candidates": -5}, {"max_candidates": 1.5}):
        with pytest.raises(ValueError, match=rf"Engine\({next(iter(options))}="):
            Engine(model, optimizer, **options)
    with pytest.raises(TypeError, match=r"Engine\(optimizer=Adam\(\.\.\.\)\): it must be lightning_polystep\.PolyStep"):
        Engine(model, torch.optim.Adam(model.parameters()))
    with pytest.raises(TypeError, match=r"it must be a torch\.nn\.Module"):
        Engine(lambda x: x, optimizer)


@pytest.mark.parametrize("name", ["lr", "weight_decay", "probe_radius", "momentum", "epsilon"])
def test_a_number_that_is_set_to_infinity_while_training_moves_nothing(name):
    model = nn.Linear(2, 1)
    optimizer = PolyStep(model.parameters(), seed=0)
    engine = Engine(model, optimizer, announce=None)
    optimizer.param_groups[0][name] = float("inf")
    before = parameters_sha256(model)
    with pytest.raises(ValueError, match=f"{name} was set to inf during training"):
        engine.step(lambda: model(torch.ones(3, 2)).square().mean())
    assert parameters_sha256(model) == before


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"lr": 0.0},
        {"momentum": 0.0},
        {"whitening": 0.0},
        {"whitening": 1.0},
        {"rank": 1},
        {"particle_dim": 1},
        {"polytope": "cube"},
        {"transport": "kl"},
        {"transport": Sinkhorn(tolerance=0.1)},
        {"epsilon": Linear(1.0, 0.5, steps=3)},
        {"lr": torch.tensor(0.1)},
    ],
)
def test_the_ends_of_the_ranges_are_allowed(group, values):
    check_group({**group, **values})


def test_state_of_another_optimizer_is_refused():
    adam = torch.optim.Adam([nn.Parameter(torch.zeros(1))])
    with pytest.raises(ValueError, match=r"state of another optimizer: load only the weights.*load_from_checkpoint"):
        check_state(adam.state_dict(), 1, "PolyStep")


def test_state_of_another_version_is_refused():
    with pytest.raises(ValueError, match="format 2, this version reads 1"):
        check_state({"polystep": {"format": 2}}, 1, "PolyStep")


def with_parameter(tensor, *, requires_grad=True):
    module = nn.Linear(1, 1)
    module.extra = nn.Parameter(tensor, requires_grad=requires_grad)
    return module


def test_lazy_parameters_and_buffers_are_refused():
    with pytest.raises(ValueError, match=r"0\.weight is lazy .*: run one batch through the module"):
        check_parameters(nn.Sequential(nn.LazyLinear(2)))
    norm = nn.LazyBatchNorm1d(affine=False)
    with pytest.raises(ValueError, match="running_mean is lazy"):
        check_parameters(nn.Sequential(nn.Linear(1, 1), norm))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool])
def test_integer_parameters_are_frozen_and_so_accepted(dtype):
    check_parameters(with_parameter(torch.zeros(2).to(dtype), requires_grad=False))


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4)])
def test_empty_parameters_are_accepted_beside_others_only(shape):
    check_parameters(with_parameter(torch.zeros(shape)))
    with pytest.raises(ValueError, match="no trainable parameter"):
        check_parameters(nn.ParameterList([torch.zeros(shape)]))


def test_complex_parameters_are_refused_unless_frozen():
    with pytest.raises(ValueError, match="extra is complex"):
        check_parameters(with_parameter(torch.zeros(2, dtype=torch.complex64)))
    check_parameters(with_parameter(torch.zeros(2, dtype=torch.complex64), requires_grad=False))


@pytest.mark.parametrize("module", [nn.ReLU(), nn.Linear(1, 1).requires_grad_(False)])
def test_a_module_with_nothing_to_train_is_refused(module):
    with pytest.raises(ValueError, match=r"no trainable parameter: unfreeze some"):
        check_parameters(module)


def test_an_ordinary_module_is_accepted():
    check_parameters(nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1), nn.Linear(1, 1).requires_grad_(False)))


@pytest.mark.parametrize(
    ("loss", "kind"),
    [(None, "NoneType"), (1.0, "float"), ({"loss": 1}, "dict"), (torch.tensor(1), r"torch\.int64 tensor")],
)
def test_a_loss_that_is_no_floating_point_tensor_is_refused(loss, kind):
    with pytest.raises(ValueError, match=f"returned a? ?{kind} as its loss: return a floating-point scalar tensor"):
        check_loss(loss)


def test_a_loss_is_returned_as_it_is():
    loss = torch.tensor(1.0, dtype=torch.bfloat16)
    assert check_loss(loss) is loss


def test_parameters_must_be_the_modules():
    module = nn.Linear(2, 2)
    check_owned(torch.optim.Adam(module.parameters()), module)
    with pytest.raises(ValueError, match=r"\(3,\).*not the module's"):
        check_owned(torch.optim.Adam([nn.Parameter(torch.zeros(3))]), module)


def test_several_radii_need_several_polytopes(group):
    with pytest.raises(ValueError, match=r"PolyStep\(radius_ratio=2.0\): one polytope has one radius"):
        check_group({**group, "radius_ratio": 2.0})
    with pytest.raises(ValueError, match=r"radius_ratio=0"):
        check_group({**group, "radius_ratio": 0.0, "rotations": 2})
    check_group({**group, "radius_ratio": 2.0, "rotations": 2})
