"""The quantizer of enhancing-transformers' ViT-VQGAN (``enhancing.modules.stage1.quantizations.VectorQuantizer``)."""

import torch
from torch import Tensor, nn

from vqkit.compat.embedding import EmbeddingQuantizer
from vqkit.compat.replacement import attributes, checked, plain_embedding, replaces, take_state


class VectorQuantizer(EmbeddingQuantizer):
    """enhancing-transformers' ``VectorQuantizer``, channel-last.

    loss = beta mean (x - sg q)^2 + mean (sg x - q)^2, of unit vectors with ``use_norm``

    Args:
        embed_dim: D.  n_embed: K.  beta: see the formula.
        use_norm: latents and codes are projected to the unit sphere.
        use_residual: ``num_quantizers`` rounds, each on what the ones before it left, in one codebook; the loss is their mean and, as there,
            has a gradient to the codes only.

    ``forward(z)``, (..., D) -> z_q (..., D), loss (), indices (...), (..., num_quantizers) with ``use_residual``. The gradient of z_q passes
    to ``z`` as it is, not through its normalisation, as there. A row that is not finite has index -1 and the zero vector as its code.

    Source: Yu et al. 2021 (arXiv 2110.04627), section 3.2; Lee et al. 2022 (arXiv 2203.01941), section 3.1.
    """

    def __init__(
        self,
        embed_dim: int,
        n_embed: int,
        beta: float = 0.25,
        use_norm: bool = True,
        use_residual: bool = False,
        num_quantizers: int | None = None,
    ):
        super().__init__(n_embed, embed_dim, metric="cosine" if use_norm else "l2", channel_first=False)
        if use_residual and not num_quantizers:
            raise ValueError(f"num_quantizers: expected at least 1 with use_residual, got {num_quantizers}")
        self.embed_dim = embed_dim
        self.n_embed = n_embed
        self.beta = beta
        self.use_residual = use_residual
        self.num_quantizers = num_quantizers

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z_q, loss, indices = self._residual(z.detach()) if self.use_residual else self.quantize(z)
        finite = indices.reshape(*z.shape[:-1], -1)[..., :1] >= 0
        passed = z.where(finite, 0.0)
        # An exact zero carries the gradient.
        return z_q.detach() + (passed - passed.detach()), loss, indices

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One round: (..., D) -> codes (..., D), loss (), indices (...)."""
        result = self.quantize_features(z)
        return result.quantized, self.beta * result.losses["commitment"] + result.losses["codebook"], result.indices

    def _residual(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        total, found = torch.zeros_like(z), []
        for _ in range(self.num_quantizers):
            quantized, *rest = self.quantize(z - total)
            total = total + quantized.detach()
            found.append(rest)
        losses, indices = zip(*found)
        return total, torch.stack(losses).mean(), torch.stack(indices, -1)


@replaces("enhancing.modules.stage1.quantizations.VectorQuantizer", "VectorQuantizer")
def _vector_quantizer(module: nn.Module) -> nn.Module:
    names = ("embed_dim", "n_embed", "beta", "norm", "use_residual", "num_quantizers")
    dim, size, beta, norm, residual, number = attributes(module, *names)
    embedding = plain_embedding(module)
    # That it normalises is known to a function only.
    use_norm = not torch.equal(norm(torch.full((1, 2), 3.0)), torch.full((1, 2), 3.0))
    ours = take_state(module, VectorQuantizer(dim, size, beta, use_norm, residual, number))
    ours.embedding = embedding
    return checked(module, ours, 2, 3, dim, codes=("embedding.weight",))
