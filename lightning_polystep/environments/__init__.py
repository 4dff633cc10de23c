"""Control problems with compiled dynamics, equal to gymnasium's step by step, and rollouts of many policies at once."""

from lightning_polystep.environments.acrobot import ACROBOT
from lightning_polystep.environments.cart_pole import CART_POLE
from lightning_polystep.environments.from_gymnasium import GymnasiumEnvironment, gymnasium_environment
from lightning_polystep.environments.mountain_car import MOUNTAIN_CAR, MOUNTAIN_CAR_CONTINUOUS
from lightning_polystep.environments.pendulum import PENDULUM
from lightning_polystep.environments.policy import Policy
from lightning_polystep.environments.protocol import Environment, World, compiled
from lightning_polystep.environments.rollouts import Rollouts, record, rollouts

ENVIRONMENTS: dict[str, Environment] = {
    environment.name: environment
    for environment in (CART_POLE, ACROBOT, MOUNTAIN_CAR, MOUNTAIN_CAR_CONTINUOUS, PENDULUM)
}


def environment_named(name: str) -> World:
    """Return an environment by its name: one of ours, compiled, or else gymnasium's.

    Args:
        name: A key of ``ENVIRONMENTS``, or what gymnasium registers.

    Raises:
        ValueError: If there is none, or policies cannot act in it.
        ModuleNotFoundError: If it is none of ours, and gymnasium or what it needs is not installed.

    Example:
        >>> environment_named("Acrobot-v1").outputs
        3
    """
    return ENVIRONMENTS[name] if name in ENVIRONMENTS else gymnasium_environment(name)


__all__ = [
    "ENVIRONMENTS",
    "Environment",
    "GymnasiumEnvironment",
    "Policy",
    "Rollouts",
    "World",
    "compiled",
    "environment_named",
    "gymnasium_environment",
    "record",
    "rollouts",
]
