"""Downstream tasks by name. A new one is its file and one line here."""

import importlib

from training.spelling import did_you_mean
from training.tasks.task import Task

_TASKS = {
    "unconditional": "training.tasks.unconditional:Unconditional",
    "class-conditional": "training.tasks.class_conditional:ClassConditional",
    "text-to-image": "training.tasks.text_to_image:TextToImage",
    "semantic-synthesis": "training.tasks.semantic_synthesis:SemanticSynthesis",
    "completion": "training.tasks.completion:Completion",
    "linear-probe": "training.tasks.linear_probe:LinearProbe",
    "captioning": "training.tasks.captioning:Captioning",
    "vqa": "training.tasks.vqa:Vqa",
    "vqa-generate": "training.tasks.vqa:VqaGenerate",
    "grounding": "training.tasks.grounding:Grounding",
    "masked-word": "training.tasks.masked_word:MaskedWord",
    "retrieval": "training.tasks.retrieval:Retrieval",
}


def task_names() -> list[str]:
    """The names that `find_task` knows, in the order of the list that users see."""
    return list(_TASKS)


def find_task(name: str) -> type[Task]:
    """The task of this name. Raises ValueError naming the known ones."""
    if name not in _TASKS:
        raise ValueError(f"task: expected one of {', '.join(_TASKS)}, got {name!r}{did_you_mean(name, _TASKS)}")
    module, _, attribute = _TASKS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
