"""Control problems with compiled dynamics, equal to gymnasium's step by step, and rollouts of many policies at once."""

from lightning_polystep.environments.acrobot import ACROBOT
from lightning_polystep.environments.cart_pole import CART_POLE
from lightning_polystep.environments.mountain_car import MOUNTAIN_CAR, MOUNTAIN_CAR_CONTINUOUS
from lightning_polystep.environments.pendulum import PENDULUM
from lightning_polystep.environments.policy import Policy
from lightning_polystep.environments.protocol import Environment, compiled
from lightning_polystep.environments.rollouts import Rollouts, record, rollouts

ENVIRONMENTS: dict[str, Environment] = {
    environment.name: environment
    for environment in (CART_POLE, ACROBOT, MOUNTAIN_CAR, MOUNTAIN_CAR_CONTINUOUS, PENDULUM)
}

__all__ = ["ENVIRONMENTS", "Environment", "Policy", "Rollouts", "compiled", "record", "rollouts"]
