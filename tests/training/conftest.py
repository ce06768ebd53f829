"""Small pictures, words and settings: everything here trains in seconds on one thread."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.recipes import RECIPES
from vqkit.language import Vocabulary

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _one_thread():
    # The same sums in the same order here and in the processes that the tests start.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def words(tmp_path) -> Path:
    """Twelve adjectives and twelve nouns with random vectors, as a vocabulary file."""
    torch.manual_seed(1)
    edges = torch.stack((torch.arange(12), 12 + torch.randperm(12)), 1)
    Vocabulary([f"adjective{n}" for n in range(12)], [f"noun{n}" for n in range(12)], edges, torch.ones(12, dtype=torch.int64),
               torch.randn(24, 16), "random").save(tmp_path / "words.safetensors")
    return tmp_path / "words.safetensors"


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A data set of three splits, 20 pictures each, smooth and all different, with captions."""
    noise = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        folder = tmp_path / "pictures" / split
        folder.mkdir(parents=True)
        lines = []
        for number in range(20):
            colours = noise.integers(0, 256, 3) + noise.integers(-40, 40, (2, 2, 3))
            coarse = Image.fromarray(colours.clip(0, 255).astype(np.uint8))
            coarse.resize((24, 16), Image.Resampling.BICUBIC).save(folder / f"{number:02d}.png")
            lines.append(json.dumps({"file_name": f"{number:02d}.png", "captions": [f"a soft picture number {number}"]}))
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path / "pictures"


@pytest.fixture
def text_model(write_bert, tmp_path) -> Path:
    """A tiny text model that knows the words of the pictures' captions."""
    return write_bert(tmp_path / "bert", ["a", "soft", "picture", "number"])


@pytest.fixture
def tiny(pictures, words, tmp_path):
    """tiny(recipe, **settings): settings of a recipe shrunk to a model of a few thousand parameters at 16x16."""

    def make(recipe: str = "vqgan", folder: str = "run", **changes):
        base = RECIPES[recipe].settings
        model = {"vqvae": {"channels": 8, "residual_channels": 4, "codebook_size": 16, "code_dim": 8},
                 "vqgan": {"channels": 8, "latent_dim": 8, "code_dim": 4, "codebook_size": (16, 16)},
                 "raq": {"channels": 8, "residual_channels": 4, "codebook_size": 16, "code_dim": 8, "rates": (2, 32)},
                 "raq-vqgan": {"channels": 8, "latent_dim": 8, "code_dim": 4, "codebook_size": 16, "rates": (2, 32)},
                 "rqvae": {"channels": 8, "latent_dim": 8, "code_dim": 4, "codebook_size": 16},
                 "sgc-vqgan": {"channels": 8, "latent_dim": 8, "code_dim": 4, "codebook_size": 16, "classes": 3},
                 "vqct": {"channels": 8, "latent_dim": 8, "code_dim": 4, "transfer_dim": 8}}[RECIPES[recipe].model]
        settings = {"data": str(pictures), "out": tmp_path / folder, "resolution": 16, "batch_size": 4, "steps": 6, "workers": 0, "log_every": 2,
                    "save_every": 3, "device": "cpu", "precision": "fp32", "disc_layers": 1, "disc_channels": 8, "lr": 1e-3}
        if RECIPES[recipe].model == "vqct":
            settings["words"] = str(words)
        return dataclasses.replace(base, model=dataclasses.replace(base.model, **model), **settings | changes)

    return make


@pytest.fixture
def launch():
    """launch(*arguments): start Python in the repository on one thread; what is still running is killed at the end."""
    started = []

    def start(*arguments: str, **options) -> subprocess.Popen:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen([sys.executable, *map(str, arguments)], cwd=ROOT, env=environment, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture
def unused_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
