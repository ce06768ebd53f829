"""Implicit neural codebooks (QINCo): the codes of a stage depend on what the stages before it have put together."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from vqkit.codebooks import Codebook, LearnedCodebook
from vqkit.ops import code_counts
from vqkit.quantizers.layout import feature_rows
from vqkit.quantizers.quantized import Quantized
from vqkit.quantizers.quantizer import Quantizer
from vqkit.quantizers.residual import ResidualQuantizer

# Numbers in the largest array of a search, whatever N and K.
_BLOCK = 1 << 22


class CodeNetwork(nn.Module):
    """Moves codes as a condition says: h = W [condition, code] + b, then depth times h <- h + W_2 silu(W_1 h + b_1) + b_2.

    dim: D.  hidden_dim: width of each block. Default: D.  depth: number of blocks.

    The layers are those of vector-quantize-pytorch. The paper adds the code to the first layer's output and has ReLU without biases.
    """

    def __init__(self, dim: int, hidden_dim: int | None = None, depth: int = 4):
        super().__init__()
        for name, value in (("dim", dim), ("hidden_dim", hidden_dim)):
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if depth < 0:
            raise ValueError(f"depth: expected at least 0, got {depth}")
        self.project_in = nn.Linear(2 * dim, dim)
        width = dim if hidden_dim is None else hidden_dim
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(dim, width), nn.SiLU(), nn.Linear(width, dim)) for _ in range(depth))

    @property
    def width(self) -> int:
        """The length of the longest vector inside."""
        return max([self.project_in.out_features, *(block[0].out_features for block in self.blocks)])

    def forward(self, codes: Tensor, condition: Tensor) -> Tensor:
        """codes, condition: (..., D), whose leading dimensions broadcast -> (..., D)."""
        left, right = self.project_in.weight.chunk(2, -1)
        # Two products and a sum, so that every code and every condition is multiplied once, not every pair.
        moved = linear(condition, left) + linear(codes, right, self.project_in.bias)
        for block in self.blocks:
            moved = moved + block(moved)
        return moved


class ImplicitQuantizer(nn.Module):
    """A stage of a ``ResidualQuantizer`` whose K codes a network moves, for every position, as the sum of the stages before says.

    code k at a position = network(c_k, sum so far);  loss = commitment_weight * mean (r - sg q)^2 + mean (sg r - q)^2.

    Args:
        dim: D, length of a code and of a residual.
        codebook_size: K.
        codebook: what yields the codes. Default: a ``LearnedCodebook``. Nothing but the gradient teaches it.
        hidden_dim, depth: of the ``CodeNetwork``.
        commitment_weight: see the formula.

    A search moves all K codes for each of the N rows: 2 N K D (D + 2 depth * hidden_dim) multiplications or so, at any batch size the
    price of the method. Rows are taken in chunks, so that no array holds more than 2^22 numbers, or those of a single row, K
    (D + hidden_dim); distances are compared in float32. A compiled graph holds every chunk. A training step moves only the chosen
    codes a second time, with gradient; decoding moves N codes.

    The gradient to the residual is straight-through. The codebook loss trains the network and the codes; the condition is held
    constant, so each stage learns from its own loss. (The paper's code lets a stage's loss reach the stages before it as well.)

    Source: Huijben et al. 2024 (arXiv 2401.14732), section 3.1.
    """

    channel_first = False
    # The residual quantizer passes condition= to its methods.
    conditioned = True

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        codebook: Codebook | None = None,
        hidden_dim: int | None = None,
        depth: int = 4,
        commitment_weight: float = 1.0,
    ):
        super().__init__()
        if codebook is not None and (codebook.size, codebook.dim) != (codebook_size, dim):
            raise ValueError(f"codebook: expected {codebook_size} codes of length {dim}, got {codebook.size} of length {codebook.dim}")
        self.dim = dim
        self.codebook_size = codebook_size
        self.commitment_weight = commitment_weight
        self.codebook = LearnedCodebook(codebook_size, dim) if codebook is None else codebook
        self.network = CodeNetwork(dim, hidden_dim, depth)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """(K,): number of codes."""
        return (self.codebook_size,)

    @property
    def selections(self) -> tuple[int, ...]:
        """(1,): one index a position."""
        return (1,)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        condition: Tensor | None = None,
        *,
        indices: Tensor | None = None,
        learn: bool | None = None,
    ) -> Quantized:
        """Replace residuals by the nearest of their moved codes.

        Args:
            x: (..., D), any floating dtype.
            mask: bool, (...); False leaves a row out, as does NaN or infinity in it.
            condition: (..., D), the sum of the stages before; no gradient. Default: zero.
            indices: (...), to use in place of the nearest.
            learn: False: neither the codes nor the network get a gradient.

        Returns ``Quantized`` with indices (...). Raises ValueError for an ``x``, ``mask`` or ``condition`` that does not fit.
        """
        rows, valid, condition = self._inputs(x, mask, condition)
        if indices is None:
            indices = self.candidates(rows, 1, condition)[..., 0]
        indices = indices.where(valid, -1)
        codes = self._moved(indices, condition).to(rows.dtype)
        codes = (codes.detach() if learn is False else codes).where(valid[..., None], 0.0)
        elements = (valid.sum() * self.dim).clamp(min=1)
        commitment = (rows - codes.detach()).square().sum() / elements
        codebook = (rows.detach() - codes).square().sum() / elements
        # The codes and an exact zero that carries the gradient: the output has the bits of decode.
        quantized = (codes.detach() + (rows - rows.detach())).to(x.dtype)
        losses = {"commitment": commitment, "codebook": codebook}
        loss = self.commitment_weight * commitment + codebook
        return Quantized(quantized, indices, loss, losses, code_counts(indices, self.codebook_size))

    @torch.no_grad()
    def encode(self, x: Tensor, mask: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """The indices that ``forward`` returns."""
        rows, valid, condition = self._inputs(x, mask, condition)
        return self.candidates(rows, 1, condition)[..., 0].where(valid, -1)

    @torch.no_grad()
    def decode(self, indices: Tensor, dtype: torch.dtype | None = None, condition: Tensor | None = None) -> Tensor:
        """The moved codes of these indices, (...) -> (..., D); -1 gives a zero vector.

        dtype: of the result. Default: that of the module.  condition: as in ``forward``.
        """
        dtype = self.network.project_in.weight.dtype if dtype is None else dtype
        if condition is None:
            condition = torch.zeros(*indices.shape, self.dim, device=indices.device)
        codes = self._moved(indices, condition).to(torch.promote_types(dtype, torch.float32))
        return codes.where((indices >= 0)[..., None], 0.0).to(dtype)

    @torch.no_grad()
    def candidates(self, rows: Tensor, count: int, condition: Tensor) -> Tensor:
        """The ``count`` nearest moved codes of every row, nearest first, ties to the lowest: rows, condition (..., D) -> (..., count)."""
        flat, conditions = (part.reshape(-1, 1, self.dim) for part in (rows, condition))
        codes = self.codebook()[None]
        step = max(1, _BLOCK // (self.codebook_size * self.network.width))
        found = [torch.zeros(0, count, dtype=torch.int64, device=rows.device)]
        with torch.autocast(rows.device.type, enabled=False):
            for block, given in zip(flat.split(step), conditions.split(step)):
                moved = self.network(codes, given.to(codes.dtype)).to(rows.dtype)
                found.append((block - moved).square().sum(-1).sort(dim=-1, stable=True).indices[:, :count])
        return torch.cat(found).view(*rows.shape[:-1], count)

    def _inputs(self, x: Tensor, mask: Tensor | None, condition: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        rows, valid = feature_rows(x, mask, self.dim, False)
        rows = rows.where(valid[..., None], 0.0).to(torch.promote_types(x.dtype, torch.float32))
        condition = torch.zeros_like(rows) if condition is None else condition
        if condition.shape != rows.shape:
            raise ValueError(f"condition: expected shape {tuple(rows.shape)} as x, got {tuple(condition.shape)}")
        return rows, valid, condition

    def _moved(self, indices: Tensor, condition: Tensor) -> Tensor:
        codes = torch.nn.functional.embedding(indices.clamp(min=0), self.codebook())
        with torch.autocast(indices.device.type, enabled=False):
            return self.network(codes, condition.detach().to(codes.dtype))

    def extra_repr(self) -> str:
        return f"dim={self.dim}, codebook_size={self.codebook_size}"


class ImplicitResidualQuantizer(ResidualQuantizer):
    """A ``ResidualQuantizer`` of one ``Quantizer`` with a learned codebook, then ``ImplicitQuantizer``.

    Args:
        dim: D.
        num_quantizers: Q.
        codebook_size: K of every stage, or a sequence with one number a stage.
        codebook_dim: length of a code; a linear layer in and one out join it to ``dim`` where they differ. Default: dim.
        hidden_dim, depth, commitment_weight: as in ``ImplicitQuantizer``.
        residual: as in ``ResidualQuantizer``.

    Source: Huijben et al. 2024 (arXiv 2401.14732), section 3.
    """

    def __init__(
        self,
        dim: int,
        num_quantizers: int | None = None,
        codebook_size: int | tuple[int, ...] = 256,
        *,
        codebook_dim: int | None = None,
        hidden_dim: int | None = None,
        depth: int = 4,
        commitment_weight: float = 1.0,
        **residual,
    ):
        if isinstance(codebook_size, int):
            if num_quantizers is None or num_quantizers < 1:
                raise ValueError(f"num_quantizers: expected at least 1, got {num_quantizers}")
            codebook_size = (codebook_size,) * num_quantizers
        if num_quantizers is not None and len(codebook_size) != num_quantizers:
            raise ValueError(f"codebook_size: expected {num_quantizers} numbers, one a stage, got {len(codebook_size)}")
        width = codebook_dim or dim
        first, *rest = codebook_size
        options = {"hidden_dim": hidden_dim, "depth": depth, "commitment_weight": commitment_weight}
        stages = [Quantizer(width, first, codebook="learned", commitment_weight=commitment_weight)]
        super().__init__([*stages, *(ImplicitQuantizer(width, size, **options) for size in rest)], dim=dim, **residual)
