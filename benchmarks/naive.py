"""What people write in plain PyTorch, as the thing to be faster than."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, normalize, one_hot

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
    """A vector quantizer as the tutorials have it: all distances, a one-hot matrix, a codebook "ema", "learned", "anchored" or "supplied".

    Takes (B, D, h, w) and, where supplied, the codes; ``top_k`` codes are averaged. "anchored" moves unused codes to their nearest
    latents (CVQ). ``cosine``: latents and codes on the unit sphere.
    """

    def __init__(self, dim: int, codebook_size: int, codebook: str = "learned", top_k: int = 1, decay: float = 0.8, cosine: bool = False):
        super().__init__()
        self.kind, self.top_k, self.decay, self.cosine = codebook, top_k, decay, cosine
        if codebook == "supplied":
            return
        codes = torch.empty(codebook_size, dim).uniform_(-1 / codebook_size, 1 / codebook_size)
        if codebook == "ema":
            self.register_buffer("codes", codes)
            self.register_buffer("cluster_size", torch.ones(codebook_size))
            self.register_buffer("embed_sum", codes.clone())
        else:
            self.codes = nn.Parameter(codes)
        if codebook == "anchored":
            self.register_buffer("cluster_size", torch.zeros(codebook_size))

    def forward(self, latents: Tensor, codes: Tensor | None = None) -> Quantized:
        """Quantized without indices; the losses "commitment" and, but for "ema", "codebook", weighted 0.25 and 1."""
        rows = latents.movedim(1, -1).reshape(-1, latents.shape[1]).float()
        rows = normalize(rows, dim=-1) if self.cosine else rows
        quantized, chosen, distances = self.select(rows, codes)
        losses = {"commitment": (rows - quantized.detach()).square().mean()}
        loss = 0.25 * losses["commitment"]
        if self.kind != "ema":
            losses["codebook"] = (rows.detach() - quantized).square().mean()
            loss = loss + losses["codebook"]
        if self.training:
            self.learn(rows, chosen, distances)
        output = (rows + (quantized - rows).detach()).to(latents.dtype)
        output = output.view(*latents.shape[:1], *latents.shape[2:], -1).movedim(-1, 1)
        return Quantized(output, None, loss, losses, chosen.detach().sum(0))

    def select(self, rows: Tensor, codes: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The codes chosen for rows (N, D), the one-hot matrix of the choice (N, K), and all distances (N, K)."""
        codes = self.codes if codes is None else codes
        # Distances in bf16 would choose other codes.
        with torch.autocast(rows.device.type, enabled=False):
            codes = normalize(codes, dim=-1) if self.cosine else codes
            distances = torch.cdist(rows, codes)
            indices = distances.topk(self.top_k, largest=False).indices
            chosen = sum(one_hot(column, len(codes)).to(rows.dtype) for column in indices.unbind(-1))
            return chosen @ codes / self.top_k, chosen, distances

    @torch.no_grad()
    def learn(self, rows: Tensor, chosen: Tensor, distances: Tensor) -> None:
        """Move the running means, or the unused codes."""
        if self.kind == "ema":
            with torch.autocast(rows.device.type, enabled=False):
                sums = chosen.T @ rows
            self.cluster_size.lerp_(chosen.sum(0), 1 - self.decay)
            self.embed_sum.lerp_(sums, 1 - self.decay)
            self.codes.copy_(self.embed_sum / self.cluster_size.clamp(min=1e-5)[:, None])
        elif self.kind == "anchored":
            self.cluster_size.lerp_(chosen.sum(0) / chosen.sum(), 1 - self.decay)
            alpha = (-10 * len(self.codes) / (1 - self.decay) * self.cluster_size - 1e-3).exp()
            # Behind the back of autograd, as published: the backward pass has what it needs.
            self.codes.data.lerp_(rows[distances.argmin(0)], alpha[:, None])


class NaiveProduct(nn.Module):
    """Naive quantizers side by side, with codes of their own or, ``generate`` given, with its, made anew at every step."""

    def __init__(self, parts: Sequence[NaiveQuantizer], sizes: Sequence[int], generate: nn.Module | None = None):
        super().__init__()
        self.parts, self.generate, self.sizes = nn.ModuleList(parts), generate, list(sizes)

    def forward(self, x: Tensor) -> Quantized:
        codes = [None] * len(self.parts) if self.generate is None else self.generate().split(self.sizes)
        found = [part(piece, table) for part, piece, table in zip(self.parts, x.chunk(len(self.parts), 1), codes)]
        quantized, counts = torch.cat([part.quantized for part in found], 1), torch.cat([part.counts for part in found])
        losses = {name: sum(part.losses[name] for part in found) for name in found[0].losses}
        return Quantized(quantized, None, sum(part.loss for part in found), losses, counts)


class NaiveTransfer(nn.Module):
    """VQCT's two graph convolutions with gather + index_add, or with a dense adjacency matrix; the parameters of the codebook given."""

    def __init__(self, codebook: nn.Module, dense: bool = False):
        super().__init__()
        graph, self.dense = codebook.graph, dense
        self.network = codebook.network
        self.register_buffer("vectors", codebook.word_vectors)
        rows = torch.repeat_interleave(torch.arange(graph.num_nodes, device=graph.offsets.device), graph.offsets.diff())
        if dense:
            matrix = graph.weights.new_zeros(graph.num_nodes, graph.num_nodes)
            matrix[rows, graph.neighbours] = graph.weights
            self.register_buffer("matrix", matrix)
        else:
            self.register_buffer("rows", rows)
            self.register_buffer("columns", graph.neighbours)
            self.register_buffer("weights", graph.weights)

    def forward(self) -> Tensor:
        # Codes in bf16 would choose other codes.
        with torch.autocast(self.vectors.device.type, enabled=False):
            hidden = self._convolved(self.network.first, self.vectors).relu()
            return self._convolved(self.network.second, dropout(hidden, 0.5))

    def _convolved(self, layer: nn.Module, features: Tensor) -> Tensor:
        product = features @ layer.weight
        mixed = self.matrix @ product if self.dense else gather_index_add(self.rows, self.columns, self.weights, product)
        return mixed + layer.bias
