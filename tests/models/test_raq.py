"""RAQ: one model at any rate, in training, in eval mode and out of a folder."""

import pytest
import torch

from vqkit.models import RAQ, RAQConfig, from_pretrained
from vqkit.nn import CodeGenerator


@pytest.mark.parametrize("kind", ["raq-ema", "raq-ema-resize", "raq-vqgan-ema"])
def test_every_rate_has_its_codes_and_goes_round(build, images, kind, tmp_path):
    model = build(kind)
    model(images)
    model.eval().save_pretrained(tmp_path)
    for twin in (model, from_pretrained(tmp_path)):
        with torch.no_grad():
            (source,) = twin.codebook_sizes
            for rate in (None, 1, 5, source, 40):
                output = twin(images, rate=rate)
                assert output.indices.max() < (rate or source)
                assert torch.equal(twin.encode(images, rate=rate), output.indices)
                assert torch.equal(twin.decode(output.indices, rate=rate), output.reconstruction.clamp(-1, 1))
                assert torch.equal(model(images, rate=rate).reconstruction, output.reconstruction)
            assert torch.equal(twin(images, rate=source).reconstruction, twin(images).reconstruction)


def test_both_halves_of_a_batch_are_reconstructed_and_both_losses_counted(build, images):
    model = build("raq-ema", generator_dropout=0.0, rates=(7, 7))
    before = model.quantizer.codes.clone(), model.quantizer.codes_at(7).detach()
    output = model(images)
    for half, codes in enumerate(before):
        torch.testing.assert_close(output.quantized[half], codes[output.indices[half]].movedim(-1, 0))
    names = {"commitment": 0.25, "adapted_commitment": 0.25, "adapted_codebook": 1.0}
    torch.testing.assert_close(output.loss, sum(weight * output.losses[name] for name, weight in names.items()))
    assert set(output.losses) == set(names) and [len(part.counts) for part in output.parts] == [32]


def test_a_trained_model_is_better_at_higher_rates(build):
    torch.manual_seed(0)
    pictures = torch.nn.functional.interpolate(torch.rand(8, 3, 4, 4) * 2 - 1, scale_factor=4)
    model = build("raq-ema", code_dim=4, rates=(2, 64), generator_dropout=0.0)
    optimizer, losses = torch.optim.AdamW(model.parameters(), 4e-3), []
    for _ in range(120):
        output = model(pictures)
        error = (output.reconstruction - pictures).square().mean()
        optimizer.zero_grad()
        (error + output.loss).backward()
        optimizer.step()
        losses.append(error.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5]), losses[::20]
    model.eval()
    with torch.no_grad():
        errors = [(model(pictures, rate=rate).quantized - model.to_codes(model.encoder(pictures))).square().mean() for rate in (2, 64)]
    assert errors[1] < 0.8 * errors[0], errors


def test_resize_trains_as_a_vqvae_and_takes_its_weights(build, images):
    model, plain = build("raq-ema-resize"), build("vqvae", codebook="ema")
    renamed = {name.replace("quantizer.codebook", "quantizer.codebook.source"): value for name, value in plain.state_dict().items()}
    model.load_state_dict(renamed)
    for _ in range(2):
        found, expected = model(images), plain(images)
        assert torch.equal(found.reconstruction, expected.reconstruction) and torch.equal(found.loss, expected.loss)
    assert not [name for name, _ in model.named_parameters() if "quantizer" in name]
    assert isinstance(build("raq-ema").quantizer.codebook.generate, CodeGenerator)


def test_published_shape():
    config = RAQConfig()
    assert (config.rates, config.codebook, config.decay, config.commitment_weight, config.code_dim) == ((16, 2048), "ema", 0.99, 0.25, 64)
    with torch.device("meta"):
        generator = RAQ(config).quantizer.codebook.generate
    assert sum(p.numel() for p in generator.parameters()) == 4 * (2 * 4 * 64 * 64 + 2 * 4 * 64) + 64 * 64 + 64


def test_arguments_that_do_not_fit(build, images):
    for changes, message in [
        ({"generator": "magic"}, "generator: got 'magic', expected one of 'recurrent', 'resize'"),
        ({"generator_layers": 0}, "generator_layers: got 0"),
        ({"generator_dropout": 1.0}, "generator_dropout: got 1.0"),
        ({"rates": (4, 2)}, r"rates: .*\(4, 2\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            build("raq-ema", **changes)
    model = build("raq-ema").eval()
    with pytest.raises(ValueError, match="rate: expected at least 1, got 0"):
        model.encode(images, rate=0)
    with pytest.raises(IndexError, match="indices: "):
        model.decode(torch.full((1, 4, 4), 9), rate=9)
    with pytest.raises(ValueError, match=r"indices: got shape \(4, 4\)"):
        model.decode(torch.zeros(4, 4, dtype=torch.int64), rate=9)
