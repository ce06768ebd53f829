"""The prior: training steps and sampling, against transformers' GPT-2 of the same size and against the step's matrix products alone."""

import pytest
import torch
from torch import Tensor, nn

from vqkit.models import Sampling, Segment, create, create_prior

# A caption of 32 words, then a map of codes: the small recipe with 8 x 8 on the CPU, GPT-2's width with 16 x 16 on a GPU.
TEXT, WORDS, CODES = 32, 4096, 1024
SHAPES = {"cpu": {"depth": 4, "width": 192, "heads": 4, "batch": 8, "image": 64},
          "cuda": {"depth": 12, "width": 768, "heads": 12, "batch": 32, "image": 256}}


def _prior(shape: dict, device: str) -> nn.Module:
    segments = (Segment("text", TEXT, (WORDS,)), Segment("image", shape["image"], (CODES,), predicted=True))
    config = {name: shape[name] for name in ("depth", "width", "heads")}
    return create_prior("prior", segments, dropout=0.0, **config).to(device)


def _gpt2(shape: dict, device: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    # One vocabulary for both segments, and the output layer of its own that ours has.
    config = transformers.GPT2Config(
        vocab_size=WORDS + CODES, n_positions=TEXT + shape["image"] + 1, n_embd=shape["width"], n_layer=shape["depth"], n_head=shape["heads"],
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False, bos_token_id=0, eos_token_id=None)
    return transformers.GPT2LMHeadModel(config).to(device)


def _tokens(shape: dict, device: str) -> dict[str, Tensor]:
    sizes = {"text": (TEXT, WORDS), "image": (shape["image"], CODES)}
    return {name: torch.randint(0, size, (shape["batch"], length), device=device) for name, (length, size) in sizes.items()}


def _joined(tokens: dict[str, Tensor]) -> Tensor:
    return torch.cat((tokens["text"], tokens["image"] + WORDS), 1)


def _training(contender: str, shape: dict, device: str):
    tokens = _tokens(shape, device)
    if contender == "matrix products alone":
        return _products(shape, device)
    model = (_prior if contender == "vqkit" else _gpt2)(shape, device).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    ids = _joined(tokens)
    # The condition is not predicted: its labels are left out, as ours are.
    labels = torch.cat((torch.full_like(tokens["text"], -100), tokens["image"] + WORDS), 1)

    def step():
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = model(tokens)[0] if contender == "vqkit" else model(ids, labels=labels).loss
        loss.backward()
        optimizer.step()

    return step


def _products(shape: dict, device: str):
    """What the layers of a step multiply, forward and twice backward, in one large product a kind: the time that cannot be saved.

    The vqkit time over this one is the inverse of the model FLOP utilisation, against what products of this size reach here.
    """
    rows, width, image = shape["batch"] * (TEXT + shape["image"]), shape["width"], shape["image"]
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    x, hidden = (torch.randn(rows, size, device=device, dtype=dtype) for size in (width, 4 * width))
    weights = [torch.randn(width, size, device=device, dtype=dtype) for size in (3 * width, width, 4 * width)]
    back, head = torch.randn(4 * width, width, device=device, dtype=dtype), torch.randn(width, CODES, device=device, dtype=dtype)
    predicted = torch.randn(shape["batch"] * image, width, device=device, dtype=dtype)

    def step():
        for _ in range(3):
            for _ in range(shape["depth"]):
                for weight in weights:
                    x @ weight
                hidden @ back
            predicted @ head

    return step


@pytest.mark.parametrize("contender", ["vqkit", "transformers GPT-2", "matrix products alone"])
def test_prior_training_step(measure, benchmark, device, contender):
    shape = SHAPES[device]
    benchmark.extra_info["tokens"] = shape["batch"] * (TEXT + shape["image"])
    group = f"prior training step, {shape['depth']} layers of {shape['width']}, {shape['batch']} x {TEXT + shape['image']} tokens"
    measure(lambda name: _training(name, shape, device), group, contender, rounds=5)


@pytest.mark.parametrize("contender", ["vqkit", "without kept keys", "transformers GPT-2"])
def test_prior_sampling(measure, benchmark, device, contender):
    shape = SHAPES[device]
    batch, image = shape["batch"], shape["image"]
    text = _tokens(shape, device)["text"]

    def sampling_of(name):
        model = (_gpt2 if name == "transformers GPT-2" else _prior)(shape, device).eval()

        def sample():
            if name == "transformers GPT-2":
                return model.generate(text, attention_mask=torch.ones_like(text), do_sample=True, top_k=0, min_new_tokens=image,
                                      max_new_tokens=image, pad_token_id=0)
            return model.generate({"text": text}, Sampling(), cached=name == "vqkit")

        return sample

    benchmark.extra_info["tokens"] = batch * image
    group = f"prior sampling, {shape['depth']} layers of {shape['width']}, {batch} x {image} codes after {TEXT} words"
    measure(sampling_of, group, contender, rounds=2 if contender == "without kept keys" else 3)


def test_decoding(measure, device):
    torch.manual_seed(0)
    config = {"channels": 16, "channel_multipliers": (1, 2, 4, 8), "num_res_blocks": 1, "latent_dim": 128, "code_dim": 64}
    model = create("vqgan", codebook_size=CODES, **config).to(device).eval()
    indices = torch.randint(0, CODES, (32, 8, 8), device=device)

    def decode():
        with torch.no_grad():
            return model.decode(indices)

    measure(lambda name: decode, "decoding 32 pictures of 64x64 from 8x8 codes", "vqkit", rounds=5)
