"""``VectorQuantize`` of vector-quantize-pytorch: the arguments, results and state dict of that class, over ``vqkit.Quantizer``."""

from collections import namedtuple
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vqkit.codebooks import accumulate
from vqkit.codebooks.ranks import sum_over_ranks, world
from vqkit.compat.embedding import code_vectors
from vqkit.compat.vector_quantize_pytorch.arguments import check, expect
from vqkit.compat.vector_quantize_pytorch.codebook import Codebook, Learning
from vqkit.compat.vector_quantize_pytorch.heads import Found, Head, Step, compared, opaque_transform
from vqkit.compat.vector_quantize_pytorch.losses import (  # noqa: F401  orthogonal_loss_fn is imported from here by its users
    CrossEntropy,
    LatentDiversity,
    orthogonal_loss_fn,
    orthogonality,
)
from vqkit.ops import code_counts
from vqkit.ops.nearest import MAX_K
from vqkit.quantizers.layout import feature_rows, project_rows

LossBreakdown = namedtuple("LossBreakdown", ["commitment", "codebook_diversity", "orthogonal_reg", "inplace_optimize"])


class VectorQuantize(nn.Module):
    """The class of this name of vector-quantize-pytorch 1.32.0, with its arguments, results and state keys.

    ``forward(x)`` -> quantized as ``x``, indices (*x without D[, H]) int64, loss (); with ``return_loss_breakdown`` and a
    ``LossBreakdown``; with ``indices`` quantized and the cross-entropy of these; with ``topk`` quantized, indices and loss have one
    more dimension k, of which those of the loss are one by one. x: (B, N, D), (B, D); (B, D, *spatial) without ``channel_last`` and
    for images and volumes.

    Where the original errs it is not followed:
    - A row with NaN or infinity is left out: index -1, output 0, nothing learned. A zero latent keeps its code under the rotation.
    - The nearest code is exact also far from the origin; running means stay in float32; nothing holds N x K numbers.
    - Every step asks anew whether there are several ranks, and all agree on codes, k-means start, affine moments and replacements.
    - Masked rows take no part in the k-means start, diversity and orthogonality. Masked commitment compares what was compared in
      the search, not the input before the projection. ``lens`` counts positions also without ``channel_last``.
    - ``get_codes_from_indices`` yields the codes that forward returned: of all heads, affine, bridged, zero for -1.
      ``get_output_from_indices`` projects along the features also of images.
    - With ``indices``, the quantized vectors are as without; in eval mode a k-means start and affine moments wait for training.
    - Diversity of separate heads is that of each head.

    Not supported: ``topk`` above 8, ``topk`` with sampling, a bridge or ``codebook_transform_fn``; the latter with several heads,
    cross-entropy or diversity; ``straight_through`` without a gradient through the input (with one it has no effect, there too);
    ``sync_codebook=False``, ``sync_kmeans=False``: they raise NotImplementedError.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        codebook_dim: int | None = None,
        heads: int = 1,
        separate_codebook_per_head: bool = False,
        decay: float = 0.8,
        eps: float = 1e-5,
        freeze_codebook: bool = False,
        kmeans_init: bool = False,
        kmeans_iters: int = 10,
        sync_kmeans: bool = True,
        use_cosine_sim: bool = False,
        layernorm_after_project_in: bool = False,
        threshold_ema_dead_code: float = 0,
        channel_last: bool = True,
        accept_image_fmap: bool = False,
        accept_3d_fmap: bool = False,
        commitment_weight: float = 1.0,
        commitment_use_cross_entropy_loss: bool = False,
        orthogonal_reg_weight: float = 0.0,
        orthogonal_reg_active_codes_only: bool = False,
        orthogonal_reg_max_codes: int | None = None,
        codebook_diversity_loss_weight: float = 0.0,
        codebook_diversity_temperature: float = 100.0,
        stochastic_sample_codes: bool = False,
        sample_codebook_temp: float = 1.0,
        straight_through: bool = False,
        rotation_trick: bool | None = None,
        directional_reparam: bool = False,
        directional_reparam_variance: float = 5e-3,
        sync_codebook: bool | None = None,
        sync_affine_param: bool = False,
        ema_update: bool | None = None,
        vq_bridge: nn.Module | None = None,
        manual_ema_update: bool = False,
        learnable_codebook: bool | None = None,
        in_place_codebook_optimizer: Callable[..., Optimizer] | None = None,
        manual_in_place_optimizer_update: bool = False,
        affine_param: bool = False,
        affine_param_batch_decay: float = 0.99,
        affine_param_codebook_decay: float = 0.9,
        sync_update_v: float = 0.0,
        return_zeros_for_masked_padding: bool = True,
        route_gradients_to_input: bool = True,
    ):
        super().__init__()
        by_gradient = directional_reparam or vq_bridge is not None
        ema_update = not by_gradient if ema_update is None else ema_update
        learnable_codebook = by_gradient if learnable_codebook is None else learnable_codebook
        rotation_trick = (not directional_reparam and dim > 1) if rotation_trick is None else rotation_trick
        expect(sync_kmeans, "sync_kmeans=False: the ranks always start from the same codes")
        expect(sync_codebook is not False, "sync_codebook=False: the ranks always have the same codes")
        expect(
            not straight_through or route_gradients_to_input,
            "straight_through with route_gradients_to_input=False: use vqkit.quantizers.GumbelQuantizer",
        )
        check(
            straight_through + rotation_trick + directional_reparam <= 1,
            "rotation_trick: expected at most one of straight_through, rotation_trick, directional_reparam",
        )
        check(
            not directional_reparam or threshold_ema_dead_code,
            f"threshold_ema_dead_code: expected more than 0 with directional_reparam, got {threshold_ema_dead_code}",
        )
        check(not (use_cosine_sim and learnable_codebook), "learnable_codebook: expected False with use_cosine_sim")
        check(not (ema_update and learnable_codebook), "ema_update: expected False with learnable_codebook")
        check(not (straight_through and learnable_codebook), "straight_through: expected False with learnable_codebook")
        check(vq_bridge is None or learnable_codebook, "learnable_codebook: expected True with vq_bridge")
        check(0 <= sync_update_v <= 1, f"sync_update_v: expected 0 <= sync_update_v <= 1, got {sync_update_v}")
        check(not sync_update_v or learnable_codebook, "sync_update_v: expected 0 without learnable_codebook")
        check(not (affine_param and use_cosine_sim), "affine_param: expected False with use_cosine_sim")
        self.dim = dim
        self.codebook_size = codebook_size
        self.heads = heads
        self.separate_codebook_per_head = separate_codebook_per_head
        self.codebook_dim = dim if codebook_dim is None else codebook_dim
        width = self.codebook_dim * heads
        self.has_projections = width != dim
        self.project_in = nn.Linear(dim, width) if self.has_projections else nn.Identity()
        if self.has_projections and layernorm_after_project_in:
            self.project_in = nn.Sequential(self.project_in, nn.LayerNorm(width))
        self.project_out = nn.Linear(width, dim) if self.has_projections else nn.Identity()
        self.eps = eps
        self.commitment_weight = commitment_weight
        self.has_commitment_loss = commitment_weight > 0 and not directional_reparam
        self.commitment_use_cross_entropy_loss = commitment_use_cross_entropy_loss
        self.learnable_codebook = learnable_codebook
        self.has_codebook_orthogonal_loss = orthogonal_reg_weight > 0
        self.orthogonal_reg_weight = orthogonal_reg_weight
        self.orthogonal_reg_active_codes_only = orthogonal_reg_active_codes_only
        self.orthogonal_reg_max_codes = orthogonal_reg_max_codes
        self.has_codebook_diversity_loss = codebook_diversity_loss_weight > 0
        self.codebook_diversity_loss_weight = codebook_diversity_loss_weight
        self.codebook_diversity_temperature = codebook_diversity_temperature
        self.stochastic_sample_codes = stochastic_sample_codes
        self.sample_codebook_temp = sample_codebook_temp
        self.straight_through = straight_through
        self.rotation_trick = rotation_trick
        self.directional_reparam = directional_reparam
        self.directional_reparam_variance = directional_reparam_variance
        self.sync_update_v = sync_update_v
        self.route_gradients_to_input = route_gradients_to_input
        self.return_zeros_for_masked_padding = return_zeros_for_masked_padding
        self.freeze_codebook = freeze_codebook
        self.use_cosine_sim = use_cosine_sim
        self.channel_last = channel_last
        self.accept_image_fmap = accept_image_fmap
        self.accept_3d_fmap = accept_3d_fmap
        self._codebook = Codebook(
            self.codebook_dim,
            codebook_size,
            heads if separate_codebook_per_head else 1,
            Learning(
                parameter=learnable_codebook or self.has_codebook_orthogonal_loss,
                by_gradient=learnable_codebook,
                ema_update=ema_update,
                manual_ema_update=manual_ema_update,
                decay=decay,
                eps=eps,
                kmeans_init=kmeans_init,
                kmeans_iters=kmeans_iters,
                threshold_ema_dead_code=threshold_ema_dead_code,
            ),
            use_cosine_sim=use_cosine_sim,
            gradient="rotation" if rotation_trick else "straight_through",
            affine=(affine_param_batch_decay, affine_param_codebook_decay) if affine_param else None,
            vq_bridge=vq_bridge,
        )
        self.in_place_codebook_optimizer = in_place_codebook_optimizer and in_place_codebook_optimizer(self._codebook.parameters())
        self.manual_in_place_optimizer_update = manual_in_place_optimizer_update

    @property
    def ema_update(self) -> bool:
        return self._codebook.ema_update

    @property
    def codebook(self) -> Tensor:
        """The codes as they are kept: (K, D), or (H, K, D) with separate heads. Assigning copies."""
        embed = self._codebook.embed
        return embed if self.separate_codebook_per_head else embed[0]

    @codebook.setter
    def codebook(self, codes: Tensor):
        with torch.no_grad():
            self.codebook.copy_(codes)

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """The codes of indices (*positions[, H]), the heads' side by side, in the layout of ``x`` before ``project_out``."""
        return self._laid_out(self._codes_of(indices), indices.ndim - (self.heads > 1) + 1)

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """What ``forward`` returned with these indices."""
        codes = self._codes_of(indices)
        missing = (indices if self.heads == 1 else indices[..., 0]) < 0
        output = self.project_out(codes).masked_fill(missing[..., None], 0.0)
        return self._laid_out(output, output.ndim)

    @torch.no_grad()
    def update_indices(
        self,
        x: Tensor,
        indices: Tensor,
        mask: Tensor | None = None,
        ema_update_weight: float | Tensor | Callable | None = None,
        accum_ema_update: bool = False,
        ema_update: bool | None = None,
    ) -> None:
        """Let the running means learn that these latents chose these indices; -1 does not count."""
        _, latents, valid = self._latents(x, mask)
        indices = (indices if self.heads > 1 else indices[..., None]).where(valid[..., None], -1)
        with self._learning(Step(ema_update=ema_update, accumulates=accum_ema_update)):
            for quantizer, piece, column in zip(self._codebook.quantizers, self._pieces(latents), self._pieces(indices, -1)):
                rows = compared(piece, valid[..., None].expand(piece.shape[:-1]), self.use_cosine_sim)
                quantizer.codebook.observe(rows, column.reshape(-1), ema_update_weight)

    update_ema_indices = update_indices

    @torch.no_grad()
    def expire_codes_(self, x: Tensor, mask: Tensor | None = None) -> None:
        """In training mode: replace dead codes by some of these latents (..., H D)."""
        if not self.training:
            return
        valid = x.isfinite().all(-1) if mask is None else mask & x.isfinite().all(-1)
        latents = x.unflatten(-1, (self.heads, self.codebook_dim))
        for head, piece in enumerate(self._pieces(latents)):
            counted = valid[..., None].expand(piece.shape[:-1])
            self._codebook.expire(compared(piece, counted, self.use_cosine_sim), counted.reshape(-1), head)

    @torch.no_grad()
    def update_in_place_optimizer(self) -> None:
        """A step of the codes' own optimizer, with gradients averaged over the ranks."""
        if self.in_place_codebook_optimizer is None:
            return
        for parameter in self._codebook.parameters():
            if parameter.grad is not None and world()[1] > 1:
                parameter.grad.copy_(sum_over_ranks(parameter.grad)[0] / world()[1])
        self.in_place_codebook_optimizer.step()
        self.in_place_codebook_optimizer.zero_grad()

    def forward(
        self,
        x: Tensor,
        indices: Tensor | None = None,
        mask: Tensor | None = None,
        lens: Tensor | None = None,
        topk: int | None = None,
        sample_codebook_temp: float | None = None,
        freeze_codebook: bool | None = None,
        return_loss_breakdown: bool = False,
        codebook_transform_fn: Callable[[Tensor], Tensor] | None = None,
        ema_update_weight: float | Tensor | Callable | None = None,
        accum_ema_update: bool = False,
        ema_update: bool | None = None,
    ):
        if lens is not None:
            check(mask is None, "lens: expected None beside mask")
            length = x.shape[1 if self._channel_axis(x.ndim) == -1 else -1]
            mask = torch.arange(length, device=x.device) < lens[:, None]
        step = Step(
            frozen=self.freeze_codebook if freeze_codebook is None else freeze_codebook,
            topk=None if topk is None else min(int(topk), self.codebook_size),
            targets=indices,
            transform=None if codebook_transform_fn is None else opaque_transform(codebook_transform_fn, self.use_cosine_sim),
            weight=ema_update_weight,
            accumulates=accum_ema_update,
            ema_update=ema_update,
        )
        quantized, found, loss, breakdown = self.quantize(x, mask, step, sample_codebook_temp)
        if indices is not None:
            return quantized, breakdown["cross_entropy"]
        if not return_loss_breakdown:
            return quantized, found, loss
        return quantized, found, loss, LossBreakdown(*(breakdown[name] for name in LossBreakdown._fields))

    def quantize(
        self, x: Tensor, mask: Tensor | None, step: Step, temperature: float | None = None
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """``forward`` by a ``Step``: quantized, indices, loss, and its terms by name."""
        self._check_step(step)
        rows, latents, valid = self._latents(x, mask)
        routed = self.training and self.route_gradients_to_input and x.requires_grad
        temperature = self.sample_codebook_temp if temperature is None else temperature
        temperature = max(temperature, 0) if self.stochastic_sample_codes and self.training else 0
        if temperature and step.topk:
            raise NotImplementedError("topk: expected None with stochastic_sample_codes in training")
        with self._learning(step):
            inplace = latents.new_zeros(())
            if self.in_place_codebook_optimizer is not None and self.training and not step.frozen:
                inplace = self._optimize_in_place(latents, valid, temperature)
                for book in self._codebook.books:
                    book.follow(learns=False)
            targets = self._pieces(self._targets(step), -1)
            variance = self.directional_reparam_variance if self.directional_reparam else None
            parts = []
            for place, (quantizer, piece) in enumerate(zip(self._codebook.quantizers, self._pieces(latents))):
                counted = valid[..., None].expand(piece.shape[:-1])
                quantizer.temperature = temperature
                terms = self._terms(piece, None if step.targets is None else targets[place])
                weight = step.weight
                if isinstance(weight, Tensor) and weight.ndim == 2:
                    weight = weight[place if len(weight) > 1 else 0]
                head = Head(
                    quantizer, self._codebook.learning, replace(step, weight=weight), terms, routed, variance, self.sync_update_v
                )
                parts.append(head.quantize(piece, counted))
        indices = torch.cat([part.indices for part in parts], -1)
        loss, breakdown = self._loss(parts, step)
        breakdown["inplace_optimize"] = inplace
        quantized = torch.cat([part.quantized for part in parts], -2).to(x.dtype)
        if step.topk is None:
            quantized = quantized.flatten(-2)
            indices = indices if self.heads > 1 else indices[..., 0]
        output = self._padded(self.project_out(quantized), rows, mask, valid)
        return self._laid_out(output, x.ndim), indices, loss, breakdown

    def _check_step(self, step: Step) -> None:
        expect(step.topk is None or step.topk <= MAX_K, f"topk: expected at most {MAX_K}, got {step.topk}")
        expect(step.topk is None or step.transform is None, "topk: expected None with codebook_transform_fn")
        check(step.topk is None or (self.heads == 1 and step.topk > 0), f"topk: expected 1 or more with heads=1, got {step.topk}")
        training = self.training and step.topk is not None
        check(
            not training or not (self.commitment_use_cross_entropy_loss or self.in_place_codebook_optimizer),
            "topk: expected None in training with commitment_use_cross_entropy_loss or in_place_codebook_optimizer",
        )
        plain = not (self.has_codebook_diversity_loss or self.commitment_use_cross_entropy_loss or step.targets is not None)
        expect(
            step.transform is None or (self.heads == 1 and plain and self.in_place_codebook_optimizer is None),
            "codebook_transform_fn: expected None with several heads, cross-entropy, diversity or in_place_codebook_optimizer",
        )

    def _channel_axis(self, ndim: int) -> int:
        """Where the features are in an input of so many dimensions."""
        first = not self.channel_last or self.accept_image_fmap or self.accept_3d_fmap
        return 1 if first and ndim > 2 else -1

    def _laid_out(self, rows: Tensor, ndim: int) -> Tensor:
        return rows.movedim(-1, self._channel_axis(ndim))

    def _latents(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """x with its features last, latents (..., H, D), and which rows count, (...) bool."""
        rows, valid = feature_rows(x, mask, self.dim, self._channel_axis(x.ndim) == 1)
        layer = self.project_in
        first, rest = (layer[0], layer[1:]) if isinstance(layer, nn.Sequential) else (layer, nn.Identity())
        inner, valid = project_rows(first, rows, valid)
        return rows, rest(inner).unflatten(-1, (self.heads, self.codebook_dim)), valid

    def _pieces(self, tensor: Tensor, axis: int = -2) -> list[Tensor]:
        """What each quantizer is given: a head each, or all."""
        return list(tensor.split(1, axis)) if self.separate_codebook_per_head else [tensor]

    def _targets(self, step: Step) -> Tensor:
        if step.targets is None:
            return torch.empty(0, 1)
        return step.targets if self.heads > 1 else step.targets[..., None]

    def _learning(self, step: Step):
        """Tell the codebooks how this call teaches them."""
        for book in self._codebook.books:
            book.follow(step.ema_update, learns=step.topk is None)
        return accumulate(self._codebook) if step.accumulates else nullcontext()

    def _terms(self, piece: Tensor, targets: Tensor | None) -> tuple:
        """The regularizers of a call, for latents (B, *positions, H, D)."""
        terms = ()
        if self.training and self.has_codebook_diversity_loss:
            terms += (LatentDiversity(self.codebook_diversity_temperature, self.use_cosine_sim, piece.shape),)
        if targets is not None or (self.training and self.has_commitment_loss and self.commitment_use_cross_entropy_loss):
            terms += (CrossEntropy(self.use_cosine_sim, None if targets is None else targets.reshape(-1)),)
        return terms

    def _optimize_in_place(self, latents: Tensor, valid: Tensor, temperature: float) -> Tensor:
        """Move the codes towards the latents by a step of their own optimizer; the loss that it was for."""
        losses = []
        for quantizer, piece in zip(self._codebook.quantizers, self._pieces(latents.detach())):
            quantizer.temperature, quantizer.regularizers = temperature, ()
            losses.append(quantizer(piece, valid[..., None].expand(piece.shape[:-1])).losses["codebook"])
        loss = sum(losses) / len(losses)
        loss.backward()
        if not self.manual_in_place_optimizer_update:
            self.update_in_place_optimizer()
        return loss

    def _loss(self, parts: list[Found], step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its terms by name, means over the heads; in eval mode 0 but for several or given codes."""
        def mean(name):
            found = [part.terms[name] for part in parts if name in part.terms]
            return sum(found) / len(found) if found else zero

        commitment = sum(part.commitment for part in parts) / len(parts)
        zero = torch.zeros((), dtype=commitment.dtype, device=commitment.device)
        names = ("commitment", "codebook_diversity", "orthogonal_reg")
        breakdown = dict.fromkeys(names, zero) | {"cross_entropy": mean("cross_entropy")}
        if not self.training:
            if step.topk is None and step.chosen is None:
                return zero, breakdown
            breakdown["commitment"] = commitment
            return commitment * self.commitment_weight if self.has_commitment_loss else commitment, breakdown
        loss = zero
        if self.has_codebook_diversity_loss:
            breakdown["codebook_diversity"] = mean("codebook_diversity")
            loss = loss + breakdown["codebook_diversity"] * self.codebook_diversity_loss_weight
        if self.has_commitment_loss:
            breakdown["commitment"] = mean("cross_entropy") if self.commitment_use_cross_entropy_loss else commitment
            loss = loss + breakdown["commitment"] * self.commitment_weight
        if self.has_codebook_orthogonal_loss:
            breakdown["orthogonal_reg"] = self._orthogonality(parts)
            loss = loss + breakdown["orthogonal_reg"] * self.orthogonal_reg_weight
        # As a zero of a computation has a gradient.
        return loss if loss.requires_grad else loss.clone().requires_grad_(torch.is_grad_enabled()), breakdown

    def _orthogonality(self, parts: list[Found]) -> Tensor:
        return sum(self._orthogonality_of(codes, part.indices) for codes, part in zip(self._codebook.embed, parts)) / len(parts)

    def _orthogonality_of(self, codes: Tensor, indices: Tensor) -> Tensor:
        counted = torch.ones(len(codes), dtype=torch.bool, device=codes.device)
        if self.orthogonal_reg_active_codes_only:
            counted = code_counts(indices, len(codes)) > 0
        if self.orthogonal_reg_max_codes is not None and self.orthogonal_reg_max_codes < len(codes):
            order = torch.randperm(len(codes), device=codes.device)
            kept = counted[order] & (counted[order].cumsum(0) <= self.orthogonal_reg_max_codes)
            counted = torch.zeros_like(counted).index_put((order,), kept)
        return orthogonality(codes, counted)

    def _codes_of(self, indices: Tensor) -> Tensor:
        """(*positions[, H]) -> (*positions, H D)."""
        columns = indices if self.heads > 1 else indices[..., None]
        pieces = self._pieces(columns, -1)
        codes = [code_vectors(quantizer.codes, piece) for quantizer, piece in zip(self._codebook.quantizers, pieces)]
        return torch.cat(codes, -2).flatten(-2)

    def _padded(self, output: Tensor, rows: Tensor, mask: Tensor | None, valid: Tensor) -> Tensor:
        """Zero, or the input, where the mask is False; zero where the input is not finite."""
        # Rows of several codes have one more dimension.
        for _ in range(output.ndim - rows.ndim):
            rows, valid, mask = rows[..., None, :], valid[..., None], None if mask is None else mask[..., None]
        output = output.where(valid[..., None], 0.0)
        if mask is None or self.return_zeros_for_masked_padding:
            return output
        return output.where(mask[..., None], rows)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, codebook_size={self.codebook_size}, heads={self.heads}, commitment_weight={self.commitment_weight}"
