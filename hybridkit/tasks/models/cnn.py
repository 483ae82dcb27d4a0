"""A small convolutional network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class ConvNet(nn.Module):
    """3 x 3 convolutions with BatchNorm and ReLU, the mean over all positions, and a linear layer.

    Images [batch, channels, height, width] -> logits [batch, outputs]. `layers` holds (width, stride) of each
    convolution.
    """

    def __init__(self, channels: int, layers: Sequence[tuple[int, int]], outputs: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for width, stride in layers:
            convolution = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
            blocks += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*blocks)
        self.output = nn.Linear(channels, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, outputs]."""
        logits: Tensor = self.output(self.features(x).mean((2, 3)))
        return logits
