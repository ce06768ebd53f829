"""What the papers claim of downstream tasks: which codes serve which task better, by the measures of `training.tasks`."""

from __future__ import annotations

from training.studies.claims import Claim


def _claims(sentence: str, of: str, than: str, published: dict[str, str], lower: bool = False) -> tuple[Claim, ...]:
    """One claim for each measure, with what is published of it."""
    return tuple(Claim(sentence, measure, of, than, lower=lower, published=figure) for measure, figure in published.items())


_CUB, _COCO, _REFCOCO, _FACES = "CUB-200", "COCO-QA", "refcoco", "by FID, CelebA-HQ"
TASK_CLAIMS: tuple[Claim, ...] = (
    *_claims("guidance by captions raises the scores of captions", "vqgan+lg", "vqgan", {
        "captioning/bleu4": f"0.0129 -> 0.0169 ({_CUB})", "captioning/rouge_l": f"0.334 -> 0.347 ({_CUB})",
        "captioning/meteor": f"0.245 -> 0.258 ({_CUB})", "captioning/cider_d": f"0.936 -> 1.028 ({_CUB})"}),
    *_claims("captions of VQCT's codes score above those of VQ-GAN's", "vqct", "vqgan", {
        "captioning/bleu4": f"0.0129 -> 0.0138 ({_CUB})", "captioning/rouge_l": f"0.334 -> 0.265, lower ({_CUB})",
        "captioning/meteor": f"0.245 -> 0.246 ({_CUB})", "captioning/cider_d": f"0.936 -> 0.982 ({_CUB})"}),
    *_claims("guidance by captions answers more questions", "vqgan+lg", "vqgan", {
        "vqa/accuracy": f"37.82 -> 40.97 % ({_COCO})", "vqa/wups_0.0": f"83.22 -> 83.56 % ({_COCO})"}),
    *_claims("VQCT's codes answer more questions than VQ-GAN's", "vqct", "vqgan", {
        "vqa/accuracy": f"37.82 -> 40.42 % ({_COCO})", "vqa/wups_0.0": f"83.22 -> 82.06 %, lower ({_COCO})"}),
    *_claims("guidance helps VQCT to answer, too", "vqct+lg", "vqct", {"vqa/accuracy": f"40.42 -> 40.64 % ({_COCO})"}),
    *_claims("guidance by captions finds more phrases", "vqgan+lg", "vqgan", {"grounding/accuracy@0.5": f"9.14 -> 9.62 % ({_REFCOCO})"}),
    *_claims("VQCT's codes find more phrases than VQ-GAN's", "vqct", "vqgan", {"grounding/accuracy@0.5": f"9.14 -> 9.46 % ({_REFCOCO})"}),
    *_claims("translation of codes to captions finds more phrases", "vqct-vlt", "vqct", {"grounding/accuracy@0.5": f"9.46 -> 10.44 % ({_REFCOCO})"}),
    *_claims("guidance by captions names more masked words", "vqgan+lg", "vqgan", {
        "masked-word/recall@1_of_1": "83.65 % guided (CUB-200), none unguided", "masked-word/recall@1_of_3": "80.17 % guided (CUB-200), none unguided"}),
    *_claims("guidance by captions finds more captions of pictures", "vqgan+lg", "vqgan", {"retrieval/text_recall@10": "pictures only"}),
    *_claims("guidance by captions brings generated pictures nearer to real ones", "vqgan+lg", "vqgan", {
        f"{task}/{distance}": figure for task, figure in (
            ("text-to-image", f"15.29 -> 12.61 ({_FACES})"), ("semantic-synthesis", f"11.53 -> 11.46 ({_FACES})"),
            ("unconditional", f"10.2 -> 9.1 ({_FACES})"), ("completion", f"9.02 -> 8.14 ({_FACES})"))
        for distance in ("fid", "fd_net")}, lower=True),
    *_claims("pictures generated from masks by VQCT's codes are nearer to real ones than by VQ-GAN's", "vqct", "vqgan", {
        f"semantic-synthesis/{distance}": f"11.53 -> 14.47, farther ({_FACES})" for distance in ("fid", "fd_net")}, lower=True),
)
