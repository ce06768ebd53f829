"""One step of a recipe as `python -m training` takes it, by vqkit and by those it is held against.

The training loop needs packages that operators do not: they are imported where a run is built, so that the operators' cases can do without.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmarks.contenders import Unavailable
from benchmarks.naive_recipes import naive_quantizer
from benchmarks.training_step import random_vocabulary

if TYPE_CHECKING:
    from training.tokenizer import Run

# Of the small recipes only sgc-vqgan is left out: it learns from masks, and without them its step is another method's.
SMALL = ("vqvae", "vqgan", "cvq", "simvq", "vqct", "v2l", "raq", "raq-vqgan", "rqvae", "adq", "vit-vqgan", "autoencoder",
         "vqvae+lg", "vqgan+lg", "cvq+lg", "vqct+lg", "vqct-vlt")
# Nobody wrote sums of codes in plain PyTorch here, and the autoencoder has nothing to quantise.
_WITHOUT_NAIVE = ("rqvae", "autoencoder")
# Relations of the random words, a little over six a word as in the vocabularies of captions.
_EDGES_A_WORD = 6.4
_WORD_DIM = 384


class Step:
    """``step()`` trains a run on the same pictures once more, everything that the loop does but to fetch them."""

    def __init__(self, run: Run, images: Tensor, deterministic: bool):
        from training.tokenizer import Batch

        self.run, self.deterministic = run, deterministic
        keys = [(0, index) for index in range(len(images))]
        self.batches = itertools.repeat(Batch(images, 0, keys, list(range(len(images)))))

    def __call__(self) -> None:
        # Contenders that take turns draw the same numbers: RAQ's step is as long as the rate that it draws.
        torch.manual_seed(self.run.step)
        with deterministic(self.deterministic):
            self.run.advance(self.batches)


def plain(run: Run) -> None:
    """The run as it is."""


def naive(run: Run, dense: bool = False) -> None:
    """The quantizer in plain PyTorch."""
    run.model.quantizer = naive_quantizer(run.model.quantizer, dense).to(run.ranks.device).train()
    _renew(run)


def compiled(run: Run) -> None:
    """The whole model, forward and backward, by torch.compile."""
    # Every contender is compiled for itself.
    torch.compiler.reset()
    run.parallel = torch.compile(run.model, dynamic=False)


def compiled_naive(run: Run, dense: bool = False) -> None:
    naive(run, dense)
    compiled(run)


def compiled_networks(run: Run) -> None:
    """Encoder and decoder by torch.compile, what lies between them as it is."""
    torch.compiler.reset()
    run.model.encoder.compile(dynamic=False)
    run.model.decoder.compile(dynamic=False)


def fused_adam(run: Run) -> None:
    run.optimizer = _optimizer(run, fused=True)


def channels_last(run: Run) -> None:
    run.model.to(memory_format=torch.channels_last)
    _renew(run)


def bfloat16(run: Run) -> None:
    """The networks under autocast, which is what the loop does by itself where the device is fast at it."""
    device = run.ranks.device.type
    run.autocast = lambda: torch.autocast(device, torch.bfloat16)


def float32(run: Run) -> None:
    """No autocast; on a GPU this means TF32, as the loop sets it."""
    run.autocast = contextlib.nullcontext


OURS = "vqkit"
CONTENDERS: dict[str, Callable[[Run], None]] = {
    OURS: plain,
    "naive quantizer": naive,
    "naive quantizer, dense adjacency": lambda run: naive(run, dense=True),
    "torch.compile(naive quantizer)": compiled_naive,
    "torch.compile(vqkit)": compiled,
}
OPTIONS: dict[str, Callable[[Run], None]] = {
    "bf16 autocast": bfloat16,
    "float32": float32,
    "channels-last": channels_last,
    "fused Adam": fused_adam,
    "compiled encoder and decoder": compiled_networks,
}
# Compilation for the processor takes minutes of C++: these stand for the others.
_COMPILED_ON_CPU = {"vqgan": ("torch.compile(naive quantizer)", "torch.compile(vqkit)"), "vqct": ("torch.compile(naive quantizer)",)}


def contenders(recipe: str, device: str) -> list[str]:
    """Who is timed at this recipe on this kind of device."""
    left_out = set() if recipe.startswith("vqct") else {"naive quantizer, dense adjacency"}
    if recipe in _WITHOUT_NAIVE:
        left_out |= {name for name in CONTENDERS if "naive" in name}
    if device == "cpu":
        left_out |= {name for name in CONTENDERS if "compile" in name} - {*_COMPILED_ON_CPU.get(recipe, ())}
    return [name for name in CONTENDERS if name not in left_out]


def open_run(recipe: str, device: torch.device, **changes) -> Run:
    """A run of the recipe with its own settings but for these, on the built-in scenes and random words; writes nothing that stays.

    changes: of the settings; `model` a dict of changes of the model's.
    Raises Unavailable where the recipe needs what is not installed here.
    """
    from training.data.sources import open_split
    from training.distributed import Ranks
    from training.recipes import find_recipe
    from training.tokenizer import Run
    from training.tokenizer_settings import WordSettings

    settings = find_recipe(recipe).settings
    model = dataclasses.replace(settings.model, **changes.pop("model", {}))
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        settings = dataclasses.replace(settings, data="scenes", out=Path(folder), steps=10**6, device=str(device), model=model, **changes)
        if isinstance(settings, WordSettings):
            words = Path(folder) / "words.safetensors"
            sizes = (settings.adjectives, settings.nouns)
            torch.manual_seed(0)
            random_vocabulary(sizes, int(_EDGES_A_WORD * sum(sizes)), _WORD_DIM).save(words)
            settings = dataclasses.replace(settings, words=str(words))
        try:
            return Run(recipe, settings, open_split("scenes", "train", seed=settings.seed), Ranks(0, 1, device))
        except ValueError as missing:
            if settings.guidance is None:
                raise
            raise Unavailable(str(missing)) from missing


def step_of(recipe: str, contender: str, images: Tensor, **changes) -> Step:
    """The contender's step on these pictures (B, 3, R, R) in [-1, 1]; its batch size and resolution are theirs."""
    run = open_run(recipe, images.device, batch_size=len(images), resolution=images.shape[-1], **changes)
    change = {**CONTENDERS, **OPTIONS}[contender]
    change(run)
    # The loop's own settings; who writes plain PyTorch does not ask for deterministic algorithms, and on the CPU the loop does.
    ours = change not in (naive, compiled_naive) and "naive" not in contender
    return Step(run, images, ours and images.device.type == "cpu")


def pictures(recipe: str, device: torch.device) -> Tensor:
    """A batch of the recipe's own size: noise, for speed does not depend on what is seen."""
    from training.recipes import find_recipe

    settings = find_recipe(recipe).settings
    shape = (settings.batch_size, 3, settings.resolution, settings.resolution)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device) * 2 - 1


@contextlib.contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """As `training.loop.reproducible` sets it on the CPU, or not."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(enabled)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]


def _optimizer(run: Run, **options: bool) -> torch.optim.Optimizer:
    """The run's optimiser, of the model as it is now."""
    from training.optimization import create_optimizer

    return create_optimizer([run.model, *([run.guide.module] if run.guide else [])], run.settings, run.settings.weight_decay, **options)


def _renew(run: Run) -> None:
    """What the run derives from its model, of the changed one."""
    run.average = copy.deepcopy(run.model).eval().requires_grad_(False)
    run.optimizer = _optimizer(run)
    run.parallel = run.model
