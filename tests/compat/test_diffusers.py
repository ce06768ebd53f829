"""diffusers' quantizer, alone and in its VQModel."""

import numpy as np
import pytest
import torch

import vqkit
from tests.compat.foreign import FOREIGN
from vqkit.compat.diffusers import VectorQuantizer


def test_formula(assert_same):
    assert_same(FOREIGN.taming(20, 6, 0.25, legacy=False), VectorQuantizer(20, vq_embed_dim=6, beta=0.25, legacy=False), torch.randn(2, 6, 4, 3))


@pytest.mark.parametrize("options", [{}, dict(legacy=False, sane_index_shape=True), dict(unknown_index="extra")], ids=str)
def test_equals_the_library(options, assert_same, tmp_path):
    vae = pytest.importorskip("diffusers.models.autoencoders.vae")
    if "unknown_index" in options:
        np.save(tmp_path / "used.npy", np.arange(3, 15, 2))
        options = options | dict(remap=str(tmp_path / "used.npy"))
    theirs, ours = vae.VectorQuantizer(20, 6, 0.25, **options), VectorQuantizer(20, 6, 0.25, **options)
    assert_same(theirs, ours, torch.randn(2, 6, 4, 3))
    indices = torch.randint(6, (24,))
    assert torch.equal(ours.get_codebook_entry(indices, (2, 4, 3, 6)), theirs.get_codebook_entry(indices, (2, 4, 3, 6)))


def test_vq_model_is_accelerated():
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.VQModel(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=4, num_vq_embeddings=30, sample_size=16, mid_block_add_attention=False
    ).eval()
    torch.nn.init.normal_(model.quantize.embedding.weight)
    images, weight = torch.randn(2, 3, 16, 16), model.quantize.embedding.weight
    expected = model(images)
    report = vqkit.accelerate(model)
    assert [row.path for row in report.replaced] == ["quantize"] and type(model.quantize) is VectorQuantizer
    got = model(images)
    torch.testing.assert_close(got.sample, expected.sample)
    torch.testing.assert_close(got.commit_loss, expected.commit_loss)
    assert model.quantize.embedding.weight is weight
    vqkit.restore(model)
    assert type(model.quantize).__module__.startswith("diffusers.")
    assert torch.equal(model(images).sample, expected.sample)
