"""MONAI's quantizers (``monai.networks.layers.vector_quantizer``), also those of its earlier ``generative`` package."""

import torch
from torch import Tensor, nn

from vqkit.codebooks import EMACodebook
from vqkit.compat.embedding import code_vectors, one_hot
from vqkit.compat.replacement import NotReplaceable, attributes, checked, replaces, take_state
from vqkit.compat.running_means import ema_keys, started_empty
from vqkit.compat.state import ForeignState, StateKey
from vqkit.ops import code_counts
from vqkit.quantizers import Quantizer
from vqkit.quantizers.quantized import perplexity


class EMAQuantizer(ForeignState):
    """MONAI's ``EMAQuantizer``: codes that are running means, loss = commitment_cost mean (x - sg q)^2.

    Args:
        spatial_dims: 2 or 3.  num_embeddings: K.  embedding_dim: D.  commitment_cost: see the formula.
        decay, epsilon: as ``decay`` and ``eps`` of ``EMACodebook``.
        embedding_init: "normal" or "kaiming_uniform".
        ddp_sync: True. The codes follow the latents of all ranks; each rank its own (False) raises NotImplementedError.

    ``forward(inputs)``, (B, D, *spatial) -> quantized, loss (), indices (B, *spatial). State: ``embedding.weight``, a buffer here,
    ``ema_cluster_size``, ``ema_w``. Rows that are not finite have index -1 and teach nothing; statistics stay in float32.

    Source: van den Oord et al. 2017 (arXiv 1711.00937), appendix A.1.
    """

    def __init__(
        self,
        spatial_dims: int,
        num_embeddings: int,
        embedding_dim: int,
        commitment_cost: float = 0.25,
        decay: float = 0.99,
        epsilon: float = 1e-5,
        embedding_init: str = "normal",
        ddp_sync: bool = True,
    ):
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims: expected 2 or 3, got {spatial_dims}")
        if embedding_init not in ("normal", "kaiming_uniform"):
            raise ValueError(f"embedding_init: expected 'normal' or 'kaiming_uniform', got {embedding_init!r}")
        if not ddp_sync:
            raise NotImplementedError("ddp_sync: only True is supported, got False")
        self.spatial_dims = spatial_dims
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.commitment_cost = commitment_cost
        self.decay = decay
        self.epsilon = epsilon
        codes = torch.randn(num_embeddings, embedding_dim)
        if embedding_init == "kaiming_uniform":
            nn.init.kaiming_uniform_(codes, mode="fan_in", nonlinearity="linear")
        codebook = started_empty(EMACodebook(num_embeddings, embedding_dim, decay=decay, eps=epsilon), codes)
        self.quantizer = Quantizer(embedding_dim, num_embeddings, codebook=codebook, channel_first=True)

    def state_keys(self) -> list[StateKey]:
        return ema_keys(cluster_size="ema_cluster_size", embed_sum="ema_w", codes="embedding.weight")

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self._check(inputs)
        quantized, indices, _ = result = self.quantizer(inputs)
        return quantized, self.commitment_cost * result.losses["commitment"], indices

    def quantize(self, inputs: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Rows (N, D), their codes one-hot, (N, K) as a sparse tensor, None in a compiled graph, and indices (B, *spatial)."""
        self._check(inputs)
        indices = self.quantizer.encode(inputs)
        rows = inputs.movedim(1, -1).reshape(-1, self.embedding_dim).float()
        return rows, one_hot(indices.reshape(-1), self.num_embeddings), indices

    def embed(self, embedding_indices: Tensor) -> Tensor:
        """Indices (B, *spatial) -> codes (B, D, *spatial); zero for -1."""
        return code_vectors(self.quantizer.codes, embedding_indices).movedim(-1, 1)

    def _check(self, inputs: Tensor) -> None:
        if inputs.ndim != self.spatial_dims + 2:
            raise ValueError(f"inputs: expected (B, D, {self.spatial_dims} spatial dimensions), got {tuple(inputs.shape)}")


class VectorQuantizer(nn.Module):
    """MONAI's ``VectorQuantizer`` around an ``EMAQuantizer``: ``forward(inputs)`` -> loss (), quantized; the last ``perplexity`` is kept.

    Source: MONAI.
    """

    def __init__(self, quantizer: EMAQuantizer):
        super().__init__()
        self.quantizer = quantizer
        self.perplexity = torch.ones(())

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        quantized, loss, indices = self.quantizer(inputs)
        self.perplexity = perplexity(code_counts(indices, self.quantizer.num_embeddings))
        return loss, quantized

    def embed(self, embedding_indices: Tensor) -> Tensor:
        """As ``EMAQuantizer.embed``."""
        return self.quantizer.embed(embedding_indices)

    def quantize(self, encodings: Tensor) -> Tensor:
        """Indices (B, *spatial); as there, in training mode the codes learn from it."""
        return self.quantizer(encodings)[2]


@replaces("monai.networks.layers.vector_quantizer.EMAQuantizer", "EMAQuantizer")
def _ema_quantizer(module: nn.Module) -> nn.Module:
    names = ("spatial_dims", "num_embeddings", "embedding_dim", "commitment_cost", "decay", "epsilon", "ddp_sync")
    *arguments, sync = attributes(module, *names)
    if not sync:
        raise NotReplaceable("ddp_sync=False: each rank has its own codes")
    ours = take_state(module, EMAQuantizer(*arguments))
    return checked(module, ours, 2, ours.embedding_dim, *[2] * ours.spatial_dims, codes=("embedding.weight", "ema_w"))


@replaces("monai.networks.layers.vector_quantizer.VectorQuantizer", "generative.networks.layers.vector_quantizer.VectorQuantizer")
def _vector_quantizer(module: nn.Module) -> nn.Module:
    ours = VectorQuantizer(_ema_quantizer(*attributes(module, "quantizer")))
    ours.perplexity = module.perplexity
    return ours.train(module.training)
