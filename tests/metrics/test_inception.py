"""The Inception of FID: its tensors' published names, its departures from torchvision's, its preparation of pictures, and how it asks for weights."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from vqkit.metrics import InceptionFeatures, PictureSet, compare_pictures
from vqkit.metrics.inception import FIDInception
from vqkit.objectives import MissingWeights


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights that keep activations at their size, so that every branch counts."""
    path = tmp_path_factory.mktemp("inception") / "weights.safetensors"
    torch.manual_seed(0)
    net = FIDInception()
    state = {}
    for key, value in net.state_dict().items():
        if value.ndim == 4:
            value = torch.randn(value.shape) * (2 / value[0].numel()) ** 0.5
        elif key.endswith(("running_var", "bn.weight")):
            value = torch.rand(value.shape) + 0.5
        elif value.ndim == 1:
            value = 0.1 * torch.randn(value.shape)
        elif key == "fc.weight":
            value = 0.02 * torch.randn(value.shape)
        if not key.endswith("num_batches_tracked"):
            state[key] = value
    save_file(state, path)
    return path


@pytest.fixture(scope="module")
def features(weights):
    return InceptionFeatures(weights)


# torchvision's inception_v3 without its auxiliary classifier, as pytorch-fid patches it: a convolution and its shape a line
BLOCK_A = {"branch1x1": (64, 0, 1, 1), "branch5x5_1": (48, 0, 1, 1), "branch5x5_2": (64, 48, 5, 5), "branch3x3dbl_1": (64, 0, 1, 1),
           "branch3x3dbl_2": (96, 64, 3, 3), "branch3x3dbl_3": (96, 96, 3, 3)}
BLOCK_E = {"branch1x1": (320, 0, 1, 1), "branch3x3_1": (384, 0, 1, 1), "branch3x3_2a": (384, 384, 1, 3), "branch3x3_2b": (384, 384, 3, 1),
           "branch3x3dbl_1": (448, 0, 1, 1), "branch3x3dbl_2": (384, 448, 3, 3), "branch3x3dbl_3a": (384, 384, 1, 3),
           "branch3x3dbl_3b": (384, 384, 3, 1), "branch_pool": (192, 0, 1, 1)}


def block_c(c):
    return {"branch1x1": (192, 0, 1, 1), "branch7x7_1": (c, 0, 1, 1), "branch7x7_2": (c, c, 1, 7), "branch7x7_3": (192, c, 7, 1),
            "branch7x7dbl_1": (c, 0, 1, 1), "branch7x7dbl_2": (c, c, 7, 1), "branch7x7dbl_3": (c, c, 1, 7), "branch7x7dbl_4": (c, c, 7, 1),
            "branch7x7dbl_5": (192, c, 1, 7), "branch_pool": (192, 0, 1, 1)}


PUBLISHED = {
    "Mixed_5b": (192, BLOCK_A | {"branch_pool": (32, 0, 1, 1)}), "Mixed_5c": (256, BLOCK_A | {"branch_pool": (64, 0, 1, 1)}),
    "Mixed_5d": (288, BLOCK_A | {"branch_pool": (64, 0, 1, 1)}),
    "Mixed_6a": (288, {"branch3x3": (384, 0, 3, 3), "branch3x3dbl_1": (64, 0, 1, 1), "branch3x3dbl_2": (96, 64, 3, 3),
                       "branch3x3dbl_3": (96, 96, 3, 3)}),
    "Mixed_6b": (768, block_c(128)), "Mixed_6c": (768, block_c(160)), "Mixed_6d": (768, block_c(160)), "Mixed_6e": (768, block_c(192)),
    "Mixed_7a": (768, {"branch3x3_1": (192, 0, 1, 1), "branch3x3_2": (320, 192, 3, 3), "branch7x7x3_1": (192, 0, 1, 1),
                       "branch7x7x3_2": (192, 192, 1, 7), "branch7x7x3_3": (192, 192, 7, 1), "branch7x7x3_4": (192, 192, 3, 3)}),
    "Mixed_7b": (1280, BLOCK_E), "Mixed_7c": (2048, BLOCK_E),
}
STEM = {"Conv2d_1a_3x3": (32, 3, 3, 3), "Conv2d_2a_3x3": (32, 32, 3, 3), "Conv2d_2b_3x3": (64, 32, 3, 3), "Conv2d_3b_1x1": (80, 64, 1, 1),
        "Conv2d_4a_3x3": (192, 80, 3, 3)}


def test_the_published_tensors():
    expected = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    convolutions = dict(STEM)
    for block, (width, inside) in PUBLISHED.items():
        convolutions |= {f"{block}.{name}": (out, before or width, *kernel) for name, (out, before, *kernel) in inside.items()}
    for name, shape in convolutions.items():
        expected[f"{name}.conv.weight"] = shape
        expected |= {f"{name}.bn.{part}": shape[:1] for part in ("weight", "bias", "running_mean", "running_var")}
        expected[f"{name}.bn.num_batches_tracked"] = ()
    with torch.device("meta"):
        net = FIDInception()
    assert {key: tuple(value.shape) for key, value in net.state_dict().items()} == expected
    # torchvision's 27,161,264 less its auxiliary classifier of 3,326,696, and eight classes more
    assert sum(p.numel() for p in net.parameters()) == 23_834_568 + 8 * 2049
    assert {module.eps for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)} == {0.001}


def test_every_block_against_the_published_formulas(weights):
    """Convolutions by their names, one after the other; the averages leave padding out, the last block has a maximum."""
    state = load_file(weights)
    net = FIDInception()
    net.load_state_dict(state, strict=False)
    net.eval()

    def run(x, *names, stride=1):
        for name in names:
            kernel = state[f"{name}.conv.weight"]
            padding = 0 if stride == 2 or name in ("Conv2d_2a_3x3", "Conv2d_4a_3x3") else (kernel.shape[2] // 2, kernel.shape[3] // 2)
            x = F.conv2d(x, kernel, stride=stride, padding=padding)
            part = [state[f"{name}.bn.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
            x = F.relu(F.batch_norm(x, *part, eps=1e-3))
        return x

    def inside(x):
        ones = torch.ones_like(x[:1, :1])
        return F.avg_pool2d(x, 3, 1, 1) / F.avg_pool2d(ones, 3, 1, 1)

    def block(name, x):
        def chain(*steps, of=None):
            return run(x if of is None else of, *(f"{name}.{step}" for step in steps))

        if name == "Mixed_6a":
            return torch.cat([run(x, "Mixed_6a.branch3x3", stride=2),
                              run(chain("branch3x3dbl_1", "branch3x3dbl_2"), "Mixed_6a.branch3x3dbl_3", stride=2), F.max_pool2d(x, 3, 2)], 1)
        if name == "Mixed_7a":
            return torch.cat([run(chain("branch3x3_1"), "Mixed_7a.branch3x3_2", stride=2),
                              run(chain("branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3"), "Mixed_7a.branch7x7x3_4", stride=2),
                              F.max_pool2d(x, 3, 2)], 1)
        pooled = chain("branch_pool", of=F.max_pool2d(x, 3, 1, 1) if name == "Mixed_7c" else inside(x))
        if name.startswith("Mixed_5"):
            return torch.cat([chain("branch1x1"), chain("branch5x5_1", "branch5x5_2"),
                              chain("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"), pooled], 1)
        if name.startswith("Mixed_6"):
            return torch.cat([chain("branch1x1"), chain("branch7x7_1", "branch7x7_2", "branch7x7_3"),
                              chain("branch7x7dbl_1", "branch7x7dbl_2", "branch7x7dbl_3", "branch7x7dbl_4", "branch7x7dbl_5"), pooled], 1)
        small, double = chain("branch3x3_1"), chain("branch3x3dbl_1", "branch3x3dbl_2")
        return torch.cat([chain("branch1x1"), chain("branch3x3_2a", of=small), chain("branch3x3_2b", of=small),
                          chain("branch3x3dbl_3a", of=double), chain("branch3x3dbl_3b", of=double), pooled], 1)

    # Smaller than 299: the same layers, each with a border.
    x = torch.rand(1, 3, 107, 107, generator=torch.Generator().manual_seed(1)) * 2 - 1
    y = run(run(x, "Conv2d_1a_3x3", stride=2), "Conv2d_2a_3x3", "Conv2d_2b_3x3")
    y = F.max_pool2d(run(F.max_pool2d(y, 3, 2), "Conv2d_3b_1x1", "Conv2d_4a_3x3"), 3, 2)
    for name in PUBLISHED:
        y = block(name, y)
    assert y.shape[2] > 1 and y.std() > 0.01
    with torch.no_grad():
        torch.testing.assert_close(net(x), y.mean((2, 3)), rtol=1e-4, atol=1e-5)


def test_pictures_are_prepared_as_published(features):
    x = torch.randint(0, 256, (2, 3, 40, 52), dtype=torch.uint8)
    pooled, logits = features(x)
    resized = F.interpolate(x.float() / 255, size=(299, 299), mode="bilinear", align_corners=False)
    with torch.no_grad():
        expected = features.net(2 * resized - 1)
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-5)
    assert pooled.shape == (2, 2048) and pooled.std(0).mean() > 1e-3
    # The original score leaves the bias out.
    torch.testing.assert_close(logits, F.linear(expected, features.net.fc.weight), rtol=1e-4, atol=1e-4)
    assert logits.shape == (2, 1008)
    assert not features.train().net.training and not any(p.requires_grad for p in features.parameters())


class FewFeatures(InceptionFeatures):
    """The first 24 only: eigenvectors of 2048 x 2048 take seconds."""

    dim = 24

    def describe(self, pictures):
        found = super().describe(pictures)
        return found._replace(pooled=found.pooled[:, :24])


def test_only_inception_gives_fid(weights):
    state = torch.get_rng_state()
    features = FewFeatures(weights)
    assert torch.equal(state, torch.get_rng_state())
    real, made = PictureSet(features), PictureSet(features)
    real.add(torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8))
    made.add(torch.randint(0, 100, (5, 3, 16, 16), dtype=torch.uint8))
    found = compare_pictures(real, made)
    assert set(found) == {"fid", "kid", "inception_score", "precision_inception", "recall_inception", "density_inception", "coverage_inception"}
    assert found["fid"] > 0 and features.label("frechet_distance") == "FID"
    assert features.identity.startswith("inception-") and len(features.identity) == len("inception-6726825d")


def test_a_pth_file_is_the_same(weights, features, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(FIDInception().state_dict() | load_file(weights), path)
    x = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(InceptionFeatures(path)(x).pooled, features(x).pooled, rtol=0, atol=0)


def test_files_that_are_missing_or_hold_something_else(tmp_path):
    with pytest.raises(MissingWeights, match=r"weights_path: no file at .*nowhere\.pth; expected .*pt_inception-2015-12-05-6726825d\.pth"):
        InceptionFeatures(tmp_path / "nowhere.pth")
    save_file({"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "torchvision.safetensors")
    with pytest.raises(ValueError, match="1000 classes, such as torchvision's, over which no distance is FID"):
        InceptionFeatures(tmp_path / "torchvision.safetensors")
    save_file({"fc.weight": torch.zeros(1008, 2048)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"471 of 472 tensors missing or misshapen \(Conv2d_1a_3x3\.conv\.weight"):
        InceptionFeatures(tmp_path / "other.safetensors")
    (tmp_path / "broken.pth").write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"weights_path: .*broken\.pth is damaged or not the Inception weights"):
        InceptionFeatures(tmp_path / "broken.pth")
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="it holds a list"):
        InceptionFeatures(tmp_path / "list.pth")
