"""The quantizers inside transformers' codecs and tokenizers: a model from a small configuration answers the same after the swap."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import vqkit
from vqkit.compat import transformers as ours

transformers = pytest.importorskip("transformers")


def fill(model):
    """Codes that a training would have left, where a fresh model has zeros."""
    for name, value in model.named_buffers():
        if name.endswith((".embed", ".embed_avg", ".embed_sum")):
            nn.init.normal_(value)
        if name.endswith((".cluster_size", ".cluster_usage")):
            nn.init.uniform_(value, 0.5, 2.0)
    return model.eval()


def encodec():
    config = transformers.EncodecConfig(
        num_filters=4, hidden_size=16, codebook_size=32, codebook_dim=16, upsampling_ratios=[4, 2], num_lstm_layers=1, target_bandwidths=[60.0]
    )
    return fill(transformers.EncodecModel(config))


def mimi():
    config = transformers.MimiConfig(
        num_filters=4,
        hidden_size=32,
        codebook_size=32,
        codebook_dim=16,
        vector_quantization_hidden_dimension=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        head_dim=16,
        num_quantizers=4,
        num_semantic_quantizers=1,
        upsampling_ratios=[4, 2],
        upsample_groups=32,
    )
    return fill(transformers.MimiModel(config))


def dac():
    config = transformers.DacConfig(
        encoder_hidden_size=8, downsampling_ratios=[2, 2], decoder_hidden_size=32, n_codebooks=3, codebook_size=16, codebook_dim=4
    )
    return fill(transformers.DacModel(config))


@pytest.mark.parametrize(("build", "count"), [(encodec, 4), (mimi, 4), (dac, 3)])
def test_codecs(build, count):
    model, other, audio = build(), build(), torch.randn(2, 1, 640)
    keys = list(model.state_dict())
    with torch.no_grad():
        expected, of_other = model(audio), other(audio)
        report = vqkit.accelerate(model)
        assert len(report.replaced) >= count and not report.left, report
        assert list(model.state_dict()) == keys
        got = model(audio)
        assert torch.equal(got.audio_codes, expected.audio_codes)
        torch.testing.assert_close(got.audio_values, expected.audio_values)
        # Weights loaded after the swap are those that count, and they go both ways.
        model.load_state_dict(other.state_dict())
        torch.testing.assert_close(model(audio).audio_values, of_other.audio_values)
        vqkit.restore(model)
        torch.testing.assert_close(model(audio).audio_values, of_other.audio_values)


def test_weights_go_through_save_pretrained(tmp_path):
    model, audio = encodec(), torch.randn(1, 1, 640)
    expected = model(audio).audio_values
    vqkit.accelerate(model)
    model.save_pretrained(tmp_path)
    again = transformers.EncodecModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(audio).audio_values, expected)


def test_dac_learns_as_before():
    model, audio = dac().train(), torch.randn(2, 1, 640)
    losses = []
    for _ in range(2):
        model.zero_grad()
        torch.manual_seed(5)
        result = model(audio)
        (result.loss.mean() + result.audio_values.square().mean()).backward()
        losses.append((result.loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}))
        vqkit.accelerate(model)
    torch.testing.assert_close(*[loss for loss, _ in losses])
    assert losses[0][1].keys() == losses[1][1].keys()
    for name, gradient in losses[0][1].items():
        torch.testing.assert_close(losses[1][1][name], gradient, rtol=1e-3, atol=1e-5)


CODEBOOKS = {
    "encodec.modeling_encodec": ("EncodecEuclideanCodebook", ours.EncodecEuclideanCodebook),
    "xcodec.modeling_xcodec": ("XcodecEuclideanCodebook", ours.EncodecEuclideanCodebook),
    "higgs_audio_v2_tokenizer.modeling_higgs_audio_v2_tokenizer": (
        "HiggsAudioV2TokenizerEuclideanCodebook",
        ours.EncodecEuclideanCodebook,
    ),
    "mimi.modeling_mimi": ("MimiEuclideanCodebook", ours.MimiEuclideanCodebook),
}
TOKENIZERS = {
    "chameleon.modeling_chameleon": ours.ChameleonVQVAEVectorQuantizer,
    "janus.modeling_janus": ours.JanusVQVAEVectorQuantizer,
    "emu3.modeling_emu3": ours.Emu3VQVAEVectorQuantizer,
    "glm_image.modeling_glm_image": ours.GlmImageVQVAEVectorQuantizer,
}
CONFIG = SimpleNamespace(codebook_size=30, codebook_dim=6, num_embeddings=30, embed_dim=6, num_patches=4, beta=0.5)


@pytest.mark.parametrize("path", CODEBOOKS)
def test_codebooks(path):
    name, cls = CODEBOOKS[path]
    theirs, own = getattr(pytest.importorskip(f"transformers.models.{path}"), name)(CONFIG), cls(CONFIG)
    fill(theirs.eval())
    for buffer in theirs.state_dict().values():
        if buffer.ndim == 2:
            nn.init.normal_(buffer)
    own.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 9, 6)
    indices = own.encode(x)
    assert torch.equal(indices, theirs.encode(x)) and list(own.state_dict()) == list(theirs.state_dict())
    torch.testing.assert_close(own.decode(indices), theirs.decode(indices))
    assert (own.encode(x * torch.nan) == -1).all() and not own.decode(own.encode(x * torch.nan)).any()
    model = nn.Sequential(theirs)
    assert type(vqkit.accelerate(model).replaced and model[0]) is cls


@pytest.mark.parametrize("path", TOKENIZERS)
def test_tokenizers(path, assert_same):
    cls = TOKENIZERS[path]
    theirs, own = getattr(pytest.importorskip(f"transformers.models.{path}"), cls.__name__)(CONFIG), cls(CONFIG)
    nn.init.normal_(theirs.embedding.weight)
    x = torch.randn(2, 3, 6, 4, 4) if cls is ours.Emu3VQVAEVectorQuantizer else torch.randn(2, 6, 4, 4)
    assert_same(theirs, own, x)
    if hasattr(theirs, "get_codebook_entry"):
        tokens = torch.randint(30, (2, 16))
        torch.testing.assert_close(own.get_codebook_entry(tokens), theirs.get_codebook_entry(tokens))
    model = nn.Sequential(theirs)
    assert type(vqkit.accelerate(model).replaced and model[0]) is cls
