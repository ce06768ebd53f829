"""``LFQ`` of vector-quantize-pytorch: the arguments, results and state dict of that class, over ``LookupFreeQuantizer``."""

from collections import namedtuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

from vqkit.compat.state import ForeignState, StateKey
from vqkit.compat.vector_quantize_pytorch.arguments import check, expect
from vqkit.quantizers import LookupFreeQuantizer
from vqkit.quantizers.layout import feature_rows, project_rows

Return = namedtuple("Return", ["quantized", "indices", "entropy_aux_loss"])
LossBreakdown = namedtuple("LossBreakdown", ["per_sample_entropy", "batch_entropy", "commitment"])

# Probabilities below it count as this much in logarithms.
_FLOOR = 1e-5


class CosineSimLinear(nn.Module):
    """scale * cosine of x, (..., D), with each column of a weight (D, E): (..., E)."""

    def __init__(self, dim_in: int, dim_out: int, scale: float = 1.0):
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.randn(dim_in, dim_out))

    def forward(self, x: Tensor) -> Tensor:
        return normalize(x, dim=-1) @ normalize(self.weight, dim=0) * self.scale


class LFQ(ForeignState):
    """The class of this name of vector-quantize-pytorch 1.32.0, with its arguments, results and state keys.

    ``forward(x)`` -> ``Return``: quantized as ``x``, indices (*x without D[, C]) int64, loss (); with ``return_loss_breakdown`` (``Return``,
    ``LossBreakdown``). x: (B, N, D), or (B, D, *spatial) with ``channel_first``, which None takes to be so for 4 dimensions and more.
    mask: bool, (B,), (B, N) or x without D: which rows count in the loss; all are quantized. The gradient passes, and there is a loss,
    in training only. The formulas are those of ``LookupFreeQuantizer`` with probability_floor 1e-5.

    Where the original errs it is not followed:
    - With a mask of positions the second entropy is that of the average probabilities, as it is without; there nothing is averaged.
    - ``frac_per_sample_entropy`` of few rows leaves one, not none, of which the mean is NaN. Which rows are drawn differs.
    - The entropies of all ranks have the gradient of all ranks' average; the check for ranks is made at every step.
    - A row with NaN or infinity has index -1 and output 0 and no part in the loss; ``indices_to_codes`` gives 0 for -1.
    - Nothing holds N x K numbers, nor are the codes stored: ``codebook`` is made when asked for.

    Not supported: signs and entropies in half precision, ``force_quantization_f32=False``: it raises NotImplementedError. Raises
    ValueError for arguments that do not fit.

    Source: Yu et al. 2023 (arXiv 2310.05737), section 3.1; spherical: Zhao et al. 2024 (arXiv 2406.07548), section 4.
    """

    def __init__(
        self,
        *,
        dim: int | None = None,
        codebook_size: int | None = None,
        entropy_loss_weight: float = 0.1,
        commitment_loss_weight: float = 0.0,
        diversity_gamma: float = 1.0,
        straight_through_activation: nn.Module | None = None,
        num_codebooks: int = 1,
        keep_num_codebooks_dim: bool | None = None,
        codebook_scale: float = 1.0,
        frac_per_sample_entropy: float = 1.0,
        has_projections: bool | None = None,
        projection_has_bias: bool = True,
        soft_clamp_input_value: float | None = None,
        cosine_sim_project_in: bool = False,
        cosine_sim_project_in_scale: float | None = None,
        channel_first: bool | None = None,
        experimental_softplus_entropy_loss: bool = False,
        entropy_loss_offset: float = 5.0,
        spherical: bool = False,
        force_quantization_f32: bool = True,
        orthogonal_rotation: bool = False,
    ):
        super().__init__()
        expect(force_quantization_f32, "force_quantization_f32=False: signs and entropies are always of float32 or better")
        check(dim is not None or codebook_size is not None, "codebook_size: expected one where dim is not given, got None")
        keep = num_codebooks > 1 if keep_num_codebooks_dim is None else keep_num_codebooks_dim
        check(num_codebooks == 1 or keep, f"keep_num_codebooks_dim: expected True with num_codebooks={num_codebooks}, got False")
        codebook_size = 2**dim if codebook_size is None else codebook_size
        check(codebook_size > 1, f"codebook_size: expected a power of 2, at least 2, got {codebook_size}")
        bits = codebook_size.bit_length() - 1
        width = bits * num_codebooks
        self.dim = width if dim is None else dim
        self.has_projections = self.dim != width if has_projections is None else has_projections
        check(self.has_projections or self.dim == width, f"has_projections: expected True with dim={self.dim} and {width} bits, got False")
        self.codebook_size = codebook_size
        self.codebook_dim = bits
        self.num_codebooks = num_codebooks
        self.keep_num_codebooks_dim = keep
        self.channel_first = channel_first
        self.spherical = spherical
        self.orthogonal_rotation = orthogonal_rotation
        self.frac_per_sample_entropy = frac_per_sample_entropy
        self.diversity_gamma = diversity_gamma
        self.entropy_loss_weight = entropy_loss_weight
        self.codebook_scale = codebook_scale
        self.commitment_loss_weight = commitment_loss_weight
        self.soft_clamp_input_value = soft_clamp_input_value
        self.entropy_loss_offset = entropy_loss_offset
        self.experimental_softplus_entropy_loss = experimental_softplus_entropy_loss
        self.force_quantization_f32 = force_quantization_f32
        self.project_in, self.project_out = nn.Identity(), nn.Identity()
        if self.has_projections and cosine_sim_project_in:
            scale = codebook_scale if cosine_sim_project_in_scale is None else cosine_sim_project_in_scale
            self.project_in = CosineSimLinear(self.dim, width, scale)
        elif self.has_projections:
            self.project_in = nn.Linear(self.dim, width, bias=projection_has_bias)
        if self.has_projections:
            self.project_out = nn.Linear(width, self.dim, bias=projection_has_bias)
        self.quantizer = LookupFreeQuantizer(
            # Its own width, with the projections outside.
            width,
            codebook_size,
            num_codebooks=num_codebooks,
            entropy_weight=entropy_loss_weight,
            frac_per_sample_entropy=frac_per_sample_entropy,
            probability_floor=_FLOOR,
            codebook_scale=codebook_scale,
            spherical=spherical,
            soft_clamp=soft_clamp_input_value,
            activation=straight_through_activation,
            orthogonal_rotation=orthogonal_rotation,
        )
        self.register_buffer("mask", self.quantizer.basis.clone())

    def state_keys(self) -> list[StateKey]:
        activation = [StateKey(f"quantizer.activation.{name}", f"activation.{name}") for name in self.activation.state_dict()]
        return [StateKey("quantizer.rotation", "orthogonal_rot"), *activation]

    @property
    def activation(self) -> nn.Module:
        return self.quantizer.activation

    @property
    def orthogonal_rot(self) -> Tensor | None:
        return self.quantizer.rotation

    @property
    def codebook(self) -> Tensor:
        """All codes, (K, d) float32, of numbers ``codebook_scale`` and its negative, also where ``spherical``, before a rotation."""
        return self.quantizer.codes * (self.codebook_scale / self.quantizer.magnitude)

    @property
    def dtype(self) -> torch.dtype:
        return self.quantizer._dtype_marker.dtype

    def bits_to_codes(self, bits: Tensor) -> Tensor:
        return bits * self.codebook_scale * 2 - self.codebook_scale

    def indices_to_codes(self, indices: Tensor, project_out: bool = True) -> Tensor:
        """The vectors that ``forward`` returned with these indices, or those before ``project_out``, which a gradient reaches."""
        columns = indices.squeeze(-1) if self.keep_num_codebooks_dim and self.num_codebooks == 1 else indices
        codes = self.quantizer.decode(columns.long(), self.project_out.weight.dtype if self.has_projections else None)
        if project_out:
            missing = (indices[..., 0] if self.keep_num_codebooks_dim else indices) < 0
            codes = self.project_out(codes).masked_fill(missing[..., None], 0.0)
        return codes.movedim(-1, 1) if self._is_channel_first(codes.ndim) else codes

    def forward(self, x: Tensor, inv_temperature: float = 100.0, return_loss_breakdown: bool = False, mask: Tensor | None = None):
        first = self._is_channel_first(x.ndim)
        rows, valid = feature_rows(x, None, self.dim, first)
        rows, valid = project_rows(self.project_in, rows, valid)
        counted = valid if mask is None else valid & self._of_positions(mask, valid.shape)
        # Of few or many rows, and for the breakdown also where they weigh nothing.
        self.quantizer.inv_temperature = inv_temperature
        self.quantizer.entropy_weight = 1.0 if self.entropy_loss_weight or return_loss_breakdown else 0.0
        codes, indices, _ = result = self.quantizer(rows, counted)
        if mask is not None:
            self.quantizer.entropy_weight = 0.0
            others, their_indices, _ = self.quantizer(rows, valid & ~counted)
            codes, indices = codes + others, torch.maximum(indices, their_indices)
        codes = codes if self.training else codes.detach()
        output = self.project_out(codes).where(valid[..., None], 0.0)
        output = output.movedim(-1, 1) if first else output
        indices = indices[..., None] if self.keep_num_codebooks_dim and self.num_codebooks == 1 else indices
        loss, breakdown = self._loss(result.losses)
        found = Return(output, indices, loss)
        return (found, breakdown) if return_loss_breakdown else found

    def _loss(self, terms: dict[str, Tensor]) -> tuple[Tensor, LossBreakdown]:
        zero = terms["commitment"].new_zeros(())
        each, batch = (terms.get(name, zero) for name in ("per_sample_entropy", "batch_entropy"))
        commitment = terms["commitment"] if self.training and self.commitment_loss_weight > 0 else zero
        gap = each - self.diversity_gamma * batch
        if self.training and self.experimental_softplus_entropy_loss:
            gap = softplus(gap + self.entropy_loss_offset)
        loss = self.entropy_loss_weight * gap + self.commitment_loss_weight * commitment
        return loss, LossBreakdown(each, batch, commitment)

    def _of_positions(self, mask: Tensor, shape: torch.Size) -> Tensor:
        """A mask (B,), (B, N) or (B, *positions) for positions of this shape, (B, *positions)."""
        fits = mask.dtype == torch.bool and mask.ndim > 0 and mask.shape[0] == shape[0]
        check(fits and mask.shape[1:].numel() in (1, shape[1:].numel()), f"mask: expected bool {tuple(shape)}, got {mask.dtype} {tuple(mask.shape)}")
        return mask.reshape(shape if mask.numel() == shape.numel() else (-1, *(1,) * (len(shape) - 1))).expand(shape)

    def _is_channel_first(self, ndim: int) -> bool:
        return ndim >= 4 if self.channel_first is None else self.channel_first

    def extra_repr(self) -> str:
        return f"dim={self.dim}, codebook_size={self.codebook_size}, num_codebooks={self.num_codebooks}, spherical={self.spherical}"
