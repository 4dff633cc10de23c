"""Cross-entropy as a function of one logit against torch's."""

import pytest
import torch
import torch.nn.functional as F

from lightning_polystep.kernels.one_logit import one_logit


@pytest.mark.parametrize("scale", [1.0, 1e3])
@pytest.mark.parametrize("classes", [1, 2, 7])
def test_equals_the_loss_of_torch(classes, scale):
    logits, targets = torch.randn(5, classes).double() * scale, torch.rand(5, classes).double()
    rest, weight, total, base = one_logit(logits, targets)
    before = F.cross_entropy(logits, targets, reduction="none")
    for c in range(classes):
        moved, x = logits.clone(), torch.randn(5).double() * scale
        moved[:, c] = x
        found = total[:, 0] * torch.logaddexp(rest[:, c], x) - weight[:, c] * x - base[:, c]
        expected = F.cross_entropy(moved, targets, reduction="none") - before
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12 * scale)
