"""ADQ: the choice of each picture travels in its indices."""

import pytest
import torch

from vqkit.models import ADQ, ADQConfig


def test_pictures_are_decoded_by_the_candidate_they_chose(build, images):
    model = build("adq-ema").eval()
    pictures = torch.randn(12, 3, 16, 16) * torch.linspace(0.1, 4, 12)[:, None, None, None]
    with torch.no_grad():
        model.quantizer.value.weight.mul_(30)
        choice = model.quantizer.choose(model._latents(pictures))
        assert len(set(choice.tolist())) > 1
        indices = model.encode(pictures)
        bounds = torch.tensor([0, 16, 24])
        assert ((indices.flatten(1) >= bounds[choice][:, None]) & (indices.flatten(1) < bounds[choice + 1][:, None])).all()
        # A picture's codes do not depend on its neighbours in the batch.
        assert torch.equal(model.encode(pictures[3:4]), indices[3:4])
        assert torch.equal(model.decode(indices), model(pictures).reconstruction.clamp(-1, 1))


def test_training_weighs_the_commitment(build, images):
    output = build("adq-ema", commitment_weight=0.7)(images)
    torch.testing.assert_close(output.loss, 0.7 * output.losses["commitment"])
    assert [len(part.counts) for part in output.parts] == [24]


def test_defaults():
    with torch.device("meta"):
        model = ADQ(ADQConfig())
    assert model.quantizer.sizes == (8192, 4096, 2048, 1024, 512) and model.codebook_sizes == (15872,)


def test_arguments_that_do_not_fit(build):
    with pytest.raises(ValueError, match="code_dims: expected divisors of capacity = 96"):
        build("adq-ema", code_dims=(7,))
    with pytest.raises(ValueError, match="temperature: "):
        build("adq-ema", temperature=0.0)
    with pytest.raises(ValueError, match=r"indices: got 24 \.\. 24, expected -1 \.\. 23"):
        build("adq-ema").decode(torch.full((1, 4, 4), 24))
