"""``python -m training``: recipes, tasks, vocabulary, tokenizer, prior, evaluate, report, study, downstream, demo."""

from __future__ import annotations

import logging
import sys

COMMANDS = {
    "recipes": "what can be trained, a line each",
    "tasks": "what a prior can be trained for, a line each",
    "vocabulary": "words for a VQCT of any captions and language model: vocabulary CAPTIONS [CAPTIONS ...] --out words.safetensors",
    "tokenizer": "train a tokenizer: tokenizer RECIPE --data DIR|scenes --out RUN [--steps N ...]; again to resume",
    "prior": "train a transformer for a task: prior TASK --tokenizer RUN --data DIR|scenes --out RUN [--recipe NAME ...]; again to resume",
    "evaluate": "measure a run: evaluate RUN --data DIR|scenes --split test; or mean-color in the place of RUN, the floor",
    "generate": "what a prior makes, as a picture: generate RUN --out pictures.png [--prompt \"a red circle\" ...]",
    "report": "one HTML page with pictures, curves and numbers: report RUN [RUN ...] --out report.html",
    "study": "a list of recipes on one budget, in one table and page: study NAME --data DIR|scenes --out STUDY; study list",
    "downstream": "tasks of several tokenizers, a prior each, in one table and page: downstream RUN [RUN ...] --data DIR|scenes --out STUDY",
    "demo": "VQCT and a plain VQ-GAN side by side on built-in scenes, evaluated, with a report: demo --out runs/demo",
}


def main(arguments: list[str]) -> None:
    """Run one command. Mistakes in the arguments end in SystemExit(2) with one line that names them."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if command in ("-h", "--help"):
        print(_usage())
        return
    if command not in COMMANDS:
        _refuse(f"command: expected one of {', '.join(COMMANDS)}, got {command!r}")
    try:
        _RUNNERS[command](rest)
    except (ValueError, TypeError, FileNotFoundError, FloatingPointError) as mistake:
        _refuse(str(mistake))


def _run_recipes(arguments: list[str]) -> None:
    from training.recipes import RECIPES

    if arguments:
        _refuse(f"recipes: expected no arguments, got {arguments}")
    width = max(map(len, RECIPES))
    for name, recipe in RECIPES.items():
        print(f"{name:<{width}}  {recipe.summary}")
    print("\npython -m training tokenizer RECIPE --help lists every setting with the recipe's value")


def _run_vocabulary(arguments: list[str]) -> None:
    import tyro

    from training.vocabulary import WordSelection, write_vocabulary

    write_vocabulary(tyro.cli(WordSelection, args=arguments, prog="python -m training vocabulary"))


def _run_tokenizer(arguments: list[str]) -> None:
    import tyro

    from training.recipes import RECIPES, find_recipe
    from training.tokenizer import train

    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: python -m training tokenizer RECIPE --data DIR|scenes --out RUN [settings]\n\nrecipes: {', '.join(RECIPES)}\n"
              "python -m training tokenizer RECIPE --help lists every setting with the recipe's value")
        raise SystemExit(0 if arguments else 2)
    name, rest = arguments[0], arguments[1:]
    recipe = find_recipe(name)
    settings = tyro.cli(type(recipe.settings), default=recipe.settings, args=rest, prog=f"python -m training tokenizer {name}",
                        description=recipe.summary, config=(tyro.conf.FlagConversionOff,))
    train(name, settings)


def _run_tasks(arguments: list[str]) -> None:
    from training.priors.recipes import PRIOR_RECIPES
    from training.tasks import find_task, task_names

    if arguments:
        _refuse(f"tasks: expected no arguments, got {arguments}")
    for title, lines in (("tasks", {name: find_task(name).summary for name in task_names()}),
                         ("recipes", {name: recipe.summary for name, recipe in PRIOR_RECIPES.items()})):
        width = max(map(len, lines))
        print(f"{title}:", *(f"  {name:<{width}}  {summary}" for name, summary in lines.items()), sep="\n")
    print("\npython -m training prior TASK --recipe NAME --help lists every setting with the recipe's value")


def _run_prior(arguments: list[str]) -> None:
    import tyro

    from training.priors.recipes import PRIOR_RECIPES, find_prior_recipe
    from training.priors.train import train_prior
    from training.tasks import find_task, task_names

    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m training prior TASK --tokenizer RUN --data DIR|scenes --out RUN [--recipe NAME] [settings]\n\n"
              f"tasks: {', '.join(task_names())}\nrecipes: {', '.join(PRIOR_RECIPES)}\n"
              "python -m training prior TASK --recipe NAME --help lists every setting with the recipe's value")
        raise SystemExit(0 if arguments else 2)
    task, rest = arguments[0], arguments[1:]
    find_task(task)
    name = "small"
    if "--recipe" in rest:
        at = rest.index("--recipe")
        if at + 1 == len(rest):
            _refuse(f"recipe: expected one of {', '.join(PRIOR_RECIPES)}, got nothing")
        name, rest = rest[at + 1], rest[:at] + rest[at + 2 :]
    recipe = find_prior_recipe(name)
    settings = tyro.cli(type(recipe.settings), default=recipe.settings, args=rest, prog=f"python -m training prior {task} --recipe {name}",
                        description=recipe.summary, config=(tyro.conf.FlagConversionOff,))
    train_prior(task, name, settings)


def _run_evaluate(arguments: list[str]) -> None:
    from pathlib import Path

    import tyro

    from training.evaluate import Evaluation, evaluate
    from training.priors.evaluate import PriorEvaluation, evaluate_prior
    from training.priors.runs import FinishedPrior

    if any(FinishedPrior.is_one(Path(word)) for word in arguments if not word.startswith("-")):
        evaluate_prior(tyro.cli(PriorEvaluation, args=arguments, prog="python -m training evaluate"))
        return
    evaluate(tyro.cli(Evaluation, args=arguments, prog="python -m training evaluate"))


def _run_generate(arguments: list[str]) -> None:
    import tyro

    from training.priors.generate import Generation, generate

    generate(tyro.cli(Generation, args=arguments, prog="python -m training generate"))


def _run_report(arguments: list[str]) -> None:
    import tyro

    from training.report import Report, write_report

    write_report(tyro.cli(Report, args=arguments, prog="python -m training report"))


def _run_demo(arguments: list[str]) -> None:
    import tyro

    from training.demo import Demo, demo

    demo(tyro.cli(Demo, args=arguments, prog="python -m training demo"))


def _run_study(arguments: list[str]) -> None:
    import tyro

    from training.studies.candidates import listed
    from training.studies.study import Study, make_study

    if arguments == ["list"]:
        print(listed())
        return
    make_study(tyro.cli(Study, args=arguments, prog="python -m training study"))


def _run_downstream(arguments: list[str]) -> None:
    import tyro

    from training.studies.downstream import Downstream, run_downstream

    run_downstream(tyro.cli(Downstream, args=arguments, prog="python -m training downstream"))


_RUNNERS = {"recipes": _run_recipes, "tasks": _run_tasks, "vocabulary": _run_vocabulary, "tokenizer": _run_tokenizer,
            "prior": _run_prior, "evaluate": _run_evaluate, "generate": _run_generate,
            "report": _run_report, "study": _run_study, "downstream": _run_downstream, "demo": _run_demo}


def _usage() -> str:
    lines = ["usage: python -m training COMMAND ...", ""]
    lines += [f"  {name:<10} {summary}" for name, summary in COMMANDS.items()]
    return "\n".join([*lines, "", "python -m training COMMAND --help tells more"])


def _refuse(text: str) -> None:
    print(f"error: {text}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
