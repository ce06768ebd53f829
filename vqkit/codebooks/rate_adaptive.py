"""A codebook that yields as many codes as a rate asks for, generated from those of its source (RAQ)."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vqkit.codebooks.codebook import Codebook
from vqkit.codebooks.generated import GeneratedCodebook

# Distances between two sets of codes at a time.
_BLOCK = 1 << 20
_BANDWIDTHS = (0.2, 0.5, 0.9, 1.3)


class RateAdaptiveCodebook(GeneratedCodebook):
    """K source codes, and K' codes generated from them for any K'.

    adapted(K') = generate(sg source codes, K')

    Args:
        source: yields the K codes and learns as it does anywhere.
        generate: called as generate(codes (K, dim), count) -> (count, dim): a network, ``nn.CodeGenerator``, trained along; or
            ``resize_codes``, which needs no training.

    In training adapted codes are generated at each call, with a gradient to the network; the source codes are constants to it (our
    reading, so that they are those of the plain method). In eval mode the codes of each count are kept, see ``GeneratedCodebook``.

    Source: Seo and Kang 2024 (arXiv 2405.14222), section 3.
    """

    def __init__(self, source: Codebook, generate: Callable[[Tensor, int], Tensor]):
        super().__init__(source.size, source.dim)
        self.source = source
        self.generate = generate

    @property
    def trained_by_gradient(self) -> bool:
        return self.source.trained_by_gradient

    @property
    def weighs_updates(self) -> bool:
        return self.source.weighs_updates

    @property
    def cosine(self) -> bool:
        return getattr(self.source, "cosine", False)

    def forward(self) -> Tensor:
        return self.source()

    def adapted(self, count: int) -> Tensor:
        """``count`` generated codes, (count, dim). Raises ValueError for a count below 1."""
        if count < 1:
            raise ValueError(f"count: expected at least 1, got {count}")
        return self._current(count, lambda: self._adapted(count))

    def prepare(self, latents: Tensor, valid: Tensor) -> None:
        self.source.prepare(latents, valid)

    def observe(self, latents: Tensor, indices: Tensor, *weight: float | Tensor) -> None:
        self.source.observe(latents, indices, *weight)

    def _adapted(self, count: int) -> Tensor:
        codes = self.generate(self.source().detach(), count)
        if tuple(codes.shape) != (count, self.dim):
            raise ValueError(f"generate: expected a result of shape {(count, self.dim)}, got {tuple(codes.shape)}")
        return codes


def resize_codes(codes: Tensor, count: int) -> Tensor:
    """``count`` codes in the place of these (K, D), without training: ``cluster_codes`` for fewer, ``expand_codes`` for more."""
    if count == len(codes):
        return codes
    return cluster_codes(codes, count) if count < len(codes) else expand_codes(codes, count)


def cluster_codes(codes: Tensor, count: int, *, temperature: float = 0.01, iterations: int = 200) -> Tensor:
    """Fewer codes: the centres of a softmax k-means over ``codes`` (K, D), from ``count`` of them drawn with a seed of its own.

    Returns (count, D), with a gradient to ``codes``; temperature and iterations as in ``soft_kmeans``.
    Raises ValueError unless 1 <= count <= K.

    Source: Seo and Kang 2024 (arXiv 2405.14222), section 3.3.
    """
    if not 1 <= count <= len(codes):
        raise ValueError(f"count: expected 1 <= count <= {len(codes)}, the number of codes, got {count}")
    drawn = torch.randperm(len(codes), generator=_own_generator())[:count].to(codes.device)
    return soft_kmeans(codes, codes[drawn], temperature=temperature, iterations=iterations)


def soft_kmeans(
    points: Tensor, centres: Tensor, *, temperature: float = 0.01, iterations: int = 200, tolerance: float = 1e-4
) -> Tensor:
    """Differentiable k-means: p_ij = softmax_j(-|x_i - c_j| / (temperature s));  c_j <- sum_i p_ij x_i / sum_i p_ij.

    points: (N, D).  centres: (K, D), where it starts.
    temperature: in units of s, the root mean square distance of the points from their mean (our reading: the published 0.01 is a
        plain number, and would merge codes of a small scale).
    iterations: at most; it stops when no coordinate of a centre moves by more than tolerance * s.
    Returns the centres (K, D), with gradients to ``points`` and ``centres`` through all iterations. A centre that no point is near
    stays. Blocks of N x K shares are made at a time and made again in the backward pass: O(iterations K D) memory. Waits for the device.

    Source: Cho et al. 2022 (arXiv 2108.12659), section 3.
    """
    if temperature <= 0:
        raise ValueError(f"temperature: expected more than 0, got {temperature}")
    spread = _spread(points)
    for _ in range(iterations):
        pairs = [_saving_memory(_shares, block, centres, temperature * spread) for block in _blocks(points, centres)]
        mass, sums = (sum(parts) for parts in zip(*pairs))
        near = mass > torch.finfo(mass.dtype).tiny
        moved = torch.where(near[:, None], sums / mass.where(near, 1.0)[:, None], centres)
        step, centres = (moved.detach() - centres.detach()).abs().max(), moved
        if step <= tolerance * spread:
            break
    return centres


def expand_codes(
    codes: Tensor, count: int, *, steps: int = 100, lr: float = 0.02, temperature: float = 0.01, iterations: int = 10
) -> Tensor:
    """More codes: ``count`` of them, optimised until their own softmax k-means gives back ``codes`` (K, D).

    loss = MMD^2(m, codes) + mean |m - codes|^2, with m = soft_kmeans(new codes, from codes), all in units of the codes' spread

    The new codes start as the codes, in turn, with noise of a tenth of the spread and a seed of its own; Adam with this lr for this many
    steps. Start, steps, lr and the fewer iterations, of a k-means that starts at its solution, are our readings.
    Returns (count, D), without gradient. Raises ValueError for a count below K.

    Source: Seo and Kang 2024 (arXiv 2405.14222), section 3.3; kernels of ``mmd``.
    """
    if count < len(codes):
        raise ValueError(f"count: expected at least {len(codes)}, the number of codes, got {count}")
    # A gradient is wanted also where the caller, who only reads codes, wants none.
    with torch.inference_mode(False), torch.enable_grad():
        spread = _spread(codes)
        target = codes.detach().clone().to(torch.promote_types(codes.dtype, torch.float32)) / spread
        noise = torch.randn(count, codes.shape[1], generator=_own_generator(), dtype=target.dtype).to(codes.device)
        taken = torch.arange(count, device=codes.device) % len(codes)
        # The first of each code is the code.
        found = target[taken] + 0.1 * noise / codes.shape[1] ** 0.5 * (torch.arange(count, device=codes.device) >= len(codes))[:, None]
        found.requires_grad_()
        optimizer = torch.optim.Adam([found], lr)
        for _ in range(steps):
            means = soft_kmeans(found, target, temperature=temperature, iterations=iterations)
            loss = mmd(means, target) + (means - target).square().sum(-1).mean()
            (found.grad,) = torch.autograd.grad(loss, found)
            optimizer.step()
    return (found.detach() * spread).to(codes.dtype)


def mmd(first: Tensor, second: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of (N, D) and (M, D), (): mean k(x, x') + mean k(y, y') - 2 mean k(x, y).

    k(x, y) = sum over a in (0.2, 0.5, 0.9, 1.3) of a^2 / (a^2 + |x - y|^2). The widths are published, the form of the kernel is our
    reading. Gradients to both; kernels are made in blocks.

    Source: Gretton et al. 2012, Journal of Machine Learning Research 13, equation 5.
    """
    return _mean_kernel(first, first) + _mean_kernel(second, second) - 2 * _mean_kernel(first, second)


def _mean_kernel(rows: Tensor, columns: Tensor) -> Tensor:
    total = sum(_saving_memory(_kernels, block, columns) for block in _blocks(rows, columns))
    return total / (len(rows) * len(columns))


def _kernels(rows: Tensor, columns: Tensor) -> Tensor:
    # Of squares, whose gradient at distance zero is zero and not 0 / 0.
    squares = torch.cdist(rows, columns).square()
    return sum((width**2 / (width**2 + squares)).sum() for width in _BANDWIDTHS)


def _shares(points: Tensor, centres: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    shares = (-torch.cdist(points, centres) / scale).softmax(-1)
    return shares.sum(0), shares.T @ points


def _spread(points: Tensor) -> Tensor:
    """Root mean square distance from the mean, a constant; 1 for points that are all the same."""
    spread = torch.linalg.vector_norm(points.detach() - points.detach().mean(0)) / len(points) ** 0.5
    return spread.where(spread > 0, 1.0)


def _blocks(rows: Tensor, columns: Tensor) -> Iterator[Tensor]:
    return iter(rows.split(max(1, _BLOCK // len(columns))))


def _saving_memory(function: Callable, *arguments: Tensor):
    """The result, whose inner values are computed again in the backward pass."""
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


def _own_generator() -> torch.Generator:
    """The same draws at each call and on every rank; the caller's random numbers are left alone."""
    return torch.Generator().manual_seed(0)
