"""LPIPS, the learned perceptual distance, over VGG16.

Source: Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, arXiv 1801.03924.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from vqkit.objectives.foreign_weights import MissingWeights, check_weights, read_weights

# width of each 3x3 convolution; "pool" halves. A tap follows the last convolution before a pool, and the very last.
_VGG16 = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512)
_TAP_WIDTHS = (64, 128, 256, 512, 512)


class VGG16Features(nn.Module):
    """The convolutions of VGG16: (B, 3, H, W) to the activations relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3.

    The names of its parameters are torchvision's, `features.N.weight`. H and W are at least 16.
    Source: Simonyan & Zisserman, arXiv 1409.1556, configuration D.
    """

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        self._taps = []
        for item in _VGG16:
            if item == "pool":
                self._taps.append(len(layers) - 1)
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(width, item, 3, padding=1), nn.ReLU()]
                width = item
        self._taps.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        activations = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self._taps:
                activations.append(x)
        return activations


class LPIPS(nn.Module):
    """The learned perceptual distance between pictures, 0 for equal ones.

        d(x, y) = sum over layers l of mean over positions of w_l . (u_l(x) - u_l(y))^2

    with u_l the activations of five VGG16 layers, each position's vector scaled to unit length, and w_l >= 0 the
    published linear heads. All weights are frozen: gradients reach x and y only.

    Args:
        vgg_weights: a state dict of VGG16 in torchvision's naming (`features.0.weight` ...), `.safetensors`, or `.pth`
            read with weights_only=True; classifier weights in it are ignored. For example torchvision's
            vgg16-397923af.pth (ImageNet).
        heads: the linear heads (`lin0.model.1.weight` ... `lin4.model.1.weight`), LPIPS version 0.1 for VGG. By default
            the file that an installed torchmetrics ships.

    Call: reconstruction, images (B, 3, H, W) in [-1, 1] with sides of at least 16 -> (B,) distances, float32.
    Raises MissingWeights (a FileNotFoundError) naming the file that is not there; ValueError where a file is damaged or
    holds something else, or the pictures have another shape.
    Source: arXiv 1801.03924, equation 1, and its published weights.
    """

    def __init__(self, vgg_weights: str | os.PathLike, heads: str | os.PathLike | None = None):
        super().__init__()
        self.vgg = VGG16Features()
        _load(self.vgg, Path(vgg_weights), "VGG16's ImageNet weights in torchvision's naming, such as its vgg16-397923af.pth")
        self.heads = nn.ParameterList(nn.Parameter(torch.empty(1, width, 1, 1)) for width in _TAP_WIDTHS)
        self._load_heads(_shipped_heads() if heads is None else Path(heads))
        # published constants that map [-1, 1] to ImageNet's normalised range
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)

    def forward(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        for name, pictures in (("reconstruction", reconstruction), ("images", images)):
            shape = tuple(pictures.shape)
            if len(shape) != 4 or shape[1] != 3 or min(shape[2:]) < 16:
                raise ValueError(f"{name}: got shape {shape}, expected (B, 3, H, W) with H and W at least 16")
        if reconstruction.shape != images.shape:
            raise ValueError(
                f"reconstruction, images: got {tuple(reconstruction.shape)} and {tuple(images.shape)}, expected one shape"
            )
        left = self.vgg((reconstruction - self.shift) / self.scale)
        right = self.vgg((images - self.shift) / self.scale)
        distance = 0.0
        for head, a, b in zip(self.heads, left, right, strict=True):
            difference = (_unit(a.float()) - _unit(b.float())).square()
            distance = distance + (difference * head).sum(1).mean((1, 2))
        return distance

    def _load_heads(self, path: Path) -> None:
        state = read_weights(path, "heads", "the LPIPS linear heads for VGG (version 0.1)")
        for index, head in enumerate(self.heads):
            key = f"lin{index}.model.1.weight"
            if key not in state or state[key].shape != head.shape:
                got = tuple(state[key].shape) if key in state else "no such key"
                raise ValueError(f"heads: {path}: {key}: got {got}, expected shape {tuple(head.shape)}")
            head.data.copy_(state[key])


def _unit(x: Tensor) -> Tensor:
    # the constant keeps the gradient finite where a whole vector is zero
    return x / (x.square().sum(1, keepdim=True) + 1e-8).sqrt()


def _shipped_heads() -> Path:
    spec = importlib.util.find_spec("torchmetrics")
    if spec is None or not spec.submodule_search_locations:
        raise MissingWeights(
            "heads: give the path of the LPIPS linear heads for VGG (vgg.pth of LPIPS version 0.1), "
            "or install torchmetrics, which ships them"
        )
    return Path(spec.submodule_search_locations[0], "functional", "image", "lpips_models", "vgg.pth")


def _load(module: nn.Module, path: Path, content: str) -> None:
    state = read_weights(path, "vgg_weights", content)
    wanted = module.state_dict()
    check_weights(state, wanted, path, "vgg_weights", content)
    module.load_state_dict({key: state[key] for key in wanted})
