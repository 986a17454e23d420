"""`toxloc.run`: check the settings before torch is imported, then run the pipeline."""

import shutil
from collections.abc import Sequence
from datetime import datetime
from itertools import count
from os import PathLike
from pathlib import Path
from typing import Any

from ..support.arguments import as_list
from ..support.files import check_free, new_folder
from ..support.settings import signature_from
from .result import RunResult
from .settings import RunSettings


@signature_from(RunSettings)
def run(
    model: str | None = None,
    out: str | PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    settings: RunSettings | None = None,
    evaluators: Sequence[str] | None = None,
    **options: Any,
) -> RunResult:
    """Localize toxicity in a model, test the result by removing parts, fit every method, and judge each of them.

    The provocative prompts are judged. If there are everyday prompts, they show how often ordinary text is called
    toxic. A fifth of the contrast set is held out for the knock-outs, and contrast texts that begin with a judged
    prompt are left out. With contrast="sampled", the contrast set is sampled from the model with one half of the
    provocative prompts, and the other half is judged.

    Args:
        model: model to load, as for `load_model`; "toxloc-tiny" by default.
        out: folder to write; by default a new folder in `toxloc-runs`. It appears only when the run is complete. If an
            evaluator fails, what was computed before is in a folder with the same name and the ending `.stopped`.
        overwrite: replace `out` if it is not empty.
        settings: a `RunSettings`; the options change single fields of it.
        evaluators: names of the evaluators.
        options: fields of `RunSettings`.

    Raises:
        ToxlocError: a setting or an input cannot be used. Settings, files and the model are checked before anything is
            computed or written.

    Example:
        >>> result = toxloc.run("toxloc-tiny", out="first-run")        # doctest: +SKIP
        >>> result.rate("baseline"), result.rate("trne")               # doctest: +SKIP
    """
    if model is not None:
        options["model"] = model
    if evaluators is not None:
        options["evaluators"] = tuple(as_list(evaluators, "the evaluators"))
    chosen = RunSettings.of(settings, **options)
    target = Path(out) if out is not None else _default_folder(chosen)
    check_free(target, overwrite)

    from ..evaluation.evaluators.base import EvaluatorError
    from .pipeline import prepare, run_all  # imports torch

    prepared = prepare(chosen)
    with new_folder(target, overwrite) as folder:
        try:
            return RunResult(target, run_all(prepared, chosen, folder))
        except EvaluatorError as error:
            error.add(f"The fits, completions and scores so far are in {_kept(folder, target)}.")
            raise


def _kept(folder: Path, target: Path) -> Path:
    """Copy what a run has written so far to a new folder beside its target, and return that folder."""
    numbers = (f"-{number}" if number > 1 else "" for number in count(1))
    place = next(path for end in numbers if not (path := target.with_name(f"{target.name}.stopped{end}")).exists())
    with new_folder(place) as copy:
        shutil.copytree(folder, copy, dirs_exist_ok=True)
    return place


def _default_folder(settings: RunSettings) -> Path:
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{_stem(settings.model)}"
    return Path("toxloc-runs") / stem


def _stem(model: str) -> str:
    """Return the last part of a model's name; only .gguf is an ending, and a dot is often part of the name."""
    return Path(model).name.removesuffix(".gguf")
