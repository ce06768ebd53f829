"""EnCodec's quantizers (``encodec.quantization.core_vq``), which many speech codecs carry a copy of."""

import torch
from torch import Tensor, nn

from vqkit.codebooks import EMACodebook
from vqkit.compat.embedding import code_vectors
from vqkit.compat.replacement import attributes, checked, replaces, take_state
from vqkit.compat.running_means import ema_keys, settled, started_empty
from vqkit.compat.state import ForeignState, StateKey
from vqkit.quantizers import Quantizer
from vqkit.quantizers.layout import feature_rows, project_rows


class EuclideanCodebook(ForeignState):
    """EnCodec's ``EuclideanCodebook``: codes that are running means of the latents.

    dim: D.  codebook_size: K.  epsilon: ``eps`` of ``EMACodebook``, whose other options are the rest.

    ``forward(x)``, (..., D) -> codes (..., D) without gradient, indices (...). State: ``inited``, ``cluster_size``, ``embed``, ``embed_avg``.

    Otherwise than there: a code that replaces a dead one lives on (there the running mean, in the same step, brings the dead one
    back); expiry looks at the use after the step; the k-means start is that of all ranks, and waits for training mode; rows that are not
    finite have index -1 and teach nothing; statistics are sums over all ranks (there each rank follows its own batch) and stay
    in float32.

    Source: Defossez et al. 2022 (arXiv 2210.13438), section 3.2; Dhariwal et al. 2020 (arXiv 2005.00341), section 3.1.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        kmeans_init: bool = False,
        kmeans_iters: int = 10,
        decay: float = 0.99,
        epsilon: float = 1e-5,
        threshold_ema_dead_code: int = 2,
    ):
        super().__init__()
        self.codebook_size = codebook_size
        codebook = EMACodebook(
            codebook_size,
            dim,
            decay=decay,
            eps=epsilon,
            kmeans_init=bool(kmeans_init),
            kmeans_iters=kmeans_iters,
            threshold_ema_dead_code=threshold_ema_dead_code,
        )
        self.quantizer = Quantizer(dim, codebook_size, codebook=started_empty(codebook))

    def state_keys(self) -> list[StateKey]:
        inited = StateKey("quantizer.codebook.initialised", "inited", lambda t: t.float()[None], lambda t: t.bool().reshape(()))
        names = ema_keys(cluster_size="cluster_size", codes="embed", embed_sum="embed_avg")
        return [inited, *names[:-1]]

    @property
    def embed(self) -> Tensor:
        """The codes, (K, D)."""
        return self.quantizer.codes

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        result = self.quantizer(x)
        return result.quantized.detach(), result.indices

    def encode(self, x: Tensor) -> Tensor:
        """(..., D) -> indices (...)."""
        return self.quantizer.encode(x)

    def decode(self, embed_ind: Tensor) -> Tensor:
        """Indices (...) -> codes (..., D); zero for -1."""
        return code_vectors(self.embed, embed_ind)


class VectorQuantization(nn.Module):
    """EnCodec's ``VectorQuantization``: an ``EuclideanCodebook``, between linear layers where the length of a code is not D.

    dim: D.  codebook_dim: length of a code. Default: dim.  commitment_weight: in loss = commitment_weight mean (x - sg q)^2.
    The other arguments are those of ``EuclideanCodebook``.

    ``forward(x)``, (B, D, T) -> quantized (B, D, T), indices (B, T), loss (1,). In eval mode, as there, the loss is zero and no gradient
    passes to ``x``. A row that holds NaN or infinity has output 0 and index -1 and reaches no weight.

    Source: Defossez et al. 2022 (arXiv 2210.13438), section 3.2 and equation 3.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        codebook_dim: int | None = None,
        decay: float = 0.99,
        epsilon: float = 1e-5,
        kmeans_init: bool = True,
        kmeans_iters: int = 50,
        threshold_ema_dead_code: int = 2,
        commitment_weight: float = 1.0,
    ):
        super().__init__()
        length = dim if codebook_dim is None else codebook_dim
        self.dim = dim
        self.project_in = nn.Identity() if length == dim else nn.Linear(dim, length)
        self.project_out = nn.Identity() if length == dim else nn.Linear(length, dim)
        self.epsilon = epsilon
        self.commitment_weight = commitment_weight
        self.codebook_size = codebook_size
        self._codebook = EuclideanCodebook(length, codebook_size, kmeans_init, kmeans_iters, decay, epsilon, threshold_ema_dead_code)

    @property
    def codebook(self) -> Tensor:
        """The codes, (K, codebook_dim)."""
        return self._codebook.embed

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows, valid = project_rows(self.project_in, *feature_rows(x, None, self.dim, channel_first=True))
        quantized, indices, _ = result = self._codebook.quantizer(rows, valid)
        quantized = quantized if self.training else quantized.detach()
        commitment = result.losses["commitment"]
        loss = self.commitment_weight * commitment if self.training and self.commitment_weight > 0 else torch.zeros_like(commitment)
        return self.project_out(quantized).where(valid[..., None], 0.0).mT, indices, loss[None]

    def encode(self, x: Tensor) -> Tensor:
        """(B, D, T) -> indices (B, T)."""
        return self._codebook.encode(self.project_in(x.mT))

    def decode(self, embed_ind: Tensor) -> Tensor:
        """Indices (B, T) -> (B, D, T)."""
        return self.project_out(self._codebook.decode(embed_ind)).where(embed_ind[..., None] >= 0, 0.0).mT


class ResidualVectorQuantization(nn.Module):
    """EnCodec's ``ResidualVectorQuantization``: each ``VectorQuantization`` works on what the ones before it left.

    num_quantizers: how many.  The other arguments are those of ``VectorQuantization``.

    ``forward(x, n_q)``, (B, D, T) -> quantized (B, D, T), indices (n_q, B, T), losses (n_q, 1). As there, the losses after the first have
    no gradient to ``x``, since the first takes it whole.

    Source: Zeghidour et al. 2021 (arXiv 2107.03312), algorithm 1.
    """

    def __init__(self, *, num_quantizers: int, **arguments):
        super().__init__()
        self.layers = nn.ModuleList(VectorQuantization(**arguments) for _ in range(num_quantizers))

    def forward(self, x: Tensor, n_q: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        total, residual, found = torch.zeros_like(x), x, []
        for layer in self.layers[: n_q or len(self.layers)]:
            quantized, indices, loss = layer(residual)
            residual, total = residual - quantized, total + quantized
            found.append((indices, loss))
        indices, losses = zip(*found)
        return total, torch.stack(indices), torch.stack(losses)

    def encode(self, x: Tensor, n_q: int | None = None) -> Tensor:
        """(B, D, T) -> indices (n_q, B, T)."""
        found = []
        for layer in self.layers[: n_q or len(self.layers)]:
            found.append(layer.encode(x))
            x = x - layer.decode(found[-1])
        return torch.stack(found)

    def decode(self, q_indices: Tensor) -> Tensor:
        """Indices (n_q, B, T) -> (B, D, T)."""
        return sum(layer.decode(indices) for layer, indices in zip(self.layers, q_indices))


@replaces("encodec.quantization.core_vq.EuclideanCodebook")
def _euclidean_codebook(module: nn.Module) -> nn.Module:
    ours = take_state(module, EuclideanCodebook(*_options(module)))
    return checked(module, ours, 2, 3, module.embed.shape[1], codes=("embed", "embed_avg"), run=settled)


@replaces("encodec.quantization.core_vq.VectorQuantization", "VectorQuantization")
def _vector_quantization(module: nn.Module) -> nn.Module:
    names = ("_codebook", "project_in", "project_out", "commitment_weight")
    codebook, project_in, project_out, weight = attributes(module, *names)
    length, size, kmeans_init, kmeans_iters, decay, epsilon, threshold = _options(codebook)
    dim = getattr(project_in, "in_features", length)
    ours = VectorQuantization(dim, size, length, decay, epsilon, kmeans_init, kmeans_iters, threshold, weight)
    ours = take_state(module, ours)
    ours.project_in, ours.project_out = project_in, project_out
    return checked(module, ours, 2, dim, 3, codes=("_codebook.embed", "_codebook.embed_avg"), run=settled)


def _options(codebook: nn.Module) -> tuple:
    """The arguments that this codebook was built with, in the order of ``EuclideanCodebook``."""
    names = ("embed", "inited", "kmeans_iters", "decay", "epsilon", "threshold_ema_dead_code")
    embed, inited, iterations, decay, epsilon, threshold = attributes(codebook, *names)
    return embed.shape[1], embed.shape[0], not bool(inited), iterations, decay, epsilon, threshold
