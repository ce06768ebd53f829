"""``ResidualVQ`` and ``GroupedResidualVQ`` of vector-quantize-pytorch: their arguments, results and state, over ``VectorQuantize``."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vqkit.codebooks.ranks import sum_over_ranks, world
from vqkit.compat.embedding import code_vectors
from vqkit.compat.state import ForeignState, StateKey
from vqkit.compat.vector_quantize_pytorch.arguments import check, expect
from vqkit.compat.vector_quantize_pytorch.heads import Step, Transform, directional_reparam
from vqkit.compat.vector_quantize_pytorch.vector_quantize_pytorch import VectorQuantize
from vqkit.ops.nearest import MAX_K
from vqkit.quantizers import ImplicitQuantizer
from vqkit.quantizers.beam import beam_search
from vqkit.quantizers.layout import feature_rows, project_rows


class ResidualVQ(ForeignState):
    """The class of this name of vector-quantize-pytorch 1.32.0, with its arguments, results and state keys.

    ``forward(x)`` -> quantized as ``x``, indices (*x without D, Q) int64 with -1 for stages that the dropout leaves out, losses (Q,);
    with ``return_all_codes`` and the codes, as they are after the step, (Q, *x without D, codebook_dim); with ``indices``
    (*x without D, Q) quantized and the sum of the stages' cross-entropies of these. x: (..., D), or (B, D, *spatial) with
    ``accept_image_fmap``, ``accept_3d_fmap`` or ``channel_last=False``. ``vq_kwargs`` are arguments of ``VectorQuantize``, whose
    docstring holds for each stage.

    In a process group all ranks draw the same dropout, agreed on once and then counted on the host; a draw breaks a compiled graph.

    Where the original errs it is not followed:
    - Beams train every stage, with the residuals of the sums that were chosen; the regularizers see these alone. Codebooks may
      have fewer codes than there are beams.
    - Images may have any height and width, and a projection and a mask.
    - Commitment under a mask compares what was compared in the search, as without: of unit vectors with ``use_cosine_sim``.
    - ``freeze_codebook=True`` of the constructor holds, and a frozen step leaves a shared codebook as it is. A shared codebook
      replaces dead codes once a step, by latents that the mask lets pass, and its in-place optimizer makes its step.
    - ``indices`` works: stages see the residuals that they see without it; -1 does not count.
    - ``diveq`` adds its noise in training only. A dropout rounded up to a multiple stays within the stages.
    - ``get_codes_from_indices`` takes fewer stages also without dropout; ``get_output_from_indices`` gives 0 for a position without codes.
      Both have the features last also for images, as there.

    Not supported: ``beam_size`` above 8; beams in training with ``stochastic_sample_codes`` or ``in_place_codebook_optimizer``;
    ``implicit_neural_codebook`` with ``indices``, ``commitment_use_cross_entropy_loss``, ``codebook_diversity_loss_weight`` or
    ``in_place_codebook_optimizer``, or with ``kmeans_init`` and beams: they raise NotImplementedError.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_quantizers: int | None = None,
        codebook_size: int | Sequence[int],
        codebook_dim: int | None = None,
        shared_codebook: bool = False,
        diveq: bool = False,
        heads: int = 1,
        quantize_dropout: bool = False,
        quantize_dropout_cutoff_index: int = 0,
        quantize_dropout_multiple_of: int = 1,
        accept_image_fmap: bool = False,
        implicit_neural_codebook: bool = False,
        mlp_kwargs: dict | None = None,
        beam_size: int | None = None,
        eval_beam_size: int | None = None,
        beam_score_quantizer_weights: Sequence[float] | None = None,
        quant_grad_frac: float = 0.0,
        return_zeros_for_masked_padding: bool = True,
        channel_last: bool = True,
        accept_3d_fmap: bool = False,
        **vq_kwargs,
    ):
        super().__init__()
        check(heads == 1, f"heads: expected 1, got {heads}")
        uniform = isinstance(codebook_size, int)
        check(not uniform or num_quantizers, f"num_quantizers: expected at least 1, got {num_quantizers}")
        self.codebook_sizes = (codebook_size,) * num_quantizers if uniform else tuple(codebook_size)
        number = len(self.codebook_sizes)
        check(num_quantizers in (None, number), f"codebook_size: expected {num_quantizers} numbers, one a stage, got {number}")
        self.uniform_codebook_size = len(set(self.codebook_sizes)) == 1
        check(self.uniform_codebook_size or not shared_codebook, f"codebook_size: expected one with shared_codebook, got {codebook_size}")
        last = number - 1 if quantize_dropout and number > 1 else quantize_dropout_cutoff_index
        check(
            0 <= quantize_dropout_cutoff_index <= last,
            f"quantize_dropout_cutoff_index: expected 0..{number - 1}, a stage, got {quantize_dropout_cutoff_index}",
        )
        check(beam_size is not None or eval_beam_size is None, "eval_beam_size: expected None without beam_size")
        weights = (1.0,) * number if beam_score_quantizer_weights is None else tuple(beam_score_quantizer_weights)
        check(len(weights) == number, f"beam_score_quantizer_weights: expected {number} numbers, one a stage, got {len(weights)}")
        if implicit_neural_codebook:
            for name in ("commitment_use_cross_entropy_loss", "codebook_diversity_loss_weight", "in_place_codebook_optimizer"):
                expect(not vq_kwargs.get(name), f"{name} with implicit_neural_codebook")
            vq_kwargs |= {"learnable_codebook": True, "ema_update": False}
        if shared_codebook:
            vq_kwargs |= {"manual_ema_update": True, "manual_in_place_optimizer_update": True}
        if diveq:
            check(not vq_kwargs.get("ema_update"), "ema_update: expected False with diveq")
            vq_kwargs |= {"ema_update": False, "learnable_codebook": True, "route_gradients_to_input": False, "commitment_weight": 0.0}
        self.dim = dim
        self.codebook_dim = dim if codebook_dim is None else codebook_dim
        self.num_quantizers = number
        self.has_projections = self.codebook_dim != dim
        self.project_in = nn.Linear(dim, self.codebook_dim) if self.has_projections else nn.Identity()
        self.project_out = nn.Linear(self.codebook_dim, dim) if self.has_projections else nn.Identity()
        self.diveq = diveq
        self.quantize_dropout = quantize_dropout and number > 1
        self.quantize_dropout_cutoff_index = quantize_dropout_cutoff_index
        self.quantize_dropout_multiple_of = quantize_dropout_multiple_of
        self.accept_image_fmap = accept_image_fmap
        self.accept_3d_fmap = accept_3d_fmap
        self.channel_last = channel_last
        self.implicit_neural_codebook = implicit_neural_codebook
        self.beam_size = beam_size
        self.eval_beam_size = beam_size if eval_beam_size is None else eval_beam_size
        self.beam_score_quantizer_weights = weights
        for size in (self.beam_size, self.eval_beam_size):
            _check_beam(size)
        self.quant_grad_frac = 1.0 if diveq else quant_grad_frac
        self.return_zeros_for_masked_padding = return_zeros_for_masked_padding
        self.shared_codebook = shared_codebook
        self.layers = nn.ModuleList(VectorQuantize(self.codebook_dim, size, **vq_kwargs) for size in self.codebook_sizes)
        if shared_codebook:
            codebook = self.layers[0]._codebook
            codebook.expires_at_once = False
            for layer in self.layers[1:]:
                layer._codebook = codebook
        # Stages that move the codes of a layer by a network; in a tuple, as only the networks are parts of this module.
        self._implicit = self._implicit_stages(mlp_kwargs or {}) if implicit_neural_codebook else ()
        self.mlps = nn.ModuleList(stage.network for stage in self._implicit)
        self._seeds = _Seeds()

    @property
    def codebook_size(self) -> int:
        return self.codebook_sizes[0]

    @property
    def codebooks(self) -> Tensor | tuple[Tensor, ...]:
        """The codes as they are kept: (Q, K, D), or a tuple where the numbers of codes differ."""
        tables = tuple(layer._codebook.embed[0] for layer in self.layers)
        return torch.stack(tables) if self.uniform_codebook_size else tables

    def get_codes_from_indices(self, indices: Tensor) -> Tensor:
        """The codes of indices (*positions, n) of the first n stages, (Q, *positions, codebook_dim); zero for -1 and stages not given."""
        given = indices.shape[-1]
        check(1 <= given <= self.num_quantizers, f"indices: expected a last dimension of 1..{self.num_quantizers}, got {given}")
        columns = nn.functional.pad(indices, (0, self.num_quantizers - given), value=-1).unbind(-1)
        total, codes = 0.0, []
        for place, (layer, column) in enumerate(zip(self.layers, columns)):
            found = code_vectors(layer._codebook.quantizers[0].codes, column)
            if place and self.implicit_neural_codebook:
                found = self.mlps[place - 1](found, total.to(found.dtype)).where((column >= 0)[..., None], 0.0)
            total = total + found
            codes.append(found)
        return torch.stack(codes)

    def get_output_from_indices(self, indices: Tensor) -> Tensor:
        """What ``forward`` returned with these indices, with its features last."""
        codes = self.get_codes_from_indices(indices).sum(0)
        if self.has_projections:
            codes = codes.to(self.project_out.weight.dtype)
        return self.project_out(codes).masked_fill((indices < 0).all(-1)[..., None], 0.0)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        indices: Tensor | list[Tensor] | None = None,
        return_all_codes: bool = False,
        sample_codebook_temp: float | None = None,
        freeze_codebook: bool = False,
        beam_size: int | None = None,
        rand_quantize_dropout_fixed_seed: int | None = None,
    ):
        targets = torch.stack(indices) if isinstance(indices, list) else indices
        expect(targets is None or not self.implicit_neural_codebook, "indices with implicit_neural_codebook")
        beams = (self.beam_size if self.training else self.eval_beam_size) if beam_size is None else beam_size
        _check_beam(beams)
        frozen = freeze_codebook or self.layers[0].freeze_codebook
        outer, counted = feature_rows(x, mask, self.dim, self._channel_axis(x.ndim) == 1)
        rows, valid = project_rows(self.project_in, outer, counted)
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        number = self.num_quantizers
        if targets is not None:
            expected = (*valid.shape, number)
            check(targets.shape == expected, f"indices: expected shape {expected}, got {tuple(targets.shape)}")
        if self.training and self.quantize_dropout and targets is None:
            number = self._draw_stages(rand_quantize_dropout_fixed_seed, x.device)
        chosen = self._search(rows.detach(), valid, number, beams, frozen) if beams is not None and beams > 1 else None
        residual, total, residuals, found, losses, entropies = rows, torch.zeros_like(rows), [], [], [], []
        for place, layer in enumerate(self.layers[:number]):
            column = None if chosen is None else chosen[..., place]
            step = Step(
                frozen=frozen,
                chosen=column,
                targets=None if targets is None else targets[..., place],
                transform=self._transform(place, total, column),
            )
            residuals.append(residual.detach())
            quantized, index, loss, terms = layer.quantize(residual, valid, step, sample_codebook_temp)
            held = quantized.detach()
            residual = residual - (held + self.quant_grad_frac * (quantized - held) if self.quant_grad_frac > 0 else held)
            total = total + quantized
            found.append(index)
            losses.append(loss)
            entropies.append(terms["cross_entropy"])
        if self.shared_codebook and self.training and not frozen:
            self._teach(residuals, valid)
        if self.diveq and self.training:
            total = directional_reparam(rows, total)
        output = self.project_out(total.to(x.dtype)).where(valid[..., None], 0.0)
        if mask is not None and not self.return_zeros_for_masked_padding:
            output = output.where(mask[..., None], outer)
        output = output.movedim(-1, self._channel_axis(x.ndim))
        if targets is not None:
            return output, sum(entropies)
        missing = self.num_quantizers - number
        found = nn.functional.pad(torch.stack(found, -1), (0, missing), value=-1)
        losses = nn.functional.pad(torch.stack(losses), (0, missing))
        if not return_all_codes:
            return output, found, losses
        return output, found, losses, self.get_codes_from_indices(found)

    def state_keys(self) -> list[StateKey]:
        names = [name for name, _ in self.mlps.named_parameters()]
        return [
            StateKey(f"mlps.{name}", f"mlps.{name.replace('project_in', 'proj_in').replace('blocks', 'layers')}") for name in names
        ]

    def _implicit_stages(self, options: dict) -> tuple[ImplicitQuantizer, ...]:
        unknown = options.keys() - {"dim_hidden", "depth"}
        check(not unknown, f"mlp_kwargs: expected dim_hidden or depth, got {sorted(unknown)}")
        network = {"hidden_dim": options.get("dim_hidden"), "depth": options.get("depth", 4)}
        books = [layer._codebook.quantizers[0].codebook for layer in self.layers[1:]]
        return tuple(ImplicitQuantizer(self.codebook_dim, book.size, codebook=book, **network) for book in books)

    def _channel_axis(self, ndim: int) -> int:
        """Where the features are in an input of so many dimensions."""
        return 1 if ndim > 2 and (self.accept_image_fmap or self.accept_3d_fmap or not self.channel_last) else -1

    def _draw_stages(self, seed: int | None, device: torch.device) -> int:
        """How many stages a step uses."""
        seed = self._seeds.draw(device) if seed is None else seed
        place = random.Random(seed).randrange(self.quantize_dropout_cutoff_index, self.num_quantizers)
        multiple = self.quantize_dropout_multiple_of
        return min(-(-(place + 1) // multiple) * multiple, self.num_quantizers)

    # What ``torch.compiler.disable`` sets, which itself would load the compiler, and triton, with this module.
    _draw_stages._torchdynamo_disable = True

    def _search(self, rows: Tensor, valid: Tensor, number: int, beams: int, frozen: bool) -> Tensor:
        """The indices (..., number) of the best sums of codes."""
        first = self.layers[0]
        starts = self.training and not frozen
        if self.training:
            expect(not first.stochastic_sample_codes, "beam_size with stochastic_sample_codes in training")
            expect(first.in_place_codebook_optimizer is None, "beam_size with in_place_codebook_optimizer in training")
        if starts and self.implicit_neural_codebook:
            expect(not first._codebook.learning.kmeans_init, "kmeans_init with implicit_neural_codebook and beam_size")
        stages = [layer._codebook.quantizers[0] for layer in self.layers]
        stages[1:] = self._implicit or stages[1:]
        found = beam_search(
            stages[:number],
            rows.reshape(-1, self.codebook_dim),
            beams,
            self.beam_score_quantizer_weights,
            valid.reshape(-1) if starts else None,
            of_directions=first.use_cosine_sim,
        )
        return found.view(*rows.shape[:-1], number).where(valid[..., None], -1)

    def _transform(self, place: int, total: Tensor, chosen: Tensor | None) -> Transform | None:
        """Of the codes of a stage, as the sum of the stages before says; to the chosen ones in the place of the nearest."""
        if not self.implicit_neural_codebook or not place:
            return None
        stage = self._implicit[place - 1]

        def transform(latents: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
            condition = total.reshape(latents.shape)
            indices = stage.candidates(latents, 1, condition.detach())[:, 0] if chosen is None else chosen.reshape(-1)
            with torch.autocast(latents.device.type, enabled=False):
                dtype = stage.network.project_in.weight.dtype
                return indices, stage.network(code_vectors(codes, indices).to(dtype), condition.to(dtype))

        return transform

    def _teach(self, residuals: list[Tensor], valid: Tensor) -> None:
        """Let a shared codebook take what its stages have observed."""
        first = self.layers[0]
        if first.ema_update:
            first._codebook.update_ema()
        first.update_in_place_optimizer()
        rows = torch.cat([part.reshape(-1, self.codebook_dim) for part in residuals])
        first.expire_codes_(rows, valid.reshape(-1).repeat(len(residuals)))

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_quantizers={self.num_quantizers}, shared_codebook={self.shared_codebook}, beam_size={self.beam_size}"


class GroupedResidualVQ(nn.Module):
    """The class of this name of vector-quantize-pytorch 1.32.0: the features are cut into groups, each with a ``ResidualVQ``.

    ``forward(x)`` -> quantized as ``x``, indices (groups, *x without D, Q), losses (groups, Q); with ``return_all_codes`` and a tuple
    of the groups' codes; with ``indices`` (groups, *x without D, Q) quantized and the sum of the cross-entropies.
    All groups drop the same stages. A row with NaN or infinity in any group is left out of all.
    Codes and outputs from indices have the features last also for images.
    """

    def __init__(self, *, dim: int, groups: int = 1, accept_image_fmap: bool = False, **kwargs):
        super().__init__()
        check(groups > 0 and dim % groups == 0, f"groups: expected a divisor of dim = {dim}, got {groups}")
        self.dim = dim
        self.groups = groups
        self.accept_image_fmap = accept_image_fmap
        self.rvqs = nn.ModuleList(ResidualVQ(dim=dim // groups, accept_image_fmap=accept_image_fmap, **kwargs) for _ in range(groups))

    @property
    def codebooks(self) -> Tensor | tuple[tuple[Tensor, ...], ...]:
        """The codes as they are kept, (groups, Q, K, D), or tuples where the numbers of codes differ."""
        tables = tuple(rvq.codebooks for rvq in self.rvqs)
        return torch.stack(tables) if self.rvqs[0].uniform_codebook_size else tables

    def get_codes_from_indices(self, indices: Tensor | Sequence[Tensor]) -> Tensor:
        """The codes of indices (groups, *positions, n), (groups, Q, *positions, D of a group)."""
        return torch.stack([rvq.get_codes_from_indices(part) for rvq, part in zip(self.rvqs, indices, strict=True)])

    def get_output_from_indices(self, indices: Tensor | Sequence[Tensor]) -> Tensor:
        """What ``forward`` returned with these indices, with its features last."""
        return torch.cat([rvq.get_output_from_indices(part) for rvq, part in zip(self.rvqs, indices, strict=True)], -1)

    def forward(
        self,
        x: Tensor,
        indices: Tensor | Sequence[Tensor] | None = None,
        return_all_codes: bool = False,
        sample_codebook_temp: float | None = None,
        freeze_codebook: bool = False,
        mask: Tensor | None = None,
    ):
        first = self.rvqs[0]
        axis = first._channel_axis(x.ndim)
        check(x.shape[axis] == self.dim, f"x: expected D = {self.dim}, got shape {tuple(x.shape)}")
        given = (None,) * self.groups if indices is None or not len(indices) else indices
        check(len(given) == self.groups, f"indices: expected {self.groups} parts, one a group, got {len(given)}")
        seed = first._seeds.draw(x.device) if self.training and first.quantize_dropout else None
        # Every group leaves out what one of them must.
        x = x.where(x.isfinite().all(axis, keepdim=True), torch.nan)
        quantized, *others = zip(
            *(
                rvq(
                    piece,
                    mask,
                    part,
                    return_all_codes,
                    sample_codebook_temp,
                    freeze_codebook,
                    rand_quantize_dropout_fixed_seed=seed,
                )
                for rvq, piece, part in zip(self.rvqs, x.chunk(self.groups, axis), given, strict=True)
            )
        )
        quantized = torch.cat(quantized, axis)
        if given[0] is not None:
            return quantized, sum(others[0])
        found, losses, *codes = others
        return quantized, torch.stack(found), torch.stack(losses), *codes


class _Seeds:
    """Seeds for the dropout: from torch's generator, or on several ranks from one that they agree on at the first draw."""

    def __init__(self):
        self._agreed = None
        self._ranks = 1

    def draw(self, device: torch.device) -> int:
        rank, ranks = world()
        if ranks == 1:
            return int(torch.randint(10_000, (), device="cpu"))
        if ranks != self._ranks:
            (seed,) = sum_over_ranks(torch.randint(2**31, ()).to(device) * (rank == 0))
            self._agreed, self._ranks = random.Random(int(seed)), ranks
        return self._agreed.randrange(10_000)

    draw._torchdynamo_disable = True


def _check_beam(size: int | None) -> None:
    check(size is None or size >= 1, f"beam_size: expected at least 1, got {size}")
    expect(size is None or size <= MAX_K, f"beam_size: expected at most {MAX_K}, got {size}")
