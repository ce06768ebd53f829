"""What training minimises: reconstruction, perceptual and adversarial terms."""

from vqkit.objectives.adversarial import (
    AdversarialLoss,
    adaptive_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
    non_saturating_discriminator_loss,
    non_saturating_generator_loss,
)
from vqkit.objectives.perceptual import LPIPS, MissingWeights
from vqkit.objectives.reconstruction import ReconstructionLoss, structural_loss

__all__ = [
    "LPIPS",
    "AdversarialLoss",
    "MissingWeights",
    "ReconstructionLoss",
    "adaptive_weight",
    "hinge_discriminator_loss",
    "hinge_generator_loss",
    "non_saturating_discriminator_loss",
    "non_saturating_generator_loss",
    "structural_loss",
]
