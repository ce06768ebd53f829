"""The terms that a quantizer adds to its loss: their formulas, whom their gradients reach, and what masks leave out."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

import vqkit
from vqkit.quantizers.regularizers import Contrastive, Diversity, Entropy, Orthogonality

N, K, D = 40, 7, 5


def entropy(share):
    return -torch.special.xlogy(share, share).sum(-1)


def orthogonality(latents, codes):
    cosines = normalize(codes, dim=-1) @ normalize(codes, dim=-1).T
    return cosines.square().sum() / K**2 - 1 / K


def diversity(latents, codes):
    return -entropy((-3 * torch.cdist(latents, codes)).softmax(-1).mean(0))


def diversity_cosine(latents, codes):
    return -entropy((3 * latents @ codes.T).softmax(-1).mean(0))


def both_entropies(latents, codes):
    share = (-torch.cdist(latents, codes).square() / 0.5).softmax(-1)
    return entropy(share).mean() - 0.7 * entropy(share.mean(0))


def contrastive(latents, codes):
    closeness = -torch.cdist(latents.detach(), codes).square()
    ranked = closeness.sort(0, descending=True).values
    logits = torch.cat([ranked[: max(1, len(latents) // K)].mean(0, keepdim=True), ranked[len(latents) - len(latents) // 2 :]]) / 0.5
    return cross_entropy(logits.T, torch.zeros(K, dtype=torch.long))


CASES = {
    "orthogonality": (Orthogonality(0.3), orthogonality),
    "diversity": (Diversity(0.3, temperature=3), diversity),
    "diversity cosine": (Diversity(0.3, temperature=3, metric="cosine"), diversity_cosine),
    "entropy": (Entropy(0.3, gamma=0.7, temperature=0.5), both_entropies),
    "contrastive": (Contrastive(0.3, temperature=0.5), contrastive),
}


@pytest.fixture(params=CASES, ids=str)
def case(request):
    return CASES[request.param]


def drawn():
    return [torch.randn(n, D, dtype=torch.float64, requires_grad=True) for n in (N, K)]


def test_value_and_gradients_of_the_formula(case):
    regularizer, formula = case
    latents, codes = drawn()
    indices = torch.randint(K, (N, 1))
    found = regularizer(latents, codes, indices, torch.ones(N, dtype=torch.bool))
    expected = formula(latents, codes)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
    wanted = torch.autograd.grad(expected, (latents, codes), allow_unused=True)
    gradients = torch.autograd.grad(found, (latents, codes), allow_unused=True)
    for a, b in zip(gradients, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_masked_latents_have_no_part(case):
    regularizer, _ = case
    latents, codes = drawn()
    valid = torch.rand(N) > 0.4
    indices = torch.randint(K, (N, 1)).where(valid[:, None], -1)
    some = regularizer(latents.where(valid[:, None], 0.0), codes, indices, valid)
    torch.testing.assert_close(some, regularizer(latents[valid], codes, indices[valid], valid[valid]))
    none = regularizer(latents, codes, indices, torch.zeros_like(valid))
    assert none.isfinite() and torch.autograd.grad(none, codes)[0].isfinite().all()


def test_blocks_do_not_change_contrastive(monkeypatch):
    from vqkit.quantizers import regularizers

    latents, codes = drawn()
    arguments = latents, codes, torch.zeros(N, 1, dtype=torch.int64), torch.ones(N, dtype=torch.bool)
    whole = torch.autograd.grad(Contrastive(1)(*arguments), codes)[0]
    monkeypatch.setattr(regularizers, "_BLOCK", 2 * N)
    torch.testing.assert_close(torch.autograd.grad(Contrastive(1)(*arguments), codes)[0], whole)


def test_orthogonality_of_some_codes():
    codes, valid = torch.eye(4).repeat(2, 1), torch.ones(3, dtype=torch.bool)
    indices = torch.tensor([[0], [4], [1]])
    # Codes 0 and 4 are the same: (3 + 2) / 9 - 1 / 3.
    found = Orthogonality(1, active_codes_only=True)(codes[:3], codes, indices, valid)
    assert math.isclose(float(found), 2 / 9, rel_tol=1e-6)
    limited = [float(Orthogonality(1, max_codes=4)(codes[:3], codes, indices, valid)) for _ in range(30)]
    assert {round(value * 16 / 2) for value in limited} <= {0, 1, 2} and len(set(limited)) > 1
    both = Orthogonality(1, active_codes_only=True, max_codes=2)
    assert {round(4 * float(both(codes[:3], codes, indices, valid))) for _ in range(30)} == {0, 2}


def test_a_share_that_underflows_has_a_finite_gradient():
    latents, codes = torch.zeros(4, D, requires_grad=True), (torch.arange(3.0)[:, None] * 50 + torch.ones(D)).requires_grad_()
    Diversity(1)(latents, codes, torch.zeros(4, 1, dtype=torch.int64), torch.ones(4, dtype=torch.bool)).backward()
    assert latents.grad.isfinite().all() and codes.grad.isfinite().all()


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_a_quantizer_adds_them_to_its_loss(metric):
    terms = [Orthogonality(0.2), Diversity(0.3, metric=metric), Entropy(0.4), Contrastive(0.5, metric=metric)]
    quantizer = vqkit.Quantizer(D, K, codebook="learned", metric=metric, regularizers=terms, commitment_weight=0.25)
    twin = vqkit.Quantizer(D, K, codebook="learned", metric=metric, commitment_weight=0.25)
    twin.load_state_dict(quantizer.state_dict())
    x = torch.randn(3, 9, D, requires_grad=True)
    result, bare = quantizer(x), twin(x)
    assert list(result.losses) == ["commitment", "codebook", "orthogonality", "diversity", "entropy", "contrastive"]
    torch.testing.assert_close(result.loss, bare.loss + sum(term.weight * result.losses[term.name] for term in terms))
    assert torch.equal(result.indices, bare.indices)
    for name in ("diversity", "entropy", "orthogonality", "contrastive"):
        (gradient,) = torch.autograd.grad(result.losses[name], quantizer.codebook.codes, retain_graph=True)
        assert gradient.any(), name
    assert torch.autograd.grad(result.losses["diversity"], x, retain_graph=True)[0].any()
    frozen = quantizer(x, learn=False)
    assert torch.autograd.grad(frozen.loss, quantizer.codebook.codes, allow_unused=True, retain_graph=True)[0] is None
    assert list(quantizer.eval()(x).losses) == ["commitment", "codebook"]


def test_bad_rows_reach_no_gradient():
    terms = [Diversity(1.0), Entropy(1.0), Contrastive(1.0)]
    quantizer = vqkit.Quantizer(D, K, codebook="learned", regularizers=terms)
    x = torch.randn(20, D)
    x[3, 1], x[5] = torch.nan, torch.inf
    x.requires_grad_()
    quantizer(x).loss.backward()
    assert x.grad.isfinite().all() and not x.grad[[3, 5]].any() and quantizer.codebook.codes.grad.isfinite().all()


def test_they_compile():
    torch._dynamo.reset()
    terms = [Orthogonality(0.2, active_codes_only=True), Diversity(0.3), Entropy(0.4), Contrastive(0.5)]
    quantizer = vqkit.Quantizer(D, K, codebook="learned", regularizers=terms)
    x = torch.randn(20, D, requires_grad=True)
    results = [call(x) for call in (quantizer, torch.compile(quantizer, fullgraph=True, backend="aot_eager"))]
    gradients = [torch.autograd.grad(result.loss, (x, quantizer.codebook.codes)) for result in results]
    torch.testing.assert_close(results[0].loss, results[1].loss)
    torch.testing.assert_close(*gradients)


def test_they_lower_what_they_measure():
    torch.manual_seed(2)
    quantizer = vqkit.Quantizer(D, 4, codebook="learned", regularizers=[Orthogonality(1.0)])
    optimizer = torch.optim.Adam(quantizer.parameters(), 0.05)
    x = torch.zeros(0, D)
    before = quantizer(x).losses["orthogonality"].item()
    for _ in range(60):
        optimizer.zero_grad()
        quantizer(x).loss.backward()
        optimizer.step()
    assert quantizer(x).losses["orthogonality"].item() < 0.05 * before


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="regularizers: .*'diversity'"):
        vqkit.Quantizer(D, K, regularizers=[Diversity(1.0), Diversity(2.0)])
    with pytest.raises(ValueError, match="regularizers: .*Diversity with metric='cosine', got 'l2'"):
        vqkit.Quantizer(D, K, metric="cosine", regularizers=[Diversity(1.0)])
    with pytest.raises(TypeError, match="regularizers: .*name and a weight, got function"):
        vqkit.Quantizer(D, K, regularizers=[lambda *_: 0])
    with pytest.warns(UserWarning, match="Orthogonality changes the codes by gradient, and those of EMACodebook have none"):
        vqkit.Quantizer(D, K, regularizers=[Orthogonality(1.0)])
