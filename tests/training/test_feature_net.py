"""The feature network of a data set: what it learns from, that it is kept, and that its distances tell pictures from damaged ones."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from training import feature_net as module
from training.data.batches import PictureDataset
from training.data.scenes import BACKGROUNDS, sample_scene
from training.data.sources import open_split
from training.distributed import Ranks
from training.evaluate import Evaluation, MeanColor, evaluate
from training.feature_net import feature_net, feature_networks
from training.reconstruction import measure
from vqkit.metrics import PictureSet, compare_pictures, kernel_distance
from vqkit.objectives import LPIPS
from vqkit.objectives.perceptual import VGG16Features

ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def scenes_net(tmp_path_factory):
    torch.set_num_threads(1)
    return feature_net("scenes", 32, 0, tmp_path_factory.mktemp("nets"), pictures=512, steps=120)


@pytest.fixture(scope="module")
def unseen():
    """Scenes that it was not trained on, uint8 (400, 3, 32, 32)."""
    source = open_split("scenes", "val")
    return torch.from_numpy(np.stack([source.read(index, 32, "crop") for index in range(400)])).permute(0, 3, 1, 2).contiguous()


def compare(net, real, made):
    sets = PictureSet(net), PictureSet(net)
    for found, pictures in zip(sets, (real, made)):
        for some in pictures.split(100):
            found.add(some)
    return compare_pictures(*sets)


def rounded(x):
    return x.round().clamp(0, 255).to(torch.uint8)


def test_damaged_pictures_are_far_and_others_of_the_same_kind_near(scenes_net, unseen):
    one, other = unseen[:200], unseen[200:]
    near = compare(scenes_net, one, other)
    x = other.float()
    draws = torch.Generator().manual_seed(0)
    damaged = {"blurred": rounded(F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), 5, 1)),
               "noisy": rounded(x + 40 * torch.randn(x.shape, generator=draws)),
               "colour-shifted": rounded(x * torch.tensor([1.0, 0.75, 0.75]).view(1, 3, 1, 1)),
               "noise alone": torch.randint(0, 256, x.shape, generator=draws).to(torch.uint8)}
    for name, pictures in damaged.items():
        far = compare(scenes_net, one, pictures)
        assert far["fd_net"] > 3 * near["fd_net"], (name, far, near)
        assert far["kd_net"] > 5 * max(near["kd_net"], 1e-4), (name, far, near)
        assert far["coverage_net"] < near["coverage_net"], (name, far, near)
    assert near["precision_net"] > 0.7 and near["recall_net"] > 0.7
    assert compare(scenes_net, one, damaged["noise alone"])["precision_net"] == 0
    # One kind of picture only: real to look at, without variety.
    few = compare(scenes_net, one, other[:4].repeat(50, 1, 1, 1))
    assert few["recall_net"] < 0.3 < near["recall_net"] and few["fd_net"] > 3 * near["fd_net"]


def test_it_learned_what_the_pictures_show(scenes_net, unseen):
    surfaces = [BACKGROUNDS[sample_scene(0, "val", index).background][:2] for index in range(400)]
    logits = scenes_net(unseen).logits
    for word in ("night", "snow", "sand", "water"):
        shows, score = np.array([word in pair for pair in surfaces]), logits[:, scenes_net.classes.index(word)].numpy()
        # How often a picture that shows it has a higher score than one that does not.
        ranks = score.argsort().argsort()
        better = (ranks[shows].sum() - shows.sum() * (shows.sum() - 1) / 2) / (shows.sum() * (~shows).sum())
        assert better > 0.95, (word, better)


def test_it_is_trained_once_and_the_same_each_time(pictures, tmp_path, monkeypatch):
    first = feature_net(pictures, 16, 3, tmp_path / "one", steps=4)
    again = feature_net(pictures, 16, 3, tmp_path / "two", steps=4)
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(first(x).pooled, again(x).pooled) and first.identity == again.identity != "net-"
    other = feature_net(pictures, 16, 4, tmp_path / "one", steps=4)
    assert other.identity != first.identity and len(list((tmp_path / "one").iterdir())) == 2
    state = torch.get_rng_state()

    def refuse(*_):
        raise AssertionError("trained a second time")

    monkeypatch.setattr(module, "_train", refuse)
    kept = feature_net(pictures, 16, 3, tmp_path / "one", steps=4)
    assert torch.equal(kept(x).pooled, first(x).pooled) and torch.equal(state, torch.get_rng_state())
    assert not kept.training and not any(p.requires_grad for p in kept.parameters())
    # Other captions make another data set, even in the same place.
    lines = (pictures / "train" / "metadata.jsonl").read_text().replace("soft", "hard")
    (pictures / "train" / "metadata.jsonl").write_text(lines)
    with pytest.raises(AssertionError, match="trained a second time"):
        feature_net(pictures, 16, 3, tmp_path / "one", steps=4)


def test_what_a_data_set_knows_is_what_is_learned(pictures, tmp_path):
    def targets(*records):
        return module._targets(list(records))

    folders = targets({"label": "owl"}, {"label": "owl"}, {"label": "wren"}, {"label": "wren"})
    assert folders.classes == ["class owl", "class wren"] and folders.shares.tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]
    words = targets({"captions": ["a red bird and the sky"]}, {"captions": ["a bird", "red and small"]}, {"captions": ["a bird in a sky"]}, {})
    assert words.classes == ["bird", "red", "sky"]
    expected = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0, 0]])
    torch.testing.assert_close(words.shares, expected)
    assert targets({}, {}, {}).shares is None
    # Pictures alone: brighter above than below, so how they are turned is to be seen.
    folder = tmp_path / "plain" / "train"
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0)
    for number in range(16):
        picture = np.linspace(230, 20, 16)[:, None, None] + noise.integers(-20, 20, (16, 16, 3))
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{number}.png")
    net = feature_net(tmp_path / "plain", 16, 0, tmp_path / "nets", steps=40)
    assert net.classes[0] == "upright"
    x = torch.from_numpy(open_split(tmp_path / "plain", "train").read(0, 16, "crop").copy()).permute(2, 0, 1)[None]
    turned = torch.cat([torch.rot90(x, turn, (2, 3)) for turn in range(4)])
    assert net(turned).logits.argmax(1).tolist() == [0, 1, 2, 3]


def test_bad_arguments_and_damaged_files_are_named(pictures, tmp_path):
    with pytest.raises(ValueError, match="steps: expected at least 1, got 0"):
        feature_net(pictures, 16, 0, tmp_path / "nets", steps=0)
    with pytest.raises(ValueError, match="data: expected a folder"):
        feature_net(tmp_path / "nowhere", 16, 0, tmp_path / "nets")
    feature_net(pictures, 16, 0, tmp_path / "nets", steps=1)
    (kept,) = (tmp_path / "nets").iterdir()
    kept.write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"folder: .*feature_net-.*\.safetensors is damaged or no feature network; remove it"):
        feature_net(pictures, 16, 0, tmp_path / "nets", steps=1)


def test_evaluate_reports_what_was_asked_under_its_own_name(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module.feature_net, "__kwdefaults__", module.feature_net.__kwdefaults__ | {"steps": 5})
    torch.manual_seed(0)
    save_file(VGG16Features().state_dict(), tmp_path / "vgg16.safetensors")
    lpips = LPIPS(tmp_path / "vgg16.safetensors")
    wanted = {"run": "mean-color", "data": str(pictures), "device": "cpu", "workers": 0, "resolution": 16}
    plain = evaluate(Evaluation(**wanted))
    assert not {"lpips", "features", "fid"} & set(plain)
    metrics = evaluate(Evaluation(**wanted, batch_size=7, out=tmp_path / "out", feature_net=tmp_path / "nets",
                                  lpips_weights=tmp_path / "vgg16.safetensors"))
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics
    assert plain.items() <= metrics.items() and "fid" not in metrics and "kid" not in metrics
    dataset = PictureDataset(open_split(pictures, "test"), 16)
    x = torch.from_numpy(np.stack([dataset.pixels(index) for index in range(20)])).permute(0, 3, 1, 2)
    made = rounded(x.float().mean((2, 3), keepdim=True)).expand_as(x)
    (net,) = feature_networks(ALONE, str(pictures), 16, folder=tmp_path / "nets")
    assert metrics["features"] == net.identity
    # A mean between two grey levels may be rounded to either, and 8-bit pictures pass through two different batch sizes.
    assert metrics["fd_net"] == pytest.approx(compare(net, x, made)["fd_net"], rel=0.02)
    assert metrics["kd_net"] == pytest.approx(kernel_distance(net(x).pooled, net(made).pooled, subset_size=None)[0], rel=0.02)
    expected = lpips(made / 127.5 - 1, x / 127.5 - 1).mean().item()
    assert metrics["lpips"] == pytest.approx(expected, rel=0.02)
    printed = capsys.readouterr().out
    assert f"FD(net) {metrics['fd_net']:.4f}" in printed and f"LPIPS {metrics['lpips']:.4f}" in printed and "FID" not in printed


def test_a_perfect_copy_is_at_no_distance(pictures, tmp_path):
    class Copy(MeanColor):
        def forward(self, images):
            return images

    net = feature_net(pictures, 16, 0, tmp_path, steps=2)
    metrics, _ = measure(Copy(), PictureDataset(open_split(pictures, "test"), 16), ALONE, batch_size=6, networks=(net,))
    assert metrics["fd_net"] == pytest.approx(0, abs=1e-9)
    assert metrics["precision_net"] == metrics["recall_net"] == metrics["coverage_net"] == 1
