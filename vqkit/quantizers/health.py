"""How a quantizer's codebook fares in training: running values on the device, read when somebody asks."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from vqkit.codebooks.statistics import Float32Statistics
from vqkit.quantizers.quantized import perplexity

# Training steps over which a code counts as used, and before which nothing is said.
WINDOW = 100
# Latents a step at which distances and norms are looked at.
_SAMPLE = 1024
# Codes used, as a fraction of those that equal shares would use, below which the codebook has collapsed.
_COLLAPSED = 0.1


@dataclass(frozen=True)
class Health:
    """The last training steps of a quantizer, of this rank.

    usage: fraction of the codes that were selected at least once in the last 100 training steps.
    perplexity: exp of the entropy of the code frequencies, a running mean over about as many steps; between 1 and K.
    dead_codes: how many codes were not selected in these steps.
    distance: mean |latent - its code|.  latent_norm, code_norm: mean length of the latents and of their codes, as they are
        searched (1 under "cosine"). Of at most 1024 latents a step; nan before the first.
    steps: training steps so far, since the module was made or loaded.
    expected_usage: the usage that equal shares would give with as many latents a step.
    """

    usage: float
    perplexity: float
    dead_codes: int
    distance: float
    latent_norm: float
    code_norm: float
    steps: int
    expected_usage: float

    @property
    def collapsed(self) -> bool:
        """Whether, after 100 steps, less than a tenth of the codes that equal shares would use are in use."""
        return self.steps >= WINDOW and self.usage < _COLLAPSED * self.expected_usage


class HealthMonitor(Float32Statistics):
    """Keeps the running values of ``Health`` for K codes; not part of the state dict, never waits for the device in a step.

    They are read, and a collapse warned of, when ``read`` is called and at each switch from training to eval mode.
    """

    def __init__(self, size: int):
        super().__init__()
        self.size = size
        self.register_buffer("frequencies", torch.zeros(size), persistent=False)
        self.register_buffer("age", torch.full((size,), WINDOW, dtype=torch.int32), persistent=False)
        # Running sums over the sample: distances, norms of latents, norms of codes, how many.
        self.register_buffer("lengths", torch.zeros(4), persistent=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64), persistent=False)
        self._warned = False

    @torch.no_grad()
    def observe(self, latents: Tensor, quantized: Tensor, counts: Tensor, valid: Tensor) -> None:
        """Note a training step: latents (N, D), quantized (N, D) zero where not valid (N,), counts (K,)."""
        self.frequencies.lerp_(counts.to(self.frequencies.dtype), 1 / WINDOW)
        self.age.add_(1).clamp_(max=WINDOW).masked_fill_(counts > 0, 0)
        self.steps.add_(1)
        stride = -(-latents.shape[0] // _SAMPLE) or 1
        rows, codes, valid = latents[::stride], quantized[::stride], valid[::stride]
        rows = rows.where(valid[:, None], 0.0)
        lengths = [(rows - codes).norm(dim=-1).sum(), rows.norm(dim=-1).sum(), codes.norm(dim=-1).sum(), valid.sum()]
        self.lengths.lerp_(torch.stack([length.to(self.lengths.dtype) for length in lengths]), 1 / WINDOW)

    def read(self) -> Health:
        """The values as they are now; waits for the device. Warns, once, of a collapsed codebook."""
        distance, latent_norm, code_norm, number = self.lengths.tolist()
        used, steps = int((self.age < WINDOW).sum()), int(self.steps)
        # A code of equal share is missed by every latent of the window with probability exp(-latents / K).
        latents = float(self.frequencies.double().sum()) * min(steps, WINDOW) / max(1 - (1 - 1 / WINDOW) ** steps, 1e-9)
        health = Health(
            usage=used / self.size,
            perplexity=float(perplexity(self.frequencies.double())),
            dead_codes=self.size - used,
            distance=distance / number if number else float("nan"),
            latent_norm=latent_norm / number if number else float("nan"),
            code_norm=code_norm / number if number else float("nan"),
            steps=steps,
            expected_usage=-float(torch.expm1(torch.tensor(-latents / self.size, dtype=torch.float64))),
        )
        if health.collapsed and not self._warned:
            self._warned = True
            warnings.warn(
                f"the codebook has collapsed: {used} of {self.size} codes were selected in the last {WINDOW} training steps, where equal "
                f"shares would select {health.expected_usage:.0%}. Remedies: kmeans_init=True, threshold_ema_dead_code=2, metric='cosine', "
                "codebook='anchored' or codebook='linear'",
                stacklevel=3,
            )
        return health

    def train(self, mode: bool = True):
        # A moment that comes once an epoch and may wait for the device.
        if self.training and not mode and not self.steps.is_meta:
            self.read()
        return super().train(mode)
