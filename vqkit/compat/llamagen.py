"""LlamaGen's quantizer (``tokenizer.tokenizer_image.vq_model.VectorQuantizer``)."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from vqkit.compat.embedding import EmbeddingQuantizer, as_feature_map, code_vectors
from vqkit.compat.replacement import attributes, checked, plain_embedding, replaces, take_state
from vqkit.ops import code_counts, soft_assignment
from vqkit.quantizers.quantized import usage

# How many indices of the latest steps the usage is taken over.
_WINDOW = 65536
_INVERSE_TEMPERATURE = 100.0


class VectorQuantizer(EmbeddingQuantizer):
    """LlamaGen's ``VectorQuantizer``.

    entropy term = mean over n of H(p_n) - H(mean over n of p_n), with p_n = softmax over k of -|x_n - c_k|^2 / 0.01

    Args:
        n_e: K.  e_dim: D.  beta: of the commitment loss.  entropy_loss_ratio: of the entropy term; 0: it is not computed.
        l2_norm: latents and codes are projected to the unit sphere.
        show_usage: keeps ``codebook_used``, the latest 65536 indices of training.

    ``forward(z)`` -> (z_q, (codebook loss, commitment loss, entropy term, usage), (None, None, indices)): as ``z`` (B, D, H, W); the losses
    weighted, None in eval mode; usage the fraction of the codes among the latest indices, on the device, 0 in eval mode or without
    ``show_usage``; indices (N,) with N = B H W. The entropy term needs all N x K distances, of a block of rows at a time.

    Source: Sun et al. 2024 (arXiv 2406.06525), section 2.1; Yu et al. 2021 (arXiv 2110.04627), section 3.2; entropy: Chang et al. 2022
    (arXiv 2202.04200), code of MaskGIT.
    """

    def __init__(self, n_e: int, e_dim: int, beta: float, entropy_loss_ratio: float, l2_norm: bool, show_usage: bool):
        super().__init__(n_e, e_dim, metric="cosine" if l2_norm else "l2")
        self.n_e = n_e
        self.e_dim = e_dim
        self.beta = beta
        self.entropy_loss_ratio = entropy_loss_ratio
        self.l2_norm = l2_norm
        self.show_usage = show_usage
        nn.init.uniform_(self.embedding.weight, -1 / n_e, 1 / n_e)
        if l2_norm:
            self.embedding.weight.data.copy_(normalize(self.embedding.weight.data, dim=-1))
        if show_usage:
            self.register_buffer("codebook_used", torch.zeros(_WINDOW))

    def forward(self, z: Tensor) -> tuple[Tensor, tuple, tuple[None, None, Tensor]]:
        result = self.quantize_features(z)
        indices = result.indices.reshape(-1)
        losses, used = (None, None, None), 0
        if self.training:
            losses = result.losses["codebook"], self.beta * result.losses["commitment"], self._entropy(z, indices)
            used = self._note_use(indices) if self.show_usage else 0
        return result.quantized, (*losses, used), (None, None, indices)

    def _entropy(self, z: Tensor, indices: Tensor) -> Tensor:
        valid = indices >= 0
        latents = z.movedim(1, -1).reshape(-1, self.e_dim).to(torch.promote_types(z.dtype, torch.float32))
        latents = latents.where(valid[:, None], 0.0)
        if not self.entropy_loss_ratio:
            return latents.new_zeros(())
        codes = self.quantizer.resolve_codes(self.embedding.weight).to(latents.dtype)
        latents = normalize(latents, dim=-1) if self.l2_norm else latents
        mass, entropy = soft_assignment(latents, codes, valid, scale=_INVERSE_TEMPERATURE, affinity="squared")
        number = valid.sum().clamp(min=1)
        mean = mass / number
        return self.entropy_loss_ratio * (entropy / number + (mean * (mean + 1e-5).log()).sum())

    @torch.no_grad()
    def _note_use(self, indices: Tensor) -> Tensor:
        latest = torch.cat([self.codebook_used, indices.to(self.codebook_used.dtype)])[-_WINDOW:]
        self.codebook_used.copy_(latest)
        return usage(code_counts(latest.long(), self.n_e))

    def get_codebook_entry(self, indices: Tensor, shape: tuple[int, ...] | None = None, channel_first: bool = True) -> Tensor:
        """The codes of indices (N,), (N, D), or as (B, D, H, W) for a ``shape`` (B, D, H, W); (B, H, W, D) if not channel_first."""
        vectors = code_vectors(self.quantizer.resolve_codes(self.embedding.weight), indices)
        if shape is None or not channel_first:
            return vectors if shape is None else vectors.view(shape)
        return as_feature_map(vectors, (shape[0], *shape[2:], shape[1]))


@replaces("tokenizer.tokenizer_image.vq_model.VectorQuantizer", "VectorQuantizer")
def _vector_quantizer(module: nn.Module) -> nn.Module:
    names = ("n_e", "e_dim", "beta", "entropy_loss_ratio", "l2_norm", "show_usage")
    arguments = attributes(module, *names)
    embedding = plain_embedding(module)
    ours = take_state(module, VectorQuantizer(*arguments))
    ours.embedding = embedding
    return checked(module, ours, 2, ours.e_dim, 2, 2, codes=("embedding.weight",))
