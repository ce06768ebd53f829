"""The PatchGAN discriminator of VQ-GAN."""

from torch import Tensor, nn

from vqkit.nn.blocks import group_norm


class PatchDiscriminator(nn.Module):
    """Pictures (B, in_channels, H, W) to one logit a patch (B, 1, h, w); positive means real.

    `num_layers` 4x4 convolutions of stride 2, then two of stride 1. The width starts at `channels` and doubles up to
    8 times that; every convolution but the first and the last is normalised, all but the last have a LeakyReLU 0.2.
    With three layers a logit sees 70x70 pixels. Weights start from N(0, 0.02), scales from N(1, 0.02).

    Args:
        num_layers: halvings; pictures must be at least `minimum_size` = 3 * 2 ** num_layers pixels high and wide.
        normalization: "batch", as published, mixes the pictures of a batch, so more ranks give other numbers;
            "group" normalises each picture by itself and gives the same numbers on one rank or many.

    Raises ValueError for another normalization, or pictures that are too small.
    Source: Isola et al., arXiv 1611.07004, section 3.2.2; arXiv 2012.09841.
    """

    def __init__(
        self, channels: int = 64, num_layers: int = 3, *, in_channels: int = 3, normalization: str = "batch"
    ):
        super().__init__()
        if normalization not in ("batch", "group"):
            raise ValueError(f"normalization: got {normalization!r}, expected 'batch' or 'group'")
        normalize = nn.BatchNorm2d if normalization == "batch" else group_norm
        self.minimum_size = 3 * 2**num_layers
        layers: list[nn.Module] = [nn.Conv2d(in_channels, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        previous = channels
        for level in range(1, num_layers + 1):
            width = channels * min(2**level, 8)
            stride = 2 if level < num_layers else 1
            layers += [
                # the normalisation that follows has the bias
                nn.Conv2d(previous, width, 4, stride=stride, padding=1, bias=False),
                normalize(width),
                nn.LeakyReLU(0.2),
            ]
            previous = width
        layers.append(nn.Conv2d(previous, 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)
        self.apply(_initialize)

    def forward(self, images: Tensor) -> Tensor:
        if min(images.shape[-2:]) < self.minimum_size:
            raise ValueError(
                f"images: got {tuple(images.shape)}, expected at least {self.minimum_size} pixels in height and width"
            )
        return self.layers(images)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
        nn.init.normal_(module.weight, 1.0, 0.02)
