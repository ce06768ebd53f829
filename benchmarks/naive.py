"""What people write in plain PyTorch, as the thing to be faster than."""

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, one_hot

from vqkit.quantizers import Quantized


def cdist_argmin(latents: Tensor, codes: Tensor) -> Tensor:
    return torch.cdist(latents, codes).argmin(-1)


def matmul_argmin(latents: Tensor, codes: Tensor) -> Tensor:
    """|x|^2 - 2 x.c + |c|^2 without the first term, as one addmm."""
    return torch.addmm(codes.square().sum(-1), latents, codes.T, alpha=-2).argmin(-1)


def cdist_topk(latents: Tensor, codes: Tensor, k: int) -> Tensor:
    return torch.cdist(latents, codes).topk(k, largest=False).indices


def matmul_topk(latents: Tensor, codes: Tensor, k: int) -> Tensor:
    return torch.addmm(codes.square().sum(-1), latents, codes.T, alpha=-2).topk(k, largest=False).indices


def straight_through(latents: Tensor, codes: Tensor, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    chosen = codes[indices]
    commitment = (latents - chosen.detach()).square().mean()
    codebook = (latents.detach() - chosen).square().mean()
    return latents + (chosen - latents).detach(), commitment, codebook


def one_hot_statistics(latents: Tensor, indices: Tensor, codebook_size: int) -> tuple[Tensor, Tensor]:
    chosen = one_hot(indices, codebook_size).to(latents.dtype)
    return chosen.T @ latents, chosen.sum(0)


def index_add_sums(latents: Tensor, indices: Tensor, codebook_size: int) -> Tensor:
    return latents.new_zeros(codebook_size, latents.shape[1]).index_add_(0, indices, latents)


def index_add_statistics(latents: Tensor, indices: Tensor, codebook_size: int) -> tuple[Tensor, Tensor]:
    return index_add_sums(latents, indices, codebook_size), torch.bincount(indices, minlength=codebook_size)


def gather_index_add(rows: Tensor, columns: Tensor, weights: Tensor, features: Tensor) -> Tensor:
    return torch.zeros_like(features).index_add(0, rows, weights[:, None] * features[columns])


class NaiveQuantizer(nn.Module):
    """A vector quantizer as the tutorials have it: all distances, a one-hot matrix, a codebook "ema", "learned" or "supplied".

    Takes (B, D, h, w) and, where supplied, the codes; ``top_k`` codes are averaged. Returns the quantized map and the loss.
    """

    def __init__(self, dim: int, codebook_size: int, codebook: str = "learned", top_k: int = 1, decay: float = 0.8):
        super().__init__()
        self.size, self.top_k, self.decay, self.ema = codebook_size, top_k, decay, codebook == "ema"
        if codebook == "supplied":
            return
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
        indices = cdist_topk(rows, codes, self.top_k)
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


class NaiveProduct(nn.Module):
    """Naive quantizers side by side, each averaging so many codes, with learned codes or with generated ones."""

    def __init__(self, dim: int, sizes: tuple[int, ...], selections: tuple[int, ...], generate: nn.Module | None = None):
        super().__init__()
        # What is generated leaves no codes to be learned.
        kind = "learned" if generate is None else "supplied"
        self.parts = nn.ModuleList(NaiveQuantizer(dim, size, kind, top_k=k) for size, k in zip(sizes, selections))
        self.generate = generate
        self.sizes = sizes

    def forward(self, x: Tensor) -> Quantized:
        codes = [None] * len(self.parts) if self.generate is None else self.generate().split(self.sizes)
        results = [part(piece, table) for part, piece, table in zip(self.parts, x.chunk(len(self.parts), 1), codes)]
        loss = sum(loss for _, loss in results)
        return Quantized(torch.cat([quantized for quantized, _ in results], 1), None, loss, {"codebook": loss}, torch.ones(1))


class NaiveTransfer(nn.Module):
    """VQCT's two graph convolutions with gather + index_add; the parameters of the codebook given."""

    def __init__(self, codebook: nn.Module):
        super().__init__()
        graph = codebook.graph
        self.network = codebook.network
        self.register_buffer("vectors", codebook.word_vectors)
        self.register_buffer("rows", torch.repeat_interleave(torch.arange(graph.num_nodes), graph.offsets.diff()))
        self.register_buffer("columns", graph.neighbours)
        self.register_buffer("weights", graph.weights)

    def forward(self) -> Tensor:
        # Codes in bf16 would choose other codes.
        with torch.autocast(self.vectors.device.type, enabled=False):
            hidden = self._convolved(self.network.first, self.vectors).relu()
            return self._convolved(self.network.second, dropout(hidden, 0.5))

    def _convolved(self, layer: nn.Module, features: Tensor) -> Tensor:
        return gather_index_add(self.rows, self.columns, self.weights, features @ layer.weight) + layer.bias
