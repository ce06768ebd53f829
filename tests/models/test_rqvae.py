"""RQ-VAE: sums of codes, a loss over the partial sums, usage of each depth."""

import pytest
import torch

from vqkit.models import RQVAE, RQVAEConfig


@pytest.mark.parametrize("kind", ["rqvae-ema", "rqvae-own-ema"])
def test_codes_are_greedy_sums_and_the_loss_is_the_mean_over_partial_sums(build, images, kind):
    model = build(kind).eval()
    with torch.no_grad():
        output, latents = model(images), model._latents(images).movedim(1, -1)
    rest, errors = latents.double(), []
    for depth, stage in enumerate(model.quantizer.quantizers):
        codes = stage.codes.double()
        distances = torch.cdist(rest, codes.expand(2, 4, *codes.shape).flatten(0, 1).view(2, 4, *codes.shape))
        chosen = output.indices[..., depth]
        torch.testing.assert_close(distances.gather(-1, chosen[..., None]).squeeze(-1), distances.amin(-1))
        rest = rest - codes[chosen]
        errors.append(rest.square().mean())
    torch.testing.assert_close(output.quantized.movedim(1, -1).double(), latents.double() - rest, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.loss.double(), 0.25 * torch.stack(errors).mean(), rtol=1e-5, atol=0)
    assert set(output.losses) == {"commitment"}


def test_each_depth_has_its_own_counts_and_one_codebook(build, images):
    model = build("rqvae-ema")
    assert (model.codebook_sizes, model.selections) == ((20,) * 3, (1,) * 3)
    assert len([name for name in model.state_dict() if name.endswith(".codes")]) == 1
    assert len([name for name in build("rqvae-own-ema").state_dict() if name.endswith(".codes")]) == 2
    indices = model.eval().encode(images)
    assert indices.shape == (2, 4, 6, 3)
    for depth, counts in enumerate(model.count_codes(indices)):
        assert torch.equal(counts, torch.bincount(indices[..., depth].flatten(), minlength=20))
    with pytest.raises(ValueError, match=r"indices: got shape \(2, 4, 6\), expected \(B, h, w, 3\)"):
        model.decode(indices[..., 0])


def test_unused_codes_begin_again_from_latents(build, images):
    model = build("rqvae-ema", threshold_ema_dead_code=1.0, decay=0.0)
    before = model.quantizer.codebook.codes.clone()
    chosen = model(images).indices.flatten().unique()
    dead = torch.ones(20, dtype=torch.bool)
    dead[chosen] = False
    assert dead.any() and (model.quantizer.codebook.codes[dead] != before[dead]).any(1).all()


def test_one_depth_is_a_quantizer_of_running_means(build, images):
    model = build("rqvae-ema", depth=1)
    plain = build("vqgan-ema", attention=True, codebook_size=20, threshold_ema_dead_code=0.1)
    plain.load_state_dict({name.replace("quantizer.quantizers.0.", "quantizer."): value for name, value in model.state_dict().items()
                           if not name.startswith("quantizer.")}, strict=False)
    plain.quantizer.codebook.codes.copy_(model.quantizer.codebook.codes)
    found, expected = model.eval()(images), plain.eval()(images)
    assert torch.equal(found.indices.squeeze(-1), expected.indices)
    torch.testing.assert_close(found.reconstruction, expected.reconstruction)
    torch.testing.assert_close(found.loss, expected.loss)
    assert torch.equal(model.decode(model.encode(images)), found.reconstruction.clamp(-1, 1))


def test_published_shape():
    config = RQVAEConfig()
    assert (config.depth, config.codebook_size, config.resolved_code_dim, config.decay, config.threshold_ema_dead_code) == (4, 16384, 256, 0.99, 1.0)
    with torch.device("meta"):
        model = RQVAE(config)
    assert 256 // model.downsampling == 8 and model.codebook_sizes == (16384,) * 4


def test_settings_that_do_not_fit(build):
    for changes, message in [({"depth": 0}, "depth: got 0"), ({"codebook_size": 0}, "codebook_size: got 0"), ({"gradient": "magic"}, "gradient: .*magic")]:
        with pytest.raises(ValueError, match=message):
            build("rqvae-ema", **changes)
