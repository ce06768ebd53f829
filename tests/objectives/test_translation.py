"""Translation of codes into captions: its loss, what it sees and must not see, what it learns, and two ranks as one."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from vqkit.nn.caption_decoder import CaptionDecoder
from vqkit.objectives import CaptionTranslation, LanguageGuidance, TranslationConfig, TranslationText

WIDTH, TOKENS, LENGTH, CODES = 12, 40, 8, 6



def table():
    return torch.randn(TOKENS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def made(**config) -> CaptionTranslation:
    torch.manual_seed(5)
    settings = {"weight": 0.3, "width": 16, "heads": 2, "dropout": 0.0} | config
    return CaptionTranslation(CODES, 3, table(), TranslationConfig(**settings), LENGTH).double()


def captions(batch=4):
    """Texts of 6 to 8 tokens, padding behind, the last picture without one."""
    ids = torch.randint(2, TOKENS, (batch, LENGTH), generator=torch.Generator().manual_seed(2))
    visible = torch.arange(LENGTH) < (torch.arange(batch) % 3 + 6).unsqueeze(1)
    return TranslationText(ids, visible, torch.arange(batch) < batch - 1)


def maps(batch=4, height=3, width=3):
    return torch.randn(batch, CODES, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_()


def token_by_token(translation, quantized, text):
    """-log p of each predicted token of each caption, each from the caption cut off before it, alone."""
    found = []
    for row in range(len(quantized)):
        surprises = []
        for place in range(1, int(text.visible[row].sum())) if text.present[row] else ():
            wanted = torch.zeros(1, place, dtype=torch.bool)
            wanted[0, -1] = True
            logits = translation.decoder(quantized[row : row + 1], text.ids[row : row + 1, :place], wanted)[0].tolist()
            surprises.append(math.log(sum(map(math.exp, logits))) - logits[text.ids[row, place]])
        found.append(surprises)
    return found


@pytest.mark.parametrize("size", [(3, 3), (2, 5)])
def test_the_loss_is_the_mean_surprise_of_each_token_given_those_before(size):
    translation, quantized, text = made(), maps(4, *size), captions()
    loss, terms = translation(quantized, text)
    expected = token_by_token(translation, quantized, text)
    flat = [surprise for row in expected for surprise in row]
    assert terms["translation"].item() == pytest.approx(sum(flat) / len(flat), rel=1e-9)
    assert loss.item() == pytest.approx(0.3 * sum(flat) / len(flat), rel=1e-9)
    sums, counts = translation.surprises(quantized, text)
    assert counts.tolist() == [len(row) for row in expected] == [5, 6, 7, 0]
    assert sums.tolist() == pytest.approx([sum(row) for row in expected])


def test_logits_are_the_layers_output_against_the_frozen_embeddings():
    torch.manual_seed(1)
    decoder = CaptionDecoder(CODES, 2, table(), LENGTH, width=8, depth=1, heads=2, dropout=0.0).double()
    quantized, ids = torch.randn(1, CODES, 2, 2, dtype=torch.float64), torch.tensor([[3, 5, 7]])
    (layer,), (linear, gelu, norm) = decoder.layers, decoder.head
    x = decoder.norm_token(table()[ids] @ decoder.embed_token.weight.T + decoder.embed_token.bias + decoder.places[:3])
    memory = decoder.norm_code(decoder.embed_code(quantized.flatten(2).mT) + decoder.positions(2, 2))

    def attended(part, query, key, mask):
        q, k, v = (x @ w.T + b for x, w, b in zip((query, key, key), part.in_proj_weight.chunk(3), part.in_proj_bias.chunk(3)))
        heads = [torch.softmax(a @ b.mT / 2 + mask, -1) @ c for a, b, c in zip(q.split(4, -1), k.split(4, -1), v.split(4, -1))]
        return part.out_proj(torch.cat(heads, -1))

    normed = layer.norm1(x)
    x = x + attended(layer.self_attn, normed, normed, torch.full((3, 3), -torch.inf, dtype=torch.float64).triu(1))
    x = x + attended(layer.multihead_attn, layer.norm2(x), memory, 0.0)
    x = x + layer.linear2(torch.nn.functional.gelu(layer.linear1(layer.norm3(x))))
    wanted = torch.tensor([[True, False, True]])
    torch.testing.assert_close(decoder(quantized, ids, wanted), norm(gelu(linear(x[wanted]))) @ table().T + decoder.bias)


def test_gradients_reach_the_codes_of_captioned_pictures_and_every_parameter():
    translation, quantized = made(), maps()
    translation(quantized, captions())[0].backward()
    norms = quantized.grad.flatten(1).norm(dim=1)
    assert (norms[:3] > 0).all() and norms[3] == 0
    assert all(parameter.grad.norm() > 0 for parameter in translation.parameters())


def test_padding_and_missing_captions_have_no_influence():
    translation, quantized, text = made(), maps(), captions()
    hidden = ~text.visible | ~text.present.unsqueeze(1)
    other = text._replace(ids=torch.where(hidden, (text.ids + 7) % TOKENS, text.ids))
    assert torch.equal(translation(quantized, text)[0], translation(quantized, other)[0])
    nobody = text._replace(present=torch.zeros(4, dtype=torch.bool))
    loss, terms = translation(quantized, nobody)
    assert loss.item() == 0 and terms["translation"].item() == 0
    loss.backward()
    # Ranks without captions take part in the reduction of gradients: none may be missing.
    assert all(parameter.grad is not None and parameter.grad.count_nonzero() == 0 for parameter in translation.parameters())


def test_a_caption_is_learnt_from_its_picture_and_not_from_another():
    torch.manual_seed(0)
    translation = made(width=32, depth=1).float().train()
    colours, optimizer = torch.randn(8, CODES), torch.optim.Adam(translation.parameters(), 5e-3)

    def batch(count):
        """Captions of two words that name the colours of the two halves of the map."""
        words = torch.randint(8, (count, 2))
        ids = torch.cat((torch.zeros(count, 1, dtype=torch.int64), words + 2, torch.ones(count, 1, dtype=torch.int64)), 1)
        quantized = colours[words].movedim(1, -1).unsqueeze(2).expand(-1, -1, 2, -1)
        return quantized, TranslationText(ids, torch.ones_like(ids, dtype=torch.bool), torch.ones(count, dtype=torch.bool))

    for _ in range(250):
        optimizer.zero_grad()
        translation(*batch(32))[0].backward()
        optimizer.step()
    quantized, text = batch(64)
    own, other = (translation.eval().surprises(maps, text)[0].mean().item() for maps in (quantized, quantized.roll(1, 0)))
    # Two of eight words each carry log 8 nats where nothing is known of the picture.
    assert own < 0.5 < 2 * math.log(8) < other


def test_saved_and_loaded_it_says_the_same_and_is_no_other_guidance(tmp_path):
    translation, quantized, text = made().float().eval(), maps().detach().float(), captions()
    path = tmp_path / "guidance.safetensors"
    translation.save(path, {"name": "table"})
    loaded = CaptionTranslation.load(path, table().float())
    torch.testing.assert_close(loaded(quantized, text), translation(quantized, text), rtol=0, atol=0)
    assert loaded.config == translation.config and not loaded.training
    assert not [name for name in load_file(path) if "token_embeddings" in name]
    with pytest.raises(ValueError, match="holds guidance of the kind 'translation', expected 'lgvq'"):
        LanguageGuidance.load(path, table())
    with pytest.raises(ValueError, match="another text model"):
        CaptionTranslation.load(path, torch.randn(TOKENS, WIDTH + 1))


@pytest.mark.parametrize("change, message", [
    ({"weight": 0.0}, "weight: expected more than 0"),
    ({"width": 10, "heads": 4}, "width, depth, heads: .*got 10, 2, 4"),
    ({"depth": 0}, "width, depth, heads"),
    ({"dropout": 1.0}, "dropout"),
])
def test_a_wrong_setting_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        TranslationConfig(**change)


def test_a_wrong_shape_is_named():
    translation, text = made(), captions()
    with pytest.raises(ValueError, match=r"quantized: expected \(B, 6, h, w\), got \(4, 5, 3, 3\)"):
        translation(torch.zeros(4, 5, 3, 3, dtype=torch.float64), text)
    with pytest.raises(ValueError, match=r"text: expected 3 texts of 1..8 tokens, got ids \(4, 8\)"):
        translation(maps(3), text)
    with pytest.raises(ValueError, match="token_embeddings"):
        CaptionTranslation(CODES, 3, torch.zeros(4))


_RANKS = """
import os, sys, torch, torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel
from vqkit.objectives import CaptionTranslation, TranslationConfig, TranslationText
import torch._dynamo
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
held = load_file(sys.argv[1] + "/input.safetensors")
torch.manual_seed(5)
translation = CaptionTranslation(6, 3, held["table"], TranslationConfig(weight=0.3, width=16, heads=2, dropout=0.0), 8).double()
half = slice(4 * rank, 4 * rank + 4)
parallel = DistributedDataParallel(translation)
loss, terms = parallel(held["quantized"][half], TranslationText(*(held[name][half] for name in TranslationText._fields)))
loss.backward()
save_file({name: p.grad for name, p in translation.named_parameters()} | {"term": terms["translation"]}, f"{sys.argv[1]}/{rank}.safetensors")
dist.destroy_process_group()
# Past Python's own end: a thread of the group may abort a process that shuts down around it.
os._exit(0)
"""


def test_two_ranks_are_one_with_twice_the_batch(tmp_path, two_ranks):
    # Three captions on the first rank, one on the second.
    translation, quantized = made(), maps(8)
    text = captions(8)._replace(present=torch.tensor([True, True, False, True, False, False, True, False]))
    save_file({"table": table(), "quantized": quantized.detach()} | text._asdict(), tmp_path / "input.safetensors")
    loss, terms = translation(quantized, text)
    loss.backward()
    two_ranks(_RANKS)
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    for name, parameter in translation.named_parameters():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], parameter.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close((first["term"] + second["term"]) / 2, terms["translation"], rtol=1e-9, atol=1e-12)
