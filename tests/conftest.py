"""Without a GPU, Triton kernels run in the interpreter: set before anything imports triton or starts a thread pool."""

import os
import subprocess
import sys

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

DEVICES = {"reference": "cpu", "native": "cpu", "triton": "cuda" if torch.cuda.is_available() else "cpu"}


def _refusal(backend: str) -> str | None:
    from vqkit.ops.nearest import OPERATOR

    return OPERATOR.refusals((torch.zeros(1, 1, device=DEVICES[backend]),))[backend]()


@pytest.fixture(params=list(DEVICES))
def backend(request) -> str:
    """Every backend that runs here, one after the other; ``device`` is where its tensors live."""
    if reason := _refusal(request.param):
        pytest.skip(f"{request.param}: {reason}")
    return request.param


@pytest.fixture
def device(backend) -> str:
    return DEVICES[backend]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def two_ranks(tmp_path):
    """two_ranks(program): run the text of a program on two processes of torchrun, with tmp_path as its argument; both have to succeed."""

    def run(text: str, timeout: float = 240) -> None:
        program = tmp_path / "program.py"
        program.write_text(text)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program), str(tmp_path)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        assert result.returncode == 0, result.stderr

    return run


@pytest.fixture
def write_bert():
    """write_bert(folder, words, width=16): a BERT with random weights that knows these words and letters, as a transformers folder."""

    def write(folder, words, width: int = 16):
        transformers = pytest.importorskip("transformers")
        folder.mkdir()
        letters = "abcdefghijklmnopqrstuvwxyz0123456789"
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "'", "-", *words, *letters, *(f"##{letter}" for letter in letters)]
        pieces = list(dict.fromkeys(pieces))
        (folder / "vocab.txt").write_text("\n".join(pieces))
        transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
        config = transformers.BertConfig(vocab_size=len(pieces), hidden_size=width, num_hidden_layers=2, num_attention_heads=2,
                                         intermediate_size=2 * width, max_position_embeddings=64)  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model = transformers.BertModel(config)
            # As large as trained ones; drawn with a deviation of 0.02 they would all be nearly the same.
            torch.nn.init.normal_(model.embeddings.word_embeddings.weight)
        model.save_pretrained(folder)
        return folder

    return write
