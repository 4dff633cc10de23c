"""Networks of the worked examples, and the LightningModule that trains any classifier among them."""

from models.binary_mlp import BinaryMLP
from models.classifier import Classifier
from models.episode_picture import EpisodePicture
from models.forecaster import Forecaster
from models.max_sat import MaxSAT
from models.moe_net import MoENet
from models.policy_net import PolicyNet
from models.policy_search import PolicySearch
from models.quantised_conv_net import QuantisedLeNet
from models.quantised_mlp import Int8MLP, IntegerMLP
from models.recall_net import RecallNet
from models.residual_conv_net import ResidualConvNet
from models.slot_attention_net import SlotAttentionNet
from models.spiking_conv_net import SpikingConvNet
from models.spiking_mlp import SpikingMLP
from models.staircase_mlp import StaircaseMLP

__all__ = [
    "BinaryMLP",
    "Classifier",
    "EpisodePicture",
    "Forecaster",
    "Int8MLP",
    "IntegerMLP",
    "MaxSAT",
    "MoENet",
    "PolicyNet",
    "PolicySearch",
    "QuantisedLeNet",
    "RecallNet",
    "ResidualConvNet",
    "SlotAttentionNet",
    "SpikingConvNet",
    "SpikingMLP",
    "StaircaseMLP",
]
