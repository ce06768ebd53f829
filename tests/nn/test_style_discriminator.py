"""StyleGAN2's discriminator: sizes, the spread over pictures, equal learning rates, and learning."""

import pytest
import torch

from vqkit.nn import StyleDiscriminator
from vqkit.nn.style_discriminator import EqualizedConv2d, EqualizedLinear
from vqkit.objectives import non_saturating_discriminator_loss, r1_penalty


def test_it_has_the_published_size():
    # 28.86 M parameters at 256x256.
    assert sum(p.numel() for p in StyleDiscriminator(256).parameters()) == 28_864_129


@pytest.mark.parametrize("resolution", [8, 16, 64])
def test_one_logit_a_picture(resolution):
    assert StyleDiscriminator(resolution, 1)(torch.randn(3, 3, resolution, resolution)).shape == (3, 1)


def test_layers_keep_the_variance():
    x = torch.randn(64, 40, 9, 9)
    assert abs(EqualizedConv2d(40, 50, 3)(x).std() - 1) < 0.05
    assert abs(EqualizedLinear(40, 500)(x[:, :, 0, 0]).std() - 1) < 0.05


def test_pictures_see_their_groups_spread():
    torch.manual_seed(0)
    discriminator, pictures = StyleDiscriminator(8, 1), torch.randn(4, 3, 8, 8)
    alone = discriminator(pictures[:1])
    same = discriminator(pictures[:1].repeat(4, 1, 1, 1))
    torch.testing.assert_close(same, alone.repeat(4, 1))
    assert not torch.allclose(discriminator(pictures)[:1], alone)
    # A prime batch has no groups but itself or single pictures.
    assert discriminator(torch.randn(7, 3, 8, 8)).isfinite().all()


def test_it_learns_to_tell_noise_from_stripes():
    torch.manual_seed(1)
    discriminator = StyleDiscriminator(16, 1)
    optimizer = torch.optim.Adam(discriminator.parameters(), 2e-3, betas=(0.0, 0.99))

    def draw():
        return (torch.arange(16.0).sin() * torch.randn(8, 3, 1, 1)).expand(-1, -1, 16, -1), torch.randn(8, 3, 16, 16) * 0.7

    for _ in range(40):
        real, fake = draw()
        real = real.clone().requires_grad_()
        logits = discriminator(real)
        loss = non_saturating_discriminator_loss(logits, discriminator(fake)) + 1.0 * r1_penalty(real, logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    real, fake = draw()
    with torch.no_grad():
        assert (discriminator(real) > 0).float().mean() > 0.8 and (discriminator(fake) < 0).float().mean() > 0.8


def test_r1_is_half_the_squared_gradient():
    weight = torch.randn(3 * 4 * 4, dtype=torch.float64, requires_grad=True)
    images = torch.randn(5, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    penalty = r1_penalty(images, images.flatten(1) @ weight)
    # r1_penalty sums logits in float32.
    torch.testing.assert_close(penalty.double(), 0.5 * weight.detach().square().sum(), rtol=1e-6, atol=0)
    penalty.backward()
    torch.testing.assert_close(weight.grad, weight.detach(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("resolution", [4, 12, 0])
def test_other_resolutions(resolution):
    with pytest.raises(ValueError, match=f"resolution: .*{resolution}"):
        StyleDiscriminator(resolution)


def test_pictures_of_another_size():
    with pytest.raises(ValueError, match=r"images: got \(1, 3, 8, 16\), expected 8x8"):
        StyleDiscriminator(8, 1)(torch.zeros(1, 3, 8, 16))
