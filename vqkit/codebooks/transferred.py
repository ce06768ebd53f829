"""A codebook generated from a language model's word vectors by a transfer network (VQCT)."""

import torch
from torch import Tensor, nn

from vqkit.codebooks.codebook import Codebook
from vqkit.ops import Graph


class TransferredCodebook(Codebook):
    """codes = network(word vectors, graph): every code moves when any one of its neighbours is selected.

    Args:
        word_vectors: (K, W) float32, constants: one row a word, one word a code.
        network: called as network(word_vectors, graph) -> (K, dim), with an attribute ``out_dim``; ``nn.GraphTransfer``,
            ``nn.MLPTransfer``.
        graph: relations between the words, or None for a network that uses none.

    In training the whole codebook is generated at each step, with the network's own dropout. In eval mode it is constant:
    generated once, without gradient and outside autocast, kept, and generated again after a parameter or a buffer was replaced or
    written in place, after ``train``, ``eval`` or ``load_state_dict``, or on another device or in another dtype. Writes through
    ``.data`` are not seen, nor are any to tensors made under ``torch.inference_mode``: call ``eval`` after them. A compiled,
    exported or captured (CUDA graph) forward generates the codebook at every call.

    Source: Zhang et al. 2024 (arXiv 2403.10071), section 3.3.
    """

    trained_by_gradient = True

    def __init__(self, word_vectors: Tensor, network: nn.Module, graph: Graph | None):
        if word_vectors.ndim != 2 or not word_vectors.is_floating_point():
            raise ValueError(f"word_vectors: expected floating point (K, W), got {word_vectors.dtype} {tuple(word_vectors.shape)}")
        if graph is not None and graph.num_nodes != len(word_vectors):
            raise ValueError(f"graph: expected a node for each of the {len(word_vectors)} words, got {graph.num_nodes} nodes")
        super().__init__(len(word_vectors), network.out_dim)
        self.network = network
        self.register_buffer("word_vectors", word_vectors.clone())
        for name in ("offsets", "neighbours", "weights"):
            self.register_buffer(f"graph_{name}", None if graph is None else getattr(graph, name).clone())
        self.symmetric = graph is not None and graph.symmetric
        # The codes of eval mode, and every tensor that they come from with its version.
        self._generated: tuple[Tensor, list[tuple[Tensor, int | None]]] | None = None

    @property
    def graph(self) -> Graph | None:
        """The relations between the words, on the device of the codebook."""
        if self.graph_offsets is None:
            return None
        return Graph(self.graph_offsets, self.graph_neighbours, self.graph_weights, self.symmetric)

    def forward(self) -> Tensor:
        if self.training:
            return self._generate()
        # A graph could neither see a change nor own what is kept for others.
        if torch.compiler.is_compiling() or (self.word_vectors.is_cuda and torch.cuda.is_current_stream_capturing()):
            with torch.no_grad():
                return self._generate()
        sources = [(tensor, _version(tensor)) for tensor in (*self.parameters(), *self.buffers())]
        if self._generated is None or not _same(sources, self._generated[1]):
            # Codes made in inference mode could not be saved for a later backward pass.
            with torch.inference_mode(False), torch.no_grad():
                self._generated = self._generate(), sources
        return self._generated[0]

    def _generate(self) -> Tensor:
        # Codes are compared in float32 or better; and a kept codebook must not depend on who asked first.
        with torch.autocast(self.word_vectors.device.type, enabled=False):
            return self.network(self.word_vectors, self.graph)

    def train(self, mode: bool = True):
        self._generated = None
        return super().train(mode)

    def _apply(self, fn, recurse=True):
        self._generated = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args, **kwargs):
        self._generated = None
        super()._load_from_state_dict(*args, **kwargs)


def _same(sources: list[tuple[Tensor, int | None]], earlier: list[tuple[Tensor, int | None]]) -> bool:
    # The tensors themselves are compared: an id may be that of an earlier one that is gone.
    return len(sources) == len(earlier) and all(a is b and v == w for (a, v), (b, w) in zip(sources, earlier))


def _version(tensor: Tensor) -> int | None:
    """How often it was written in place; inference tensors do not count."""
    return None if tensor.is_inference() else tensor._version
