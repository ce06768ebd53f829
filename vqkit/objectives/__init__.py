"""What training minimises: reconstruction, perceptual and adversarial terms."""

from vqkit.objectives.adversarial import (
    AdversarialLoss,
    adaptive_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
    non_saturating_discriminator_loss,
    non_saturating_generator_loss,
    r1_penalty,
)
from vqkit.objectives.foreign_weights import MissingWeights
from vqkit.objectives.guidance import GuidanceConfig, GuidanceText, LanguageGuidance, mask_rate
from vqkit.objectives.logit_laplace import logit_laplace_loss, logit_laplace_picture
from vqkit.objectives.perceptual import LPIPS
from vqkit.objectives.reconstruction import ReconstructionLoss, structural_loss
from vqkit.objectives.text_objective import TextObjective
from vqkit.objectives.translation import CaptionTranslation, TranslationConfig, TranslationText

__all__ = [
    "LPIPS",
    "AdversarialLoss",
    "CaptionTranslation",
    "GuidanceConfig",
    "GuidanceText",
    "LanguageGuidance",
    "MissingWeights",
    "ReconstructionLoss",
    "TextObjective",
    "TranslationConfig",
    "TranslationText",
    "adaptive_weight",
    "hinge_discriminator_loss",
    "hinge_generator_loss",
    "logit_laplace_loss",
    "logit_laplace_picture",
    "mask_rate",
    "non_saturating_discriminator_loss",
    "non_saturating_generator_loss",
    "r1_penalty",
    "structural_loss",
]
