"""A codebook generated from a language model's word vectors by a transfer network (VQCT)."""

from torch import Tensor, nn

from vqkit.codebooks.generated import GeneratedCodebook
from vqkit.ops import Graph


class TransferredCodebook(GeneratedCodebook):
    """codes = network(word vectors, graph): every code moves when any one of its neighbours is selected.

    Args:
        word_vectors: (V, W) float32, constants: one row a word, one word a code.
        network: called as network(word_vectors, graph) -> (V, dim), with an attribute ``out_dim``; ``nn.GraphTransfer``,
            ``nn.GraphAttentionTransfer``, ``nn.MLPTransfer``, ``nn.LinearTransfer``, ``nn.NoTransfer``.
        graph: relations between the words, or None for a network that uses none.
        rows: (first, end) of the words that become codes; all take part in the network. Default: all.

    In training the whole codebook is generated at each step, with the network's own dropout. In eval mode it is kept, see
    ``GeneratedCodebook``.

    Source: Zhang et al. 2024 (arXiv 2403.10071), section 3.3.
    """

    def __init__(self, word_vectors: Tensor, network: nn.Module, graph: Graph | None, rows: tuple[int, int] | None = None):
        if word_vectors.ndim != 2 or not word_vectors.is_floating_point():
            raise ValueError(f"word_vectors: expected floating point (K, W), got {word_vectors.dtype} {tuple(word_vectors.shape)}")
        if graph is not None and graph.num_nodes != len(word_vectors):
            raise ValueError(f"graph: expected a node for each of the {len(word_vectors)} words, got {graph.num_nodes} nodes")
        first, end = rows or (0, len(word_vectors))
        if not 0 <= first < end <= len(word_vectors):
            raise ValueError(f"rows: expected 0 <= first < end <= {len(word_vectors)}, got {rows}")
        super().__init__(end - first, network.out_dim)
        self.network = network
        self.rows = (first, end)
        self.register_buffer("word_vectors", word_vectors.clone())
        for name in ("offsets", "neighbours", "weights"):
            self.register_buffer(f"graph_{name}", None if graph is None else getattr(graph, name).clone())
        self.symmetric = graph is not None and graph.symmetric

    @property
    def graph(self) -> Graph | None:
        """The relations between the words, on the device of the codebook."""
        if self.graph_offsets is None:
            return None
        return Graph(self.graph_offsets, self.graph_neighbours, self.graph_weights, self.symmetric)

    def _generate(self) -> Tensor:
        first, end = self.rows
        return self.network(self.word_vectors, self.graph)[first:end]
