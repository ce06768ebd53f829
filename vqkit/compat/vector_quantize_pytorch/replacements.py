"""How ``accelerate`` makes our classes from those of an installed vector-quantize-pytorch."""

from torch import nn

from vqkit.compat.replacement import NotReplaceable, attributes, checked, replaces, take_state
from vqkit.compat.vector_quantize_pytorch.vector_quantize_pytorch import VectorQuantize

_AS_THEY_ARE = (
    "dim", "codebook_size", "heads", "separate_codebook_per_head", "eps", "freeze_codebook", "use_cosine_sim", "channel_last",
    "accept_image_fmap", "accept_3d_fmap", "commitment_weight", "commitment_use_cross_entropy_loss", "orthogonal_reg_weight",
    "orthogonal_reg_active_codes_only", "orthogonal_reg_max_codes", "codebook_diversity_loss_weight", "codebook_diversity_temperature",
    "rotation_trick", "directional_reparam", "directional_reparam_variance", "sync_update_v", "learnable_codebook",
    "return_zeros_for_masked_padding", "route_gradients_to_input",
)  # fmt: skip
_OF_THE_CODEBOOK = ("decay", "kmeans_iters", "threshold_ema_dead_code", "ema_update", "manual_ema_update", "sample_codebook_temp", "affine_param")
_AFFINE = ("sync_affine_param", "affine_param_batch_decay", "affine_param_codebook_decay")


@replaces("vector_quantize_pytorch.vector_quantize_pytorch.VectorQuantize")
def _vector_quantize(module: nn.Module) -> nn.Module:
    (inner, optimizer) = attributes(module, "_codebook", "in_place_codebook_optimizer")
    bridge, sample, affine = attributes(inner, "vq_bridge", "gumbel_sample", "affine_param")
    if optimizer is not None or bridge is not None:
        raise NotReplaceable("it has an in-place codebook optimizer or a bridge, which belong to its own parameters")
    sampling = getattr(sample, "keywords", {})
    names = _OF_THE_CODEBOOK + (_AFFINE if affine else ())
    options = dict(zip(_AS_THEY_ARE, attributes(module, *_AS_THEY_ARE))) | dict(zip(names, attributes(inner, *names)))
    ours = VectorQuantize(
        **options,
        codebook_dim=inner.embed.shape[-1],
        kmeans_init=not bool(inner.initted),
        layernorm_after_project_in=module.has_projections and not isinstance(module.project_in, nn.Linear),
        stochastic_sample_codes=sampling.get("stochastic", False),
        straight_through=sampling.get("straight_through", False),
    )
    ours = take_state(module, ours)
    _keep_parameters(module, ours)
    # Not tried where codes of a trial would not be such as it has (unit vectors, moments, a start to come), where draws differ, and where
    # the original errs: it writes the codes before the backward pass of losses over all distances, whose gradients are then off.
    particular = affine or module.use_cosine_sim or sampling.get("stochastic") or ours.directional_reparam or not bool(inner.initted)
    if particular or module.has_codebook_diversity_loss or module.commitment_use_cross_entropy_loss:
        return ours
    if module.accept_image_fmap or module.accept_3d_fmap:
        shape = (2, module.dim, *((1,) * module.accept_3d_fmap), 2, 3)
    else:
        shape = (2, 6, module.dim) if module.channel_last else (2, module.dim, 6)
    # Which latents take the place of dead codes depends on the draws.
    return checked(module, ours, *shape, codes=("_codebook.embed",), learns=not inner.threshold_ema_dead_code)


def _keep_parameters(module: nn.Module, ours: nn.Module) -> None:
    """The parameters themselves in the place of copies, by their names; ours has the same ones."""
    theirs = dict(module.named_parameters())
    for name, _ in list(ours.named_parameters()):
        if name in theirs:
            parent, _, last = name.rpartition(".")
            setattr(ours.get_submodule(parent), last, theirs[name])
