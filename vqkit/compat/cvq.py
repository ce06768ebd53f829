"""CVQ-VAE's quantizer (``modules.vqvae.quantise.VectorQuantiser``): unused codes move to latents of the batch."""

from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from vqkit.codebooks import AnchoredCodebook
from vqkit.compat.embedding import as_feature_map, code_vectors, one_hot, supplied_quantizer
from vqkit.compat.replacement import attributes, checked, plain_embedding, replaces, take_state
from vqkit.compat.state import ForeignState, StateKey
from vqkit.compat.taming import refuse_gumbel_arguments
from vqkit.ops import code_counts, straight_through
from vqkit.quantizers.quantized import perplexity
from vqkit.quantizers.regularizers import Contrastive


class VectorQuantiser(ForeignState):
    """CVQ-VAE's ``VectorQuantiser`` over ``AnchoredCodebook``.

    loss = beta mean (x - sg q)^2 + mean (sg x - q)^2 [+ contrastive term]

    Args:
        num_embed: K.  embed_dim: D.  beta: see the formula.
        distance: "cos" or "l2", of the search; the losses compare the vectors as they are.
        anchor: "closest", "random" or "probrandom", see ``AnchoredCodebook``. "random" draws from the batch, not from a pool.
        first_batch: codes move in the first batch only.
        contras_loss: adds ``Contrastive``, in training mode.

    ``forward(z)`` -> (z_q, loss, (perplexity, min_encodings, indices)): as ``z`` (B, D, H, W); (); (), one-hot (N, K) as a sparse tensor, None
    in a compiled graph, and indices (N,) with N = B H W. The nearest code is found without sorting N x K numbers, usage and anchors
    are those of all ranks, and rows that are not finite have index -1. State: ``embedding.weight``, ``embed_prob``.

    Source: Zheng and Vedaldi 2023 (arXiv 2307.15139), section 3.3.
    """

    def __init__(
        self,
        num_embed: int,
        embed_dim: int,
        beta: float,
        distance: str = "cos",
        anchor: str = "probrandom",
        first_batch: bool = False,
        contras_loss: bool = False,
    ):
        super().__init__()
        if distance not in ("cos", "l2"):
            raise ValueError(f"distance: expected 'cos' or 'l2', got {distance!r}")
        self.num_embed = num_embed
        self.embed_dim = embed_dim
        self.beta = beta
        self.distance = distance
        self.anchor = anchor
        self.first_batch = first_batch
        self.contras_loss = contras_loss
        self.decay = 0.99
        cosine = distance == "cos"
        self.codebook = AnchoredCodebook(
            num_embed, embed_dim, decay=self.decay, anchor=anchor, first_batch=first_batch, cosine=cosine
        )
        nn.init.uniform_(self.codebook.codes, -1 / num_embed, 1 / num_embed)
        self.quantizer = supplied_quantizer(num_embed, embed_dim, "cosine" if cosine else "l2", channel_first=False)
        self.contrastive = Contrastive(1.0, metric=self.quantizer.metric)

    def state_keys(self) -> list[StateKey]:
        return [
            StateKey("codebook.codes", "embedding.weight"),
            StateKey("codebook.cluster_size", "embed_prob"),
            StateKey("codebook.initialised", None),
            StateKey("codebook.moved", None),
        ]

    @property
    def embedding(self) -> SimpleNamespace:
        """Its ``weight`` are the codes, (K, D)."""
        return SimpleNamespace(weight=self.codebook.codes)

    def forward(
        self, z: Tensor, temp: float | None = None, rescale_logits: bool = False, return_logits: bool = False
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor | None, Tensor]]:
        refuse_gumbel_arguments(temp, rescale_logits, return_logits)
        latents = z.movedim(1, -1)
        shape = latents.shape
        latents = latents.reshape(-1, self.embed_dim).to(torch.promote_types(z.dtype, torch.float32))
        codes = self.codebook().to(latents.dtype)
        indices = self.quantizer.encode(latents, codes=codes)
        quantized, commitment, codebook = straight_through(latents, codes, indices)
        loss = self.beta * commitment + codebook
        if self.training:
            self.codebook.observe(latents.detach(), indices)
            if self.contras_loss:
                loss = loss + self._contrast(latents, codes, indices)
        share = perplexity(code_counts(indices, self.num_embed))
        return quantized.to(z.dtype).view(shape).movedim(-1, 1), loss, (share, one_hot(indices, self.num_embed), indices)

    def _contrast(self, latents: Tensor, codes: Tensor, indices: Tensor) -> Tensor:
        valid = indices >= 0
        latents = latents.where(valid[:, None], 0.0)
        if self.distance == "cos":
            latents, codes = normalize(latents, dim=-1), normalize(codes, dim=-1)
        return self.contrastive(latents, codes, indices[:, None], valid)

    def get_codebook_entry(self, indices: Tensor, shape: tuple[int, ...] | None) -> Tensor:
        """The codes of indices (N,), (N, D), or as (B, D, H, W) for a ``shape`` (B, H, W, D)."""
        return as_feature_map(code_vectors(self.codebook.codes, indices.reshape(-1)), shape)


@replaces("modules.vqvae.quantise.VectorQuantiser", "VectorQuantiser")
def _vector_quantiser(module: nn.Module) -> nn.Module:
    names = ("num_embed", "embed_dim", "beta", "distance", "anchor", "first_batch", "contras_loss", "init")
    *arguments, moved = attributes(module, *names)
    embedding = plain_embedding(module)
    ours = VectorQuantiser(*arguments)
    ours.codebook.moved.fill_(bool(moved))
    ours = take_state(module, ours)
    ours.codebook.codes = embedding.weight
    learns = ours.anchor == "closest"
    return checked(module, ours, 2, ours.embed_dim, 4, 4, codes=("embedding.weight",), learns=learns)
