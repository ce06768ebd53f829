"""Every tokenizer learns a batch by heart, compiles whole, and keeps its search in float32 under autocast."""

import pytest
import torch

from vqkit.nn import PatchDiscriminator
from vqkit.objectives import AdversarialLoss, ReconstructionLoss


def pictures():
    """Two coloured shapes on plain ground."""
    images = torch.full((2, 3, 16, 16), -0.8)
    images[0, 0, 4:12, 4:12] = 0.9
    images[1, 2, :, 8:] = 0.5
    images[1, 1, 2:6, 2:6] = 0.7
    return images


@pytest.mark.parametrize("kind", ["vqvae", "vqvae-ema", "vqgan", "vqgan-halves", "vqgan-anchored", "vqgan-linear", "vqct", "vqct-mlp", "v2l", "raq-ema", "raq-vqgan-ema", "rqvae-ema", "adq-ema", "sgc-vqgan-ema", "autoencoder"])
def test_one_batch_is_learned(build, kind):
    model, images = build(kind), pictures()
    objective = ReconstructionLoss("l2" if "vqvae" in kind or kind == "raq-ema" else "l1", structural_weight=0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    losses = []
    for _ in range(30):
        output = model(images)
        loss = objective(output.reconstruction, images)[0]
        optimizer.zero_grad()
        (loss + output.loss).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0], losses[::5]


def test_adversarial_step_balances_at_the_last_layer(build):
    model, images = build("vqgan"), pictures()
    discriminator = PatchDiscriminator(8, 1)
    adversarial = AdversarialLoss(start=0)
    output = model(images)
    reconstruction_loss = ReconstructionLoss()(output.reconstruction, images)[0]
    term, parts = adversarial.generator(discriminator(output.reconstruction), reconstruction_loss, model.last_layer)
    pulls = [torch.autograd.grad(loss, model.last_layer, retain_graph=True)[0].norm() for loss in (term, reconstruction_loss)]
    expected = 0.8 * pulls[1] * (1 - 1e-4 / (pulls[1] / parts["adaptive_weight"]))
    torch.testing.assert_close(pulls[0], expected, rtol=1e-4, atol=0)
    (reconstruction_loss + output.loss + term).backward()
    adversarial.discriminator(discriminator(images), discriminator(output.reconstruction.detach())).backward()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vqvae", "vqgan-halves", "vqct"])
@pytest.mark.parametrize("training", [True, False])
def test_compiles_without_graph_breaks(build, kind, training):
    torch._dynamo.reset()
    model = build(kind, **({"dropout": 0.0} if kind == "vqct" else {})).train(training)
    images = pictures()
    found, expected = torch.compile(model, backend="aot_eager", fullgraph=True)(images), model(images)
    assert torch.equal(found.indices, expected.indices)
    torch.testing.assert_close(found.reconstruction, expected.reconstruction)
    torch.testing.assert_close(found.loss, expected.loss)


def test_autocast(build, quantized_kind):
    model, images = build(quantized_kind), pictures()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images)
    assert output.loss.dtype == torch.float32
    (output.reconstruction.float().mean() + output.loss).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        reconstruction = model(images).reconstruction
        assert torch.equal(model.decode(model.encode(images)), reconstruction.clamp(-1, 1))
