"""Networks of the worked examples, and the LightningModule that trains any classifier among them."""

from models.classifier import Classifier
from models.spiking_mlp import SpikingMLP

__all__ = ["Classifier", "SpikingMLP"]
