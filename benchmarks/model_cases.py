"""The cases of whole quantizers, of training steps and what their quantizer consists of, and of the recipes."""

from functools import partial

import torch

from benchmarks import contenders, floors
from benchmarks.cases import Case, Contender, Shape
from benchmarks.recipe_step import step_of
from benchmarks.training_step import Setting, generation_call, quantizer_call, search_call, step_call

_RIVAL = "naive quantizer"


def quantizer(shape: Shape) -> Case:
    """`vqkit.Quantizer` with an EMA codebook in training."""

    def make(device):
        return (torch.randn(1, shape.dim, 32, shape.n // 32, device=device, requires_grad=True),)

    # Distances and a one-hot matrix of int64, at least.
    pairs = 12 * shape.n * shape.size
    rows = tuple(
        Contender(name, partial(contenders.quantizer_step, name, shape.size), 0 if name == "vqkit" else pairs)
        for name in contenders.QUANTIZERS
    )
    sizes = (shape.n, shape.size, shape.dim, 4)
    works = (floors.search(*sizes), floors.straight_through(*sizes), floors.statistics(*sizes))
    return Case(f"quantizer forward + backward (EMA), {shape}", make, rows, lambda *inputs: works)


def training(setting: Setting) -> list[Case]:
    """A training step, and alone what its quantizer takes of it."""
    model = setting.model
    step = f"{model} training step, batch {setting.batch_size} at {setting.resolution}x{setting.resolution}"

    def images(device):
        return (torch.rand(setting.batch_size, 3, setting.resolution, setting.resolution, device=device) * 2 - 1,)

    def latents(device):
        side = setting.resolution // 2 ** (len(setting.config["channel_multipliers"]) - 1)
        parts = len(setting.config.get("selections", (2, 1)))
        shape = (setting.batch_size, parts * setting.config["latent_dim"], side, side)
        return torch.randn(shape, device=device, requires_grad=True), torch.randn(shape, device=device)

    def upstream(device):
        return (torch.randn(sum(setting.words), setting.config["latent_dim"], device=device),)

    def rows(call):
        return tuple(Contender(name, partial(call, setting, name)) for name in ("vqkit", _RIVAL))

    # A step's own activations exceed any cache; sets of models would only fill the memory.
    cases = [Case(step, images, rows(step_call), rotate=False)]
    shared = {"rotate": False, "part_of": step}
    cases.append(Case(f"{model} quantizer of that step: codebook, search, gradients", latents, rows(quantizer_call), **shared))
    cases.append(Case(f"{model} search of that step", latents, rows(search_call), **shared))
    if setting.words:
        cases.append(Case(f"{model} codebook generation of that step, forward + backward", upstream, rows(generation_call), **shared))
    return cases


def recipe(name: str, batch_size: int, resolution: int, **changes) -> Case:
    """The training loop's own step of a recipe, its settings changed so; a change of `model` is one of its model's settings."""

    def images(device):
        return (torch.rand(batch_size, 3, resolution, resolution, device=device) * 2 - 1,)

    dense = [f"{_RIVAL}, dense adjacency"] if name.startswith("vqct") else []
    names = ["vqkit", _RIVAL, *dense, "torch.compile(vqkit)", f"torch.compile({_RIVAL})"]
    rows = tuple(Contender(contender, partial(_recipe_step, name, contender, changes)) for contender in names)
    return Case(f"{name} recipe's training step, batch {batch_size} at {resolution}x{resolution}", images, rows, rotate=False)


def _recipe_step(name: str, contender: str, changes: dict, images: torch.Tensor) -> contenders.Call:
    if "compile" in contender and not images.is_cuda:
        raise contenders.Unavailable("compiled on CUDA only")
    return step_of(name, contender, images, **changes)
