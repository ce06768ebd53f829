"""Collapse made visible: what a quantizer says of its training, and when it warns."""

import copy
import math
import warnings

import pytest
import torch

import vqkit


def collapsing(**options):
    """Latents at one point of a large codebook."""
    torch.manual_seed(1)
    quantizer = vqkit.Quantizer(4, 64, codebook="learned", **options)
    for _ in range(100):
        quantizer(torch.ones(32, 4))
    return quantizer


def test_values_of_a_steady_training():
    quantizer = vqkit.Quantizer(2, 8, codebook="learned")
    with torch.no_grad():
        quantizer.codebook.codes.copy_(torch.arange(8.0)[:, None] * torch.tensor([3.0, 4]))
    for _ in range(120):
        quantizer(torch.tensor([[3.0, 4], [3, 4], [6, 8], [9, 13]]))
    health = quantizer.health()
    assert (health.usage, health.dead_codes, health.steps) == (3 / 8, 5, 120) and not health.collapsed
    shares = (0.5, 0.25, 0.25)
    assert math.isclose(health.perplexity, math.exp(-sum(s * math.log(s) for s in shares)), rel_tol=1e-4)
    assert math.isclose(health.distance, 1 / 4, rel_tol=1e-4)
    assert math.isclose(health.code_norm, (5 + 5 + 10 + 15) / 4, rel_tol=1e-4)
    assert math.isclose(health.latent_norm, (5 + 5 + 10 + math.hypot(9, 13)) / 4, rel_tol=1e-4)
    assert math.isclose(health.expected_usage, 1, rel_tol=1e-4)


def test_a_code_is_dead_after_its_window():
    quantizer = vqkit.Quantizer(2, 2, codebook="learned")
    with torch.no_grad():
        quantizer.codebook.codes.copy_(torch.eye(2))
    assert quantizer.health().dead_codes == 2 and math.isnan(quantizer.health().distance)
    quantizer(torch.eye(2))
    for _ in range(99):
        quantizer(torch.eye(2)[:1])
    assert quantizer.health().dead_codes == 0
    quantizer(torch.eye(2)[:1])
    assert quantizer.health().dead_codes == 1


def test_a_collapse_warns_once_and_names_the_remedies():
    quantizer = collapsing()
    with pytest.warns(UserWarning, match="1 of 64 codes.*kmeans_init.*threshold_ema_dead_code.*cosine.*anchored.*linear"):
        quantizer.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantizer.train().eval()
        assert quantizer.health().collapsed


def test_few_latents_are_no_collapse():
    quantizer = vqkit.Quantizer(4, 100_000, codebook="learned")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(110):
            quantizer(torch.randn(8, 4))
        health = quantizer.health()
    assert health.usage < 0.01 and math.isclose(health.expected_usage, 1 - math.exp(-800 / 100_000), rel_tol=0.05)


def test_masked_rows_do_not_count():
    quantizer = vqkit.Quantizer(3, 5, codebook="learned")
    x = torch.randn(40, 3)
    x[::2] = torch.nan
    quantizer(x)
    twin = copy.deepcopy(quantizer)
    twin.monitor = type(twin.monitor)(5)
    twin(x[1::2])
    for name in ("distance", "latent_norm", "code_norm", "usage", "perplexity"):
        assert math.isclose(getattr(quantizer.health(), name), getattr(twin.health(), name), rel_tol=1e-5)


def test_it_is_no_part_of_the_state_and_survives_casts_and_copies():
    quantizer = vqkit.Quantizer(3, 5)
    assert not any("monitor" in name for name in quantizer.state_dict())
    quantizer.to(torch.bfloat16)
    quantizer(torch.randn(20, 3).bfloat16())
    assert quantizer.monitor.frequencies.dtype == torch.float32
    assert copy.deepcopy(quantizer).health() == quantizer.health()


def test_eval_mode_notes_nothing():
    quantizer = vqkit.Quantizer(3, 5).eval()
    quantizer(torch.randn(20, 3))
    assert quantizer.health().steps == 0


def test_a_compiled_step_notes_the_same():
    torch._dynamo.reset()
    quantizer = vqkit.Quantizer(3, 5)
    twin = copy.deepcopy(quantizer)
    step = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        x = torch.randn(20, 3)
        quantizer(x), step(x)
    assert quantizer.health() == twin.health()


def test_a_product_reports_each_part():
    product = vqkit.ProductQuantizer([vqkit.Quantizer(3, 5), vqkit.Quantizer(3, 7)])
    product(torch.randn(20, 6))
    first, second = product.health()
    assert first.steps == second.steps == 1 and first.usage <= 1
