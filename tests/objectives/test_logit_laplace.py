"""The logit-Laplace likelihood is a density, and training by it finds the pixels."""

import pytest
import torch

from vqkit.objectives import logit_laplace_loss, logit_laplace_picture


def test_it_is_the_density_that_its_name_says():
    # If z is Laplace(mean, b), x' = sigmoid(z); over x' the density sums to one.
    pixels = torch.linspace(-1, 1, 20001, dtype=torch.float64).view(1, 1, 1, -1)
    mean, log_scale = torch.full_like(pixels, 0.3), torch.full_like(pixels, -2.0)
    density = torch.stack([(-logit_laplace_loss(m, s, x)).exp() for m, s, x in
                           zip(*(t.view(-1, 1, 1, 1)[::40] for t in (mean, log_scale, pixels)), strict=True)])
    # x' runs over [0.1, 0.9] as x does over [-1, 1].
    assert abs(torch.trapezoid(density, dx=0.8 / (len(density) - 1)) - 1) < 1e-3


def test_the_likeliest_mean_gives_the_picture_back():
    images = torch.rand(2, 3, 4, 5) * 2 - 1
    mean = torch.zeros_like(images, requires_grad=True)
    optimizer = torch.optim.Adam([mean], 0.05)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 400)
        optimizer.zero_grad()
        logit_laplace_loss(mean, torch.zeros_like(mean), images).backward()
        optimizer.step()
    torch.testing.assert_close(logit_laplace_picture(mean), images, rtol=0, atol=0.01)


def test_the_likeliest_scale_is_the_mean_distance():
    images, mean = torch.rand(1, 1, 50, 50, dtype=torch.float64) * 2 - 1, torch.zeros(1, 1, 50, 50, dtype=torch.float64)
    distance = (0.8 * (images + 1) / 2 + 0.1).logit().abs().mean()
    log_scale = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_scale], max_iter=50)

    def closure():
        optimizer.zero_grad()
        loss = logit_laplace_loss(mean, log_scale.expand_as(mean), images)
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(log_scale.exp().detach(), distance, rtol=1e-4, atol=0)


def test_extreme_predictions_stay_finite():
    images = torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2)
    for value in (-1e4, 1e4):
        mean = torch.full_like(images, value, requires_grad=True)
        log_scale = torch.full_like(images, -1e4, requires_grad=True)
        loss = logit_laplace_loss(mean, log_scale, images)
        loss.backward()
        assert loss.isfinite() and mean.grad.isfinite().all() and log_scale.grad.isfinite().all()
        assert logit_laplace_picture(mean).abs().max() <= 1.26


def test_shapes_that_differ():
    with pytest.raises(ValueError, match=r"expected one shape, got \(1, 3, 2, 2\)"):
        logit_laplace_loss(torch.zeros(1, 3, 2, 2), torch.zeros(1, 1, 2, 2), torch.zeros(1, 3, 2, 2))
