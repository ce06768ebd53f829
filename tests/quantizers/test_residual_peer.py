"""The residual quantizer gives the numbers of the most used one of its kind, in training and after."""

import pytest
import torch

from vqkit.quantizers.quantizer import Quantizer
from vqkit.quantizers.residual import ResidualQuantizer


@pytest.fixture
def peer():
    return pytest.importorskip("vector_quantize_pytorch")


def with_weights_of(theirs, **change):
    """Ours with the codes, statistics and projections of a ``ResidualVQ``."""
    ours = ResidualQuantizer(
        dim=theirs.project_in.in_features if theirs.has_projections else theirs.codebook_dim,
        codebook_size=theirs.codebook_sizes,
        codebook_dim=theirs.codebook_dim,
        **(dict(gradient="stages") | change),
    )
    books = [ours.codebook] if theirs.shared_codebook else [stage.codebook for stage in ours.quantizers]
    for layer, book in zip(theirs.layers, books):
        with torch.no_grad():
            book.codes.copy_(layer._codebook.embed[0])
            if hasattr(book, "embed_sum"):
                book.embed_sum.copy_(layer._codebook.embed_avg[0])
    if theirs.has_projections:
        ours.project_in.load_state_dict(theirs.project_in.state_dict())
        ours.project_out.load_state_dict(theirs.project_out.state_dict())
    return ours


PEERS = {
    "plain": ({}, {}),
    "cosine": (dict(use_cosine_sim=True), dict(metric="cosine")),
    "projected": (dict(codebook_dim=5), {}),
    "sizes": (dict(codebook_size=(30, 20, 10)), {}),
    "commitment": (dict(commitment_weight=0.25, decay=0.99), dict(commitment_weight=0.25, decay=0.99)),
    "shared": (dict(shared_codebook=True), dict(shared_codebook=True)),
}


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("masked", [False, True])
def test_the_peer_in_training_and_after(peer, name, masked):
    if masked and name == "cosine":
        pytest.skip("with a mask its commitment loss is of latents that are not projected to the sphere")
    theirs_change, ours_change = PEERS[name]
    options = dict(dim=8, num_quantizers=3, codebook_size=20, rotation_trick=False) | theirs_change
    theirs = peer.ResidualVQ(**options)
    ours = with_weights_of(theirs, **ours_change)
    mask = torch.rand(4, 15) > 0.3 if masked else None
    for _ in range(3):
        x = torch.randn(4, 15, 8)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        quantized, indices, losses = theirs(a, mask=mask)
        result = ours(b, mask)
        kept = slice(None) if mask is None else mask
        assert torch.equal(result.indices[kept], indices[kept])
        torch.testing.assert_close(result.quantized, quantized, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.stage_losses(result), losses, rtol=1e-4, atol=1e-6)
        weight = torch.randn_like(x)
        for total, output in ((losses.sum(), quantized), (result.loss, result.quantized)):
            (total + (output * weight).sum()).backward()
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=1e-5)
    for layer, stage in zip(theirs.layers, ours.quantizers):
        torch.testing.assert_close(stage.codes, layer.codebook, rtol=1e-4, atol=1e-5)
    theirs.eval(), ours.eval()
    quantized, indices, _, codes = theirs(x, return_all_codes=True)
    assert torch.equal(ours.encode(x), indices)
    torch.testing.assert_close(ours.decode(indices), quantized, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.decode_stages(indices), codes, rtol=1e-4, atol=1e-5)
    with_hole = indices.clone()
    with_hole[..., 1] = -1
    torch.testing.assert_close(ours.decode(with_hole), theirs.get_output_from_indices(with_hole), rtol=1e-4, atol=1e-5)


def test_the_peer_with_rotation(peer):
    theirs = peer.ResidualVQ(dim=8, num_quantizers=3, codebook_size=20)
    stages = [Quantizer(8, 20, gradient="rotation") for _ in range(3)]
    ours = ResidualQuantizer(stages, gradient="stages")
    for layer, stage in zip(theirs.layers, stages):
        stage.codebook.codes.copy_(layer.codebook)
    x, weight = torch.randn(4, 15, 8), torch.randn(4, 15, 8)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    quantized, indices, losses = theirs(a)
    result = ours(b)
    assert torch.equal(result.indices, indices)
    torch.testing.assert_close(result.quantized, quantized, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.stage_losses(result), losses)
    (quantized * weight).sum().backward(), (result.quantized * weight).sum().backward()
    torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=1e-4)


def test_the_peer_with_as_many_stages_dropped(peer):
    theirs = peer.ResidualVQ(dim=8, num_quantizers=4, codebook_size=20, quantize_dropout=True, rotation_trick=False)
    ours = with_weights_of(theirs, quantize_dropout=True)
    for seed in range(6):
        x = torch.randn(4, 15, 8)
        quantized, indices, losses = theirs(x, rand_quantize_dropout_fixed_seed=seed)
        result = ours(x, stages=int((indices[0, 0] >= 0).sum()))
        assert torch.equal(result.indices, indices)
        torch.testing.assert_close(result.quantized, quantized)
        torch.testing.assert_close(ours.stage_losses(result), losses)


def test_the_peer_with_learned_codebooks(peer):
    theirs = peer.ResidualVQ(dim=8, num_quantizers=3, codebook_size=20, learnable_codebook=True, ema_update=False, rotation_trick=False)
    ours = with_weights_of(theirs, codebook="learned")
    x = torch.randn(4, 15, 8)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    quantized, indices, losses = theirs(a)
    result = ours(b)
    assert torch.equal(result.indices, indices)
    torch.testing.assert_close(result.quantized, quantized)
    # One term of its loss has both gradients; ours has a term for each, of the same value.
    torch.testing.assert_close(torch.stack([part.losses["commitment"] for part in result.parts]), losses)
    losses.sum().backward(), result.loss.backward()
    torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-7)
    for layer, stage in zip(theirs.layers, ours.quantizers):
        torch.testing.assert_close(stage.codebook.codes.grad, layer._codebook.embed.grad[0], rtol=1e-4, atol=1e-7)
