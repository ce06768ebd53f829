"""Two ranks that share the pictures between them report what one rank does of all."""

import json

import pytest
import torch

_PROGRAM = """
import json, sys
import torch, torch.distributed as dist
from vqkit.metrics import FeatureStatistics, Features, PictureFeatures, PictureSet, compare_pictures, frechet_distance

torch.set_num_threads(1)


class Colours(PictureFeatures):
    name, dim = "colours", 6

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(6, 3, generator=torch.Generator().manual_seed(0)))

    def describe(self, pictures):
        pooled = torch.cat([pictures.mean((2, 3)), pictures.std((2, 3))], 1)
        return Features(pooled, pooled @ self.weight)


def measured(rank, world):
    network, draws = Colours(), torch.Generator().manual_seed(1)
    sets, statistics = [], []
    # 41 and 3 pictures: the ranks have different numbers of them, of the last set one rank has none
    for count, brightness in ((41, 200), (37, 150), (3, 99)):
        pictures = torch.randint(0, brightness, (count, 3, 8, 8), generator=draws).to(torch.uint8)
        chosen, found = PictureSet(network), FeatureStatistics(6)
        for numbers in list(torch.arange(count).split(5))[rank::world]:
            chosen.add(pictures[numbers], numbers)
            found.add(network(pictures[numbers]).pooled)
        sets.append(chosen.reduced())
        statistics.append(found.reduced())
    distances = compare_pictures(sets[0], sets[1]) | {"few": sets[2].pooled.tolist(), "count": statistics[2].count}
    return distances | {"streamed": frechet_distance(*statistics[:2])}


alone = measured(0, 1)
dist.init_process_group("gloo")
together = measured(dist.get_rank(), 2)
with open(f"{sys.argv[1]}/{dist.get_rank()}.json", "w") as file:
    json.dump([alone, together], file)
dist.destroy_process_group()
"""


def test_two_ranks_report_what_one_does(tmp_path, two_ranks):
    two_ranks(_PROGRAM)
    (alone, together), (_, other) = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert together == other
    assert together["count"] == alone["count"] == 3
    torch.testing.assert_close(torch.tensor(together.pop("few")), torch.tensor(alone.pop("few")), rtol=0, atol=0)
    streamed = together.pop("streamed"), alone.pop("streamed")
    assert together == alone
    assert streamed[0] == pytest.approx(streamed[1], rel=1e-9)
    # Features are float32 where sets are compared, and so are those that were streamed.
    assert streamed[1] == pytest.approx(alone["fd_colours"], rel=1e-9)
