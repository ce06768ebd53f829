"""The blocks against their formulas in float64, and the autoencoder built of them."""

import math

import pytest
import torch
import torch.nn.functional as F

from vqkit.nn import (
    AttentionBlock,
    Decoder,
    Downsample,
    Encoder,
    ResidualBlock,
    StridedDecoder,
    StridedEncoder,
    Upsample,
    group_norm,
)

SMALL = {"channels": 8, "channel_multipliers": (1, 2, 3), "num_res_blocks": 1, "latent_dim": 5}


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("channels", "groups"), [(128, 32), (512, 32), (32, 8), (48, 12), (8, 2), (37, 1), (1, 1)])
def test_group_norm_takes_the_most_groups_that_divide(channels, groups):
    assert group_norm(channels).num_groups == groups


def test_narrow_maps_keep_their_mean_colour():
    x = torch.randn(1, 8, 6, 6)
    assert group_norm(8)(x).mean((0, 2, 3)).abs().max() > 0.01


def test_residual_block_is_its_formula():
    torch.manual_seed(0)
    block = ResidualBlock(8, 12).double()
    x = torch.randn(2, 8, 5, 7, dtype=torch.float64)

    def normalised(y, groups):
        grouped = y.reshape(2, groups, -1)
        grouped = (grouped - grouped.mean(-1, True)) / (grouped.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
        return grouped.reshape(y.shape)

    def swish(y):
        return y / (1 + torch.exp(-y))

    y = F.conv2d(swish(normalised(x, 2)), block.conv1.weight, block.conv1.bias, padding=1)
    y = F.conv2d(swish(normalised(y, 3)), block.conv2.weight, block.conv2.bias, padding=1)
    shortcut = torch.einsum("oi,bihw->bohw", block.shortcut.weight[:, :, 0, 0], x) + block.shortcut.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(block(x), shortcut + y, rtol=1e-10, atol=1e-10)


def test_attention_is_softmax_over_all_positions():
    torch.manual_seed(0)
    block = AttentionBlock(6).double()
    x = torch.randn(2, 6, 3, 5, dtype=torch.float64)
    q, k, v = F.conv2d(F.group_norm(x, 1, eps=1e-6), block.qkv.weight, block.qkv.bias).flatten(2).chunk(3, 1)
    scores = torch.einsum("bci,bcj->bij", q, k) / math.sqrt(6)
    y = torch.einsum("bij,bcj->bci", scores.exp() / scores.exp().sum(-1, True), v).reshape(x.shape)
    torch.testing.assert_close(block(x), x + F.conv2d(y, block.out.weight, block.out.bias), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [(4, 4), (6, 10)])
def test_downsample_halves_and_upsample_doubles(size):
    x = torch.randn(1, 3, *size)
    assert Downsample(3)(x).shape == (1, 3, size[0] // 2, size[1] // 2)
    up = Upsample(3)
    # away from the border a constant map stays constant under the doubled map's convolution
    constant = up(torch.ones(1, 3, *size))
    assert constant.shape == (1, 3, size[0] * 2, size[1] * 2)
    inner = constant[:, :, 1:-1, 1:-1]
    torch.testing.assert_close(inner, inner[:, :, :1, :1].expand_as(inner))


def test_published_f16_sizes():
    shape = (128, (1, 1, 2, 2, 4), 2, 256)
    with torch.device("meta"):
        encoder, decoder = Encoder(*shape, attention_levels=(-1,)), Decoder(*shape, attention_levels=(-1,))
    assert (parameters(encoder), parameters(decoder)) == (29_298_176, 42_449_795)


@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (1, 2, 3), (1, 1, 2, 2)])
@pytest.mark.parametrize("attention_levels", [(), (-1,)])
def test_downsampling_follows_the_number_of_multipliers(multipliers, attention_levels):
    f = 2 ** (len(multipliers) - 1)
    encoder = Encoder(4, multipliers, 1, 5, attention_levels=attention_levels)
    decoder = Decoder(4, multipliers, 1, 5, attention_levels=attention_levels)
    latents = encoder(torch.randn(2, 3, 2 * f, 3 * f))
    assert latents.shape == (2, 5, 2, 3)
    assert decoder(latents).shape == (2, 3, 2 * f, 3 * f)


def test_decoder_has_one_more_residual_block_a_stage():
    encoder, decoder = Encoder(**SMALL), Decoder(**SMALL)
    blocks = [sum(isinstance(m, ResidualBlock) for m in part.modules()) for part in (encoder.down, decoder.up)]
    assert blocks == [3 * 1, 3 * 2]


@pytest.mark.parametrize("level", [3, -4])
def test_attention_level_that_is_not_there(level):
    with pytest.raises(ValueError, match=f"attention_levels: got {level}, expected -3 .. 2"):
        Encoder(**SMALL, attention_levels=(level,))


def test_negative_levels_count_from_the_coarsest_in_both():
    for cls in (Encoder, Decoder):
        torch.manual_seed(1)
        one = cls(**SMALL, attention_levels=(-1,))
        torch.manual_seed(1)
        other = cls(**SMALL, attention_levels=(2,))
        assert one.state_dict().keys() == other.state_dict().keys()
        assert any(isinstance(m, AttentionBlock) for m in (one.down if cls is Encoder else one.up))


@pytest.mark.parametrize(
    "pair",
    [
        lambda: (Encoder(**SMALL, attention_levels=(-1,)), Decoder(**SMALL, attention_levels=(-1,))),
        lambda: (StridedEncoder(8, 4), StridedDecoder(8, 8, 4)),
    ],
)
def test_autoencoder_reaches_all_parameters_repeats_and_takes_channels_last(pair):
    torch.manual_seed(3)
    encoder, decoder = pair()
    x = torch.randn(2, 3, 8, 12)
    y = decoder(encoder(x))
    assert y.shape == x.shape
    y.square().mean().backward()
    for name, parameter in [*encoder.named_parameters(), *decoder.named_parameters()]:
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert decoder.last_layer.shape[{Decoder: 0, StridedDecoder: 1}[type(decoder)]] == 3

    torch.manual_seed(3)
    again = pair()
    torch.testing.assert_close(again[1](again[0](x)), y, rtol=0, atol=0)

    last = {"memory_format": torch.channels_last}
    z = again[1].to(**last)(again[0].to(**last)(x.to(**last)))
    assert z.is_contiguous(**last)
    torch.testing.assert_close(z, y, rtol=1e-4, atol=1e-5)


def test_compiles_without_graph_breaks():
    encoder = Encoder(4, (1, 2), 1, 5, attention_levels=(-1,))
    x = torch.randn(1, 3, 4, 6)
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), encoder(x), rtol=0, atol=0)
