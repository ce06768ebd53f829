"""The studies by name: which tokenizers each compares, and which claims of the papers it puts to the test."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from training.recipes import TokenizerSettings, find_recipe
from training.studies.claims import Claim

# Of `rates`: what one RAQ is asked for, and what a VQ-VAE is trained for each time.
_RATES = (16, 64, 256)
# And one whose training goes on to 2,048 codes, as the paper's; a step of it takes several times as long.
_PUBLISHED = (16, 2048)
_HIGH_RATES = (1024, 2048)


@dataclass(frozen=True)
class Candidate:
    """One row of a study: a recipe, and what is changed in it, "model.transfer" for a field of the model, "lg.gamma" for one of lg.

    rates: numbers of codes at which a rate-adaptive model is measured besides its own, each a row "LABEL at RATE".
    """

    label: str
    recipe: str
    changes: dict[str, object] = field(default_factory=dict)
    rates: tuple[int, ...] = ()

    def settings(self) -> TokenizerSettings:
        """The recipe's settings with the changes."""
        settings = find_recipe(self.recipe).settings
        outer = {name: value for name, value in self.changes.items() if "." not in name}
        for holder in dict.fromkeys(name.partition(".")[0] for name in self.changes if "." in name):
            inner = {name.partition(".")[2]: value for name, value in self.changes.items() if name.startswith(f"{holder}.")}
            outer[holder] = dataclasses.replace(getattr(settings, holder), **inner)
        return dataclasses.replace(settings, **outer)


@dataclass(frozen=True)
class Comparison:
    """What a study compares: a line about it, its candidates in the table's order, and the claims that its numbers decide."""

    summary: str
    candidates: tuple[Candidate, ...]
    claims: tuple[Claim, ...] = ()


def _of(*recipes: str) -> tuple[Candidate, ...]:
    # Unguided ones see no mirrored pictures either, so that guidance is the one difference.
    return tuple(Candidate(name, name, {"flip": False}) for name in recipes)


def _guided_claims(guided: str, plain: str) -> tuple[Claim, ...]:
    return (
        Claim("guidance by captions lowers the word-code similarity MSE", "probe_word_code_similarity_mse", guided, plain, lower=True,
              published="0.6374 -> 0.0351 (CUB-200)"),
        Claim("guidance by captions raises masked-word recall@1", "probe_masked_word_recall@1", guided, plain,
              published="83.65 % guided (CUB-200), none unguided"),
        Claim("guidance by captions raises image-to-text recall@1", "probe_image_to_text_recall@1", guided, plain,
              published="pictures only"),
        Claim("guidance by captions raises image-to-text recall@10", "probe_image_to_text_recall@10", guided, plain,
              published="pictures only"),
        Claim("guidance by captions raises codebook usage", "codebook_usage", guided, plain,
              published="18.62 -> 43.58 % (TextCaps), 40.09 -> 97.89 % (MS-COCO)"),
        Claim("guidance by captions raises PSNR", "psnr", guided, plain,
              published="19.64 -> 19.92 dB (TextCaps), 24.10 -> 23.75 dB (CelebA-HQ)"),
    )


_VQCT = Candidate("vqct", "vqct")
STUDIES: dict[str, Comparison] = {
    "papers": Comparison(
        "the papers' first tables: codebooks of every kind, with and without guidance by captions",
        _of("vqgan", "vqct", "vqgan+lg", "vqct+lg", "vqct-vlt", "cvq", "cvq+lg", "simvq", "vqvae", "vqvae+lg", "rqvae", "v2l", "adq", "autoencoder"),
        (
            Claim("VQCT uses more of its codes than VQ-GAN", "codebook_usage", "vqct", "vqgan", published="figure 5, no number"),
            Claim("what one position selects moves more of VQCT's codes than of VQ-GAN's", "codes_moved", "vqct", "vqgan",
                  published="all against the selected ones (figure 3)"),
            Claim("VQCT reconstructs better than VQ-GAN", "psnr", "vqct", "vqgan",
                  published="by FID: 5.66 -> 5.02 (CelebA-HQ), 3.63 -> 2.13 (CUB-200), 14.45 -> 9.82 (MS-COCO)"),
            *_guided_claims("vqgan+lg", "vqgan"),
            Claim("guidance by captions raises VQCT's PSNR, too", "psnr", "vqct+lg", "vqct", published="by FID: 9.82 -> 9.57 (MS-COCO)"),
            Claim("CVQ uses more of its codes than VQ-GAN", "codebook_usage", "cvq", "vqgan", published="all codes"),
            Claim("SimVQ uses more of its codes than VQ-GAN", "codebook_usage", "simvq", "vqgan", published="all codes"),
        ),
    ),
    "vqct": Comparison(
        "VQCT's ablations: transfer, parts of speech, prior, dropout",
        (
            _VQCT,
            *(Candidate(f"transfer={kind}", "vqct", {"model.transfer": kind}) for kind in ("mlp", "gat", "none")),
            *(Candidate(f"parts={kind}", "vqct", {"model.parts": kind}) for kind in ("adjectives", "nouns", "merged")),
            Candidate("no prior", "vqct", {"model.prior": False}),
            Candidate("no dropout", "vqct", {"model.dropout": 0.0}),
        ),
        (
            Claim("the graph keeps more codes in use than two linear layers", "codebook_usage", "vqct", "transfer=mlp"),
            Claim("the graph keeps more codes in use than word vectors as they are", "codebook_usage", "vqct", "transfer=none"),
            Claim("adjectives and nouns apart reconstruct better than one codebook of all words", "psnr", "vqct", "parts=merged"),
            Claim("adjectives and nouns reconstruct better than nouns alone", "psnr", "vqct", "parts=nouns"),
            Claim("adjectives and nouns reconstruct better than adjectives alone", "psnr", "vqct", "parts=adjectives"),
            Claim("word vectors reconstruct better than noise on the same graph", "psnr", "vqct", "no prior"),
        ),
    ),
    "guidance": Comparison(
        "LG-VQ's ablation: its three losses left out one by one",
        (
            *_of("vqgan", "vqgan+lg"),
            Candidate("no global alignment", "vqgan+lg", {"lg.alpha": 0.0}),
            Candidate("no masked words", "vqgan+lg", {"lg.beta": 0.0}),
            Candidate("no relations", "vqgan+lg", {"lg.gamma": 0.0}),
        ),
        (
            *_guided_claims("vqgan+lg", "vqgan"),
            Claim("global alignment raises image-to-text recall@10", "probe_image_to_text_recall@10", "vqgan+lg", "no global alignment",
                  published="by FID: 20.77 -> 20.35 (TextCaps)"),
            Claim("masked words raise masked-word recall@1", "probe_masked_word_recall@1", "vqgan+lg", "no masked words"),
            Claim("relations lower the word-code similarity MSE", "probe_word_code_similarity_mse", "vqgan+lg", "no relations", lower=True,
                  published="by FID: 20.46 -> 20.35 (TextCaps)"),
        ),
    ),
    "codes": Comparison(
        "ViT-VQGAN's ablation: factorised and normalised codes",
        (
            Candidate("vit-vqgan", "vit-vqgan"),
            Candidate("not normalised", "vit-vqgan", {"model.metric": "l2"}),
            Candidate("length 4", "vit-vqgan", {"model.code_dim": 4}),
            Candidate("not factorised", "vit-vqgan", {"model.code_dim": 192}),
        ),
        (
            Claim("factorised codes are used more", "codebook_usage", "vit-vqgan", "not factorised", published="4 -> 96 %"),
            Claim("normalised codes are used more", "codebook_usage", "vit-vqgan", "not normalised", published="2 -> 96 %"),
            Claim("factorised codes reconstruct better", "psnr", "vit-vqgan", "not factorised"),
        ),
    ),
    "rates": Comparison(
        "RAQ's claim: one training serves many rates",
        (
            Candidate("raq", "raq", rates=_RATES),
            Candidate("raq, clustered", "raq", {"model.generator": "resize"}, rates=_RATES),
            Candidate("raq to 2048", "raq", {"model.rates": _PUBLISHED}, rates=_RATES + _HIGH_RATES),
            *(Candidate(f"vqvae of {rate}", "vqvae", {"model.codebook_size": rate, "lr": 5e-4}) for rate in _RATES + _HIGH_RATES),
        ),
        (
            *(Claim(f"at {rate} codes one RAQ comes within half a dB of a VQ-VAE trained for {rate}", "psnr", f"raq at {rate}",
                    f"vqvae of {rate}", margin=-0.5, published="close to separate training, at every rate") for rate in _RATES),
            *(Claim(f"at {rate} codes one RAQ of {_PUBLISHED[0]} to {_PUBLISHED[1]} comes within half a dB of a VQ-VAE trained for {rate}", "psnr",
                    f"raq to 2048 at {rate}", f"vqvae of {rate}", margin=-0.5, published="close to separate training, at every rate")
              for rate in _RATES + _HIGH_RATES),
            Claim("more codes reconstruct better", "psnr", f"raq at {_RATES[-1]}", f"raq at {_RATES[0]}"),
            Claim("trained generation is better than clustering at few codes", "psnr", f"raq at {_RATES[0]}",
                  f"raq, clustered at {_RATES[0]}"),
        ),
    ),
}


def listed() -> str:
    """The studies, a line each, with their candidates and the number of claims."""
    width = max(map(len, STUDIES))
    return "\n".join(f"{name:<{width}}  {study.summary}: {'; '.join(candidate.label for candidate in study.candidates)} "
                     f"({len(study.claims)} claims)" for name, study in STUDIES.items())
