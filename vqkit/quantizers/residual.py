"""Residual quantization: every stage quantizes what the stages before it have left over."""

import inspect
import random
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from vqkit.codebooks import Codebook
from vqkit.codebooks.ranks import sum_over_ranks, world
from vqkit.ops import straight_through
from vqkit.quantizers.beam import beam_search, takes_part_in_beam_search
from vqkit.quantizers.health import Health
from vqkit.quantizers.layout import feature_rows, project_rows
from vqkit.quantizers.quantized import Quantized
from vqkit.quantizers.quantizer import Quantizer
from vqkit.quantizers.shared import share_codebook, teach


class ResidualQuantizer(nn.Module):
    """A sum of codes, one a stage: r_1 = x;  q_s = stage s of r_s;  r_{s+1} = r_s - sg q_s;  quantized = sum of q_s.

    The loss is the sum of the stages' losses. As r_{s+1} is x minus a constant, the commitment loss of every stage reaches the encoder.

    Args:
        quantizers: the stages, which give one index a position, are channel-last and have the same ``dim``: ``Quantizer`` with any
            codebook, also with different sizes and projections, ``FiniteScalarQuantizer``, ``LookupFreeQuantizer``, ``ImplicitQuantizer``.
        dim: D, size of the feature dimension of the input; a linear layer in and one out join it to the stages' dim where they differ.
            Default: that of the stages.
        num_quantizers, codebook_size, codebook_dim: in the place of ``quantizers``: Q stages ``Quantizer(codebook_dim, codebook_size,
            **quantizer)``; codebook_size may be a sequence with one number a stage. Default of codebook_dim: dim.
        shared_codebook: all stages use the codebook of the first. It starts (k-means) from the first stage's latents; its codes change
            once a step, after the last stage. Running means take one step of their decay for each stage, in the order of the
            stages, as in vector-quantize-pytorch; dead codes are replaced once a step by latents of any stage.
        quantize_dropout: in training, each step uses only the first n stages. n - 1 is drawn uniformly from
            quantize_dropout_cutoff_index..Q - 1, then n is rounded up to a multiple of quantize_dropout_multiple_of, at most Q.
            The other stages have index -1 and loss 0, and learn nothing.
        beam_size: how many partial sums each position keeps, best first, in training; 1 takes the nearest code of each stage. Every kept
            sum is continued by the ``min(beam_size, 8)`` codes nearest to its residual.  eval_beam_size: in eval mode. Default: beam_size.
        beam_weights: what makes a partial sum good. Default: a small error |x - sum|^2. One number w_s a stage: a small sum
            over the stages so far of w_s |r_{s+1}|^2, of which vector-quantize-pytorch takes (1, 1, ...).
        gradient: of quantized to x. "straight_through": the identity. "rotation": x turned into quantized, see ``ops.straight_through``.
            "stages": the sum of the stages' own gradients, which is Q times the identity for Q straight-through stages, as in
            vector-quantize-pytorch.
        channel_first: the input is (B, D, *spatial) instead of (..., D).

    The ranks of a process group agree on the dropout's seed by one small all-reduce at their first draw, which waits for the
    device; from then on each counts its draws on the host, so that all use the same stages with no communication. Seed and count are
    in the state dict; load it on all ranks, or before the first step. A draw breaks a compiled graph: to have it whole, pass
    ``stages=quantizer.draw_stages()``. Stages that learn by gradient have none where they are not used, which
    ``DistributedDataParallel`` accepts with ``find_unused_parameters=True``.

    Residuals and sums are float32 or better. Beam search holds O(N beam_size (D + Q)) numbers; the number of collectives depends on
    nothing but the number of stages used. What a beam has chosen for Q stages is not the best for fewer: give ``stages`` to ``encode``,
    not a prefix to ``decode``. Beams draw nothing: ``Quantizer.temperature`` has no effect then.

    Raises ValueError or TypeError for arguments that do not fit.

    Source: Zeghidour et al. 2021 (arXiv 2107.03312), algorithm 1 and, for the dropout, section III-C; shared codebook: Lee et al. 2022
    (arXiv 2203.01941), section 3.1.
    """

    def __init__(
        self,
        quantizers: Sequence[nn.Module] | None = None,
        *,
        dim: int | None = None,
        num_quantizers: int | None = None,
        codebook_size: int | Sequence[int] | None = None,
        codebook_dim: int | None = None,
        shared_codebook: bool = False,
        quantize_dropout: bool = False,
        quantize_dropout_cutoff_index: int = 0,
        quantize_dropout_multiple_of: int = 1,
        beam_size: int = 1,
        eval_beam_size: int | None = None,
        beam_weights: Sequence[float] | None = None,
        gradient: Literal["straight_through", "rotation", "stages"] = "straight_through",
        channel_first: bool = False,
        **quantizer,
    ):
        super().__init__()
        if quantizers is None:
            quantizers = _stages(dim, num_quantizers, codebook_size, codebook_dim, quantizer)
        else:
            built = {"num_quantizers": num_quantizers, "codebook_size": codebook_size, "codebook_dim": codebook_dim, **quantizer}
            for name, value in built.items():
                if value is not None:
                    raise ValueError(f"{name}: expected none beside quantizers, which have their own, got {value!r}")
        _check_stages(quantizers)
        width, number = quantizers[0].dim, len(quantizers)
        if gradient not in ("straight_through", "rotation", "stages"):
            raise ValueError(f"gradient: expected 'straight_through', 'rotation' or 'stages', got {gradient!r}")
        if not 0 <= quantize_dropout_cutoff_index < number:
            raise ValueError(
                f"quantize_dropout_cutoff_index: expected 0..{number - 1}, a stage, got {quantize_dropout_cutoff_index}"
            )
        sizes = {"quantize_dropout_multiple_of": quantize_dropout_multiple_of, "beam_size": beam_size, "eval_beam_size": eval_beam_size}
        for name, value in {**sizes, "dim": dim}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if beam_weights is not None and len(beam_weights) != number:
            raise ValueError(f"beam_weights: expected {number} numbers, one a stage, got {len(beam_weights)}")
        if max(beam_size, eval_beam_size or 1) > 1:
            for place, stage in enumerate(quantizers):
                if not takes_part_in_beam_search(stage):
                    kind = type(stage).__name__
                    raise ValueError(f"beam_size: expected 1 as quantizers[{place}], a {kind}, does not list its nearest codes or take chosen ones")
        self.dim = width if dim is None else dim
        self.quantizers = nn.ModuleList(quantizers)
        self.codebook = share_codebook(quantizers) if shared_codebook else None
        self.quantize_dropout = quantize_dropout and number > 1
        self.quantize_dropout_cutoff_index = quantize_dropout_cutoff_index
        self.quantize_dropout_multiple_of = quantize_dropout_multiple_of
        self.beam_size = beam_size
        self.eval_beam_size = beam_size if eval_beam_size is None else eval_beam_size
        self.beam_weights = None if beam_weights is None else tuple(beam_weights)
        self.gradient = gradient
        self.channel_first = channel_first
        self.project_in = nn.Identity() if self.dim == width else nn.Linear(self.dim, width)
        self.project_out = nn.Identity() if self.dim == width else nn.Linear(width, self.dim)
        # Which stages know how not to learn; a scalar quantizer has nothing to learn.
        self._teachable = tuple("learn" in inspect.signature(stage.forward).parameters for stage in quantizers)
        # Seed and number of draws, on the host as well, so that no step waits for the device.
        self.register_buffer("dropout_state", torch.tensor([-1, 0]) if self.quantize_dropout else None)
        self._dropout = [-1, 0]
        self._agreed_ranks = 1
        # Follows ``.to(dtype)`` where nothing else does.
        self.register_buffer("_dtype_marker", torch.empty(0), persistent=False)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of codes of each stage."""
        return tuple(size for stage in self.quantizers for size in stage.codebook_sizes)

    @property
    def selections(self) -> tuple[int, ...]:
        """Number of indices that each stage contributes to a position: one."""
        return (1,) * len(self.quantizers)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, learn: bool | None = None, stages: int | None = None) -> Quantized:
        """Quantize ``x`` and, in training mode, let the codebooks learn from its residuals.

        Args:
            x: (..., D), or (B, D, *spatial) with channel_first; any floating dtype.
            mask: bool, shape of ``x`` without D; False leaves a row out, as does NaN or infinity in it: output 0, indices -1.
            learn: as in ``Quantizer.forward``.
            stages: use the first so many, 1..Q. Default: all, or as many as the dropout draws.

        Returns:
            ``Quantized``: quantized as ``x``, in eval mode equal to ``decode(indices)``; indices (*x without D, Q), -1 for a stage not
            used; loss and losses are sums over the stages; ``parts`` holds the results of the stages used, and ``stage_losses`` gives
            their losses; usage and perplexity are means over these stages.

        Raises ValueError for an ``x``, ``mask`` or ``stages`` that does not fit; nothing has changed then.
        """
        number = self._number(stages)
        rows, valid = self._rows(x, mask)
        if stages is None and self.training and self.quantize_dropout:
            number = self.draw_stages()
        inner = rows.dtype
        rows = rows.to(torch.promote_types(inner, torch.float32))
        found = self._search(rows.detach(), valid, number, learn) if self._beam > 1 else None
        residual, total, summed, parts = rows, torch.zeros_like(rows), torch.zeros_like(rows), []
        for place, stage in enumerate(self.quantizers[:number]):
            options = self._options(stage, total)
            if learn is not None and self._teachable[place]:
                options["learn"] = learn
            if found is not None:
                options["indices"] = found[..., place]
            part = stage(residual.to(_dtype(stage, inner)), valid, **options)
            parts.append(part)
            quantized = part.quantized.to(rows.dtype)
            residual, total, summed = residual - quantized.detach(), total + quantized.detach(), summed + quantized
        if self.codebook is not None:
            teach(self.codebook, self.quantizers)
        output = self._restored(self._with_gradient(rows, total, summed, valid), valid, x.dtype)
        indices = torch.stack([part.indices for part in parts], -1)
        names = dict.fromkeys(name for part in parts for name in part.losses)
        losses = {name: sum(part.losses[name] for part in parts if name in part.losses) for name in names}
        return Quantized(output, self._padded(indices), sum(part.loss for part in parts), losses, None, tuple(parts))

    def stage_losses(self, result: Quantized) -> Tensor:
        """The loss of each stage in a result of ``forward``, (Q,); 0 for a stage not used."""
        losses = torch.stack([part.loss for part in result.parts])
        return torch.cat([losses, losses.new_zeros(len(self.quantizers) - len(losses))])

    @torch.no_grad()
    def encode(self, x: Tensor, mask: Tensor | None = None, *, stages: int | None = None) -> Tensor:
        """The indices that ``forward`` returns in eval mode, (*x without D, Q), by the beam size of the present mode."""
        number = self._number(stages)
        rows, valid = self._rows(x, mask)
        inner = rows.dtype
        rows = rows.to(torch.promote_types(inner, torch.float32))
        if self._beam > 1:
            return self._padded(self._search(rows, valid, number, False))
        total, found = torch.zeros_like(rows), []
        for stage in self.quantizers[:number]:
            options, dtype = self._options(stage, total), _dtype(stage, inner)
            found.append(stage.encode((rows - total).to(dtype), valid, **options))
            total = total + stage.decode(found[-1], dtype=dtype, **options).to(rows.dtype)
        return self._padded(torch.stack(found, -1))

    @torch.no_grad()
    def decode(self, indices: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The vectors of these indices, in the layout of ``x``. No gradient.

        indices: (..., n) for the first n stages, 1 <= n <= Q; a stage with -1 adds nothing, a position with nothing but -1 is 0.
        dtype: that of ``x``. Default: the dtype of the module.
        Raises ValueError for a shape or IndexError for an index that does not fit (on the CPU).
        """
        if indices.ndim < 1 or not 1 <= indices.shape[-1] <= len(self.quantizers):
            raise ValueError(f"indices: expected a last dimension of 1..{len(self.quantizers)}, got shape {tuple(indices.shape)}")
        dtype = self._default_dtype() if dtype is None else dtype
        total = torch.zeros((), dtype=torch.promote_types(dtype, torch.float32), device=indices.device)
        for part in self._codes(indices, dtype):
            total = total + part
        return self._restored(total, (indices >= 0).any(-1), dtype)

    @torch.no_grad()
    def decode_stages(self, indices: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """What each stage adds to the sum that ``decode`` returns, before ``project_out``: (n, *positions, the stages' dim).

        The arguments are those of ``decode``.
        """
        return torch.stack(self._codes(indices, self._default_dtype() if dtype is None else dtype))

    def health(self) -> tuple[Health | None, ...]:
        """The ``Quantizer.health`` of each stage, None for one that has none."""
        return tuple(stage.health() if isinstance(stage, Quantizer) else None for stage in self.quantizers)

    def draw_stages(self) -> int:
        """How many stages the next training step uses: the same on every rank that has made as many draws."""
        if not self.quantize_dropout:
            return len(self.quantizers)
        rank, ranks = world()
        if self._dropout[0] < 0:
            self._dropout[0] = int(torch.randint(2**31, ()))
        if self._agreed_ranks != ranks:
            state = torch.tensor(self._dropout, device=self.dropout_state.device) * (rank == 0)
            self._dropout = sum_over_ranks(state)[0].tolist()
            self._agreed_ranks = ranks
        seed, drawn = self._dropout
        place = random.Random(f"{seed} {drawn}").randrange(self.quantize_dropout_cutoff_index, len(self.quantizers))
        self._dropout[1] += 1
        self.dropout_state.copy_(torch.tensor(self._dropout), non_blocking=True)
        multiple = self.quantize_dropout_multiple_of
        return min(-(-(place + 1) // multiple) * multiple, len(self.quantizers))

    # What ``torch.compiler.disable`` sets, which itself would load the compiler, and triton, with this module.
    draw_stages._torchdynamo_disable = True

    @property
    def _beam(self) -> int:
        return self.beam_size if self.training else self.eval_beam_size

    def _number(self, stages: int | None) -> int:
        if stages is not None and not 1 <= stages <= len(self.quantizers):
            raise ValueError(f"stages: expected 1..{len(self.quantizers)}, got {stages}")
        return len(self.quantizers) if stages is None else stages

    def _rows(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The latents of the first stage, zero where left out, and which rows count."""
        return project_rows(self.project_in, *feature_rows(x, mask, self.dim, self.channel_first))

    def _search(self, rows: Tensor, valid: Tensor, number: int, learn: bool | None) -> Tensor:
        flat = rows.reshape(-1, rows.shape[-1])
        learning = self.training if learn is None else learn
        starts = valid.reshape(-1) if learning else None
        found = beam_search(self.quantizers[:number], flat, self._beam, self.beam_weights, starts)
        return found.view(*rows.shape[:-1], number).where(valid[..., None], -1)

    def _codes(self, indices: Tensor, dtype: torch.dtype) -> list[Tensor]:
        total, codes = None, []
        for stage, column in zip(self.quantizers, indices.unbind(-1)):
            options = {} if total is None else self._options(stage, total)
            part = stage.decode(column, dtype=_dtype(stage, dtype), **options).to(torch.promote_types(dtype, torch.float32))
            total = part if total is None else total + part
            codes.append(part)
        return codes

    def _options(self, stage: nn.Module, total: Tensor) -> dict[str, Tensor]:
        return {"condition": total} if getattr(stage, "conditioned", False) else {}

    def _with_gradient(self, rows: Tensor, total: Tensor, summed: Tensor, valid: Tensor) -> Tensor:
        if self.gradient == "stages":
            return summed
        if self.gradient == "straight_through" or not rows.numel():
            # The sum and an exact zero that carries the gradient: the output has the bits of decode.
            return total + (rows - rows.detach())
        places = torch.arange(valid.numel(), device=valid.device).where(valid.reshape(-1), -1)
        turned, _, _ = straight_through(rows.reshape(valid.numel(), -1), total.reshape(valid.numel(), -1), places, gradient="rotation")
        return turned.view(rows.shape)

    def _restored(self, total: Tensor, valid: Tensor, dtype: torch.dtype) -> Tensor:
        output = self.project_out(total.to(dtype))
        if not isinstance(self.project_out, nn.Identity):
            output = output.where(valid[..., None], 0.0)
        return output.movedim(-1, 1) if self.channel_first else output

    def _padded(self, indices: Tensor) -> Tensor:
        missing = len(self.quantizers) - indices.shape[-1]
        return torch.cat([indices, indices.new_full((*indices.shape[:-1], missing), -1)], -1) if missing else indices

    def _default_dtype(self) -> torch.dtype:
        return next((p.dtype for p in (*self.project_out.parameters(), *self.parameters())), self._dtype_marker.dtype)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if self.quantize_dropout and f"{prefix}dropout_state" in state_dict:
            self._dropout = state_dict[f"{prefix}dropout_state"].tolist()

    def extra_repr(self) -> str:
        return f"dim={self.dim}, quantize_dropout={self.quantize_dropout}, beam_size={self.beam_size}, gradient={self.gradient!r}"


def _stages(
    dim: int | None, number: int | None, size: int | Sequence[int] | None, codebook_dim: int | None, options: dict[str, object]
) -> list[Quantizer]:
    if dim is None or size is None or (number is None and isinstance(size, int)):
        missing = "dim" if dim is None else "codebook_size" if size is None else "num_quantizers"
        raise ValueError(f"{missing}: expected a number where no quantizers are given, got None")
    sizes = [size] * number if isinstance(size, int) else list(size)
    if number is not None and len(sizes) != number:
        raise ValueError(f"codebook_size: expected {number} numbers, one a stage, got {len(sizes)}")
    if "heads" in options or "top_k" in options:
        raise ValueError("heads, top_k: expected neither, a stage gives one index a position")
    if isinstance(options.get("codebook"), Codebook) and len(sizes) > 1:
        raise ValueError(f"codebook: expected a name, of which every stage gets its own, got one {type(options['codebook']).__name__}")
    return [Quantizer(codebook_dim or dim, one, **options) for one in sizes]


def _check_stages(quantizers: Sequence[nn.Module]) -> None:
    if not quantizers:
        raise ValueError("quantizers: expected at least one, got none")
    for place, stage in enumerate(quantizers):
        if stage.channel_first or tuple(stage.selections) != (1,):
            raise ValueError(
                f"quantizers[{place}]: expected channel_first=False and one index a position, got channel_first={stage.channel_first} "
                f"and selections {tuple(stage.selections)}"
            )
        if stage.dim != quantizers[0].dim:
            raise ValueError(f"quantizers[{place}]: expected dim={quantizers[0].dim} as the first, got {stage.dim}")


def _dtype(stage: nn.Module, dtype: torch.dtype) -> torch.dtype:
    """What a stage is given: float32 or better, unless a layer of its own takes only ``dtype``."""
    projected = isinstance(getattr(stage, "project_in", None), nn.Linear)
    return dtype if projected else torch.promote_types(dtype, torch.float32)
