"""Boxes against counted pixels and against values by hand."""

import pytest
import torch

from vqkit.metrics import box_iou, grounding_accuracy


def test_iou_is_that_of_counted_pixels():
    corners = torch.randint(0, 12, (200, 2, 2, 2), generator=torch.Generator().manual_seed(0)).sort(dim=2).values
    boxes, targets = corners.flatten(2).unbind(1)
    for found, box, target in zip(box_iou(boxes, targets), boxes, targets, strict=True):
        grids = torch.zeros(2, 12, 12, dtype=torch.bool)
        for grid, (x0, y0, x1, y1) in zip(grids, (box.tolist(), target.tolist()), strict=True):
            grid[y0:y1, x0:x1] = True
        both, either = (grids[0] & grids[1]).sum(), (grids[0] | grids[1]).sum()
        assert found.item() == pytest.approx((both / either).item() if both else 0.0, abs=1e-7)


def test_iou_is_in_float64_and_of_boxes_without_area_zero():
    box = torch.tensor([[0.0, 0.0, 0.1, 0.1]])
    found = box_iou(box, torch.tensor([[0.05, 0.0, 0.15, 0.1]]))
    assert found.dtype == torch.float64 and found.item() == pytest.approx(1 / 3, rel=1e-6)
    assert box_iou(box, box).item() == 1
    flat = torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.5, 0.5, 0.5, 0.5], [0.0, 0.0, 1.0, 1.0]])
    assert box_iou(flat, torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 2.0, 1.0]])).tolist() == [0, 0, 0]
    # Coordinates that float32 cannot tell apart.
    large = torch.tensor([[1e8, 0, 1e8 + 4, 1]], dtype=torch.float64)
    assert box_iou(large, large + torch.tensor([2.0, 0, 2, 0])).item() == pytest.approx(1 / 3)
    assert box_iou(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)


def test_accuracy_counts_boxes_that_reach_the_threshold():
    boxes = torch.tensor([[0, 0, 2, 2], [0, 0, 2, 1], [0, 0, 2, 1], [0, 0, 1, 1]])
    targets = torch.tensor([[0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 2, 3], [5, 5, 6, 6]])
    assert grounding_accuracy(boxes, targets) == 0.5
    assert grounding_accuracy(boxes, targets, 0.3) == 0.75
    assert grounding_accuracy(boxes[:0], targets[:0]) == 0.0


def test_wrong_boxes_are_named():
    good = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1]])
    with pytest.raises(ValueError, match=r"boxes: expected finite .*x0 <= x1.*got \[0.0, 0.0, -1.0, 1.0\] in row 1"):
        box_iou(torch.tensor([[0.0, 0, 1, 1], [0, 0, -1, 1]]), good)
    with pytest.raises(ValueError, match="targets: expected finite.*row 0"):
        grounding_accuracy(good, torch.tensor([[0.0, float("nan"), 1, 1], [0, 0, 1, 1]]))
    with pytest.raises(ValueError, match=r"boxes: expected \(B, 4\), got \(4,\)"):
        box_iou(good[0], good[0])
    with pytest.raises(ValueError, match="targets: expected one box for each"):
        box_iou(good, good[:1])
    with pytest.raises(ValueError, match="threshold: expected above 0"):
        grounding_accuracy(good, good, 0)
