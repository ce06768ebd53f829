"""The quantizers of the Descript audio codec (``dac.nn.quantize``): factorised codes, searched by direction."""

import copy
import warnings
from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from vqkit.compat.embedding import code_vectors, supplied_quantizer
from vqkit.compat.replacement import attributes, checked, plain_embedding, replaces
from vqkit.ops import straight_through


def weight_normed_conv(*arguments) -> nn.Module:
    """A convolution with ``weight_g`` and ``weight_v``, the keys that DAC's checkpoints have."""
    with warnings.catch_warnings():
        # The newer form has other keys.
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(nn.Conv1d(*arguments))


class VectorQuantize(nn.Module):
    """DAC's ``VectorQuantize``: codes of few channels between two convolutions of width 1.

    The code of a latent is the one of nearest direction; what is compared in the losses and returned are the vectors as they are.

    input_dim: D.  codebook_size: K.  codebook_dim: length of a code.  layer: makes the two convolutions.

    ``forward(z)``, (B, D, T) -> z_q (B, D, T), commitment loss (B,), codebook loss (B,), indices (B, T), latents (B, codebook_dim, T).
    Each loss is the mean over a sample. A position of ``z`` with NaN or infinity has index -1, zero for its latent and its code, and no part
    in losses and gradients.

    Source: Kumar et al. 2023 (arXiv 2306.06546), section 3.2; Yu et al. 2021 (arXiv 2110.04627), section 3.2.
    """

    def __init__(self, input_dim: int, codebook_size: int, codebook_dim: int, *, layer: Callable[..., nn.Module] = weight_normed_conv):
        super().__init__()
        self.codebook_size = codebook_size
        self.codebook_dim = codebook_dim
        self.in_proj = layer(input_dim, codebook_dim, 1)
        self.out_proj = layer(codebook_dim, input_dim, 1)
        self.codebook = nn.Embedding(codebook_size, codebook_dim)
        self.quantizer = supplied_quantizer(codebook_size, codebook_dim, "cosine")

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        # Not even a zero gradient times NaN may reach the weights.
        valid = z.detach().isfinite().all(1)
        latents = self.in_proj(z.where(valid[:, None], 0.0)).where(valid[:, None], 0.0)
        codes, indices = self.decode_latents(latents, valid)
        rows = latents.mT.to(torch.promote_types(latents.dtype, torch.float32))
        quantized, _, _ = straight_through(rows, self.codebook.weight.to(rows.dtype), indices)
        kept = latents.where(indices[:, None] >= 0, 0.0)
        commitment = (kept - codes.detach()).square().mean((1, 2))
        codebook = (codes - kept.detach()).square().mean((1, 2))
        return self.out_proj(quantized.mT.to(latents.dtype)), commitment, codebook, indices, latents

    def embed_code(self, embed_id: Tensor) -> Tensor:
        """The codes of indices (...), (..., codebook_dim)."""
        return code_vectors(self.codebook.weight, embed_id)

    def decode_code(self, embed_id: Tensor) -> Tensor:
        """The codes of indices (B, T), (B, codebook_dim, T)."""
        return self.embed_code(embed_id).mT

    def decode_latents(self, latents: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latents (B, codebook_dim, T) -> their codes, of that shape, and indices (B, T); 0 and -1 where mask, (B, T) bool, is False."""
        indices = self.quantizer.encode(latents, mask, codes=self.codebook.weight)
        return self.decode_code(indices), indices


class ResidualVectorQuantize(nn.Module):
    """DAC's ``ResidualVectorQuantize``: each ``VectorQuantize`` works on what the ones before it left.

    input_dim: D.  n_codebooks: number of quantizers.  codebook_size: K of each.  codebook_dim: length of a code, one or one a quantizer.
    quantizer_dropout: share of a training batch whose samples use a random number of quantizers.

    ``forward(z, n_quantizers)``, (B, D, T) -> z_q (B, D, T), codes (B, N, T), latents (B, N codebook_dim, T), commitment loss (),
    codebook loss (). ``n_quantizers``, N, counts in eval mode only. As there, samples that drop a quantizer keep its index.

    Source: Zeghidour et al. 2021 (arXiv 2107.03312), sections III.C and III.D; Kumar et al. 2023 (arXiv 2306.06546), section 3.3.
    """

    def __init__(
        self,
        input_dim: int = 512,
        n_codebooks: int = 9,
        codebook_size: int = 1024,
        codebook_dim: int | Sequence[int] = 8,
        quantizer_dropout: float = 0.0,
    ):
        super().__init__()
        self.n_codebooks = n_codebooks
        self.codebook_dim = [codebook_dim] * n_codebooks if isinstance(codebook_dim, int) else list(codebook_dim)
        if len(self.codebook_dim) != n_codebooks:
            raise ValueError(f"codebook_dim: expected one or {n_codebooks} lengths, got {codebook_dim}")
        self.codebook_size = codebook_size
        self.quantizer_dropout = quantizer_dropout
        self.quantizers = nn.ModuleList(VectorQuantize(input_dim, codebook_size, dim) for dim in self.codebook_dim)

    def forward(self, z: Tensor, n_quantizers: int | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        number = self.n_codebooks if n_quantizers is None or self.training else n_quantizers
        uses = self._uses(z) if self.training else torch.full((len(z),), number, device=z.device)
        total, residual, found = torch.zeros_like(z), z, []
        for place, quantizer in enumerate(self.quantizers[:number]):
            quantized, commitment, codebook, indices, latents = quantizer(residual)
            used = place < uses
            total = total + quantized * used[:, None, None]
            residual = residual - quantized
            found.append((indices, latents, (commitment * used).mean(), (codebook * used).mean()))
        indices, latents, commitment, codebook = zip(*found)
        return total, torch.stack(indices, 1), torch.cat(latents, 1), sum(commitment), sum(codebook)

    def _uses(self, z: Tensor) -> Tensor:
        """How many quantizers each sample of a training batch uses, (B,)."""
        drawn = torch.randint(1, self.n_codebooks + 1, (len(z),))
        dropping = torch.arange(len(z)) < int(len(z) * self.quantizer_dropout)
        return drawn.where(dropping, self.n_codebooks).to(z.device)

    def from_codes(self, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Indices (B, N, T) -> z_q (B, D, T), the codes side by side (B, N codebook_dim, T), and the indices."""
        vectors = [quantizer.decode_code(column) for quantizer, column in zip(self.quantizers, codes.unbind(1))]
        total = sum(quantizer.out_proj(part) for quantizer, part in zip(self.quantizers, vectors))
        return total, torch.cat(vectors, 1), codes

    def from_latents(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents side by side (B, N codebook_dim, T) -> z_q (B, D, T), the codes (B, N codebook_dim, T), indices (B, N, T)."""
        ends = [end for end in accumulate(self.codebook_dim) if end <= latents.shape[1]]
        pieces = latents[:, : ends[-1]].split(self.codebook_dim[: len(ends)], 1)
        found = [quantizer.decode_latents(piece) for quantizer, piece in zip(self.quantizers, pieces)]
        total = sum(quantizer.out_proj(codes) for quantizer, (codes, _) in zip(self.quantizers, found))
        return total, torch.cat([codes for codes, _ in found], 1), torch.stack([indices for _, indices in found], 1)


def with_layers_of(module: nn.Module, build: Callable[[int, int, int], nn.Module]) -> nn.Module:
    """Our quantizer with the convolutions and the embedding of ``module``; build: makes one of D, K and codebook_dim."""
    codebook = plain_embedding(module, "codebook")
    in_proj, out_proj, _ = attributes(module, "in_proj", "out_proj", "decode_latents")
    (channels,) = attributes(in_proj, "in_channels")
    ours = build(channels, *codebook.weight.shape).train(module.training)
    ours.quantizer.to(codebook.weight.device, codebook.weight.dtype)
    ours.in_proj, ours.out_proj, ours.codebook = in_proj, out_proj, codebook
    # Weight norm keeps tensors that cannot be copied; the layers are the same in both, any will do.
    layers = {"in_proj": nn.Conv1d(channels, codebook.embedding_dim, 1), "out_proj": nn.Conv1d(codebook.embedding_dim, channels, 1)}
    checked(_with_parts(module, layers), _with_parts(ours, layers), 2, channels, 3, codes=("codebook.weight",))
    return ours


def _with_parts(module: nn.Module, parts: dict[str, nn.Module]) -> nn.Module:
    """A shallow copy with other submodules."""
    module = copy.copy(module)
    module._modules = module._modules | parts
    return module


@replaces("dac.nn.quantize.VectorQuantize")
def _vector_quantize(module: nn.Module) -> nn.Module:
    return with_layers_of(module, VectorQuantize)
