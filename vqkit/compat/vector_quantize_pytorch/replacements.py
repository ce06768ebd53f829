"""How ``accelerate`` makes our classes from those of an installed vector-quantize-pytorch."""

import copy
from collections.abc import Callable

import torch
from torch import nn

from vqkit.compat.replacement import NotReplaceable, attributes, checked, replaces, take_state
from vqkit.compat.vector_quantize_pytorch.finite_scalar_quantization import FSQ
from vqkit.compat.vector_quantize_pytorch.lookup_free_quantization import LFQ
from vqkit.compat.vector_quantize_pytorch.random_projection_quantizer import RandomProjectionQuantizer
from vqkit.compat.vector_quantize_pytorch.residual_vq import GroupedResidualVQ, ResidualVQ
from vqkit.compat.vector_quantize_pytorch.sim_vq import SimVQ
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
    ours = take_state(module, VectorQuantize(**_arguments(module)))
    _keep_parameters(module, ours)
    if _goes_untried(module):
        return ours
    if module.accept_image_fmap or module.accept_3d_fmap:
        shape = (2, module.dim, *((1,) * module.accept_3d_fmap), 2, 3)
    else:
        shape = (2, 6, module.dim) if module.channel_last else (2, module.dim, 6)
    # Which latents take the place of dead codes depends on the draws.
    return checked(module, ours, *shape, codes=("_codebook.embed",), learns=not module._codebook.threshold_ema_dead_code)


def _arguments(module: nn.Module) -> dict:
    """What a VectorQuantize there was made with."""
    (inner, optimizer) = attributes(module, "_codebook", "in_place_codebook_optimizer")
    bridge, sample, affine = attributes(inner, "vq_bridge", "gumbel_sample", "affine_param")
    if optimizer is not None or bridge is not None:
        raise NotReplaceable("it has an in-place codebook optimizer or a bridge, which belong to its own parameters")
    sampling = getattr(sample, "keywords", {})
    names = _OF_THE_CODEBOOK + (_AFFINE if affine else ())
    options = dict(zip(_AS_THEY_ARE, attributes(module, *_AS_THEY_ARE))) | dict(zip(names, attributes(inner, *names)))
    return options | {
        "codebook_dim": inner.embed.shape[-1],
        "kmeans_init": not bool(inner.initted),
        "layernorm_after_project_in": module.has_projections and not isinstance(module.project_in, nn.Linear),
        "stochastic_sample_codes": sampling.get("stochastic", False),
        "straight_through": sampling.get("straight_through", False),
    }


def _goes_untried(module: nn.Module) -> bool:
    # Not tried where codes of a trial would not be such as it has (unit vectors, moments, a start to come), where draws differ, and where
    # the original errs: it writes the codes before the backward pass of losses over all distances, whose gradients are then off.
    inner = module._codebook
    sampling = getattr(inner.gumbel_sample, "keywords", {})
    particular = inner.affine_param or module.use_cosine_sim or sampling.get("stochastic") or not bool(inner.initted)
    return particular or module.directional_reparam or module.has_codebook_diversity_loss or module.commitment_use_cross_entropy_loss


def _keep_parameters(module: nn.Module, ours: nn.Module) -> None:
    """The parameters themselves in the place of copies, by their names in the state dict; ours has the same ones."""
    theirs = dict(module.named_parameters())
    names = {value: name for name, value in ours.named_parameters()}
    for name, value in ours.state_dict(keep_vars=True).items():
        if name in theirs and value in names:
            parent, _, last = names[value].rpartition(".")
            setattr(ours.get_submodule(parent), last, theirs[name])


_RESIDUAL = (
    "num_quantizers", "shared_codebook", "diveq", "quantize_dropout", "quantize_dropout_cutoff_index", "quantize_dropout_multiple_of",
    "accept_image_fmap", "implicit_neural_codebook", "beam_size", "eval_beam_size", "quant_grad_frac", "return_zeros_for_masked_padding",
)  # fmt: skip


@replaces("vector_quantize_pytorch.residual_vq.ResidualVQ")
def _residual_vq(module: nn.Module) -> nn.Module:
    ours = take_state(module, ResidualVQ(**_residual_arguments(module)))
    _keep_parameters(module, ours)
    first = module.layers[0]
    # Nor where beams teach the original less, and where it takes images of one shape only.
    if any(_goes_untried(layer) for layer in module.layers) or module.beam_size or module.diveq or ours._channel_axis(3) == 1:
        return ours
    codes = tuple(f"layers.{place}._codebook.embed" for place in range(1 if module.shared_codebook else module.num_quantizers))
    return checked(module, ours, 2, 6, ours.dim, codes=codes, learns=not first._codebook.threshold_ema_dead_code)


@replaces("vector_quantize_pytorch.residual_vq.GroupedResidualVQ")
def _grouped_residual_vq(module: nn.Module) -> nn.Module:
    dim, groups, rvqs = attributes(module, "dim", "groups", "rvqs")
    ours = GroupedResidualVQ(**(_residual_arguments(rvqs[0]) | {"dim": dim, "groups": groups}))
    ours.rvqs = nn.ModuleList(_residual_vq(rvq) for rvq in rvqs)
    return ours.train(module.training)


def _residual_arguments(module: nn.Module) -> dict:
    """What a ResidualVQ there was made with."""
    layers, projection, mlps, weights = attributes(module, "layers", "project_in", "mlps", "beam_score_weights")
    stages = [_arguments(layer) for layer in layers]
    own = dict(zip(_RESIDUAL, attributes(module, *_RESIDUAL)))
    own["dim"] = projection.in_features if isinstance(projection, nn.Linear) else stages[0]["dim"]
    own["codebook_size"] = tuple(stage["codebook_size"] for stage in stages)
    own["kmeans_init"] = any(stage["kmeans_init"] for stage in stages)
    own["beam_score_quantizer_weights"] = weights.tolist()
    if module.implicit_neural_codebook and len(mlps):
        own["mlp_kwargs"] = {"depth": len(mlps[0].layers)}
        if len(mlps[0].layers):
            own["mlp_kwargs"]["dim_hidden"] = mlps[0].layers[0][0].out_features
    return {name: value for name, value in stages[0].items() if name != "separate_codebook_per_head"} | own


_SIM = ("codebook_size", "channel_first", "rotation_trick", "input_to_quantize_commit_loss_weight", "commitment_weight")


@replaces("vector_quantize_pytorch.sim_vq.SimVQ")
def _sim_vq(module: nn.Module) -> nn.Module:
    frozen, transform = attributes(module, "frozen_codebook", "code_transform")
    if frozen.is_meta:
        raise NotReplaceable("it is on the meta device: load its weights first")
    # A copy, in eval mode, so that its running values stay.
    with torch.no_grad():
        dim = copy.deepcopy(transform).eval()(frozen).shape[-1]
    options = dict(zip(_SIM, attributes(module, *_SIM)))
    ours = SimVQ(dim, **options, codebook_transform=copy.deepcopy(transform), frozen_codebook_dim=frozen.shape[-1])
    ours = take_state(module, ours)
    ours.code_transform = transform
    return checked(module, ours, *((2, dim, 6) if module.channel_first else (2, 6, dim)), codes=("frozen_codebook",))


_SCALAR = ("dim", "num_codebooks", "keep_num_codebooks_dim", "channel_first", "force_quantization_f32", "orthogonal_rotation")
_FINITE = ("scale", "allowed_dtypes", "return_indices", "preserve_symmetry", "noise_dropout", "bound_hard_clamp")
_LOOKUP_FREE = (
    "codebook_size", "entropy_loss_weight", "commitment_loss_weight", "diversity_gamma", "codebook_scale", "frac_per_sample_entropy",
    "has_projections", "soft_clamp_input_value", "experimental_softplus_entropy_loss", "entropy_loss_offset", "spherical",
)  # fmt: skip


@replaces("vector_quantize_pytorch.finite_scalar_quantization.FSQ")
def _fsq(module: nn.Module) -> nn.Module:
    (levels,) = attributes(module, "_levels")
    if levels.is_meta:
        raise NotReplaceable("it is on the meta device: load its weights first")
    ours = _scalar(FSQ, module, _FINITE, levels=levels.tolist())
    # The original draws where to put noise with another probability.
    return ours if module.noise_dropout else checked(module, ours, *_shape(module), codes=())


@replaces("vector_quantize_pytorch.lookup_free_quantization.LFQ")
def _lfq(module: nn.Module) -> nn.Module:
    activation, projection = attributes(module, "activation", "project_in")
    cosine = module.has_projections and not isinstance(projection, nn.Linear)
    ours = _scalar(
        LFQ,
        module,
        _LOOKUP_FREE,
        straight_through_activation=copy.deepcopy(activation),
        cosine_sim_project_in=cosine,
        cosine_sim_project_in_scale=projection.scale if cosine else None,
    )
    # The rows of a share are drawn otherwise.
    return ours if module.frac_per_sample_entropy < 1 else checked(module, ours, *_shape(module), codes=())


def _scalar(cls: Callable, module: nn.Module, names: tuple[str, ...], **options) -> nn.Module:
    """Ours, with the parameters of the module; what it was made with is in its attributes of these names."""
    names = _SCALAR + names
    project_out = module.project_out
    options["projection_has_bias"] = not isinstance(project_out, nn.Linear) or project_out.bias is not None
    try:
        ours = cls(**dict(zip(names, attributes(module, *names))), **options)
    except (NotImplementedError, ValueError) as error:
        raise NotReplaceable(str(error)) from error
    if module.has_projections:
        ours = take_state(module, ours)
    else:
        # The state may have no floating point tensor then, and no dtype.
        ours.to(next(module.buffers()).device).load_state_dict(module.state_dict())
        ours.train(module.training)
    _keep_parameters(module, ours)
    return ours


def _shape(module: nn.Module) -> tuple[int, int, int]:
    return (2, module.dim, 6) if module.channel_first else (2, 6, module.dim)


@replaces("vector_quantize_pytorch.random_projection_quantizer.RandomProjectionQuantizer")
def _random_projection_quantizer(module: nn.Module) -> nn.Module:
    projections, norm, vq = attributes(module, "rand_projs", "norm", "vq")
    if projections.is_meta:
        raise NotReplaceable("it is on the meta device: load its weights first")
    number, dim, codebook_dim = projections.shape
    ours = RandomProjectionQuantizer(
        dim=dim, codebook_size=vq.codebook_size, codebook_dim=codebook_dim, num_codebooks=number, norm=isinstance(norm, nn.LayerNorm)
    )
    ours.to(projections.device).rand_projs.copy_(projections)
    ours.vq = _vector_quantize(vq)
    return checked(module, ours.train(module.training), 2, 6, dim, codes=())
