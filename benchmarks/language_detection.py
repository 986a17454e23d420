"""Count the English texts whose language is not recognised, and the warnings that they would cause.

    python -m benchmarks.language_detection --out benchmarks/results/language-detection.json

The texts are the built-in texts, and completions of toxloc-tiny, which writes rough English. Every text that is taken
for another language is a mistake. A warning is a false alarm: it is counted in evaluations of 20 completions that are
drawn at random, because mistakes weigh most in a small evaluation.
"""

import random
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import markdown as md
from toxloc import load_contrast, load_model, load_neutral, load_prompts
from toxloc.evaluation.evaluators.base import FunctionEvaluator
from toxloc.evaluation.language_notes import language_notes
from toxloc.generation.generate import generate
from toxloc.support.files import write_json
from toxloc.texts.detection import detect_language
from toxloc.texts.languages import UNDETERMINED

ENGLISH = "en"
AT_ONCE = 20  # completions of a small evaluation


def english_texts(samples: int, seed: int) -> dict[str, list[str]]:
    """Return English texts by their source."""
    pairs, neutral = load_contrast(), load_neutral(limit=None)
    texts = {
        "openings": load_prompts("builtin").texts,
        "harmless openings": load_prompts("sensitive").texts,
        "toxic texts": pairs.toxic,
        "neutral texts": pairs.neutral,
        "everyday texts": neutral.texts,
    }
    lm = load_model("toxloc-tiny")
    for temperature in (1.0, 1.5):
        completions = generate(lm, texts["openings"], samples=samples, temperature=temperature, seed=seed)
        texts[f"completions of toxloc-tiny, temperature {temperature:g}"] = [t for row in completions for t in row]
    return texts


def measured(texts: list[str], evaluations: int, seed: int) -> dict[str, int]:
    """Count English texts by the language that is detected, and the false alarms of small evaluations."""
    seen = [detect_language(text) for text in texts]
    judge = FunctionEvaluator("judge", lambda texts: [0.0] * len(texts))
    judge.languages = (ENGLISH,)
    draw = random.Random(seed)
    alarms = [language_notes([draw.choices(texts, k=AT_ONCE)], [judge]).warnings for _ in range(evaluations)]
    return {
        "texts": len(texts),
        "english": seen.count(ENGLISH),
        "undecided": seen.count(UNDETERMINED),
        "mistakes": len(seen) - seen.count(ENGLISH) - seen.count(UNDETERMINED),
        "evaluations": evaluations,
        "false_alarms": sum(map(bool, alarms)),
    }


def main(
    samples: Annotated[int, typer.Option(help="Completions per opening.", min=1)] = 5,
    evaluations: Annotated[int, typer.Option(help="Small evaluations to draw from each set of texts.", min=1)] = 1000,
    seed: Annotated[int, typer.Option(help="Seed for the completions and the draws.", min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Measure, print the table and save the counts."""
    texts = english_texts(samples, seed)
    result = {"seed": seed, "sets": {name: measured(of_set, evaluations, seed) for name, of_set in texts.items()}}
    print(markdown(result))
    if out is not None:
        write_json(out, result)


def markdown(result: dict[str, Any]) -> str:
    """Return the table of the documentation."""
    head = ["English texts", "texts", "English", "undecided", "another language", f"false alarms per {AT_ONCE} texts"]
    return md.table(
        head,
        (
            [
                name,
                f"{row['texts']:,}",
                f"{row['english'] / row['texts']:.1%}",
                f"{row['undecided'] / row['texts']:.1%}",
                f"{row['mistakes']}",
                f"{row['false_alarms']} of {row['evaluations']:,}",
            ]
            for name, row in result["sets"].items()
        ),
        numbers=True,
    )


if __name__ == "__main__":
    typer.run(main)
