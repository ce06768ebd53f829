"""Grounding: whether the box that a model gives for a phrase is that of the thing."""

import torch
from torch import Tensor


def box_iou(boxes: Tensor, targets: Tensor) -> Tensor:
    """Intersection over union of each box with its target.

        IoU = |A and B| / (|A| + |B| - |A and B|)

    Args:
        boxes, targets: (B, 4), [x0, y0, x1, y1] with x0 <= x1 and y0 <= y1, in any unit that both share, of any dtype.

    Returns float64 (B,), 0 .. 1; a box without area has 0, with itself too. No gradient.
    Raises ValueError where the shapes differ, a coordinate is not finite, or a box ends before it starts.
    """
    boxes, targets = _checked("boxes", boxes), _checked("targets", targets)
    if boxes.shape != targets.shape:
        raise ValueError(f"targets: expected one box for each of boxes, {tuple(boxes.shape)}, got {tuple(targets.shape)}")
    sides = torch.minimum(boxes[:, 2:], targets[:, 2:]) - torch.maximum(boxes[:, :2], targets[:, :2])
    shared = sides.clamp_min(0).prod(1)
    union = _area(boxes) + _area(targets) - shared
    return torch.where(shared > 0, shared / union, 0.0)


def grounding_accuracy(boxes: Tensor, targets: Tensor, threshold: float = 0.5) -> float:
    """The fraction of boxes whose IoU with their target is at least `threshold`, 0 .. 1; 0 for no box.

    Arguments and errors as in `box_iou`; also ValueError for a threshold outside 0 < t <= 1.
    Source: accuracy@0.5 of referring expressions; "at least" as in TransVG, arXiv 2104.08541.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold: expected above 0 and at most 1, got {threshold}")
    overlaps = box_iou(boxes, targets)
    return (overlaps >= threshold).double().mean().item() if len(overlaps) else 0.0


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)


def _checked(name: str, boxes: Tensor) -> Tensor:
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{name}: expected (B, 4), got {tuple(boxes.shape)}")
    boxes = boxes.detach().double()
    wrong = ~boxes.isfinite().all(1) | (boxes[:, 2:] < boxes[:, :2]).any(1)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(f"{name}: expected finite [x0, y0, x1, y1] with x0 <= x1 and y0 <= y1, got {boxes[row].tolist()} in row {row}")
    return boxes
