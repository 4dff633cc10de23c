"""Data of the worked examples, held whole in memory."""

from datamodules.digits import Digits
from datamodules.events import MNISTEvents
from datamodules.mnist import MNIST
from datamodules.tensors import TensorImages

__all__ = ["MNIST", "Digits", "MNISTEvents", "TensorImages"]
