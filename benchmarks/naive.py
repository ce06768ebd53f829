"""What people write in plain PyTorch, as the thing to be faster than."""

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot


def cdist_argmin(latents: Tensor, codes: Tensor) -> Tensor:
    return torch.cdist(latents, codes).argmin(-1)


def matmul_argmin(latents: Tensor, codes: Tensor) -> Tensor:
    """|x|^2 - 2 x.c + |c|^2 without the first term, as one addmm."""
    return torch.addmm(codes.square().sum(-1), latents, codes.T, alpha=-2).argmin(-1)


def straight_through(latents: Tensor, codes: Tensor, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    chosen = codes[indices]
    commitment = (latents - chosen.detach()).square().mean()
    codebook = (latents.detach() - chosen).square().mean()
    return latents + (chosen - latents).detach(), commitment, codebook


def one_hot_statistics(latents: Tensor, indices: Tensor, codebook_size: int) -> tuple[Tensor, Tensor]:
    chosen = one_hot(indices, codebook_size).to(latents.dtype)
    return chosen.T @ latents, chosen.sum(0)


def index_add_statistics(latents: Tensor, indices: Tensor, codebook_size: int) -> tuple[Tensor, Tensor]:
    sums = latents.new_zeros(codebook_size, latents.shape[1]).index_add_(0, indices, latents)
    return sums, torch.bincount(indices, minlength=codebook_size)


def gather_index_add(rows: Tensor, columns: Tensor, weights: Tensor, features: Tensor) -> Tensor:
    return torch.zeros_like(features).index_add(0, rows, weights[:, None] * features[columns])


class NaiveQuantizer(nn.Module):
    """A vector quantizer as the tutorials have it: all distances, a one-hot matrix, an EMA codebook or a learned one.

    Takes (B, D, h, w); ``top_k`` codes are averaged. Returns the quantized map and the loss.
    """

    def __init__(self, dim: int, codebook_size: int, codebook: str = "learned", top_k: int = 1, decay: float = 0.8):
        super().__init__()
        self.size, self.top_k, self.decay, self.ema = codebook_size, top_k, decay, codebook == "ema"
        codes = torch.empty(codebook_size, dim).uniform_(-1 / codebook_size, 1 / codebook_size)
        if self.ema:
            self.register_buffer("codes", codes)
            self.register_buffer("cluster_size", torch.ones(codebook_size))
            self.register_buffer("embed_sum", codes.clone())
        else:
            self.codes = nn.Parameter(codes)

    def forward(self, latents: Tensor, codes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        codes = self.codes if codes is None else codes
        rows = latents.movedim(1, -1).reshape(-1, latents.shape[1])
        indices = torch.cdist(rows, codes).topk(self.top_k, largest=False).indices
        chosen = sum(one_hot(column, self.size).to(rows.dtype) for column in indices.unbind(-1))
        quantized = chosen @ codes / self.top_k
        loss = 0.25 * (rows - quantized.detach()).square().mean()
        if self.ema and self.training:
            with torch.no_grad():
                self.cluster_size.lerp_(chosen.sum(0), 1 - self.decay)
                self.embed_sum.lerp_(chosen.T @ rows, 1 - self.decay)
                self.codes.copy_(self.embed_sum / self.cluster_size.clamp(min=1e-5)[:, None])
        else:
            loss = loss + (rows.detach() - quantized).square().mean()
        quantized = rows + (quantized - rows).detach()
        return quantized.view(*latents.shape[:1], *latents.shape[2:], -1).movedim(-1, 1), loss
