"""The transformer over a map, against its formula, on maps of any size."""

import pytest
import torch

from vqkit.nn.map_transformer import MapTransformer


@pytest.mark.parametrize("size", [(3, 3), (2, 5), (1, 1)])
def test_a_map_becomes_a_summary_and_its_positions(size):
    network = MapTransformer(5, 3, 8, 2, 1, 6).double()
    maps = torch.randn(2, 5, *size, dtype=torch.float64)
    rows = [network.summary[0, 0].expand(2, -1)]
    placed = network.positions(*size)[0]
    rows += [network.embed(maps[:, :, y, x]) + placed[y * size[1] + x] for y in range(size[0]) for x in range(size[1])]
    x = torch.stack(rows, 1)
    for block in network.blocks:
        x = block(x)
    torch.testing.assert_close(network(maps), network.project(network.norm(x)))


def test_places_matter_and_every_position_reaches_the_summary():
    network = MapTransformer(5, 3, 8, 1, 1, 6)
    maps = torch.randn(1, 5, 3, 3, requires_grad=True)
    network(maps)[:, 0].sum().backward()
    assert (maps.grad.abs().sum(1) > 0).all()
    assert not torch.allclose(network(maps)[:, 0], network(maps.flip(-1))[:, 0], atol=1e-5)
