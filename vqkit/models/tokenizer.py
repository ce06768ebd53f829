"""What every tokenizer is: an encoder, a quantizer and a decoder, with pictures on both ends."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vqkit.metrics.usage import count_codes
from vqkit.models.pretrained import PretrainedModel
from vqkit.models.trunk import Trunk
from vqkit.quantizers import ProductQuantizer, Quantized, Quantizer, ResidualQuantizer


class TokenizerOutput(NamedTuple):
    """What a forward pass of a tokenizer gives; B pictures of H x W pixels, h = H / f, w = W / f.

    reconstruction: (B, 3, H, W), not clamped, differentiable in all parameters.
    loss: scalar, the quantizer's weighted loss; zero without a quantizer.
    losses: its terms, unweighted, by name ("commitment", "codebook"), summed over the parts.
    indices: int64 (B, h, w), or (B, h, w, S) where S codes are selected a position, by a product or by depths; None without a quantizer.
    usage, perplexity: scalars of this batch, means over the parts; None without a quantizer.
    parts: each part's own `Quantized`; one entry for a single quantizer, none without.
    quantized: (B, D, h, w), what the decoder saw, for objectives that look at codes.
    logit_laplace: mean and log scale, each (B, 3, H, W), of a decoder that predicts the distribution of every value, of which the
        reconstruction is the median; else None.
    """

    reconstruction: Tensor
    loss: Tensor
    losses: dict[str, Tensor]
    indices: Tensor | None
    usage: Tensor | None
    perplexity: Tensor | None
    parts: tuple[Quantized, ...]
    quantized: Tensor
    logit_laplace: tuple[Tensor, Tensor] | None = None


class Tokenizer(PretrainedModel):
    """Pictures in [-1, 1] to a grid of code indices, and back.

    A subclass sets `name` and `Config`, a frozen dataclass of JSON values, and builds the modules. Attributes:
        config: the configuration as JSON values, enough for `from_pretrained` to build the model again.
        downsampling: f. Height and width of pictures have to be multiples of it.
        codebook_sizes: K of each part; selections: how many codes each part selects a position, and averages.
        loss_weights: by the names of `TokenizerOutput.losses`.

    `decode(encode(x))` equals the eval-mode `forward(x).reconstruction`, clamped to [-1, 1], for x of the model's dtype.
    """

    # subclasses with a language prior name their codes, and their parts
    words: tuple[list[str], ...] | None = None
    part_names: tuple[str, ...] | None = None

    def __init__(
        self,
        config: dict[str, Any],
        downsampling: int,
        trunk: Trunk,
        quantizer: Quantizer | ProductQuantizer | ResidualQuantizer | None,
        loss_weights: dict[str, float],
    ):
        super().__init__(config)
        self.downsampling = downsampling
        self.encoder, self.to_codes, self.from_codes, self.decoder = trunk
        self.quantizer = quantizer
        self.loss_weights = loss_weights

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight of the decoder's last convolution, at which the adversarial weight is balanced."""
        return self.decoder.last_layer

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return () if self.quantizer is None else self.quantizer.codebook_sizes

    @property
    def selections(self) -> tuple[int, ...]:
        return () if self.quantizer is None else self.quantizer.selections

    def forward(self, images: Tensor) -> TokenizerOutput:
        """Reconstruct (B, 3, H, W) in [-1, 1]; in training mode the codebook learns from the batch.

        Raises ValueError or TypeError for pictures of another shape or type.
        """
        latents = self._latents(images)
        if self.quantizer is None:
            reconstruction, distribution = self._reconstruct(latents)
            return TokenizerOutput(reconstruction, latents.new_zeros(()), {}, None, None, None, (), latents, distribution)
        return self._output(self.quantizer(latents))

    def _output(self, found: Quantized) -> TokenizerOutput:
        """What `forward` gives for what the quantizer gave."""
        reconstruction, distribution = self._reconstruct(found.quantized)
        return TokenizerOutput(
            reconstruction,
            sum(self.loss_weights[name] * term for name, term in found.losses.items()),
            found.losses,
            found.indices,
            found.usage,
            found.perplexity,
            found.parts or (found,),
            found.quantized,
            distribution,
        )

    def encode(self, images: Tensor) -> Tensor:
        """The indices of (B, 3, H, W) in [-1, 1]: int64 (B, h, w), or (B, h, w, S). Nothing learns from it."""
        return self._required_quantizer().encode(self._latents(images))

    def decode(self, indices: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), clamped to [-1, 1], from indices as `encode` gives them.

        Raises ValueError for another shape or an index outside the codebook.
        """
        quantizer = self._required_quantizer()
        self._check_indices(indices)
        # what `to_codes` gives the quantizer, and the quantizer gives back
        dtype = next(self.to_codes.parameters()).dtype
        return self._reconstruct(quantizer.decode(indices, dtype=dtype))[0].clamp(-1, 1)

    def count_codes(self, indices: Tensor) -> list[Tensor]:
        """How often each code was selected: one int64 (K,) a part; see `vqkit.metrics.count_codes`."""
        return count_codes(indices, self.codebook_sizes, self.selections) if self.quantizer is not None else []

    def _latents(self, images: Tensor) -> Tensor:
        if not images.is_floating_point():
            raise TypeError(f"images: got {images.dtype}, expected floating point in [-1, 1]")
        f, shape = self.downsampling, tuple(images.shape)
        if len(shape) != 4 or shape[1] != 3:
            raise ValueError(f"images: got shape {shape}, expected (B, 3, H, W)")
        if shape[2] % f or shape[3] % f or not shape[2] or not shape[3]:
            raise ValueError(f"images: got {shape[2]}x{shape[3]} pixels, expected multiples of f = {f} in both")
        return self.to_codes(self.encoder(images))

    def _reconstruct(self, quantized: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Pictures, and their distribution from decoders that predict one, from what the quantizer gives."""
        return self.decoder(self.from_codes(quantized)), None

    def _required_quantizer(self) -> Quantizer | ProductQuantizer | ResidualQuantizer:
        if self.quantizer is None:
            raise ValueError("quantize: this model is a plain autoencoder (quantize=False) and has no codes; call forward")
        return self.quantizer

    def _check_indices(self, indices: Tensor) -> None:
        several = isinstance(self.quantizer, (ProductQuantizer, ResidualQuantizer)) or sum(self.selections) > 1
        shape = tuple(indices.shape)
        if len(shape) != 3 + several or (several and shape[-1] != sum(self.selections)):
            expected = f"(B, h, w, {sum(self.selections)})" if several else "(B, h, w)"
            raise ValueError(f"indices: got shape {shape}, expected {expected}")
        # a compiled graph cannot look at values
        if not torch.compiler.is_compiling():
            self.count_codes(indices)

