"""Data of the worked examples, held whole in memory or drawn."""

from datamodules.digits import Digits
from datamodules.episodes import Episodes
from datamodules.events import MNISTEvents
from datamodules.fashion_mnist import FashionMNIST
from datamodules.formulas import FormulaFile, RandomKSAT
from datamodules.hourly import HourlySeries
from datamodules.mnist import MNIST
from datamodules.recall import AssociativeRecall
from datamodules.tensors import TensorImages

__all__ = [
    "MNIST",
    "AssociativeRecall",
    "Digits",
    "Episodes",
    "FashionMNIST",
    "FormulaFile",
    "HourlySeries",
    "MNISTEvents",
    "RandomKSAT",
    "TensorImages",
]
