"""Transfer networks against dense algebra in float64."""

import pytest
import torch

from vqkit.nn import GraphAttention, GraphConvolution, GraphTransfer, MLPTransfer
from vqkit.ops import Graph

EDGES = [(0, 3), (1, 3), (1, 4), (1, 4), (5, 6)]
NODES = 8


def dense(weights=None):
    """D^-1/2 (A + I) D^-1/2 of the edges above."""
    adjacency = torch.eye(NODES, dtype=torch.float64)
    for (a, b), weight in zip(EDGES, weights or [1.0] * len(EDGES), strict=True):
        adjacency[a, b] += weight
        adjacency[b, a] += weight
    scale = adjacency.sum(1).rsqrt()
    return scale[:, None] * adjacency * scale


@pytest.fixture
def graph():
    return Graph.from_edges(torch.tensor(EDGES), NODES)


@pytest.mark.parametrize(("in_dim", "out_dim"), [(3, 7), (7, 3), (5, 5), (1, 4)])
def test_convolution_is_the_dense_product_whichever_side_is_aggregated(graph, in_dim, out_dim):
    torch.manual_seed(in_dim)
    layer = GraphConvolution(in_dim, out_dim)
    with torch.no_grad():
        layer.bias.uniform_()
    features = torch.randn(NODES, in_dim, requires_grad=True)
    output = layer(features, graph)

    exact = {name: p.detach().double().requires_grad_() for name, p in layer.named_parameters()}
    exact_features = features.detach().double().requires_grad_()
    expected = dense() @ exact_features @ exact["weight"] + exact["bias"]
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-6)

    gradient = torch.randn(NODES, out_dim)
    output.backward(gradient)
    expected.backward(gradient.double())
    torch.testing.assert_close(features.grad.double(), exact_features.grad, rtol=1e-5, atol=1e-6)
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.grad.double(), exact[name].grad, rtol=1e-5, atol=1e-5)


def test_transfer_is_two_convolutions_with_relu(graph):
    torch.manual_seed(0)
    network = GraphTransfer(6, 9, 4).eval()
    features = torch.randn(NODES, 6)
    first, second = network.first, network.second
    hidden = (dense() @ features.double() @ first.weight.double() + first.bias).relu()
    expected = dense() @ hidden @ second.weight.double() + second.bias
    torch.testing.assert_close(network(features, graph).double(), expected, rtol=1e-5, atol=1e-6)
    assert network.out_dim == 4


def test_a_code_sees_the_words_within_two_edges(graph):
    torch.manual_seed(0)
    network = GraphTransfer(6, 32, 4).eval()
    features = torch.randn(NODES, 6, requires_grad=True)
    adjacency = dense() > 0
    within_two = (adjacency.double() @ adjacency.double()) > 0
    for node in range(NODES):
        (gradient,) = torch.autograd.grad(network(features, graph)[node].sum(), features)
        assert torch.equal(gradient.abs().sum(1) > 0, within_two[node])


def test_dropout_acts_in_training_only(graph):
    network = GraphTransfer(6, 9, 4, dropout=0.5)
    features = torch.randn(NODES, 6)
    assert not torch.equal(network(features, graph), network(features, graph))
    network.eval()
    assert torch.equal(network(features, graph), network(features, graph))


def test_published_size():
    assert sum(p.numel() for p in GraphTransfer(512, 256, 256).parameters()) == 197_120
    # an MLP of these widths has as many
    assert sum(p.numel() for p in MLPTransfer(512, 256, 256).parameters()) == 197_120


def test_perceptron_treats_every_word_alone(graph):
    torch.manual_seed(0)
    network = MLPTransfer(6, 9, 4)
    features = torch.randn(NODES, 6)
    codes = network(features, graph)
    torch.testing.assert_close(codes, network(features))
    first, _, second = network.layers
    hidden = features.double() @ first.weight.double().T + first.bias
    hidden = torch.where(hidden > 0, hidden, 0.1 * hidden)
    torch.testing.assert_close(codes.double(), hidden @ second.weight.double().T + second.bias, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(network(features[2:5]), codes[2:5])


@pytest.mark.parametrize("shape", [(NODES - 1, 6), (NODES, 5), (NODES, 6, 1)])
def test_features_that_do_not_fit(graph, shape):
    with pytest.raises(ValueError, match=r"features: got shape"):
        GraphTransfer(6, 9, 4)(torch.randn(shape), graph)


def test_graph_attention_follows_its_formula(graph):
    torch.manual_seed(2)
    layer, features = GraphAttention(3, 4, heads=2).double(), torch.randn(NODES, 3, dtype=torch.float64, requires_grad=True)
    values = layer.weight(features).view(NODES, 2, 2)
    expected = torch.zeros(NODES, 2, 2, dtype=torch.float64)
    for node in range(NODES):
        near = graph.neighbours[graph.offsets[node] : graph.offsets[node + 1]]
        scores = torch.nn.functional.leaky_relu((values[node] * layer.left).sum(-1) + (values[near] * layer.right).sum(-1), 0.2)
        expected[node] = (scores.softmax(0)[..., None] * values[near]).sum(0)
    torch.testing.assert_close(layer(features, graph), expected.flatten(1))
    assert torch.autograd.gradcheck(lambda x: layer(x, graph), features)
    with pytest.raises(ValueError, match="heads: expected a divisor of out_dim 4, got 3"):
        GraphAttention(3, 4, heads=3)
