"""V2L: words and phrases under one linear map, the half that is one for the whole picture, and their names."""

import pytest
import torch

from vqkit.models import create, from_pretrained


def test_codes_are_one_linear_map_of_words_and_of_the_means_of_pairs(build, vocabulary):
    model = build("v2l")
    parameters = dict(model.quantizer.named_parameters())
    weight, bias = parameters["shared_codebook.network.layer.weight"], parameters["shared_codebook.network.layer.bias"]
    assert len(parameters) == 2
    words, phrases = model.quantizer.codes
    torch.testing.assert_close(words, vocabulary.vectors @ weight.T + bias)
    adjectives, nouns = vocabulary.edges.T
    torch.testing.assert_close(phrases, (vocabulary.vectors[adjectives] + vocabulary.vectors[nouns]) / 2 @ weight.T + bias)
    assert model.codebook_sizes == (15, 7)


def test_a_selection_moves_all_codes(build):
    model = build("v2l")
    before = [codes.detach().clone() for codes in model.quantizer.codes]
    (model.quantizer.codes[0][3] - 1).square().sum().backward()
    torch.optim.SGD(model.quantizer.parameters(), 0.1).step()
    for old, new in zip(before, model.quantizer.codes):
        assert ((new - old).norm(dim=1) > 1e-4).all()


def test_the_global_half_is_the_nearest_phrases_of_the_mean(build, images):
    model = build("v2l").eval()
    with torch.no_grad():
        local, whole = model.to_codes(model.encoder(images)).double().chunk(2, 1)
        output = model(images)
        words, phrases = (codes.double() for codes in model.quantizer.codes)
    assert output.indices.shape == (2, 4, 6, 5)
    nearest = (local.movedim(1, -1)[..., None, :] - words).square().sum(-1).argmin(-1)
    assert torch.equal(output.indices[..., 0], nearest)
    chosen = (whole.mean((2, 3))[:, None] - phrases).square().sum(-1).topk(4, largest=False).indices
    assert torch.equal(output.indices[..., 1:], chosen[:, None, None].expand(2, 4, 6, 4))
    expected = phrases[chosen].mean(1)[:, :, None, None].expand(2, 12, 4, 6)
    torch.testing.assert_close(output.quantized[:, 12:].double(), expected)
    # Each picture has phrases of its own.
    noise = images.clone()
    noise[1] = torch.randn_like(noise[1])
    assert torch.equal(model.encode(noise)[0], output.indices[0])


def test_codes_have_names_also_out_of_a_folder(build, vocabulary, images, tmp_path):
    model = build("v2l").eval()
    model.save_pretrained(tmp_path)
    for twin in (model, from_pretrained(tmp_path)):
        assert twin.part_names == ("local", "global")
        assert list(twin.words[0]) == vocabulary.words
        assert list(twin.words[1]) == ["red circle", "red square", "green grass", "blue sky", "small cat", "big house", "blue circle"]
        indices = twin.encode(images)
        named = twin.name_codes(indices)[1][2][3]
        local, *phrases = indices[1, 2, 3].tolist()
        assert named == [vocabulary.words[local], *(twin.words[1][phrase] for phrase in phrases)]
        assert twin.name_codes(torch.full((5,), -1)) == [None] * 5


def test_training_leaves_the_vectors_alone_and_only_a_v2l_keeps_the_pairs(build, images):
    model = build("v2l")
    vectors = model.quantizer.shared_codebook.word_vectors.clone()
    output = model(images)
    (output.reconstruction.square().mean() + output.loss).backward()
    torch.optim.Adam(model.parameters(), 1e-2).step()
    assert torch.equal(model.quantizer.shared_codebook.word_vectors, vectors)
    assert "pairs" not in build("vqct").config["vocabulary"] and len(model.config["vocabulary"]["pairs"]) == 7


def test_arguments_that_do_not_fit(build, vocabulary):
    with pytest.raises(TypeError, match="vocabulary: v2l needs one"):
        create("v2l")
    for changes, message in [
        ({"selections": (1,)}, r"selections: got \(1,\)"),
        ({"selections": (1, 8)}, "vocabulary: got 7 pairs of an adjective and a noun, expected at least the 8"),
        ({"selections": (16, 1)}, "vocabulary: got 15 words, expected at least the 16"),
    ]:
        with pytest.raises(ValueError, match=message):
            build("v2l", **changes)
    vocabulary.edges, vocabulary.edge_counts = vocabulary.edges[:0], vocabulary.edge_counts[:0]
    with pytest.raises(ValueError, match="vocabulary: got 0 pairs"):
        build("v2l")
