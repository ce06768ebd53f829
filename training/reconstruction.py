"""How near reconstructions come to the pictures of a data set, and how many of the codes they take."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from tqdm import tqdm

from training.data.batches import EvaluationOrder, PictureDataset, load, to_float, to_uint8
from training.distributed import Ranks
from vqkit.metrics import CodebookUsage, PictureFeatures, PictureSet, compare_pictures, psnr, ssim
from vqkit.objectives import LPIPS


@torch.no_grad()
def measure(
    model: nn.Module, dataset: PictureDataset, ranks: Ranks, *, batch_size: int = 32, workers: int = 0, lpips: LPIPS | None = None,
    networks: tuple[PictureFeatures, ...] = ()
) -> tuple[dict, CodebookUsage | None]:
    """Metrics of a model over a data set, the same on one rank or many.

    Each rank measures its own pictures, and sums are added over the ranks: no picture is measured twice, however many there are.
    Reconstructions are rounded to 8 bits first, as a picture file would hold them. `l1` is the mean absolute difference on a scale of
    0 to 1. Usage and perplexity are over the whole split. With `lpips` its mean; with feature `networks`, on the ranks' device, the
    distances of the reconstructions from the pictures by the keys of `compare_pictures`, and the networks' identities.
    Raises ValueError where no picture can be read.
    """
    model = model.to(ranks.device).eval()
    usage = CodebookUsage(model.codebook_sizes, ranks.device) if model.codebook_sizes else None
    lpips = None if lpips is None else lpips.to(ranks.device).eval()
    sets = [(PictureSet(network), PictureSet(network)) for network in networks]
    pictures, indices, psnrs, ssims, errors, perceived = 0, 0, 0.0, 0.0, 0.0, 0.0
    batches = load(dataset, EvaluationOrder(len(dataset), batch_size, ranks.rank, ranks.world), workers, ranks.device)
    for images, numbers in tqdm(batches, desc="evaluate", unit="batch", disable=not ranks.first, leave=False, mininterval=1):
        if not len(images):
            continue
        output = model(to_float(images, ranks.device))
        reconstruction = to_uint8(output if isinstance(output, Tensor) else output.reconstruction)
        pictures += len(images)
        psnrs += psnr(reconstruction, images, 255).sum().item()
        ssims += ssim(reconstruction, images, 255).sum().item()
        errors += (reconstruction.double() - images.double()).abs().mean((1, 2, 3)).sum().item() / 255
        if lpips is not None:
            perceived += lpips(to_float(reconstruction, ranks.device), to_float(images, ranks.device)).double().sum().item()
        for real, made in sets:
            real.add(images, numbers)
            made.add(reconstruction, numbers)
        if usage is not None:
            usage.add(model.count_codes(output.indices))
            indices += output.indices.numel()
    pictures, *totals = ranks.sum(torch.tensor([pictures, indices, psnrs, ssims, errors, perceived], dtype=torch.float64)).tolist()
    if not pictures:
        raise ValueError(f"data: none of the {len(dataset)} pictures in {dataset.source.name} can be read")
    codes, psnr_mean, ssim_mean, l1, lpips_mean = (total / pictures for total in totals)
    metrics = {"psnr": psnr_mean, "ssim": ssim_mean, "l1": l1, "codebook_usage": 0.0, "perplexity": 0.0, "images": int(pictures),
               "skipped": len(dataset) - int(pictures), "codes_per_image": round(codes)}
    metrics |= {} if lpips is None else {"lpips": lpips_mean}
    for real, made in sets:
        metrics |= compare_pictures(real.reduced(), made.reduced())
    metrics |= {"features": ", ".join(network.identity for network in networks)} if networks else {}
    if usage is not None:
        usage = usage.reduced()
        metrics |= {"codebook_usage": usage.usage, "perplexity": usage.perplexity, "codebook_sizes": list(usage.codebook_sizes),
                    "codebook_usage_parts": list(usage.part_usages), "perplexity_parts": list(usage.part_perplexities)}
    return metrics, usage
