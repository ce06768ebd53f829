"""Maps of words and words of regions: each value is that of its formula, each word that of its place."""

import xml.etree.ElementTree

import pytest
import torch

import vqkit.models
from training.data.batches import to_float
from training.data.regions import Region
from training.region_words import region_figure, words_in
from training.word_maps import heat, map_rows, word_maps
from vqkit.language import open_text_encoder
from vqkit.objectives import GuidanceConfig, LanguageGuidance

SMALL = {"channels": 8, "channel_multipliers": (1, 2), "num_res_blocks": 1, "attention": False, "latent_dim": 8, "code_dim": 4, "codebook_size": 16}
CAPTION = "A brown dog runs near a red car ."


@pytest.fixture
def guided(write_bert, tmp_path):
    encoder = open_text_encoder(str(write_bert(tmp_path / "bert", CAPTION.lower().split())))
    model = vqkit.models.create("vqgan", **SMALL).eval()
    guidance = LanguageGuidance(4, 8, encoder.token_embeddings, GuidanceConfig(alpha=1.0, width=16), encoder.context).eval()
    return model, guidance, encoder


def picture():
    return torch.randint(256, (3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_a_map_is_the_cosine_of_word_and_position(guided):
    model, guidance, encoder = guided
    maps = word_maps(model, guidance, encoder, picture(), CAPTION)
    assert [found.word for found in maps] == ["brown", "dog", "red", "car"]
    with torch.no_grad():
        positions = guidance.reader(model(to_float(picture()[None], torch.device("cpu"))).quantized)[0, 1:].double()
        # Every word of this caption is one token, after the token in front of all.
        states = encoder.features(encoder.tokenize([CAPTION])).states[0].double()
    for found, place in zip(maps, (2, 3, 7, 8), strict=True):
        cosine = (positions @ states[place]) / (positions.norm(dim=1) * states[place].norm())
        torch.testing.assert_close(found.similarity.double(), cosine.reshape(8, 8), atol=1e-5, rtol=0)


@pytest.mark.parametrize("caption", ["", "  ", "a brown dog " * 20])
def test_captions_that_cannot_be_read_have_no_maps(guided, caption):
    assert word_maps(*guided, picture(), caption) == []


def test_the_brightest_place_is_the_most_similar_one():
    similarity = torch.zeros(4, 4)
    similarity[1, 2] = 0.5
    drawn = heat(torch.zeros(3, 16, 16, dtype=torch.uint8), similarity).float().sum(0)
    assert drawn.shape == (16, 16) and divmod(int(drawn.argmax()), 16)[0] in range(4, 8) and int(drawn.argmax()) % 16 in range(8, 12)
    # A map that is the same everywhere is dark everywhere.
    assert heat(torch.zeros(3, 8, 8, dtype=torch.uint8), torch.ones(2, 2)).float().mean() < 2


def test_rows_show_the_words_and_leave_out_what_has_none(guided):
    maps = word_maps(*guided, picture(), CAPTION)
    text = map_rows(torch.stack([picture()] * 2), [CAPTION, "<none>"], [maps, []])
    assert text.count("<tr>") == 1 and text.count("<img") == 5 and "<b>dog</b>" in text and "none" not in text
    assert map_rows(picture()[None], ["a"], [[]]) == ""


def test_a_region_has_the_words_selected_inside_it():
    words = (["red", "<big>", "old"], ["sky", "dog"])
    indices = torch.zeros(4, 4, 3, dtype=torch.int64)
    indices[:2, 2:] = torch.tensor([1, 2, 1])
    indices[0, 2] = torch.tensor([1, 1, 0])
    assert words_in((0.5, 0.0, 1.0, 0.5), indices, words, (2, 1)) == ["<big>, old", "dog, sky"]
    assert words_in((0.0, 0.5, 1.0, 1.0), indices, words, (2, 1)) == ["red", "sky"]
    # No position has its centre in so small a box: the nearest one tells.
    assert words_in((0.76, 0.01, 0.8, 0.05), indices, words, (2, 1)) == ["<big>, old", "dog"]
    figure = xml.etree.ElementTree.fromstring(region_figure(picture(), [Region(("a <dog>", "it"), None, (0.5, 0.0, 1.0, 0.5))], [["<big>", "dog"]], 100))
    (box,) = figure.iter("rect")
    assert [box.get(name) for name in ("x", "y", "width", "height")] == ["50", "0", "50", "50"]
    assert "".join(figure.itertext()) == "a <dog>: <big>; dog"
