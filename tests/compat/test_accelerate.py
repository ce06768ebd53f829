"""Swapping other libraries' quantizers in place: what is found, what stays, why something is left, and the way back."""

import copy

import pytest
import torch
from torch import nn

import vqkit
from tests.compat.foreign import FOREIGN
from vqkit.compat import taming

FEATURES = torch.Size((2, 6, 4, 4))


class Autoencoder(nn.Module):
    def __init__(self, quantizer):
        super().__init__()
        self.encoder, self.quantize, self.decoder = nn.Conv2d(3, 6, 1), quantizer, nn.Conv2d(6, 3, 1)

    def forward(self, images):
        quantized, loss, _ = self.quantize(self.encoder(images))
        return (self.decoder(quantized) - images).square().mean() + loss


def foreign(name):
    """(module, input) of a library's class."""
    image, signal = torch.randn(FEATURES), torch.randn(3, 6, 20)
    return {
        "taming": (FOREIGN.taming(20, 6, 0.25), image),
        "taming fixed": (FOREIGN.taming(20, 6, 0.25, sane_index_shape=True, legacy=False), image),
        "taming first": (FOREIGN.taming_first(20, 6, 0.25), image),
        "taming ema": (FOREIGN.taming_ema(20, 6, 0.25), image),
        "gumbel": (FOREIGN.gumbel(6, 5, 20), image),
        "encodec": (FOREIGN.encodec(6, 20), signal),
        "encodec projected": (FOREIGN.encodec(6, 20, codebook_dim=3), signal),
        "llamagen": (FOREIGN.llamagen(20, 6, 0.25, 0.1, True, True), image),
        "cvq": (FOREIGN.cvq(20, 6, 0.25, anchor="closest"), image),
        "cvq drawn": (FOREIGN.cvq(20, 6, 0.25), image),
        "vit-vqgan": (FOREIGN.vit_vqgan(6, 20), signal.mT),
        "vit-vqgan residual": (FOREIGN.vit_vqgan(6, 20, use_norm=False, use_residual=True, num_quantizers=2), signal.mT),
        "monai": (FOREIGN.monai(3, 20, 6), torch.randn(2, 6, 2, 3, 4)),
        "var": (FOREIGN.var(20, 6, True, v_patch_nums=(1, 2, 4), share_quant_resi=2), image),
        "var own phi": (FOREIGN.var(20, 6, False, v_patch_nums=(1, 2, 4), share_quant_resi=0), image),
        "var one phi": (FOREIGN.var(20, 6, False, v_patch_nums=(1, 4), share_quant_resi=1), image),
    }[name]


NAMES = """taming|taming fixed|taming first|taming ema|gumbel|encodec|encodec projected|llamagen|cvq|cvq drawn|vit-vqgan|vit-vqgan residual|
monai|var|var own phi|var one phi""".replace("\n", "").split("|")


@pytest.mark.parametrize("name", NAMES)
def test_there_and_back(name):
    module, x = foreign(name)
    model = nn.Sequential(module).eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    learned = [p for p in model.parameters() if p.requires_grad]
    torch.manual_seed(1)
    expected = model(x)[0]
    report = vqkit.accelerate(model)
    assert len(report.replaced) == 1 and not report.left, report
    assert type(model[0]).__module__.startswith("vqkit.compat.")
    assert model.state_dict().keys() == state.keys() and not model[0].training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert {id(p) for p in learned} == {id(p) for p in model.parameters() if p.requires_grad}
    torch.manual_seed(1)
    torch.testing.assert_close(model(x)[0], expected)
    model.train()(x)
    moved = {key: value.clone() for key, value in model.state_dict().items()}
    vqkit.restore(model)
    assert model[0] is module and module.training
    assert all(torch.equal(value, moved[key]) for key, value in model.state_dict().items())
    assert {id(p) for p in learned} == {id(p) for p in model.parameters() if p.requires_grad}
    module(x)


def test_an_optimizer_built_before_goes_on():
    plain = Autoencoder(FOREIGN.taming(20, 6, 0.25))
    swapped = copy.deepcopy(plain)
    optimizers = [torch.optim.Adam(model.parameters(), 1e-2) for model in (plain, swapped)]
    batches = torch.randn(9, 2, 3, 4, 4)
    for step, images in enumerate(batches):
        if step == 3:
            vqkit.accelerate(swapped)
        if step == 6:
            assert isinstance(swapped.quantize, taming.VectorQuantizer2)
            vqkit.restore(swapped)
        losses = []
        for model, optimizer in zip((plain, swapped), optimizers):
            optimizer.zero_grad()
            losses.append(model(images))
            losses[-1].backward()
            optimizer.step()
        torch.testing.assert_close(*losses)
    for a, b in zip(plain.parameters(), swapped.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_shared_module_is_swapped_once():
    shared = FOREIGN.taming(20, 6, 0.25)
    model = nn.ModuleDict(dict(a=shared, b=nn.ModuleList([nn.Identity(), shared]), c=FOREIGN.taming(20, 6, 0.5)))
    report = vqkit.accelerate(model)
    assert model["a"] is model["b"][1] and model["a"] is not model["c"] and list(model) == ["a", "b", "c"]
    assert [row.path for row in report.replaced] == ["a", "b.1", "c"] and "the same module as a" in report.rows[1].note
    vqkit.restore(model)
    assert model["a"] is shared and model["b"][1] is shared


def test_report_is_a_table():
    model = Autoencoder(FOREIGN.taming(20, 6, 0.25))
    text = str(vqkit.accelerate(model))
    heading, row = text.splitlines()
    assert heading.split() == ["path", "class", "now", "note"]
    assert row.startswith("quantize  somebody.quantize.VectorQuantizer2  vqkit.compat.taming.VectorQuantizer2")
    assert not vqkit.accelerate(model) and "no quantizer" in str(vqkit.accelerate(model))
    assert len(vqkit.restore(model)) == 1 and len(vqkit.restore(model)) == 0


def test_hooks_move_along_and_their_handles_stay_valid():
    model, seen = Autoencoder(FOREIGN.taming(20, 6, 0.25)), []
    first = model.quantize.register_forward_hook(lambda module, inputs, output: seen.append("after"))
    model.quantize.register_forward_pre_hook(lambda module, inputs: seen.append("before"))
    model.quantize.register_full_backward_hook(lambda module, inputs, outputs: seen.append("backward"))
    vqkit.accelerate(model)
    assert not seen
    model(torch.randn(2, 3, 4, 4)).backward()
    assert seen == ["before", "after", "backward"]
    first.remove()
    vqkit.restore(model)
    model(torch.randn(2, 3, 4, 4)).backward()
    assert seen == ["before", "after", "backward"] + ["before", "backward"]


@pytest.mark.parametrize("name", ["taming", "taming ema", "encodec", "cvq", "monai"])
def test_dtype_and_what_is_frozen(name):
    module, x = foreign(name)
    model = nn.Sequential(module).to(torch.bfloat16).requires_grad_(False)
    vqkit.accelerate(model)
    assert model[0](x.bfloat16())[0].dtype == torch.bfloat16 and not any(p.requires_grad for p in model.parameters())
    vqkit.restore(model)
    assert {value.dtype for value in model.state_dict().values()} == {torch.bfloat16}


def test_random_numbers_are_not_touched():
    model, before = Autoencoder(FOREIGN.taming(20, 6, 0.25)), torch.get_rng_state()
    vqkit.accelerate(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_settings_changed_meanwhile_come_back():
    module, _ = foreign("gumbel")
    model = nn.Sequential(module)
    vqkit.accelerate(model)
    model[0].temperature = 0.125
    vqkit.restore(model)
    assert model[0] is module and module.temperature == 0.125


def test_a_copy_of_the_model_restores_by_itself():
    model = Autoencoder(FOREIGN.taming(20, 6, 0.25))
    vqkit.accelerate(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.quantize.embedding.weight.fill_(3)
    vqkit.restore(other)
    assert type(other.quantize) is FOREIGN.taming and (other.quantize.embedding.weight == 3).all()
    assert isinstance(model.quantize, taming.VectorQuantizer2) and not (model.quantize.embedding.weight == 3).any()


def test_a_checkpoint_from_before_loads():
    model, other = (Autoencoder(FOREIGN.taming_ema(20, 6, 0.25)) for _ in range(2))
    vqkit.accelerate(model)
    model.load_state_dict(other.state_dict())
    images = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(model(images), other(images))
    other.load_state_dict(model.state_dict())


def test_an_accelerated_model_compiles():
    torch.compiler.reset()
    model = Autoencoder(FOREIGN.taming(20, 6, 0.25))
    images, expected = torch.randn(2, 3, 4, 4), None
    expected = model(images)
    vqkit.accelerate(model)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(images), expected)


class Derived(FOREIGN.taming):
    pass


class OtherLoss(FOREIGN.taming):
    def forward(self, z, **ignored):
        quantized, loss, extras = super().forward(z)
        return quantized, 2 * loss, extras


OtherLoss.__qualname__ = "VectorQuantizer2"


class NameOnly(nn.Module):
    def __init__(self):
        super().__init__()
        self.codes = nn.Parameter(torch.randn(20, 6))


NameOnly.__qualname__ = "VectorQuantizer"


def _patched(module):
    module.forward = lambda z: (z, z.sum() * 0, None)
    return module


def _hooked(module, register):
    register(module)
    return module


def _option(module):
    module.embedding = nn.Embedding(20, 6, max_norm=1.0)
    return module


LEFT = {
    "derived": (lambda: Derived(20, 6, 0.25), "derived from somebody.quantize.VectorQuantizer2"),
    "other loss": (lambda: OtherLoss(20, 6, 0.25), "on a trial in training mode its result 1"),
    "name only": (NameOnly, "no attribute 'n_e'"),
    "patched": (lambda: _patched(FOREIGN.taming(20, 6, 0.25)), "forward is patched"),
    "inner hook": (
        lambda: _hooked(FOREIGN.taming(20, 6, 0.25), lambda m: m.embedding.register_forward_hook(lambda *a: None)),
        "hooks of its 'embedding'",
    ),
    "state hook": (
        lambda: _hooked(FOREIGN.taming(20, 6, 0.25), lambda m: m.register_state_dict_post_hook(lambda *a: None)),
        "hooks on its state dict",
    ),
    "embedding option": (lambda: _option(FOREIGN.taming(20, 6, 0.25)), "max_norm=1.0"),
    "meta device": (lambda: FOREIGN.taming(20, 6, 0.25).to("meta"), "meta device"),
    "unsynchronised": (lambda: FOREIGN.monai(2, 20, 6, ddp_sync=False), "ddp_sync=False"),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_is_left_and_why(case):
    build, reason = LEFT[case]
    module = build()
    model = nn.Sequential(nn.Identity(), module)
    report = vqkit.accelerate(model)
    assert model[1] is module and not report.replaced and reason in report.left[0].note, report
    assert "(left)" in str(report)


def test_the_model_itself_is_left():
    module = FOREIGN.taming(20, 6, 0.25)
    report = vqkit.accelerate(module)
    assert len(report) == 1 and "the model itself" in report.left[0].note and "_vqkit_original" not in vars(module)


def test_a_model_without_quantizers():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    assert len(vqkit.accelerate(model)) == 0


def test_classes_of_vector_quantize_pytorch_are_found_through_the_register():
    pytest.importorskip("vqkit.compat.vector_quantize_pytorch")
    peer = pytest.importorskip("vector_quantize_pytorch")
    model, x = nn.Sequential(peer.VectorQuantize(dim=6, codebook_size=20)).eval(), torch.randn(2, 9, 6)
    expected = model(x)[0]
    report = vqkit.accelerate(model)
    assert len(report.replaced) == 1, report
    torch.testing.assert_close(model(x)[0], expected)
    vqkit.restore(model)
    torch.testing.assert_close(model(x)[0], expected)
