"""Faults of the most used vector quantizer that its users ran into, shown there, and what ``vqkit.Quantizer`` does in their place."""

import copy
import subprocess
import sys

import pytest
import torch
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

import vqkit
from vqkit.codebooks import AffineCodebook, EMACodebook, accumulate
from vqkit.quantizers.regularizers import Diversity, Orthogonality

VectorQuantize = pytest.importorskip("vector_quantize_pytorch").VectorQuantize


def test_one_bad_row_spoils_every_code_for_good():
    x = torch.randn(1, 100, 12)
    x[0, 3, 4] = torch.nan
    theirs, ours = VectorQuantize(12, 20), vqkit.Quantizer(12, 20)
    theirs(x), ours(x)
    assert theirs.codebook.isnan().any(-1).all()
    assert ours.codes.isfinite().all()


def test_a_zero_latent_is_not_its_code_under_the_rotation():
    x = torch.zeros(1, 1, 4, requires_grad=True)
    theirs, ours = VectorQuantize(4, 8, rotation_trick=True), vqkit.Quantizer(4, 8, gradient="rotation")
    quantized, indices, _ = theirs(x)
    assert not quantized.any() and theirs.codebook[indices].any()
    codes = ours.codes
    quantized, indices, _ = ours(x)
    assert torch.equal(quantized, codes[indices])


def test_training_does_not_compile_as_one_graph():
    torch._dynamo.reset()
    x = torch.randn(1, 50, 12)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(VectorQuantize(12, 20), fullgraph=True, backend="aot_eager")(x)
    assert torch.compile(vqkit.Quantizer(12, 20), fullgraph=True, backend="aot_eager")(x).loss.isfinite()


def test_bfloat16_statistics_stop_moving():
    found = []
    for model, codebook in ((VectorQuantize(4, 8, decay=0.999), "_codebook"), (vqkit.Quantizer(4, 8, decay=0.999), "codebook")):
        average = getattr(model.to(torch.bfloat16), codebook)
        before = average.cluster_size.clone()
        model(torch.randn(1, 16, 4).bfloat16())
        found.append((average.cluster_size.dtype, torch.equal(average.cluster_size, before)))
    assert found == [(torch.bfloat16, True), (torch.float32, False)]


def test_far_from_the_origin_the_wrong_code_is_chosen():
    torch.manual_seed(0)
    codes, x = 1000 + torch.randn(64, 8), 1000 + torch.randn(1, 512, 8)
    nearest = (x[0].double()[:, None] - codes.double()).square().sum(-1).argmin(-1)
    theirs, ours = VectorQuantize(8, 64).eval(), vqkit.Quantizer(8, 64).eval()
    with torch.no_grad():
        theirs.codebook = codes
        ours.codebook.codes.copy_(codes)
    assert (theirs(x)[1][0] != nearest).sum() > 10
    assert torch.equal(ours(x).indices[0], nearest)


_MEMORY = """
import pathlib, re, sys, torch, vqkit
from vector_quantize_pytorch import VectorQuantize
torch.set_num_threads(1)
# Not ru_maxrss, which begins at what the parent process held.
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) / 1024
options = {"kmeans_init": True, "kmeans_iters": 2} if sys.argv[1] == "k-means" else {}
small = torch.randn(1, 8, 8)
vqkit.Quantizer(8, 8192)(small.requires_grad_()).loss.backward(), VectorQuantize(8, 8192)(small)[2].backward()
for quantizer in (vqkit.Quantizer(8, 8192, **options), VectorQuantize(8, 8192, **options)):
    before, x = peak(), torch.randn(1, 8192, 8, requires_grad=True)
    quantized, _, loss = quantizer(x)
    (quantized.sum() + loss).backward()
    print(peak() - before)
"""


@pytest.mark.parametrize("step, arrays", [("training", 3), ("k-means", 4)])
def test_a_step_holds_several_n_by_k_arrays(step, arrays):
    """256 MiB each at N = K = 8192."""
    result = subprocess.run([sys.executable, "-c", _MEMORY, step], capture_output=True, text=True, check=True)
    ours, theirs = (float(line) for line in result.stdout.split())
    assert theirs > arrays * 256 and ours < 64


def test_eval_mode_cannot_be_exported():
    x = torch.randn(1, 50, 12)
    with pytest.raises(GuardOnDataDependentSymNode):
        torch.export.export(VectorQuantize(12, 20).eval(), (x,))
    ours = vqkit.Quantizer(12, 20).eval()
    assert torch.equal(torch.export.export(ours, (x,)).module()(x)[1], ours(x).indices)


def test_gradient_accumulation_fails_under_autocast():
    batch = torch.randn(2, 40, 12)
    theirs, ours = VectorQuantize(12, 20), vqkit.Quantizer(12, 20)
    twin = copy.deepcopy(ours)
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(RuntimeError, match="dtype"):
            theirs(batch[:1], accum_ema_update=True)
        twin(batch)
        with accumulate(ours):
            ours(batch[:1])
        ours(batch[1:])
    torch.testing.assert_close(ours.codes, twin.codes)


@pytest.mark.parametrize("options", [dict(codebook_dim=3), dict(heads=2, codebook_dim=2)])
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_a_mask_and_a_projection_do_not_go_together(options):
    x, mask = torch.randn(2, 5, 6), torch.arange(5)[None] < torch.tensor([[5], [3]])
    with pytest.raises(RuntimeError, match="size"):
        VectorQuantize(6, 16, **options)(x, mask=mask)
    result = vqkit.Quantizer(6, 16, **options)(x, mask)
    assert result.loss.isfinite() and not result.quantized[~mask].any()


def test_pictures_take_no_mask():
    x, mask = torch.randn(2, 6, 4, 4), torch.rand(2, 4, 4) > 0.5
    with pytest.raises(AssertionError):
        VectorQuantize(6, 16, accept_image_fmap=True)(x, mask=mask)
    result = vqkit.Quantizer(6, 16, channel_first=True)(x, mask)
    assert torch.equal(result.indices >= 0, mask)


def test_a_masked_index_decodes_to_the_last_code():
    indices = torch.tensor([[3, -1]])
    theirs, ours = VectorQuantize(6, 16), vqkit.Quantizer(6, 16)
    assert torch.equal(theirs.get_output_from_indices(indices)[0, 1], theirs.codebook[-1])
    assert not ours.decode(indices)[0, 1].any()


def test_a_first_batch_that_is_masked_stops_the_kmeans_start():
    x, mask = torch.randn(1, 8, 6), torch.zeros(1, 8, dtype=torch.bool)
    with pytest.raises(RuntimeError):
        VectorQuantize(6, 16, kmeans_init=True)(x, mask=mask)
    ours = vqkit.Quantizer(6, 16, kmeans_init=True)
    ours(x, mask)
    assert not ours.codebook.initialised and ours(x).loss.isfinite() and ours.codebook.initialised


def test_masked_latents_enter_the_diversity():
    x, mask = torch.randn(1, 20, 6), torch.arange(20)[None] < 10
    other = torch.where(mask[..., None], x, x + 3)
    theirs = VectorQuantize(6, 16, codebook_diversity_loss_weight=1.0, codebook_diversity_temperature=1, ema_update=False)
    ours = vqkit.Quantizer(6, 16, regularizers=[Diversity(1.0, temperature=1)])
    a, b = (theirs(rows, mask=mask, return_loss_breakdown=True)[3].codebook_diversity for rows in (x, other))
    assert not torch.isclose(a, b)
    a, b = (ours(rows, mask, learn=False).losses["diversity"] for rows in (x, other))
    torch.testing.assert_close(a, b)


def test_eval_mode_moves_affine_codes():
    x = torch.randn(1, 50, 6)
    theirs, ours = VectorQuantize(6, 16, affine_param=True), vqkit.Quantizer(6, 16, codebook=AffineCodebook(EMACodebook(16, 6)))
    theirs(x), ours(x)
    theirs.eval(), ours.eval()
    before = theirs._codebook.batch_mean.clone(), ours.codes.clone()
    theirs(x + 5), ours(x + 5)
    assert not torch.equal(theirs._codebook.batch_mean, before[0]) and torch.equal(ours.codes, before[1])


def test_the_moving_average_undoes_what_orthogonality_learned():
    theirs = VectorQuantize(6, 16, orthogonal_reg_weight=1.0)
    twin = VectorQuantize(6, 16, orthogonal_reg_weight=1.0)
    twin.load_state_dict(theirs.state_dict())
    optimizer = torch.optim.SGD(theirs.parameters(), 1.0)
    x = torch.randn(2, 1, 64, 6)
    theirs(x[0])[2].backward(), twin(x[0])
    optimizer.step()
    assert not torch.allclose(theirs.codebook, twin.codebook)
    # The moving average never saw the optimizer's step. With the same latents for each code nothing of it is left.
    indices = torch.arange(64)[None] % 16
    theirs.update_indices(x[1], indices), twin.update_indices(x[1], indices)
    torch.testing.assert_close(theirs.codebook, twin.codebook)
    with pytest.warns(UserWarning, match="Orthogonality changes the codes by gradient, and those of EMACodebook have none"):
        vqkit.Quantizer(6, 16, regularizers=[Orthogonality(1.0)])


_RANKS = """
import datetime, os, sys, time
import torch, torch.distributed as dist
from vector_quantize_pytorch import VectorQuantize
import vqkit

VectorQuantize(6, 16)                   # one that is made before there is a process group
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=4))
rank, said = dist.get_rank(), []
torch.manual_seed(0)
theirs, ours = VectorQuantize(6, 16), vqkit.Quantizer(6, 16, threshold_ema_dead_code=2)
revived = VectorQuantize(6, 16, threshold_ema_dead_code=2, sync_codebook=True)
torch.manual_seed(1 + rank)
x, mask = torch.randn(1, 40, 6), torch.full((1, 40), rank == 0)
for _ in range(3):
    theirs(x), ours(x, mask)
for codes in (theirs.codebook, ours.codes):
    both = [torch.empty(16, 6), torch.empty(16, 6)]
    dist.all_gather(both, codes.contiguous())
    said.append("same" if torch.equal(*both) else "different")
try:
    revived(x, mask=mask)
    time.sleep(6 * rank)                # this rank has gone on, the other waits
    said.append("went on")
except RuntimeError:
    said.append("hung")
print(" ".join(said), file=open(f"{sys.argv[1]}/rank{rank}", "w"), flush=True)
os._exit(0)
"""


def test_ranks_drift_apart_and_wait_for_one_another(tmp_path, two_ranks):
    """The question whether there are ranks is answered once; a rank that has nothing to offer leaves out its collectives."""
    two_ranks(_RANKS, timeout=120)
    assert (tmp_path / "rank0").read_text().split() == ["different", "same", "hung"]
