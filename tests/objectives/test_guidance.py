"""LG-VQ's guidance: its three losses, what they see and must not see, and two ranks as one."""

import math
from statistics import NormalDist
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from vqkit.objectives import GuidanceConfig, LanguageGuidance, mask_rate
from vqkit.objectives.alignment import global_alignment, relation_errors, word_states

WIDTH, TOKENS, LENGTH, CODES = 12, 40, 8, 6


class Tokens(NamedTuple):
    ids: torch.Tensor
    visible: torch.Tensor
    content: torch.Tensor
    words: torch.Tensor
    present: torch.Tensor


class Mixing:
    """A text model in which every state knows every token that may be seen."""

    def __init__(self):
        self.table = torch.randn(TOKENS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def features(self, tokens, hidden=None):
        seen = tokens.visible if hidden is None else tokens.visible & ~hidden
        embedded = self.table[tokens.ids]
        sentence = (embedded * seen.unsqueeze(-1)).sum(1) / seen.sum(1, keepdim=True)
        return torch.tanh(embedded + 2 * sentence.unsqueeze(1)), sentence


def captions(batch=4):
    """Texts of 4 to 8 tokens between an opening and a closing one; the third word has two pieces."""
    ids = torch.randint(2, TOKENS, (batch, LENGTH))
    lengths = torch.arange(batch) % 3 + 6
    places = torch.arange(LENGTH)
    visible = places < lengths.unsqueeze(1)
    content = visible & (places > 0) & (places < lengths.unsqueeze(1) - 1)
    numbers = torch.tensor([-1, 0, 1, 2, 2, 3, 4, 5])
    words = torch.where(content, numbers, -1)
    return Tokens(ids, visible, content, words, torch.ones(batch, dtype=torch.bool))


def made(**config) -> LanguageGuidance:
    torch.manual_seed(5)
    settings = {"width": 16, "dropout": 0.0, "alpha": 0.3, "beta": 0.5, "gamma": 0.2} | config
    return LanguageGuidance(CODES, 3, Mixing().table, GuidanceConfig(**settings), LENGTH).double()


def maps(batch=4, height=3, width=3):
    return torch.randn(batch, CODES, height, width, dtype=torch.float64, requires_grad=True)


def some(tokens, guidance, rate=0.5):
    return guidance.choose_masked(tokens, rate, torch.rand(tokens.ids.shape, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("mask", ["input", "output"])
@pytest.mark.parametrize("size", [(3, 3), (2, 5)])
def test_the_three_losses_are_the_papers_formulas(mask, size):
    guidance, quantized, tokens = made(mask=mask), maps(4, *size), captions()
    text = guidance.read(Mixing(), tokens, some(tokens, guidance))
    loss, terms = guidance(quantized, text)
    seen = guidance.reader(quantized)
    expected = global_alignment(seen[:, 0], text.sentence, torch.arange(4), tokens.present).mean()
    torch.testing.assert_close(terms["global_alignment"], expected)

    logits = guidance.predict_masked(seen, text)
    wanted, total = tokens.ids[text.masked], 0.0
    for row, index in zip(logits.tolist(), wanted.tolist(), strict=True):
        normaliser = math.log(sum(map(math.exp, row)))
        surprises = [normaliser - value for value in row]
        total += 0.9 * surprises[index] + 0.1 * sum(surprises) / TOKENS
    assert terms["masked_words"].item() == pytest.approx(total / len(wanted))

    z = guidance.relation(quantized.flatten(2).transpose(1, 2))
    words, exist = word_states(text.states, tokens.words)
    summed, pairs = 0.0, 0
    for b in range(4):
        there = exist[b].nonzero().flatten().tolist()
        nearest = [int(torch.cosine_similarity(words[b, w : w + 1], seen[b, 1:]).argmax()) for w in there]
        one, count = relation_errors(words[b : b + 1, there], z[b : b + 1, nearest], torch.ones(1, len(there), dtype=torch.bool))
        summed, pairs = summed + one.sum(), pairs + int(count.sum())
    torch.testing.assert_close(terms["relation"], summed / pairs)
    torch.testing.assert_close(loss, 0.3 * terms["global_alignment"] + 0.5 * terms["masked_words"] + 0.2 * terms["relation"])


def test_logits_are_the_heads_output_against_the_frozen_embeddings():
    guidance = made()
    states, memory = torch.randn(2, LENGTH, WIDTH, dtype=torch.float64), torch.randn(2, 10, WIDTH, dtype=torch.float64)
    masked, visible = torch.zeros(2, LENGTH, dtype=torch.bool), torch.ones(2, LENGTH, dtype=torch.bool)
    masked[1, 3] = masked[0, 1] = True
    decoder = guidance.decoder
    x = states.clone()
    x[0, 1], x[1, 3] = decoder.mask_vectors[1], decoder.mask_vectors[3]
    for layer in decoder.layers:
        x = layer(x, memory)
    linear, gelu, norm = decoder.head
    expected = norm(gelu(linear(x[masked]))) @ Mixing().table.T + decoder.bias
    torch.testing.assert_close(decoder(states, masked, visible, memory), expected)


@pytest.mark.parametrize("mask", ["input", "output"])
def test_gradients_reach_the_map_and_every_parameter_but_no_text(mask):
    guidance, quantized, tokens = made(mask=mask), maps(), captions()
    text = guidance.read(Mixing(), tokens, some(tokens, guidance))
    text = text._replace(states=text.states.requires_grad_(), sentence=text.sentence.requires_grad_())
    for name in ("global_alignment", "masked_words", "relation"):
        (gradient,) = torch.autograd.grad(guidance(quantized, text)[1][name], quantized)
        assert (gradient.flatten(1).norm(dim=1) > 0).all(), name
    guidance(quantized, text)[0].backward()
    assert all(parameter.grad.norm() > 0 for parameter in guidance.parameters())
    assert text.states.grad is None and text.sentence.grad is None and guidance.decoder.token_embeddings.grad is None


@pytest.mark.parametrize("attend_padding", [False, True])
def test_padding_has_no_influence_unless_the_published_fault_is_asked_for(attend_padding):
    guidance, quantized, tokens = made(attend_padding=attend_padding), maps(), captions()
    text = guidance.read(Mixing(), tokens, some(tokens, guidance))
    noise = torch.randn_like(text.states).masked_fill(text.visible.unsqueeze(-1), 0.0)
    other = text._replace(states=text.states + noise, context=text.context + noise, ids=text.ids.masked_fill(~text.visible, 7))
    before, after = guidance(quantized, text)[1], guidance(quantized, other)[1]
    assert torch.equal(before["relation"], after["relation"]) and torch.equal(before["global_alignment"], after["global_alignment"])
    assert torch.equal(before["masked_words"], after["masked_words"]) != attend_padding


@pytest.mark.parametrize("mask", ["input", "output"])
def test_a_masked_word_leaks_through_its_context_only_with_the_published_masking(mask):
    guidance, quantized, tokens = made(mask=mask), maps(), captions()
    masked = some(tokens, guidance)
    other = tokens._replace(ids=torch.where(masked, (tokens.ids + 11) % (TOKENS - 2) + 2, tokens.ids))
    seen = guidance.reader(quantized)
    before, after = (guidance.predict_masked(seen, guidance.read(Mixing(), read, masked)) for read in (tokens, other))
    assert torch.equal(before, after) == (mask == "input")


def test_pictures_without_caption_take_part_in_nothing():
    guidance, quantized, tokens = made(), maps(5), captions(5)
    present = torch.tensor([True, False, True, True, False])
    some_missing = tokens._replace(present=present)
    text = guidance.read(Mixing(), some_missing, some(some_missing, guidance))
    assert not text.masked[~present].any()
    loss, terms = guidance(quantized, text)
    (gradient,) = torch.autograd.grad(loss, quantized)
    kept = Tokens(*(field[present] for field in tokens))
    text = guidance.read(Mixing(), kept, text.masked[present])
    alone = quantized.detach()[present].requires_grad_()
    expected, expected_terms = guidance(alone, text)
    torch.testing.assert_close(terms, expected_terms)
    (expected_gradient,) = torch.autograd.grad(expected, alone)
    torch.testing.assert_close(gradient[present], expected_gradient)
    assert gradient[~present].count_nonzero() == 0


def test_without_any_caption_losses_and_gradients_are_zero_but_there():
    guidance, quantized = made(), maps()
    tokens = captions()._replace(present=torch.zeros(4, dtype=torch.bool))
    loss, terms = guidance(quantized, guidance.read(Mixing(), tokens, some(tokens, guidance)))
    assert all(float(term) == 0 for term in terms.values())
    loss.backward()
    # Ranks without captions take part in the reduction of gradients: none may be missing.
    assert all(parameter.grad is not None and parameter.grad.count_nonzero() == 0 for parameter in guidance.parameters())


def test_a_weight_of_zero_leaves_its_loss_and_its_parameters_out():
    tokens, quantized = captions(), maps()
    for weights, named in (({"beta": 0.0, "gamma": 0.0}, {"global_alignment"}), ({"alpha": 0.0, "gamma": 0.0}, {"masked_words"}),
                           ({"alpha": 0.0}, {"masked_words", "relation"})):
        guidance = made(**weights)
        loss, terms = guidance(quantized, guidance.read(Mixing(), tokens, some(tokens, guidance)))
        assert terms.keys() == named
        loss.backward()
        assert all(parameter.grad is not None for parameter in guidance.parameters())
    with pytest.raises(ValueError, match="beta: got 0"):
        made(beta=0.0).predict_masked(None, None)


def test_masks_fall_on_whole_words_or_on_single_tokens_and_on_nothing_else():
    tokens = captions(3000)._replace(present=torch.arange(3000) % 7 > 0)
    draws = torch.rand(tokens.ids.shape)
    words, single = (made(mask=mask).choose_masked(tokens, 0.2, draws) for mask in ("input", "output"))
    for masked in (words, single):
        allowed = tokens.content & tokens.present.unsqueeze(1)
        assert not (masked & ~allowed).any()
        assert float(masked[allowed].double().mean()) == pytest.approx(0.2, abs=0.02)
    both = tokens.content[:, 4]
    assert torch.equal(words[both, 3], words[both, 4]) and not torch.equal(single[both, 3], single[both, 4])


def test_the_rate_follows_the_truncated_normal():
    rates = [mask_rate((n + 0.5) / 1000) for n in range(1000)]
    assert rates == sorted(rates) and 0.1 <= rates[0] and rates[-1] <= 0.3
    assert (mask_rate(0.0), mask_rate(1.0)) == pytest.approx((0.1, 0.3), abs=1e-6)
    # The mean of a truncated normal: mu - sigma (pdf(b) - pdf(a)) / (cdf(b) - cdf(a)), in units of sigma.
    unit = NormalDist()
    expected = 0.5 - 0.1 * (unit.pdf(-2) - unit.pdf(-4)) / (unit.cdf(-2) - unit.cdf(-4))
    assert sum(rates) / 1000 == pytest.approx(expected, abs=1e-4)


def test_saved_and_loaded_it_predicts_the_same(tmp_path):
    guidance, quantized, tokens = made().float().eval(), maps().detach().float(), captions()
    path = tmp_path / "guidance.safetensors"
    guidance.save(path, {"name": "mixing"})
    content = path.read_bytes()
    loaded = LanguageGuidance.load(path, Mixing().table.float())
    assert loaded.config == guidance.config and not loaded.training and LanguageGuidance.described(path)["text_encoder"] == {"name": "mixing"}
    text = guidance.read(Mixing(), tokens, some(tokens, guidance))
    text = text._replace(states=text.states.float(), context=text.context.float(), sentence=text.sentence.float())
    torch.testing.assert_close(loaded(quantized, text), guidance(quantized, text), rtol=0, atol=0)
    loaded.save(path, {"name": "mixing"})
    assert path.read_bytes() == content and not list(tmp_path.glob(".*"))
    with pytest.raises(ValueError, match="another text model"):
        LanguageGuidance.load(path, torch.randn(TOKENS, WIDTH + 1))
    with pytest.raises(FileNotFoundError, match="there is no"):
        LanguageGuidance.load(tmp_path / "nothing", Mixing().table)
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="is no saved guidance"):
        LanguageGuidance.load(path, Mixing().table)


@pytest.mark.parametrize("change, message", [
    ({"alpha": -1.0}, "alpha, beta, gamma: expected 0 or more"),
    ({"alpha": 0.0, "beta": 0.0}, "alpha, beta: got 0 and 0"),
    ({"mask": "both"}, "mask: expected 'input' or 'output', got 'both'"),
    ({"dropout": 1.0}, "dropout"),
    ({"depth": 0}, "width, depth"),
])
def test_a_wrong_setting_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        GuidanceConfig(**change)


def test_a_wrong_shape_is_named():
    guidance, tokens = made(), captions()
    text = guidance.read(Mixing(), tokens, some(tokens, guidance))
    with pytest.raises(ValueError, match=r"quantized: expected \(B, 6, h, w\), got \(4, 5, 3, 3\)"):
        guidance(torch.zeros(4, 5, 3, 3, dtype=torch.float64), text)
    with pytest.raises(ValueError, match="text: expected 3 texts of at most 8 tokens"):
        guidance(maps(3), text)
    with pytest.raises(ValueError, match="token_embeddings"):
        LanguageGuidance(CODES, 3, torch.zeros(4))


def test_a_masked_word_is_learnt_from_the_map_alone():
    torch.manual_seed(0)
    guidance, encoder = made(gamma=0.0, width=32).float().train(), Mixing()
    encoder.table = encoder.table.float()
    colours, optimizer = torch.randn(8, CODES), torch.optim.Adam(guidance.parameters(), 5e-3)
    for _ in range(200):
        tokens = captions(32)
        tokens.ids[:, 1] = tokens.ids[:, 1] % 8 + 2
        quantized = colours[tokens.ids[:, 1] - 2].view(32, CODES, 1, 1).expand(-1, -1, 2, 2)
        masked = torch.zeros_like(tokens.visible)
        masked[:, 1] = True
        text = guidance.read(encoder, tokens, masked)
        optimizer.zero_grad()
        guidance(quantized, text)[0].backward()
        optimizer.step()
    guidance.eval()

    def recall(maps):
        return (guidance.predict_masked(guidance.reader(maps), text).argmax(1) == tokens.ids[masked]).double().mean()

    assert recall(quantized) > 0.9 and recall(quantized.roll(1, 0)) < 0.5


_RANKS = """
import os, sys, torch, torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel
from vqkit.objectives import GuidanceConfig, GuidanceText, LanguageGuidance
import torch._dynamo
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
held = load_file(sys.argv[1] + "/input.safetensors")
torch.manual_seed(5)
guidance = LanguageGuidance(6, 3, held["table"], GuidanceConfig(width=16, dropout=0.0, alpha=0.3, beta=0.5, gamma=0.2), 8).double()
half = slice(4 * rank, 4 * rank + 4)
text = GuidanceText(*(held[name][half] for name in GuidanceText._fields))
parallel = DistributedDataParallel(guidance)
loss, terms = parallel(held["quantized"][half], text)
loss.backward()
save_file({name: p.grad for name, p in guidance.named_parameters()} | {"terms": torch.stack(list(terms.values()))}, f"{sys.argv[1]}/{rank}.safetensors")
dist.destroy_process_group()
# Past Python's own end: a thread of the group may abort a process that shuts down around it.
os._exit(0)
"""


def test_two_ranks_are_one_with_twice_the_batch(tmp_path, two_ranks):
    from safetensors.torch import save_file

    # Unequal numbers of captions, masked words and pairs on the two; the second has one caption only.
    guidance, quantized = made(), maps(8)
    tokens = captions(8)._replace(present=torch.tensor([True, True, False, True, False, False, True, False]))
    text = guidance.read(Mixing(), tokens, some(tokens, guidance))
    save_file({"table": Mixing().table, "quantized": quantized.detach()} | {name: field.contiguous() for name, field in text._asdict().items()},
              tmp_path / "input.safetensors")  # fmt: skip
    loss, terms = guidance(quantized, text)
    loss.backward()
    two_ranks(_RANKS)
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    for name, parameter in guidance.named_parameters():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], parameter.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close((first["terms"] + second["terms"]) / 2, torch.stack(list(terms.values())), rtol=1e-9, atol=1e-12)
