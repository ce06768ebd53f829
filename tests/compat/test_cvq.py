"""CVQ-VAE's quantizer against the published formulas."""

import pytest
import torch

from tests.compat.foreign import FOREIGN
from vqkit.compat.cvq import VectorQuantiser


@pytest.mark.parametrize("distance", ["cos", "l2"])
@pytest.mark.parametrize("options", [{}, {"first_batch": True}, {"contras_loss": True}], ids=str)
def test_formula(distance, options, assert_same):
    options = options | dict(distance=distance, anchor="closest")
    assert_same(FOREIGN.cvq(8, 6, 0.25, **options), VectorQuantiser(8, 6, 0.25, **options), torch.randn(3, 6, 4, 5))


@pytest.mark.parametrize("anchor", ["random", "probrandom"])
def test_unused_codes_move_to_latents_of_the_batch(anchor):
    quantizer, z = VectorQuantiser(8, 6, 0.25, anchor=anchor), torch.randn(3, 6, 4, 5) + 20
    quantizer(z)
    unused = quantizer.state_dict()["embed_prob"] == 0
    rows = z.movedim(1, -1).reshape(-1, 6)
    assert unused.any() and torch.cdist(quantizer.embedding.weight[unused], rows).min(1).values.max() < 0.1


def test_entries_and_eval_mode():
    quantizer = VectorQuantiser(8, 6, 0.25).eval()
    state = {name: value.clone() for name, value in quantizer.state_dict().items()}
    z_q, _, (_, one_hot, indices) = quantizer(torch.randn(3, 6, 4, 5))
    assert torch.equal(quantizer.get_codebook_entry(indices, (3, 4, 5, 6)), z_q)
    assert torch.equal(one_hot.to_dense().argmax(1), indices)
    assert all(torch.equal(value, state[name]) for name, value in quantizer.state_dict().items())


def test_bad_arguments():
    with pytest.raises(ValueError, match="distance.*'cosine'"):
        VectorQuantiser(8, 6, 0.25, distance="cosine")
    with pytest.raises(ValueError, match="anchor.*'far'"):
        VectorQuantiser(8, 6, 0.25, anchor="far")
    with pytest.raises(NotImplementedError, match="return_logits"):
        VectorQuantiser(8, 6, 0.25)(torch.randn(3, 6, 4, 5), return_logits=True)
