"""A network whose candidates are estimated."""

from torch import nn
from torch.nn import functional as F


class Convolutional(nn.Module):
    """Convolutions of which the second has more directions than a step affords."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 24, 3), nn.Conv2d(24, 16, 3), nn.Linear(16, 10)

    def forward(self, x):
        return self.head(F.relu(self.second(F.relu(self.first(x)))).mean((2, 3)))
