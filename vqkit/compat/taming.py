"""taming-transformers' quantizers (``taming.modules.vqvae.quantize``), which latent diffusion and many others carry a copy of."""

import math
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn.functional import gumbel_softmax

from vqkit.codebooks import EMACodebook
from vqkit.compat.embedding import EmbeddingQuantizer, as_feature_map, code_vectors, one_hot
from vqkit.compat.index_remap import IndexRemap
from vqkit.compat.replacement import NotReplaceable, attributes, checked, plain_embedding, replaces, take_state
from vqkit.compat.running_means import ema_keys, started_empty
from vqkit.compat.state import ForeignState, StateKey
from vqkit.quantizers import Quantizer


def refuse_gumbel_arguments(temp: float | None, rescale_logits: bool, return_logits: bool) -> None:
    """Raise NotImplementedError for a value that only a Gumbel quantizer could heed."""
    if temp not in (None, 1.0):
        raise NotImplementedError(f"temp: only None or 1.0 is supported, got {temp!r}")
    for name, value in (("rescale_logits", rescale_logits), ("return_logits", return_logits)):
        if value:
            raise NotImplementedError(f"{name}: only False is supported, got {value!r}")


class VectorQuantizer(EmbeddingQuantizer):
    """taming's first ``VectorQuantizer``: ``VectorQuantizer2`` with beta on the codebook's term, and other extras in the result.

    loss = mean (x - sg q)^2 + beta mean (sg x - q)^2

    n_e: K.  e_dim: D.  beta: see the formula, where the paper has it before the other term.

    ``forward(z)`` -> (z_q, loss, (perplexity, min_encodings, min_encoding_indices)): as ``z`` (B, D, H, W); (); (), one-hot (N, K)
    as a sparse tensor, None in a compiled graph, and indices (N, 1) with N = B H W.

    Source: van den Oord et al. 2017 (arXiv 1711.00937), equation 3; taming-transformers, Esser et al. 2020 (arXiv 2012.09841).
    """

    def __init__(self, n_e: int, e_dim: int, beta: float):
        super().__init__(n_e, e_dim)
        self.n_e = n_e
        self.e_dim = e_dim
        self.beta = beta
        nn.init.uniform_(self.embedding.weight, -1 / n_e, 1 / n_e)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor | None, Tensor]]:
        result = self.quantize_features(z)
        loss = result.losses["commitment"] + self.beta * result.losses["codebook"]
        indices = result.indices.reshape(-1)
        return result.quantized, loss, (result.perplexity, one_hot(indices, self.n_e), indices[:, None])

    def get_codebook_entry(self, indices: Tensor, shape: tuple[int, ...] | None) -> Tensor:
        """The codes of indices (N,), (N, D), or as (B, D, H, W) for a ``shape`` (B, H, W, D)."""
        return as_feature_map(code_vectors(self.embedding.weight, indices.reshape(-1)), shape)


class VectorQuantizer2(IndexRemap, EmbeddingQuantizer):
    """taming's ``VectorQuantizer2``.

    loss = beta mean (x - sg q)^2 + mean (sg x - q)^2;  legacy: mean (x - sg q)^2 + beta mean (sg x - q)^2

    Args:
        n_e: K.  e_dim: D.  beta, legacy: see the formula.
        remap: file (``numpy.load``) or tensor of the indices that are in use; those returned and taken are then places in it.
        unknown_index: for an index that is not in use: "random", "extra" (one more index) or an index.
        sane_index_shape: indices are (B, H, W).

    ``forward(z)`` -> (z_q, loss, (None, None, indices)): as ``z`` (B, D, H, W); (); (N,) with N = B H W, or (N, 1) with ``remap``.
    ``temp``, ``rescale_logits`` and ``return_logits`` raise NotImplementedError for a value that means anything, as they do there.

    Source: van den Oord et al. 2017 (arXiv 1711.00937), equation 3; taming-transformers, Esser et al. 2020 (arXiv 2012.09841).
    """

    def __init__(
        self,
        n_e: int,
        e_dim: int,
        beta: float,
        remap: str | Tensor | None = None,
        unknown_index: str | int = "random",
        sane_index_shape: bool = False,
        legacy: bool = True,
    ):
        super().__init__(n_e, e_dim)
        self.n_e = n_e
        self.e_dim = e_dim
        self.beta = beta
        self.legacy = legacy
        self.sane_index_shape = sane_index_shape
        self._set_remap(remap, unknown_index, n_e)
        nn.init.uniform_(self.embedding.weight, -1 / n_e, 1 / n_e)

    def forward(
        self, z: Tensor, temp: float | None = None, rescale_logits: bool = False, return_logits: bool = False
    ) -> tuple[Tensor, Tensor, tuple[None, None, Tensor]]:
        refuse_gumbel_arguments(temp, rescale_logits, return_logits)
        result = self.quantize_features(z)
        first, second = (1, self.beta) if self.legacy else (self.beta, 1)
        loss = first * result.losses["commitment"] + second * result.losses["codebook"]
        indices = result.indices
        if self.remap is not None:
            indices = self.remap_to_used(indices)
        if not self.sane_index_shape:
            indices = indices.reshape(-1) if self.remap is None else indices.reshape(-1, 1)
        return result.quantized, loss, (None, None, indices)

    def get_codebook_entry(self, indices: Tensor, shape: tuple[int, ...] | None) -> Tensor:
        """The codes of indices (N,), (N, D), or as (B, D, H, W) for a ``shape`` (B, H, W, D)."""
        return as_feature_map(self.embed_code(indices.reshape(-1)), shape)

    def embed_code(self, indices: Tensor) -> Tensor:
        """The codes of indices (...), (..., D)."""
        return code_vectors(self.embedding.weight, indices if self.remap is None else self.unmap_to_all(indices))


class GumbelQuantize(IndexRemap):
    """taming's ``GumbelQuantize``: a convolution scores all codes, of which one is drawn in training and in eval mode.

    loss = kl_weight mean over positions of sum_k p_k log(p_k K), p = softmax(logits)

    Args:
        num_hiddens: channels of the input.  embedding_dim: D.  n_embed: K.
        straight_through: False: in training a mixture of codes instead of one.
        kl_weight: see the formula.  temp_init: of the softmax; kept as ``temperature``, which may be changed.
        use_vqinterface: the result is (z_q, loss, (None, None, indices)), else (z_q, loss, indices).
        remap, unknown_index: as in ``VectorQuantizer2``; only codes in use are drawn.

    ``forward(z, temp, return_logits)``: z (B, num_hiddens, H, W) -> z_q (B, D, H, W), loss (), indices (B, H, W), and, if asked for and
    ``use_vqinterface``, logits (B, K, H, W). The same seed draws the codes that taming's draws. The scores of all codes are what the
    method is made of. Not built on ``vqkit.quantizers.GumbelQuantizer``, whose parameters have other shapes and which draws
    otherwise; it has masks and no noise in eval mode.

    Source: Jang et al. 2016 (arXiv 1611.01144); taming-transformers, Esser et al. 2020 (arXiv 2012.09841).
    """

    def __init__(
        self,
        num_hiddens: int,
        embedding_dim: int,
        n_embed: int,
        straight_through: bool = True,
        kl_weight: float = 5e-4,
        temp_init: float = 1.0,
        use_vqinterface: bool = True,
        remap: str | Tensor | None = None,
        unknown_index: str | int = "random",
    ):
        super().__init__()
        self.embedding_dim = embedding_dim
        self.n_embed = self.n_e = n_embed
        self.straight_through = straight_through
        self.temperature = temp_init
        self.kl_weight = kl_weight
        self.proj = nn.Conv2d(num_hiddens, n_embed, 1)
        self.embed = nn.Embedding(n_embed, embedding_dim)
        self.use_vqinterface = use_vqinterface
        self._set_remap(remap, unknown_index, n_embed)

    def forward(self, z: Tensor, temp: float | None = None, return_logits: bool = False):
        logits = self.proj(z)
        codes = self.embed.weight
        if self.remap is not None:
            logits, codes = logits[:, self.used], codes[self.used]
        hard = self.straight_through or not self.training
        share = gumbel_softmax(logits, tau=self.temperature if temp is None else temp, dim=1, hard=hard)
        z_q = torch.einsum("bkhw,kd->bdhw", share, codes)
        log_share = logits.log_softmax(1)
        divergence = (log_share.exp() * (log_share + math.log(self.n_embed))).sum(1)
        indices = share.argmax(1)
        result = z_q, self.kl_weight * divergence.mean(), (None, None, indices) if self.use_vqinterface else indices
        return (*result, logits) if return_logits and self.use_vqinterface else result

    def get_codebook_entry(self, indices: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The codes of indices (B H W,) as (B, D, H, W); shape: (B, H, W, D)."""
        indices = indices if self.remap is None else self.unmap_to_all(indices)
        vectors = code_vectors(self.embed.weight, indices.reshape(-1))
        return as_feature_map(vectors, (*shape[:3], self.embedding_dim))


class EMAVectorQuantizer(ForeignState, IndexRemap):
    """taming's ``EMAVectorQuantizer``: the codes are running means of the latents, loss = beta mean (x - sg q)^2.

    Args:
        n_embed: K.  embedding_dim: D.  beta: see the formula.  decay, eps: as in ``EMACodebook``.
        remap, unknown_index: as in ``VectorQuantizer2``.

    ``forward(z)`` -> (z_q, loss, (perplexity, encodings, indices)): as ``z`` (B, D, H, W); (); (), one-hot (N, K) as a sparse tensor, None
    in a compiled graph, and indices (N,), or (N, 1) with ``remap``. ``embedding.weight``, ``.cluster_size`` and ``.embed_avg`` of the
    state are buffers here, not parameters without gradient. Under a process group the means are those of all ranks (there
    each rank follows its own batch), a rank with NaN does not spoil them, and they stay in float32 under ``.to(dtype)``.

    Source: van den Oord et al. 2017 (arXiv 1711.00937), appendix A.1; taming-transformers.
    """

    def __init__(
        self,
        n_embed: int,
        embedding_dim: int,
        beta: float,
        decay: float = 0.99,
        eps: float = 1e-5,
        remap: str | Tensor | None = None,
        unknown_index: str | int = "random",
    ):
        super().__init__()
        self.codebook_dim = embedding_dim
        self.num_tokens = self.n_e = n_embed
        self.beta = beta
        codebook = started_empty(EMACodebook(n_embed, embedding_dim, decay=decay, eps=eps), torch.randn(n_embed, embedding_dim))
        self.quantizer = Quantizer(embedding_dim, n_embed, codebook=codebook, channel_first=True)
        self._set_remap(remap, unknown_index, n_embed)

    def state_keys(self) -> list[StateKey]:
        return ema_keys(codes="embedding.weight", cluster_size="embedding.cluster_size", embed_sum="embedding.embed_avg")

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor | None, Tensor]]:
        result = self.quantizer(z)
        indices = result.indices.reshape(-1)
        encodings = one_hot(indices, self.num_tokens)
        if self.remap is not None:
            indices = self.remap_to_used(indices)[:, None]
        return result.quantized, self.beta * result.losses["commitment"], (result.perplexity, encodings, indices)

    @property
    def embedding(self) -> SimpleNamespace:
        """Its ``weight`` are the codes, (K, D)."""
        return SimpleNamespace(weight=self.quantizer.codes)

    def get_codebook_entry(self, indices: Tensor, shape: tuple[int, ...] | None) -> Tensor:
        """As in ``VectorQuantizer2``."""
        indices = indices.reshape(-1) if self.remap is None else self.unmap_to_all(indices.reshape(-1))
        return as_feature_map(code_vectors(self.quantizer.codes, indices), shape)


def with_remap(module: nn.Module) -> dict[str, object]:
    """The arguments ``remap`` and ``unknown_index`` that this module was built with."""
    if getattr(module, "remap", None) is None:
        return {}
    used, unknown, size = attributes(module, "used", "unknown_index", "re_embed")
    return {"remap": used, "unknown_index": "extra" if size > len(used) else unknown}


def without_draws(module: nn.Module, x: Tensor) -> tuple:
    """``forward`` of a copy that draws no random index for an unknown one."""
    if getattr(module, "unknown_index", None) == "random":
        module.unknown_index = 0
    return type(module).forward(module, x)


@replaces("taming.modules.vqvae.quantize.VectorQuantizer2", "VectorQuantizer2")
def _vector_quantizer_2(module: nn.Module) -> nn.Module:
    n_e, e_dim, beta, legacy, sane = attributes(module, "n_e", "e_dim", "beta", "legacy", "sane_index_shape")
    embedding = plain_embedding(module)
    ours = take_state(module, VectorQuantizer2(n_e, e_dim, beta, **with_remap(module), sane_index_shape=sane, legacy=legacy))
    ours.embedding = embedding
    return checked(module, ours, 2, e_dim, 2, 2, codes=("embedding.weight",), run=without_draws)


@replaces("taming.modules.vqvae.quantize.VectorQuantizer", "VectorQuantizer")
def _vector_quantizer(module: nn.Module) -> nn.Module:
    n_e, e_dim, beta = attributes(module, "n_e", "e_dim", "beta")
    embedding = plain_embedding(module)
    ours = take_state(module, VectorQuantizer(n_e, e_dim, beta))
    ours.embedding = embedding
    return checked(module, ours, 2, e_dim, 2, 2, codes=("embedding.weight",))


@replaces("taming.modules.vqvae.quantize.GumbelQuantize", "GumbelQuantize")
def _gumbel_quantize(module: nn.Module) -> nn.Module:
    names = ("embedding_dim", "n_embed", "straight_through", "kl_weight", "temperature", "use_vqinterface", "proj")
    dim, size, straight_through, kl_weight, temperature, interface, proj = attributes(module, *names)
    embed = plain_embedding(module, "embed")
    (channels,) = attributes(proj, "in_channels")
    ours = GumbelQuantize(channels, dim, size, straight_through, kl_weight, temperature, interface, **with_remap(module))
    ours = take_state(module, ours)
    ours.proj, ours.embed = proj, embed
    return checked(module, ours, 2, channels, 2, 2, codes=("embed.weight",), run=without_draws)


@replaces("taming.modules.vqvae.quantize.EMAVectorQuantizer", "EMAVectorQuantizer")
def _ema_vector_quantizer(module: nn.Module) -> nn.Module:
    size, dim, beta, embedding = attributes(module, "num_tokens", "codebook_dim", "beta", "embedding")
    decay, eps = attributes(embedding, "decay", "eps")
    if not getattr(embedding, "update", True):
        raise NotReplaceable("its embedding is frozen (update=False)")
    ours = take_state(module, EMAVectorQuantizer(size, dim, beta, decay, eps, **with_remap(module)))
    return checked(module, ours, 2, dim, 2, 2, codes=("embedding.weight", "embedding.embed_avg"), run=without_draws)
