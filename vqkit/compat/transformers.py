"""The quantizers of transformers' codecs and tokenizers: EnCodec, X-Codec, Higgs Audio, Mimi, DAC, Chameleon, Janus, Emu3, GLM-Image.

Of the residual quantizers around them only the codebooks are replaced: what surrounds those is a loop. No import of transformers: a
``config`` is any object with the attributes that are read.
"""

from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from vqkit.compat import dac
from vqkit.compat.embedding import EmbeddingQuantizer, as_feature_map, code_vectors, supplied_quantizer
from vqkit.compat.replacement import attributes, checked, plain_embedding, replaces, take_state


class _FrozenCodebook(nn.Module):
    """What transformers' codebooks share: codes that do not learn, found by ``encode`` and looked up by ``decode``."""

    embed: Tensor

    def __init__(self, codebook_size: int, codebook_dim: int):
        super().__init__()
        self.codebook_size = codebook_size
        self.quantizer = supplied_quantizer(codebook_size, codebook_dim, channel_first=False)

    def quantize(self, hidden_states: Tensor) -> Tensor:
        """The index of the nearest code of each row: (..., D) -> (...), int64; -1 for a row that is not finite."""
        return self.quantizer.encode(hidden_states, codes=self.embed)

    def encode(self, hidden_states: Tensor) -> Tensor:
        """As ``quantize``."""
        return self.quantize(hidden_states)

    def decode(self, embed_ind: Tensor) -> Tensor:
        """The codes of these indices, (...) -> (..., D); zero for -1."""
        return code_vectors(self.embed, embed_ind)


class EncodecEuclideanCodebook(_FrozenCodebook):
    """transformers' codebook of EnCodec, and of X-Codec and Higgs Audio, which have the same.

    config: has ``codebook_size`` and ``codebook_dim``. State: ``inited``, ``cluster_size``, ``embed``, ``embed_avg``.

    Source: Defossez et al. 2022 (arXiv 2210.13438), section 3.2.
    """

    def __init__(self, config):
        super().__init__(config.codebook_size, config.codebook_dim)
        self.register_buffer("inited", torch.ones(1))
        self.register_buffer("cluster_size", torch.zeros(config.codebook_size))
        self.register_buffer("embed", torch.zeros(config.codebook_size, config.codebook_dim))
        self.register_buffer("embed_avg", torch.zeros(config.codebook_size, config.codebook_dim))


class MimiEuclideanCodebook(_FrozenCodebook):
    """transformers' codebook of Mimi: codes = embed_sum / max(cluster_usage, epsilon).

    config: has ``codebook_size`` and ``codebook_dim``. State: ``initialized``, ``cluster_usage``, ``embed_sum``. The codes follow every
    change of these; transformers keeps those of the first call, also after other weights were loaded.

    Source: Defossez et al. 2024 (arXiv 2410.00037), section 3.3.1.
    """

    def __init__(self, config, epsilon: float = 1e-5):
        super().__init__(config.codebook_size, config.codebook_dim)
        self.epsilon = epsilon
        self.register_buffer("initialized", torch.ones(1))
        self.register_buffer("cluster_usage", torch.ones(config.codebook_size))
        self.register_buffer("embed_sum", torch.zeros(config.codebook_size, config.codebook_dim))

    @property
    def embed(self) -> Tensor:
        """(K, D)."""
        return self.embed_sum / self.cluster_usage.clamp(min=self.epsilon)[:, None]


class DacVectorQuantize(dac.VectorQuantize):
    """transformers' quantizer of DAC: ``dac.VectorQuantize`` with plain convolutions and losses that are means over the batch, ().

    config: has ``hidden_size``, ``codebook_size`` and ``codebook_dim``.
    """

    def __init__(self, config):
        super().__init__(config.hidden_size, config.codebook_size, config.codebook_dim, layer=nn.Conv1d)

    def forward(self, hidden_state: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        quantized, commitment, codebook, indices, latents = super().forward(hidden_state)
        return quantized, commitment.mean(), codebook.mean(), indices, latents


class ChameleonVQVAEVectorQuantizer(EmbeddingQuantizer):
    """transformers' quantizer of Chameleon's image tokenizer: loss = mean (x - sg q)^2 + beta mean (sg x - q)^2.

    config: has ``num_embeddings``, ``embed_dim`` and perhaps ``beta`` (0.25). ``forward`` of (B, D, H, W) -> quantized, loss (), indices (N,).

    Source: van den Oord et al. 2017 (arXiv 1711.00937), equation 3; Chameleon team 2024 (arXiv 2405.09818), section 2.1.
    """

    metric = "l2"

    def __init__(self, config):
        super().__init__(config.num_embeddings, config.embed_dim, metric=self.metric)
        self.num_embeddings = config.num_embeddings
        self.embedding_dim = config.embed_dim
        self.beta = getattr(config, "beta", 0.25)

    def forward(self, hidden_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        result = self.quantize_features(hidden_state)
        loss = result.losses["commitment"] + self.beta * result.losses["codebook"]
        return result.quantized, loss, result.indices.reshape(-1)


class GlmImageVQVAEVectorQuantizer(ChameleonVQVAEVectorQuantizer):
    """transformers' quantizer of GLM-Image: that of Chameleon with latents and codes of unit length."""

    metric = "cosine"


class JanusVQVAEVectorQuantizer(ChameleonVQVAEVectorQuantizer):
    """transformers' quantizer of Janus: that of Chameleon, and a look-up of codes of unit length. config: has ``num_patches`` too."""

    def __init__(self, config):
        super().__init__(config)
        self.quant_state_dims = [config.num_patches] * 2

    def get_codebook_entry(self, image_tokens: Tensor) -> Tensor:
        """The codes of tokens (B, P * P) as (B, D, P, P), each of unit length."""
        vectors = normalize(code_vectors(self.embedding.weight, image_tokens), dim=-1)
        return as_feature_map(vectors, (len(image_tokens), *self.quant_state_dims, self.embedding_dim))


class Emu3VQVAEVectorQuantizer(EmbeddingQuantizer):
    """transformers' quantizer of Emu3's video tokenizer: latents (B, T, D, H, W) -> indices (B, T, H, W).

    config: has ``codebook_size`` and ``embed_dim``.
    """

    def __init__(self, config):
        super().__init__(config.codebook_size, config.embed_dim)
        nn.init.uniform_(self.embedding.weight, -1 / config.codebook_size, 1 / config.codebook_size)

    def forward(self, hidden_state: Tensor) -> Tensor:
        return self.encode(hidden_state.movedim(2, 1))


def _encode_decode(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    # transformers' codebook of Mimi keeps the codes of its first call.
    if hasattr(module, "_embed"):
        module._embed = None
    indices = module.encode(x)
    return indices, module.decode(indices)


@replaces(
    "transformers.models.encodec.modeling_encodec.EncodecEuclideanCodebook",
    "transformers.models.xcodec.modeling_xcodec.XcodecEuclideanCodebook",
    "transformers.models.higgs_audio_v2_tokenizer.modeling_higgs_audio_v2_tokenizer.HiggsAudioV2TokenizerEuclideanCodebook",
)
def _encodec_codebook(module: nn.Module) -> nn.Module:
    (embed,) = attributes(module, "embed")
    ours = take_state(module, EncodecEuclideanCodebook(_config(embed)))
    return checked(module, ours, 3, 2, embed.shape[1], codes=("embed",), run=_encode_decode)


@replaces("transformers.models.mimi.modeling_mimi.MimiEuclideanCodebook")
def _mimi_codebook(module: nn.Module) -> nn.Module:
    embed_sum, epsilon = attributes(module, "embed_sum", "epsilon")
    ours = take_state(module, MimiEuclideanCodebook(_config(embed_sum), epsilon))
    checked(module, ours, 3, 2, embed_sum.shape[1], codes=("embed_sum",), run=_encode_decode)
    # What it keeps may be out of date by the time that it is put back.
    module._embed = None
    return ours


@replaces("transformers.models.dac.modeling_dac.DacVectorQuantize")
def _dac(module: nn.Module) -> nn.Module:
    def build(channels: int, size: int, dim: int) -> nn.Module:
        return DacVectorQuantize(SimpleNamespace(hidden_size=channels, codebook_size=size, codebook_dim=dim))

    return dac.with_layers_of(module, build)


@replaces("transformers.models.chameleon.modeling_chameleon.ChameleonVQVAEVectorQuantizer")
def _chameleon(module: nn.Module) -> nn.Module:
    return _tokenizer(module, ChameleonVQVAEVectorQuantizer, beta=attributes(module, "beta")[0])


@replaces("transformers.models.glm_image.modeling_glm_image.GlmImageVQVAEVectorQuantizer")
def _glm_image(module: nn.Module) -> nn.Module:
    return _tokenizer(module, GlmImageVQVAEVectorQuantizer, beta=attributes(module, "beta")[0])


@replaces("transformers.models.janus.modeling_janus.JanusVQVAEVectorQuantizer")
def _janus(module: nn.Module) -> nn.Module:
    beta, sides = attributes(module, "beta", "quant_state_dims")
    return _tokenizer(module, JanusVQVAEVectorQuantizer, beta=beta, num_patches=sides[0])


@replaces("transformers.models.emu3.modeling_emu3.Emu3VQVAEVectorQuantizer")
def _emu3(module: nn.Module) -> nn.Module:
    return _tokenizer(module, Emu3VQVAEVectorQuantizer, leading=(2, 3))


def _tokenizer(module: nn.Module, cls: type[nn.Module], leading: tuple = (2,), **config) -> nn.Module:
    embedding = plain_embedding(module)
    size, dim = embedding.weight.shape
    ours = take_state(module, cls(SimpleNamespace(num_embeddings=size, codebook_size=size, embed_dim=dim, **config)))
    ours.embedding = embedding
    return checked(module, ours, *leading, dim, 2, 2, codes=("embedding.weight",))


def _config(codes: Tensor) -> SimpleNamespace:
    return SimpleNamespace(codebook_size=codes.shape[0], codebook_dim=codes.shape[1])
