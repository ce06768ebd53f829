"""VAR's multi-scale quantizer (``models.quant.VectorQuantizer2``)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from vqkit.codebooks import Codebook
from vqkit.codebooks.ranks import sum_over_ranks, world
from vqkit.compat.replacement import attributes, checked, plain_embedding, replaces, take_state
from vqkit.compat.state import ForeignState, StateKey
from vqkit.ops import code_counts
from vqkit.quantizers.multi_scale import MultiScaleQuantizer


class EmbeddingCodebook(Codebook):
    """The weight of an ``nn.Embedding`` that another module owns: no state of its own."""

    trained_by_gradient = True

    def __init__(self, embedding: nn.Embedding):
        super().__init__(embedding.num_embeddings, embedding.embedding_dim)
        # In a tuple: not a submodule.
        self.source = (embedding,)

    def forward(self) -> Tensor:
        return self.source[0].weight


class VectorQuantizer2(ForeignState):
    """VAR's ``VectorQuantizer2`` over ``MultiScaleQuantizer``.

    Args:
        vocab_size: K.  Cvae: D.  using_znorm: codes are searched by direction.  beta: of the commitment loss.
        v_patch_nums: token maps from coarse to fine, p for p x p tokens; the last is the size of the input.
        quant_resi: share of the convolution in each phi; 0: there is none.
        share_quant_resi: 0: a phi for each scale, or ``default_qresi_counts`` of them; 1: one; n: n, each for the scales next to it.

    ``forward(f_BChw, ret_usages)`` -> (f_hat (B, D, H, W), usages, loss ()): usages, if asked for, which waits for the device, the percentage of
    the codes that each scale uses, else None. State: ``embedding.weight``, ``quant_resi.*``, ``ema_vocab_hit_SV``. The running use
    ``ema_vocab_hit_SV`` (S, K) is over all ranks and, unlike there, is kept in one process too, and its pace changes with
    steps, not with scales. A picture that is not finite has indices -1.

    ``v_patch_nums=`` of ``f_to_idxBl_or_fhat`` and ``all_to_max_scale=False`` raise NotImplementedError.

    Source: Tian et al. 2024 (arXiv 2404.02905), section 3.2, algorithms 1 and 2.
    """

    def __init__(
        self,
        vocab_size: int,
        Cvae: int,
        using_znorm: bool,
        beta: float = 0.25,
        default_qresi_counts: int = 0,
        v_patch_nums: Sequence[int] | None = None,
        quant_resi: float = 0.5,
        share_quant_resi: int = 4,
    ):
        super().__init__()
        if not v_patch_nums:
            raise ValueError(f"v_patch_nums: expected the sizes of the token maps, got {v_patch_nums}")
        self.vocab_size = vocab_size
        self.Cvae = Cvae
        self.using_znorm = using_znorm
        self.beta = beta
        self.v_patch_nums = tuple(v_patch_nums)
        self.quant_resi_ratio = quant_resi
        self.embedding = nn.Embedding(vocab_size, Cvae)
        self.quantizer = MultiScaleQuantizer(
            Cvae,
            vocab_size,
            self.v_patch_nums,
            metric="cosine" if using_znorm else "l2",
            codebook=EmbeddingCodebook(self.embedding),
            commitment_weight=beta,
            phi_ratio=abs(quant_resi) if abs(quant_resi) > 1e-6 else 0.0,
            phi_count=share_quant_resi or default_qresi_counts,
            channel_first=True,
        )
        # The names of the phi there: one of its own, one for all, or a few.
        self._phi_name = {0: "quant_resi.{}", 1: "quant_resi.qresi"}.get(share_quant_resi, "quant_resi.qresi_ls.{}")
        self.register_buffer("ema_vocab_hit_SV", torch.zeros(len(self.v_patch_nums), vocab_size))
        # A tensor, so that a compiled step is compiled once.
        self.register_buffer("_noted", torch.zeros((), dtype=torch.int64), persistent=False)

    def state_keys(self) -> list[StateKey]:
        numbers = range(len(self.quantizer.phi or ()))
        return [
            StateKey(f"quantizer.phi.{number}.{part}", f"{self._phi_name.format(number)}.{part}")
            for number in numbers
            for part in ("weight", "bias")
        ]

    @property
    def record_hit(self) -> int:
        """How many training steps ``ema_vocab_hit_SV`` has seen; waits for the device."""
        return int(self._noted)

    def eini(self, eini: float) -> None:
        """Start the codes: normal of this standard deviation; negative: uniform in +-|eini| / K."""
        if eini > 0:
            nn.init.trunc_normal_(self.embedding.weight.data, std=eini)
        elif eini < 0:
            nn.init.uniform_(self.embedding.weight.data, eini / self.vocab_size, -eini / self.vocab_size)

    def forward(self, f_BChw: Tensor, ret_usages: bool = False) -> tuple[Tensor, list[float] | None, Tensor]:
        f_hat, indices, loss = self.quantizer(f_BChw.float())
        if self.training:
            self._note_use(indices)
        margin = world()[1] * f_BChw.numel() / self.Cvae / self.vocab_size * 0.08
        used = (self.ema_vocab_hit_SV >= margin).float().mean(1) * 100 if ret_usages else None
        return f_hat, used if used is None else used.tolist(), loss

    @torch.no_grad()
    def _note_use(self, indices: Tensor) -> None:
        counts = [code_counts(part, self.vocab_size) for part in indices.split(self.quantizer.tokens, 1)]
        (hits,) = sum_over_ranks(torch.stack(counts).to(self.ema_vocab_hit_SV.dtype))
        # All of the first step, then a tenth, after a hundred steps a hundredth.
        pace = torch.where(self._noted == 0, 1.0, torch.where(self._noted < 100, 0.1, 0.01))
        self.ema_vocab_hit_SV.lerp_(hits, pace)
        self._noted.add_(1)

    def f_to_idxBl_or_fhat(self, f_BChw: Tensor, to_fhat: bool, v_patch_nums: Sequence[int] | None = None) -> list[Tensor]:
        """For each scale the indices (B, tokens), int64, or with ``to_fhat`` the sum so far (B, D, H, W), float32. No gradient."""
        if v_patch_nums is not None and tuple(v_patch_nums) != self.v_patch_nums:
            raise NotImplementedError(f"v_patch_nums: only {self.v_patch_nums} is supported, got {v_patch_nums}")
        indices = self.quantizer.encode(f_BChw.float())
        return self.quantizer.reconstructions(indices, torch.float32) if to_fhat else list(indices.split(self.quantizer.tokens, 1))

    def embed_to_fhat(self, ms_h_BChw: list[Tensor], all_to_max_scale: bool = True, last_one: bool = False) -> list[Tensor] | Tensor:
        """From the codes of each scale, (B, D, p, p), the sum so far after each, (B, D, H, W) float32; only the last with ``last_one``."""
        if not all_to_max_scale:
            raise NotImplementedError("all_to_max_scale: only True is supported, got False")
        sums = []
        for scale, h in enumerate(ms_h_BChw):
            sums.append(self.quantizer.expand(h.float(), scale) + (sums[-1] if sums else 0))
        return sums[-1] if last_one else sums

    def idxBl_to_var_input(self, gt_ms_idx_Bl: list[Tensor]) -> Tensor | None:
        """What the next-scale model is given for the scales after the first, (B, tokens but the first's, D) float32; None for one scale."""
        if len(self.v_patch_nums) == 1:
            return None
        return self.quantizer.next_inputs(torch.cat(gt_ms_idx_Bl[: len(self.v_patch_nums) - 1], 1), torch.float32)

    def get_next_autoregressive_input(self, si: int, SN: int, f_hat: Tensor, h_BChw: Tensor) -> tuple[Tensor, Tensor]:
        """Add the codes of scale ``si``, (B, D, p, p), to the sum; returns it, and it at the size of the next scale (after the last: as it is)."""
        if SN != len(self.v_patch_nums):
            raise NotImplementedError(f"SN: only {len(self.v_patch_nums)}, the number of scales, is supported, got {SN}")
        f_hat = f_hat + self.quantizer.expand(h_BChw, si)
        return f_hat, f_hat if si == SN - 1 else interpolate(f_hat, size=self.quantizer.patch_nums[si + 1], mode="area")


@replaces("models.quant.VectorQuantizer2", "VectorQuantizer2")
def _vector_quantizer_2(module: nn.Module) -> nn.Module:
    names = ("vocab_size", "Cvae", "using_znorm", "beta", "v_patch_nums", "quant_resi_ratio", "quant_resi", "record_hit")
    size, dim, znorm, beta, patches, ratio, layers, steps = attributes(module, *names)
    embedding = plain_embedding(module)
    convolutions = [part for part in layers.modules() if isinstance(part, nn.Conv2d)]
    count = 1 if hasattr(layers, "qresi") else len(convolutions)
    shared = count if hasattr(layers, "qresi") or hasattr(layers, "qresi_ls") else 0
    ours = take_state(module, VectorQuantizer2(size, dim, znorm, beta, count, patches, ratio, shared))
    ours._noted.fill_(steps)
    ours.embedding = embedding
    ours.quantizer.codebook.source = (embedding,)
    for phi, theirs in zip(ours.quantizer.phi or (), convolutions):
        phi.weight, phi.bias = theirs.weight, theirs.bias
    return checked(module, ours, 2, dim, patches[-1], patches[-1], codes=("embedding.weight",), learns=False)
