import torch

from lightning_polystep.layers import MeanOverTime, OverTime


def test_a_layer_over_time_sees_each_step_alone():
    layer, inputs = torch.nn.Conv2d(2, 3, 3), torch.randn(4, 5, 2, 6, 6)
    torch.testing.assert_close(OverTime(layer)(inputs), torch.stack([layer(step) for step in inputs]))


def test_the_mean_over_time_keeps_the_samples_and_flattens_each():
    inputs = torch.randn(4, 5, 2, 3)
    expected = torch.stack([inputs[:, sample].mean(0).reshape(6) for sample in range(5)])
    torch.testing.assert_close(MeanOverTime()(inputs), expected)
