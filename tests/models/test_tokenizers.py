"""What holds for every tokenizer: losses, gradients, codes and back, and what it refuses."""

import pytest
import torch

from vqkit.codebooks import AnchoredCodebook, LinearCodebook
from vqkit.models import VQGANConfig, VQVAEConfig, create, from_pretrained
from vqkit.models.vqgan import VQGAN
from vqkit.models.vqvae import VQVAE


def flat_codes(model):
    codes = model.quantizer.codes
    return codes if isinstance(codes, tuple) else (codes,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_decode_of_encode_in_the_dtype_of_the_model(build, quantized_kind, images, dtype, tmp_path):
    model = build(quantized_kind).to(dtype).eval()
    model.save_pretrained(tmp_path)
    for twin in (model, from_pretrained(tmp_path)):
        with torch.no_grad():
            expected = twin(images.to(dtype)).reconstruction.clamp(-1, 1)
            found = twin.decode(twin.encode(images.to(dtype)))
        assert found.dtype == dtype and torch.equal(found, expected)


def test_pictures_that_are_not_finite_have_no_codes(build, quantized_kind, images):
    model = build(quantized_kind).eval()
    with torch.no_grad():
        output = model(images * torch.nan)
        assert (output.indices == -1).all() and float(output.loss) == 0
        assert torch.equal(model.decode(output.indices), output.reconstruction.clamp(-1, 1))


def test_decode_of_encode_is_the_evaluated_reconstruction(build, quantized_kind, images):
    model = build(quantized_kind).eval()
    with torch.no_grad():
        output = model(images * 3)
        indices = model.encode(images * 3)
        assert torch.equal(indices, output.indices)
        assert torch.equal(model.decode(indices), output.reconstruction.clamp(-1, 1))
        assert torch.equal(model._reconstruct(output.quantized)[0], output.reconstruction)


def test_indices_are_the_nearest_codes(build, searched_kind, images):
    model = build(searched_kind).eval()
    with torch.no_grad():
        latents = model._latents(images).movedim(1, -1).double()
        indices = model.encode(images)
    indices = indices if indices.dim() == 4 else indices[..., None]
    assert indices.shape == (2, 16 // model.downsampling, 24 // model.downsampling, sum(model.selections))
    columns = indices.split(list(model.selections), -1)
    pieces = latents.chunk(len(model.selections), -1)
    for codes, piece, column, selection in zip(flat_codes(model), pieces, columns, model.selections, strict=True):
        distances = (piece[..., None, :] - codes.detach().double()).square().sum(-1)
        nearest = distances.topk(selection, largest=False).values
        torch.testing.assert_close(distances.gather(-1, column), nearest, rtol=1e-9, atol=1e-12)


def test_quantized_is_the_mean_of_the_selected_codes_and_losses_follow(build, searched_kind, images):
    model = build(searched_kind).eval()
    with torch.no_grad():
        output = model(images)
        latents = model._latents(images)
        if "vit" in searched_kind:
            latents = torch.nn.functional.normalize(latents, dim=1)
    indices = output.indices if output.indices.dim() == 4 else output.indices[..., None]
    columns = indices.split(list(model.selections), -1)
    chosen = [codes.detach()[column].mean(-2) for codes, column in zip(flat_codes(model), columns, strict=True)]
    torch.testing.assert_close(output.quantized, torch.cat(chosen, -1).movedim(-1, 1))
    # halves of one width: the sum of their means
    error = len(chosen) * (output.quantized - latents).square().mean()
    torch.testing.assert_close(output.losses["commitment"], error)
    trained_by_gradient = "ema" not in searched_kind
    assert ("codebook" in output.losses) == trained_by_gradient
    torch.testing.assert_close(output.loss, 0.25 * error + trained_by_gradient * error)


def test_the_reconstruction_of_a_predicted_distribution_is_its_median(build, images):
    output = build("vit-vqgan").eval()(images)
    mean, log_scale = output.logit_laplace
    assert mean.shape == log_scale.shape == images.shape
    torch.testing.assert_close((0.8 * (output.reconstruction + 1) / 2 + 0.1).logit(), mean, rtol=1e-3, atol=1e-4)
    assert build("vit-vqgan", logit_laplace=False).eval()(images).logit_laplace is None


def test_vit_shapes_and_what_it_refuses(build):
    from vqkit.models import ViTVQGANConfig

    mixed = ViTVQGANConfig(size="small", decoder_size="base")
    assert mixed.encoder_shape == (8, 512, 8, 2048) and mixed.decoder_shape == (12, 768, 12, 3072)
    for arguments, message in [({"size": "tiny"}, "size: got 'tiny'"), ({"heads": 7}, "heads: got 7"), ({"patch": 0}, "patch: got 0")]:
        with pytest.raises(ValueError, match=message):
            ViTVQGANConfig(**arguments)


@pytest.mark.parametrize("kind", ["vqvae", "vqgan-halves", "vqct"])
def test_swapped_weights(build, kind, images):
    output = build(kind, commitment_weight=1.0, codebook_weight=0.25).eval()(images)
    torch.testing.assert_close(output.loss, output.losses["commitment"] + 0.25 * output.losses["codebook"])


def test_every_parameter_gets_a_gradient(build, kind, images):
    # a zero of a hidden unit of a small transfer network would be chance, so no dropout
    model = build(kind, **({"dropout": 0.0} if kind == "vqct" else {}))
    # enough pictures that each way through a model is taken
    images = images.repeat(8, 1, 1, 1)
    output = model(images)
    ((output.reconstruction - images).abs().mean() + output.loss).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_counts_and_usage_agree_with_the_indices(build, quantized_kind, images):
    model = build(quantized_kind).eval()
    output = model(images)
    counts = model.count_codes(output.indices)
    assert tuple(len(part) for part in counts) == model.codebook_sizes
    for part, counted in zip(output.parts, counts, strict=True):
        assert torch.equal(part.counts, counted)
    expected = torch.stack([(part > 0).double().mean() for part in counts]).mean()
    assert output.usage.item() == pytest.approx(expected.item())


def test_codebooks_have_only_the_options_that_are_theirs(build):
    anchored, linear = (build("vqgan", codebook=name).quantizer.codebook for name in ("anchored", "linear"))
    assert (type(anchored), type(linear), anchored.decay) == (AnchoredCodebook, LinearCodebook, 0.99)
    assert build("vqgan", codebook="anchored", decay=0.9, kmeans_init=True).quantizer.codebook.decay == 0.9
    for name, changes, option in [
        ("linear", {"decay": 0.9}, "decay"),
        ("linear", {"kmeans_init": True}, "kmeans_init"),
        ("anchored", {"threshold_ema_dead_code": 1.0}, "threshold_ema_dead_code"),
    ]:
        with pytest.raises(ValueError, match=f"{option}: expected none with codebook='{name}'"):
            build("vqgan", codebook=name, **changes)


def test_autoencoder_is_the_ceiling(build, images):
    model = build("autoencoder")
    output = model(images)
    assert output.indices is None and output.usage is None and output.perplexity is None
    assert (output.loss.item(), output.losses, output.parts) == (0.0, {}, ())
    assert (model.codebook_sizes, model.count_codes(None)) == ((), [])
    torch.testing.assert_close(output.reconstruction, model.decoder(model.from_codes(output.quantized)))
    for call in (lambda: model.encode(images), lambda: model.decode(torch.zeros(1, 4, 4, dtype=torch.int64))):
        with pytest.raises(ValueError, match="plain autoencoder"):
            call()


def test_last_layer_is_the_last_weight_before_the_pixels(build, kind, images):
    model = build(kind)
    reconstruction = model(images).reconstruction
    (gradient,) = torch.autograd.grad(reconstruction.sum(), model.last_layer)
    assert gradient.abs().sum() > 0
    with torch.no_grad():
        model.last_layer.zero_()
    # only its bias is left
    changed = model(images).reconstruction
    torch.testing.assert_close(changed, changed[:1, :, :1, :1].expand_as(changed))


@pytest.mark.parametrize("size", [(15, 16), (16, 18), (0, 16)])
def test_pictures_off_the_grid(build, kind, size):
    with pytest.raises(ValueError, match=rf"images: got {size[0]}x{size[1]} pixels, expected multiples of f = 4"):
        build(kind)(torch.zeros(1, 3, *size))


def test_pictures_of_another_kind(build):
    model = build("vqgan")
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(TypeError, match=r"images: got torch.uint8"):
        model(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"images: got shape \(3, 16, 16\)"):
        model(torch.zeros(3, 16, 16))
    with pytest.raises(ValueError, match=r"images: got shape \(1, 1, 16, 16\)"):
        model.encode(torch.zeros(1, 1, 16, 16))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_indices_that_do_not_fit(build):
    halves, plain = build("vqgan-halves"), build("vqgan")
    with pytest.raises(ValueError, match=r"indices: got shape \(1, 4, 4\), expected \(B, h, w, 3\)"):
        halves.decode(torch.zeros(1, 4, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"indices: got shape \(1, 4, 4, 1\), expected \(B, h, w\)"):
        plain.decode(torch.zeros(1, 4, 4, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"indices: got 40 \.\. 40, expected -1 \.\. 39"):
        plain.decode(torch.full((1, 4, 4), 40))


def test_other_sizes_than_trained_on(build, quantized_kind):
    model = build(quantized_kind).eval()
    for size in ((4, 4), (8, 28)):
        x = torch.zeros(1, 3, *size)
        assert model.decode(model.encode(x)).shape == x.shape


def test_published_sizes():
    with torch.device("meta"):
        vqgan, vqvae = VQGAN(VQGANConfig()), VQVAE(VQVAEConfig())

    def count(module):
        return sum(p.numel() for p in module.parameters())

    assert (vqgan.downsampling, vqgan.codebook_sizes) == (16, (1024,))
    assert count(vqgan.to_codes) == count(vqgan.from_codes) == 256 * 256 + 256
    assert count(vqgan) == 29_298_176 + 42_449_795 + 2 * 65_792 + 1024 * 256
    assert (vqvae.downsampling, vqvae.codebook_sizes) == (4, (512,))
    assert vqvae.quantizer.codes.shape == (512, 64)


@pytest.mark.parametrize("f", [4, 8, 16])
def test_published_downsampling_factors(f):
    from vqkit.models import CHANNEL_MULTIPLIERS

    with torch.device("meta"):
        assert VQGAN(VQGANConfig(channel_multipliers=CHANNEL_MULTIPLIERS[f])).downsampling == f


def test_published_start_of_the_codebook(build):
    codes = build("vqgan").quantizer.codes
    assert codes.abs().max() <= 1 / 40
    assert codes.std().item() == pytest.approx((2 / 40) / 12**0.5, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebook_size": 0}, "codebook_size: got 0"),
        ({"codebook_size": (4, 4)}, r"codebook_size: got \(4, 4\)"),
        ({"selections": ()}, r"selections: got \(\)"),
        ({"selections": (5,), "codebook_size": 4}, "codebook_size: got 4"),
        ({"channel_multipliers": ()}, r"channel_multipliers: got \(\)"),
        ({"channels": 0}, "channels: got 0"),
        ({"num_res_blocks": 0}, "num_res_blocks: got 0"),
        ({"attention_levels": (9,)}, "attention_levels: got 9"),
        ({"codebook": "magic"}, "codebook: .*magic"),
    ],
)
def test_configurations_out_of_range(build, changes, message):
    with pytest.raises(ValueError, match=message):
        build("vqgan", **changes)


def test_settings_that_a_model_does_not_have():
    with pytest.raises(TypeError, match=r"chanels: vqgan has no such setting.*did you mean 'channels'\?"):
        create("vqgan", chanels=3)
    with pytest.raises(ValueError, match="channels: got 1, expected at least 2"):
        create("vqvae", channels=1)
