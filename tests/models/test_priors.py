"""Priors: what their likelihood sums to, what they draw, what they learn."""

import itertools

import pytest
import torch

from vqkit.models import Sampling, Segment, create_prior, from_pretrained, prior_names

TEXT = Segment("text", 2, (3,))
IMAGE = Segment("image", 2, (4,), predicted=True)
PAIRS = Segment("image", 2, (2, 3), (1, 1), predicted=True)
SMALL = {"depth": 2, "width": 16, "heads": 2, "dropout": 0.0}


def all_tokens(segment, condition):
    """Every sequence of a segment, each after the same condition."""
    positions = list(itertools.product(*(range(segment.sizes[part]) for part in segment.part_of_stream)))
    rows = torch.tensor(list(itertools.product(positions, repeat=segment.length)))
    return {"text": condition.expand(len(rows), -1), segment.name: segment.given(rows)}


@pytest.mark.parametrize(("segment", "config"), [(IMAGE, {}), (PAIRS, {"codes": "branches"}), (PAIRS, {"codes": "depth"}),
                                                 (Segment("image", 2, (3,), (2,), True), {"codes": "depth"})])
def test_probabilities_of_all_sequences_sum_to_one(segment, config):
    torch.manual_seed(0)
    prior = create_prior("prior", (TEXT, segment), **SMALL, **config).eval()
    found = prior.log_likelihood(all_tokens(segment, torch.tensor([[1, -1]])))["image"]
    assert found.double().exp().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("config", [{"codes": "branches"}, {"codes": "depth"}])
def test_samples_are_distributed_as_the_likelihood_says(config):
    torch.manual_seed(0)
    prior = create_prior("prior", (TEXT, PAIRS), **SMALL, **config).eval()
    for head in prior.heads["image"]:
        torch.nn.init.normal_(head.weight, std=1.0)
    tokens = all_tokens(PAIRS, torch.tensor([[2, 0]]))
    expected = prior.log_likelihood(tokens)["image"].exp()
    count = 20_000
    drawn = prior.generate({"text": torch.tensor([[2, 0]]).expand(count, -1)}, generator=torch.Generator().manual_seed(0))["image"]
    keys = (drawn[..., 0] * 3 + drawn[..., 1]) @ torch.tensor([6, 1])
    order = (tokens["image"][..., 0] * 3 + tokens["image"][..., 1]) @ torch.tensor([6, 1])
    found = torch.bincount(keys, minlength=36)[order] / count
    # four standard errors of each of the 36 outcomes
    assert ((found - expected).abs() < 4 * (expected * (1 - expected) / count).sqrt() + 1e-4).all()


@pytest.mark.parametrize("config", [{"codes": "branches"}, {"codes": "depth"}])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0), Sampling(guidance=2.0, top_k=2, temperature=0.7)])
def test_kept_keys_change_nothing(config, sampling):
    torch.manual_seed(0)
    image = Segment("image", 6, (5, 7), (2, 1), True)
    prior = create_prior("prior", (TEXT, image), **SMALL | {"depth": 4}, **config).eval()
    text = torch.randint(0, 3, (5, 2))
    kept, anew = (prior.generate({"text": text}, sampling, generator=torch.Generator().manual_seed(3), cached=cached)["image"]
                  for cached in (True, False))
    assert torch.equal(kept, anew)


@pytest.mark.parametrize("config", [{"codes": "branches"}, {"codes": "depth"}])
@pytest.mark.parametrize("continued", [Segment("text", 5, (7,), predicted=True, end=1), Segment("text", 1, (7,), predicted=True),
                                       Segment("text", 3, (5, 7), (2, 1), True)], ids=["text", "one token", "several codes"])
def test_all_pairs_are_as_likely_as_each_pair(config, continued):
    torch.manual_seed(0)
    image = Segment("image", 6, (5, 7), (2, 1))
    prior = create_prior("prior", (image, continued), **SMALL | {"depth": 4}, **config).eval()
    images, texts = torch.randint(0, 5, (3, *image.shape)), torch.randint(0, 5, (5, *continued.shape))
    images[1] = -1
    texts[2, continued.length // 2 + 1 :] = -1
    found = prior.cross_log_likelihood({"image": images}, texts, batch_size=2)
    each = [prior.log_likelihood({"image": one.expand(5, *one.shape), "text": texts})["text"] for one in images]
    torch.testing.assert_close(found, torch.stack(each), rtol=1e-5, atol=1e-5)


def test_all_pairs_need_one_predicted_segment_at_the_end():
    prior = create_prior("prior", (IMAGE, Segment("text", 2, (3,))), **SMALL)
    with pytest.raises(ValueError, match="segments: expected one that is predicted, the last, got image"):
        prior.cross_log_likelihood({"image": torch.zeros(1, 2, dtype=torch.int64)}, torch.zeros(1, 2, dtype=torch.int64))


@pytest.mark.parametrize("name", prior_names())
def test_what_is_known_is_kept(name):
    torch.manual_seed(0)
    image = Segment("image", 8, (5, 4), (2, 1), True)
    prior = create_prior(name, (TEXT, image), **SMALL).eval()
    known = torch.randint(0, 4, (3, 8, 3))
    known[:, 4:] = -1
    text = torch.tensor([[0, 1], [2, 2], [1, -1]])
    drawn = prior.generate({"text": text, "image": known}, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn["text"], text) and torch.equal(drawn["image"][:, :4], known[:, :4])
    assert (drawn["image"] >= 0).all() and (drawn["image"][..., :2] < 5).all() and (drawn["image"][..., 2] < 4).all()


@pytest.mark.parametrize("name", prior_names())
def test_a_prior_learns_a_rule_and_tells_conditions_apart(name):
    """The first code is the class, every next one is one more; the second code of a position is the class always."""
    torch.manual_seed(0)
    segments = (Segment("class", 1, (5,)), Segment("image", 4, (5, 5), predicted=True))
    prior = create_prior(name, segments, depth=2, width=48, heads=4, dropout=0.0, condition_dropout=0.1)
    optimizer = torch.optim.AdamW(prior.parameters(), 3e-3)

    def batch(classes):
        steps = (classes + torch.arange(4)) % 5
        return {"class": classes, "image": torch.stack((steps, classes.expand(-1, 4)), -1)}

    for _ in range(300):
        optimizer.zero_grad()
        prior(batch(torch.randint(0, 5, (64, 1))))[0].backward()
        optimizer.step()
    prior.eval()
    classes = torch.arange(5).unsqueeze(1)
    for sampling in (Sampling(), Sampling(guidance=2.0)):
        drawn = prior.generate({"class": classes.repeat(10, 1)}, sampling, generator=torch.Generator().manual_seed(0))
        assert (drawn["image"] == batch(classes.repeat(10, 1))["image"]).double().mean() > 0.95
    right = prior.log_likelihood(batch(classes))["image"]
    wrong = prior.log_likelihood(batch(classes) | {"class": (classes + 1) % 5})["image"]
    assert (right > wrong + 3).all()
    assert right.min() > -2


@pytest.mark.parametrize("name", prior_names())
def test_a_saved_prior_is_the_same(name, tmp_path):
    torch.manual_seed(0)
    prior = create_prior(name, (TEXT, PAIRS), **SMALL).eval()
    prior.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path)
    tokens = {"text": torch.tensor([[0, 1]]), "image": torch.tensor([[[0, 2], [1, 1]]])}
    assert type(again) is type(prior) and again.layout.segments == prior.layout.segments
    assert torch.equal(again.log_likelihood(tokens)["image"], prior.log_likelihood(tokens)["image"])


@pytest.mark.parametrize("name", prior_names())
def test_what_is_absent_teaches_nothing(name):
    torch.manual_seed(0)
    text = Segment("text", 4, (6,), predicted=True, end=1)
    prior = create_prior(name, (text,), **SMALL).eval()
    torch.manual_seed(1)
    found, _ = prior({"text": torch.tensor([[2, 3, 1, -1]])})
    assert torch.isfinite(found)
    nothing, terms = prior({"text": torch.full((1, 4), -1)})
    assert nothing == 0 and terms["text"] == 0


def test_nothing_comes_after_the_end():
    torch.manual_seed(0)
    text = Segment("text", 6, (3,), predicted=True, end=1)
    for name in ("prior", "masked-prior"):
        drawn = create_prior(name, (text,), **SMALL).eval().generate({"text": torch.full((50, 6), -1)})["text"]
        after = (drawn == 1).long().cumsum(1) - (drawn == 1).long() > 0
        assert after.any() and (drawn[after] == -1).all() and (drawn[~after] >= 0).all()


def test_states_do_not_see_what_comes_later():
    torch.manual_seed(0)
    prior = create_prior("prior", (TEXT, IMAGE), **SMALL).eval()
    tokens = {"text": torch.tensor([[0, 1]]), "image": torch.tensor([[2, 3]])}
    changed = tokens | {"image": torch.tensor([[2, 0]])}
    one, other = prior.states(tokens, 2, "image"), prior.states(changed, 2, "image")
    assert torch.equal(one[:, 0], other[:, 0]) and not torch.allclose(one[:, 1], other[:, 1])
    with pytest.raises(ValueError, match="block: expected 1 .. 2, got 3"):
        prior.states(tokens, 3, "image")


def test_the_step_back_of_the_diffusion_is_bayes():
    """Against the products of explicit transition matrices, code by code."""
    torch.manual_seed(0)
    prior = create_prior("diffusion-prior", (TEXT, IMAGE), **SMALL, times=10, mask_share=0.8, passes=5)
    size, earlier, now = 4, torch.tensor([3]), torch.tensor([7])

    def to(time):
        keep, mask = (share.item() for share in prior._shares(torch.tensor([time])))
        rows = torch.full((size + 1, size + 1), 0.0, dtype=torch.float64)
        rows[:size, :size] = (1 - keep - mask) / size + torch.eye(size, dtype=torch.float64) * keep
        rows[:size, size] = mask
        rows[size, size] = 1
        return rows

    between = torch.linalg.solve(to(3), to(7))
    clean = torch.rand(size, dtype=torch.float64)
    clean /= clean.sum()
    for xt in range(size + 1):
        expected = torch.zeros(size + 1, dtype=torch.float64)
        for x0 in range(size):
            posterior = to(3)[x0] * between[:, xt] / to(7)[x0, xt]
            expected += clean[x0] * posterior
        found = prior._back(clean.float().view(1, 1, -1), torch.tensor([[xt]]), earlier, now).flatten()
        torch.testing.assert_close(found.double(), expected / expected.sum(), atol=1e-6, rtol=1e-5)


def test_sampling_keeps_the_likeliest():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    assert Sampling(top_k=2).filtered(logits).isfinite().tolist() == [True, True, False, False]
    assert Sampling(top_p=0.6).filtered(logits).isfinite().tolist() == [True, True, False, False]
    assert Sampling(top_p=0.5).filtered(logits).isfinite().tolist() == [True, False, False, False]
    assert Sampling(temperature=0).draw(logits) == 0
    torch.testing.assert_close(Sampling(temperature=2.0).filtered(logits), logits / 2)
    two = torch.stack((logits, logits.flip(0)))
    torch.testing.assert_close(Sampling(guidance=3.0).guided(two), (logits.flip(0) + 3 * (logits - logits.flip(0))).unsqueeze(0))


@pytest.mark.parametrize(("config", "message"), [
    ({"temperature": -1}, "temperature: expected 0 or more"), ({"top_k": -1}, "top_k: expected 0 or more"),
    ({"top_p": 0.0}, "top_p: expected 0 < top_p <= 1"), ({"guidance": -1}, "guidance: expected 0 or more"),
])
def test_sampling_refuses(config, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**config)


@pytest.mark.parametrize(("tokens", "error", "message"), [
    ({"text": torch.tensor([[0, 3]])}, ValueError, r"tokens\['text'\]: expected -1 .. K - 1 with K of \(3,\), got 0 .. 3"),
    ({"text": torch.tensor([[0, -2]])}, ValueError, "got -2 .. 0"),
    ({"text": torch.tensor([[0.0, 1.0]])}, TypeError, "expected int64, got torch.float32"),
    ({"text": torch.tensor([[0, 1, 2]])}, ValueError, r"expected shape \(B, 2\), got \(1, 3\)"),
    ({"words": torch.tensor([[0, 1]])}, KeyError, "expected one of text, image, got 'words'"),
    ({"text": torch.zeros(2, 2, dtype=torch.int64), "image": torch.zeros(3, 2, dtype=torch.int64)}, ValueError, "one batch size"),
    ({}, ValueError, "tokens: expected at least one segment"),
])
@pytest.mark.parametrize("name", prior_names())
def test_wrong_tokens_are_refused(name, tokens, error, message):
    prior = create_prior(name, (TEXT, IMAGE), **SMALL)
    with pytest.raises(error, match=message):
        prior.generate(tokens)


def test_wrong_segments_are_refused():
    with pytest.raises(ValueError, match="expected different names, got text, text"):
        create_prior("prior", (TEXT, TEXT))
    with pytest.raises(ValueError, match="expected at least one that is predicted, got text"):
        create_prior("prior", (TEXT,))
    with pytest.raises(ValueError, match="did you mean 'masked-prior'"):
        create_prior("maskd-prior", (IMAGE,))
    with pytest.raises(TypeError, match="did you mean 'width'"):
        create_prior("prior", (IMAGE,), widht=3)
    with pytest.raises(ValueError, match="end: expected one of the 4 tokens"):
        Segment("image", 2, (4,), end=4)


@pytest.mark.parametrize("name", prior_names())
def test_a_position_of_a_batch_does_not_touch_another(name):
    torch.manual_seed(0)
    prior = create_prior(name, (TEXT, IMAGE), **SMALL).eval()
    tokens = {"text": torch.tensor([[0, 1], [2, -1]]), "image": torch.tensor([[1, 2], [3, 0]])}
    both = prior.log_likelihood(tokens)["image"]
    alone = [prior.log_likelihood({key: value[row : row + 1] for key, value in tokens.items()})["image"] for row in range(2)]
    torch.testing.assert_close(both, torch.cat(alone), atol=1e-5, rtol=1e-5)
