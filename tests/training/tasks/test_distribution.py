"""Pictures that are generated, and what their distance from real ones is called."""

import pytest
import torch
from torch import nn

from training.data.sources import SceneSource
from training.priors.codes import PictureCodes, PictureFormat
from training.tasks.distribution import PictureDistances, decoded, generated, nothing, one_each, picture_metrics, real_pictures
from training.tasks.task import IMAGE, Examples, Judged, Rows
from vqkit.metrics import Features, FeatureStatistics, PictureFeatures, frechet_distance
from vqkit.models import Sampling, create, create_prior


class MeanColor(PictureFeatures):
    """The simplest features there are: three mean colours."""

    name, dim = "colors", 3

    def __init__(self):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(()))

    def describe(self, pictures):
        return Features(pictures.mean((2, 3)), None)


@pytest.fixture(params=[(1,), (2, 1)], ids=["one code", "two and one codes"])
def judged(request):
    """Twelve scenes in 4 x 4 positions of a tokenizer with random weights; the third of them cannot be read."""
    torch.manual_seed(0)
    tokenizer = create("vqgan", channels=8, channel_multipliers=(1, 1, 2), num_res_blocks=1, attention=False, latent_dim=8, code_dim=4,
                       codebook_size=(16,) * len(request.param), selections=request.param).eval()
    source, pictures = SceneSource("test", size=12), PictureFormat.of(tokenizer, 16, "crop")
    images = torch.stack([torch.from_numpy(source.read(index, 16, "crop").copy()) for index in range(12)]).permute(0, 3, 1, 2)
    with torch.no_grad():
        codes = tokenizer.encode(images / 127.5 - 1).flatten(1, 2).int()
    readable = torch.arange(12) != 2
    prior = create_prior("prior", (pictures.segment(predicted=True),), depth=1, width=16, heads=2, dropout=0.0).eval()
    examples = Examples(Rows(torch.arange(12)), PictureCodes(codes, readable))
    return Judged(prior, tokenizer, examples, source, Sampling(), batch_size=4), pictures, images[readable]


def test_tokens_of_a_segment_are_decoded_as_the_tokenizers_own_codes(judged):
    judged, pictures, images = judged
    tokens = judged.examples.batch(torch.arange(3))[IMAGE]
    with torch.no_grad():
        expected = judged.tokenizer.decode(judged.tokenizer.encode(images[:3] / 127.5 - 1))
    assert torch.equal(decoded(judged, pictures, tokens), (expected + 1).mul(127.5).round().clamp(0, 255).to(torch.uint8))


def test_real_pictures_are_those_of_the_examples_where_some_are_unreadable(judged):
    judged, pictures, images = judged
    numbers = torch.tensor([0, 2, 10])
    assert torch.equal(real_pictures(judged, pictures, numbers), images[numbers])


def test_one_picture_is_generated_for_each_example_and_again_the_same(judged):
    judged, pictures, _ = judged
    runs = [list(generated(judged, pictures, nothing)) for _ in range(2)]
    assert torch.cat([numbers for numbers, _ in runs[0]]).tolist() == list(range(11))
    first, second = (torch.cat([drawn for _, drawn in run]) for run in runs)
    assert torch.equal(first, second) and len(first.flatten(1).unique(dim=0)) > 1


def test_distances_have_the_networks_name_and_the_formulas_value(judged):
    judged, pictures, images = judged
    network = MeanColor()
    found = picture_metrics(Judged(judged.prior, judged.tokenizer, judged.examples, judged.source, judged.sampling, 4, features=(network,)),
                            pictures, nothing)
    real, drawn = FeatureStatistics(3), FeatureStatistics(3)
    real.add(network(images).pooled)
    drawn.add(network(torch.cat([drawn for _, drawn in generated(judged, pictures, nothing)])).pooled)
    assert found["fd_colors"] == pytest.approx(frechet_distance(real, drawn), rel=1e-5)
    assert not {"fid", "kid", "inception_score"} & found.keys()
    assert picture_metrics(judged, pictures, nothing) == {}


def test_equal_pictures_are_no_distance_apart(judged):
    _, _, images = judged
    distances = PictureDistances((MeanColor(),))
    distances.add(images, images.flip(0))
    assert distances.result()["fd_colors"] == pytest.approx(0.0, abs=1e-6) and not PictureDistances(())


def test_each_picture_counts_once_however_many_captions_it_has(judged):
    judged, _, _ = judged
    several = Rows(torch.tensor([4, 4, 5, 7, 5]), about=[{"caption": letter} for letter in "abcde"])
    examples = Examples(several, PictureCodes(judged.examples.codes, torch.ones(12, dtype=torch.bool)))
    once = one_each(Judged(judged.prior, judged.tokenizer, examples, judged.source, judged.sampling)).examples
    assert once.rows.pictures.tolist() == [4, 5, 7] and [about["caption"] for about in once.rows.about] == ["a", "c", "d"]
