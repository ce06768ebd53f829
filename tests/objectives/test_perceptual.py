"""LPIPS against torchmetrics' own over the same seeded weights, and how it asks for files."""

import importlib

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vqkit.objectives import LPIPS, MissingWeights
from vqkit.objectives.perceptual import VGG16Features

# configuration D, written out as its layers' widths
WIDTHS = [64, 64, None, 128, 128, None, 256, 256, 256, None, 512, 512, 512, None, 512, 512, 512, None]


def vgg_layers():
    layers, width = [], 3
    for item in WIDTHS:
        layers += [nn.MaxPool2d(2)] if item is None else [nn.Conv2d(width, item, 3, padding=1), nn.ReLU()]
        width = item or width
    return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def seeded(tmp_path_factory):
    """A VGG16 of random weights and the file that holds them, classifier included."""
    torch.manual_seed(0)
    layers = vgg_layers()
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.normal_(layer.bias, std=0.1)
    path = tmp_path_factory.mktemp("weights") / "vgg16.safetensors"
    state = {f"features.{name}": value for name, value in layers.state_dict().items()}
    save_file(state | {"classifier.0.weight": torch.zeros(2, 2)}, path)
    return layers, path


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    generator = torch.Generator().manual_seed(1)
    state = {
        f"lin{index}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator)
        for index, width in enumerate((64, 128, 256, 512, 512))
    }
    path = tmp_path_factory.mktemp("heads") / "vgg.pth"
    torch.save(state, path)
    return path


@pytest.fixture
def pictures():
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(2, 3, 35, 48, generator=generator) * 2 - 1
    return x, (x + 0.2 * torch.randn(x.shape, generator=generator)).clamp(-1, 1)


def theirs(layers, heads, monkeypatch):
    lpips = pytest.importorskip("torchmetrics.functional.image.lpips")
    # the architecture comes from torchvision, which is not needed for seeded weights
    monkeypatch.setattr(lpips, "_get_tv_model_features", lambda net, pretrained: layers)
    return lpips._LPIPS(pretrained=True, net="vgg", model_path=None if heads is None else str(heads))


@pytest.mark.parametrize("shipped", [False, True])
def test_equals_torchmetrics(seeded, heads, pictures, monkeypatch, shipped):
    layers, path = seeded
    chosen = None if shipped else heads
    expected = theirs(layers, chosen, monkeypatch)(*pictures).flatten()
    ours = LPIPS(path, chosen)(*pictures)
    assert ours.shape == (2,)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-7)


def test_is_a_distance_with_gradients_to_the_pictures_only(seeded, heads, pictures):
    metric = LPIPS(seeded[1], heads)
    x, y = pictures[0].clone().requires_grad_(), pictures[1]
    torch.testing.assert_close(metric(x, x), torch.zeros(2))
    torch.testing.assert_close(metric(x, y), metric(y, x))
    metric(x, y).sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum() > 0
    assert all(not p.requires_grad and p.grad is None for p in metric.parameters())
    # equal pictures and dead activations are where a square root would give NaN
    black = torch.zeros(1, 3, 16, 16, requires_grad=True)
    metric(black, torch.zeros(1, 3, 16, 16)).sum().backward()
    assert black.grad.isfinite().all()


def test_pth_file_is_read_without_unpickling(seeded, heads, pictures, tmp_path):
    layers, path = seeded
    file = tmp_path / "vgg16.pth"
    torch.save({f"features.{name}": value for name, value in layers.state_dict().items()}, file)
    torch.testing.assert_close(LPIPS(file, heads)(*pictures), LPIPS(path, heads)(*pictures), rtol=0, atol=0)
    torch.save({"features": nn.ReLU()}, file)
    with pytest.raises(ValueError, match="[Ww]eights.only"):
        LPIPS(file, heads)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("damage", [lambda _: b"", lambda _: b"hello", lambda whole: whole[: len(whole) // 2]])
def test_damaged_files(seeded, heads, tmp_path, suffix, damage):
    file = tmp_path / f"weights{suffix}"
    state = {"features.0.weight": torch.zeros(64, 3, 3, 3)}
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=f"vgg_weights: .*weights{suffix} is damaged or not VGG16"):
        LPIPS(file, heads)
    with pytest.raises(ValueError, match=f"heads: .*weights{suffix} is damaged or not the LPIPS"):
        LPIPS(seeded[1], file)


@pytest.mark.parametrize("content", [[1, 2], {"lin0.model.1.weight": "no tensor"}])
def test_files_without_tensors(seeded, heads, tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="vgg_weights: "):
        LPIPS(tmp_path / "weights.pth", heads)
    with pytest.raises(ValueError, match="heads: "):
        LPIPS(seeded[1], tmp_path / "weights.pth")


def test_files_that_are_missing_or_hold_something_else(seeded, heads, tmp_path, monkeypatch):
    path = seeded[1]
    with pytest.raises(MissingWeights, match=r"vgg_weights: no file at .*nowhere\.pth; expected VGG16's ImageNet weights"):
        LPIPS(tmp_path / "nowhere.pth", heads)
    with pytest.raises(MissingWeights, match="heads: no file at"):
        LPIPS(path, tmp_path / "nowhere.pth")
    save_file({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"vgg_weights: .*25 of 26 tensors missing or misshapen \(features\.0\.bias"):
        LPIPS(tmp_path / "other.safetensors", heads)
    with pytest.raises(ValueError, match=r"heads: .*lin0\.model\.1\.weight: got no such key"):
        LPIPS(path, path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingWeights, match="heads: give the path .* or install torchmetrics"):
        LPIPS(path)


def test_pictures_that_do_not_fit(seeded, heads):
    metric = LPIPS(seeded[1], heads)
    with pytest.raises(ValueError, match=r"images: got shape \(1, 3, 15, 16\)"):
        metric(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 15, 16))
    with pytest.raises(ValueError, match="reconstruction: got shape"):
        metric(torch.zeros(1, 1, 16, 16), torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="expected one shape"):
        metric(torch.zeros(1, 3, 16, 17), torch.zeros(1, 3, 16, 16))


def test_published_size():
    with torch.device("meta"):
        assert sum(p.numel() for p in VGG16Features().parameters()) == 14_714_688
