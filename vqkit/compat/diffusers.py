"""diffusers' quantizer, ``diffusers.models.autoencoders.vae.VectorQuantizer``, of its ``VQModel``."""

from torch import Tensor, nn

from vqkit.compat import taming
from vqkit.compat.replacement import attributes, checked, plain_embedding, replaces, take_state


class VectorQuantizer(taming.VectorQuantizer2):
    """``taming.VectorQuantizer2`` under diffusers' names: e_dim is ``vq_embed_dim``, and ``forward`` takes ``z`` alone.

    Source: diffusers, ``VQModel``; van den Oord et al. 2017 (arXiv 1711.00937), equation 3.
    """

    def __init__(
        self,
        n_e: int,
        vq_embed_dim: int,
        beta: float,
        remap: str | Tensor | None = None,
        unknown_index: str | int = "random",
        sane_index_shape: bool = False,
        legacy: bool = True,
    ):
        super().__init__(n_e, vq_embed_dim, beta, remap, unknown_index, sane_index_shape, legacy)
        self.vq_embed_dim = vq_embed_dim

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, tuple[None, None, Tensor]]:
        return super().forward(z)


@replaces("diffusers.models.autoencoders.vae.VectorQuantizer", "diffusers.models.vae.VectorQuantizer", "VectorQuantizer")
def _vector_quantizer(module: nn.Module) -> nn.Module:
    n_e, dim, beta, legacy, sane = attributes(module, "n_e", "vq_embed_dim", "beta", "legacy", "sane_index_shape")
    embedding = plain_embedding(module)
    ours = VectorQuantizer(n_e, dim, beta, **taming.with_remap(module), sane_index_shape=sane, legacy=legacy)
    ours = take_state(module, ours)
    ours.embedding = embedding
    return checked(module, ours, 2, dim, 2, 2, codes=("embedding.weight",), run=taming.without_draws)
