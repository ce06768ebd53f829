"""The Inception-v3 that FID, KID and IS are defined by, over weights that the user gives.

Sources: Szegedy et al., Rethinking the Inception Architecture, arXiv 1512.00567; the weights are TensorFlow's of 2015-12-05, as Heusel et al.,
arXiv 1706.08500, use them, ported by pytorch-fid. It departs from the published architecture as these weights do: averages leave the
padding out, the last block takes a maximum in the place of an average, and there are 1008 classes.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqkit.metrics.features import Features, PictureFeatures
from vqkit.objectives.foreign_weights import check_weights, read_weights

WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"
_CLASSES, _SIDE = 1008, 299
# A step of a branch: (name, channels, kernel); of a reduction (name, channels, kernel, stride). Branches in the order of concatenation,
# a list is a fork: both read what came before it.
_A = {"Mixed_5b": 32, "Mixed_5c": 64, "Mixed_5d": 64}
_C = {"Mixed_6b": 128, "Mixed_6c": 160, "Mixed_6d": 160, "Mixed_6e": 192}


class InceptionFeatures(PictureFeatures):
    """The 2048 pooled features of FID and KID, and the 1008 logits of IS.

    Pictures of any size are resized to 299 x 299, bilinear without smoothing, as pytorch-fid does. The logits are those of the original IS:
    the last layer without its bias.

    Args:
        weights_path: pytorch-fid's `pt_inception-2015-12-05-6726825d.pth`, read with weights_only=True, or the same tensors as .safetensors.

    The names of the parameters are torchvision's. torchvision's own ImageNet weights, 1000 classes of another training, are refused: a
    distance over them is no FID. `identity` has the first digits of the file's SHA-256, 6726825d for the published file.
    Raises MissingWeights (a FileNotFoundError) naming the file that is not there; ValueError where it is damaged or holds something else.
    Source: the module's docstring; IS: Salimans et al., arXiv 1606.03498.
    """

    name, dim = "inception", 2048
    published = {"frechet_distance": ("fid", "FID"), "kernel_distance": ("kid", "KID"), "class_score": ("inception_score", "IS")}

    def __init__(self, weights_path: str | os.PathLike):
        super().__init__()
        # Made without values: to draw them would take a while and move the caller's random numbers on.
        with torch.device("meta"):
            self.net = FIDInception()
        path = Path(weights_path)
        _load(self.net, path)
        self._digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
        self.eval().requires_grad_(False)

    @property
    def identity(self) -> str:
        return f"{self.name}-{self._digest}"

    def train(self, mode: bool = True) -> InceptionFeatures:
        """It never trains: its normalisation always uses the stored statistics."""
        return super().train(False)

    def describe(self, pictures: Tensor) -> Features:
        pooled = self.net(F.interpolate(pictures, size=(_SIDE, _SIDE), mode="bilinear", align_corners=False))
        return Features(pooled, pooled @ self.net.fc.weight.T)


class FIDInception(nn.Module):
    """(B, 3, 299, 299) in [-1, 1] -> the pooled features (B, 2048); `fc` holds the classifier."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3)
        width = 192
        for name, pooled in _A.items():
            width = self._add(name, width, _block_a(pooled), "average")
        width = self._add("Mixed_6a", width, _BLOCK_B, "reduction")
        for name, inner in _C.items():
            width = self._add(name, width, _block_c(inner), "average")
        width = self._add("Mixed_7a", width, _BLOCK_D, "reduction")
        width = self._add("Mixed_7b", width, _BLOCK_E, "average")
        width = self._add("Mixed_7c", width, _BLOCK_E, "maximum")
        self.fc = nn.Linear(width, _CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        return x.mean((2, 3))

    def _add(self, name: str, width: int, branches: tuple, pool: str) -> int:
        block = _Block(width, branches, pool)
        self.add_module(name, block)
        return block.width


class _Conv(nn.Module):
    """Convolution, normalisation, ReLU."""

    def __init__(self, width: int, out: int, kernel, **options):
        super().__init__()
        self.conv = nn.Conv2d(width, out, kernel, bias=False, **options)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Block(nn.Module):
    """Branches side by side, the pooled one last; `width` is what they give together."""

    def __init__(self, width: int, branches: tuple, pool: str):
        super().__init__()
        self.branches, self.pool, self.width = branches, pool, 0
        for branch in branches:
            before = width
            for step in branch:
                fork = step if isinstance(step, list) else [step]
                for name, out, kernel, *stride in fork:
                    padding = 0 if stride else tuple(side // 2 for side in (kernel if isinstance(kernel, tuple) else (kernel, kernel)))
                    self.add_module(name, _Conv(before, out, kernel, padding=padding, stride=stride[0] if stride else 1))
                before = sum(out for _, out, *_ in fork)
            self.width += before
        self.width += width if pool == "reduction" else 0

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for branch in self.branches:
            y = self._pooled(x) if branch[0][0] == "branch_pool" else x
            for step in branch:
                y = torch.cat([getattr(self, name)(y) for name, *_ in step], 1) if isinstance(step, list) else getattr(self, step[0])(y)
            found.append(y)
        return torch.cat([*found, self._pooled(x)] if self.pool == "reduction" else found, 1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pool == "reduction":
            return F.max_pool2d(x, 3, 2)
        return F.max_pool2d(x, 3, 1, 1) if self.pool == "maximum" else F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _block_a(pooled: int) -> tuple:
    return ((("branch1x1", 64, 1),),
            (("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)),
            (("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)),
            (("branch_pool", pooled, 1),))


_BLOCK_B = ((("branch3x3", 384, 3, 2),),
            (("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3, 2)))


def _block_c(inner: int) -> tuple:
    return ((("branch1x1", 192, 1),),
            (("branch7x7_1", inner, 1), ("branch7x7_2", inner, (1, 7)), ("branch7x7_3", 192, (7, 1))),
            (("branch7x7dbl_1", inner, 1), ("branch7x7dbl_2", inner, (7, 1)), ("branch7x7dbl_3", inner, (1, 7)),
             ("branch7x7dbl_4", inner, (7, 1)), ("branch7x7dbl_5", 192, (1, 7))),
            (("branch_pool", 192, 1),))


_BLOCK_D = ((("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, 2)),
            (("branch7x7x3_1", 192, 1), ("branch7x7x3_2", 192, (1, 7)), ("branch7x7x3_3", 192, (7, 1)), ("branch7x7x3_4", 192, 3, 2)))
_BLOCK_E = ((("branch1x1", 320, 1),),
            (("branch3x3_1", 384, 1), [("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1))]),
            (("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3), [("branch3x3dbl_3a", 384, (1, 3)), ("branch3x3dbl_3b", 384, (3, 1))]),
            (("branch_pool", 192, 1),))


def _load(net: nn.Module, path: Path) -> None:
    content = f"the Inception weights of FID, pytorch-fid's {WEIGHTS} (a release file of that project)"
    state = read_weights(path, "weights_path", content)
    # Counters of training steps, which older files lack and nothing reads.
    counters = {key: torch.tensor(0) for key in net.state_dict() if key.endswith("num_batches_tracked")}
    wanted = {key: value for key, value in net.state_dict().items() if key not in counters}
    if "fc.weight" in state and state["fc.weight"].shape == (1000, 2048):
        raise ValueError(f"weights_path: {path} holds an Inception of 1000 classes, such as torchvision's, over which no distance is FID; "
                         f"expected {content}")
    check_weights(state, wanted, path, "weights_path", content)
    net.load_state_dict({key: state[key].float().clone() for key in wanted} | counters, assign=True)
