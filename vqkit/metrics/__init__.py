"""What is reported of a model: picture quality, sets of pictures compared, codebook usage, and how pictures and captions agree."""

from vqkit.metrics.alignment import choose_words, words_right
from vqkit.metrics.bleu import Bleu, bleu
from vqkit.metrics.caption_scores import caption_scores
from vqkit.metrics.caption_tokens import Scores, caption_tokens
from vqkit.metrics.cider import cider_d
from vqkit.metrics.distribution import PictureSet, compare_pictures
from vqkit.metrics.features import Features, PictureFeatures
from vqkit.metrics.frechet import FeatureStatistics, frechet_distance, gaussian_distance
from vqkit.metrics.grounding import box_iou, grounding_accuracy
from vqkit.metrics.image import psnr, ssim
from vqkit.metrics.inception import InceptionFeatures
from vqkit.metrics.inception_score import inception_score
from vqkit.metrics.kernel_distance import kernel_distance
from vqkit.metrics.meteor import meteor
from vqkit.metrics.precision_recall import Manifold, precision_recall
from vqkit.metrics.retrieval import median_rank, recall_at, retrieval_ranks, retrieval_recall
from vqkit.metrics.rouge import rouge_l
from vqkit.metrics.synsets import open_wordnet
from vqkit.metrics.usage import CodebookUsage, count_codes
from vqkit.metrics.vqa import answer_accuracy, normalize_answer, soft_accuracy
from vqkit.metrics.wups import wups
from vqkit.objectives import LPIPS

__all__ = [
    "LPIPS", "Bleu", "CodebookUsage", "FeatureStatistics", "Features", "InceptionFeatures", "Manifold", "PictureFeatures", "PictureSet", "Scores",
    "answer_accuracy", "bleu", "box_iou", "caption_scores", "caption_tokens", "choose_words", "cider_d", "compare_pictures", "count_codes",
    "frechet_distance", "gaussian_distance", "grounding_accuracy", "inception_score", "kernel_distance", "median_rank", "meteor",
    "normalize_answer", "open_wordnet", "precision_recall", "psnr", "recall_at", "retrieval_ranks", "retrieval_recall", "rouge_l",
    "soft_accuracy", "ssim", "words_right", "wups",
]  # fmt: skip
