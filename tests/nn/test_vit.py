"""Transformer blocks and the vision transformer: what attends to what, maps of other sizes, patches where they belong."""

import pytest
import torch
import torch.nn.functional as F

from vqkit.nn import SelfAttention, TransformerBlock, ViTDecoder, ViTEncoder


def test_attention_follows_its_formula():
    attention, x = SelfAttention(12, 3).double(), torch.randn(2, 5, 12, dtype=torch.float64)
    query, key, value = (part.view(2, 5, 3, 4).transpose(1, 2) for part in attention.qkv(x).chunk(3, -1))
    weights = (query @ key.mT / 2).softmax(-1)
    expected = attention.out((weights @ value).transpose(1, 2).reshape(2, 5, 12))
    torch.testing.assert_close(attention(x), expected)


@pytest.mark.parametrize("masked", [False, True])
def test_a_causal_block_does_not_see_what_comes_later(masked):
    block, x = TransformerBlock(8, 2, causal=True).eval(), torch.randn(1, 6, 8)
    mask = torch.tensor([[True, False, True, True, True, True]]) if masked else None
    changed = x.clone()
    changed[:, 4:] += 1
    torch.testing.assert_close(block(changed, mask)[:, :4], block(x, mask)[:, :4])
    assert not torch.allclose(block(changed, mask)[:, 4:], block(x, mask)[:, 4:])


def test_hidden_positions_have_no_influence():
    block, x = TransformerBlock(8, 2).eval(), torch.randn(2, 6, 8)
    mask = torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
    changed = x.clone()
    changed[0, 4:] = 100
    torch.testing.assert_close(block(changed, mask)[mask], block(x, mask)[mask])
    torch.testing.assert_close(block(x, mask)[0, :4], block(x[:1, :4])[0])


def test_patches_keep_their_places():
    # One token changed in the map changes its own patch most; with no block in between, only that.
    decoder = ViTDecoder(4, 3, 8, 0, 2, 16).eval()
    latents = torch.randn(1, 8, 3, 2)
    changed = latents.clone()
    changed[..., 2, 1] += 1
    difference = (decoder(changed) - decoder(latents)).abs().sum(1)[0]
    assert difference[8:, 4:].gt(0).all() and not difference[:8].any() and not difference[:, :4].any()
    encoder = ViTEncoder(4, 3, 8, 0, 2, 16).eval()
    pictures = torch.randn(1, 3, 12, 8)
    changed = pictures.clone()
    changed[..., 8:, 4:] += 1
    difference = (encoder(changed) - encoder(pictures)).abs().sum(1)[0]
    assert difference[2, 1] > 0 and int((difference > 0).sum()) == 1


def test_maps_of_another_size_get_the_positions_resized():
    encoder = ViTEncoder(2, 4, 8, 0, 2, 16)
    same, other = encoder.positions(4, 4), encoder.positions(6, 5)
    assert other.shape == (1, 30, 8) and torch.equal(same, encoder.positions.vectors.flatten(2).mT)
    expected = F.interpolate(encoder.positions.vectors, (6, 5), mode="bicubic", align_corners=False)
    torch.testing.assert_close(other.mT.unflatten(2, (6, 5)), expected)


def test_what_does_not_fit():
    with pytest.raises(ValueError, match="heads: expected a divisor of the width 12, got 5"):
        SelfAttention(12, 5)
