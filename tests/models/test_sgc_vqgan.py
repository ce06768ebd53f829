"""SGC-VQGAN: masks of pixels become classes of positions, in training only."""

import pytest
import torch

from vqkit.models.sgc_vqgan import majority


def test_a_cell_has_the_class_of_most_of_its_pixels():
    mask = torch.randint(-1, 5, (3, 8, 12))
    mask[0, :4, :4] = -1
    mask[1, :4, :4] = torch.tensor([2, 1, 1, 2]).repeat(4, 1)
    found = majority(mask, 4, 5)
    for picture in range(3):
        for row in range(2):
            for column in range(3):
                cell = mask[picture, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten()
                counts = torch.bincount(cell[cell >= 0], minlength=5)
                expected = counts.tolist().index(counts.max()) if counts.any() else -1
                assert found[picture, row, column] == expected
    assert (found[0, 0, 0], found[1, 0, 0]) == (-1, 1)
    assert torch.equal(majority(mask.to(torch.int8), 4, 5), found)


def test_masks_guide_training_and_nothing_else(build, images):
    mask = torch.randint(-1, 5, (2, 16, 24), generator=torch.Generator().manual_seed(1))
    model, blind = build("sgc-vqgan-ema", semantic_weight=50.0), build("sgc-vqgan-ema", semantic_weight=50.0)
    for _ in range(3):
        output, other = model(images, mask), blind(images)
    assert not torch.equal(output.indices, other.indices)
    assert model.quantizer.codebook.class_counts.sum() > 0 and blind.quantizer.codebook.class_counts.sum() == 0
    torch.testing.assert_close(output.loss, 0.25 * output.losses["commitment"])
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(images, mask).indices, model.encode(images))


def test_learning_with_masks(build):
    torch.manual_seed(0)
    mask = torch.randint(0, 5, (4, 4, 4)).repeat_interleave(4, 1).repeat_interleave(4, 2)
    colours = torch.rand(5, 3) * 2 - 1
    pictures = colours[mask].movedim(-1, 1)
    model, losses = build("sgc-vqgan-ema", decay=0.9, threshold_ema_dead_code=0.1), []
    optimizer = torch.optim.Adam(model.parameters(), 4e-3)
    for _ in range(60):
        output = model(pictures, mask)
        error = (output.reconstruction - pictures).abs().mean()
        optimizer.zero_grad()
        (error + output.loss).backward()
        optimizer.step()
        losses.append(error.item())
    assert losses[-1] < 0.5 * losses[0], losses[::10]
    counts = model.quantizer.codebook.class_counts
    assert counts.amax(1).sum() > 0.9 * counts.sum()


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.zeros(2, 16, 16, dtype=torch.int64), ValueError, r"mask: got torch.int64 \(2, 16, 16\), expected .* \(2, 16, 24\)"),
        (torch.zeros(2, 16, 24), ValueError, "mask: got torch.float32"),
        (torch.full((2, 16, 24), 255), IndexError, r"mask: got classes 255\.\.255, expected -1\.\.4"),
    ],
)
def test_masks_that_do_not_fit(build, images, mask, error, message):
    with pytest.raises(error, match=message):
        build("sgc-vqgan-ema")(images, mask)


def test_settings_that_do_not_fit(build):
    with pytest.raises(ValueError, match="classes: expected at least 1"):
        build("sgc-vqgan-ema", classes=0)
    with pytest.raises(ValueError, match="weight: expected at least 0"):
        build("sgc-vqgan-ema", semantic_weight=-1.0)
