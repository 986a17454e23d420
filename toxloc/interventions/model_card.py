"""The model card of an exported model or adapter."""

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from ..errors import ToxlocError
from ..models.loaded import LoadedModel
from ..support.files import read_json
from ..support.templates import render
from ..version import __version__
from .base import Intervention


def effect_in_run(intervention: Intervention, folder: str | PathLike[str], lm: LoadedModel) -> dict[str, Any] | None:
    """Return what a run measured without and with the intervention that it saved in `folder`, for a model card.

    Returns None if the folder is not in a run's folder, or if the run is of another intervention or model.
    """
    path = Path(folder).resolve().parent / "results.json"
    if not path.is_file():
        return None
    results = read_json(path, "finished run")
    if not lm.has_fingerprint(results["about_model"]["fingerprint"]):
        return None
    before, *runs = results["runs"]
    description = intervention.describe()
    return next(({"before": before, "after": run} for run in runs if run["config"] == description), None)


def model_card(lm: LoadedModel, interventions: Sequence[Any], effect: dict[str, Any] | None, *, adapter: bool) -> str:
    """Return the text of README.md for an exported model or adapter.

    Args:
        lm: the model.
        interventions: the interventions that the exported weights contain.
        effect: measurements before and after, see `export_hf`; None if there are none.
        adapter: True for an adapter, False for a whole model.

    Raises:
        ToxlocError: `effect` was measured with another method, or its keys are not "before" and "after".
    """
    _check_effect(effect, interventions)
    edits = [
        {
            "where": part.where(),
            "paper": part.paper,
            "known": part.describe(),
            "settings": json.dumps(part.describe(), indent=2),
        }
        for intervention in interventions
        for part in intervention.leaves()
    ]
    adds_bos = lm.tokenizer("a")["input_ids"][:1] == [lm.tokenizer.bos_token_id]
    return render(
        "model_card.md.j2",
        lm=lm,
        type=lm.model_type,
        dtype=str(lm.dtype).removeprefix("torch."),
        adapter=adapter,
        edits=edits,
        effect=effect,
        version=__version__,
        bos=lm.tokenizer.bos_token if lm.prepend_bos and not adds_bos else None,
        base=lm.name if lm.name == lm.hf.name_or_path else f"path/to/{lm.name}",
    )


def _check_effect(effect: dict[str, Any] | None, interventions: Sequence[Intervention]) -> None:
    if effect is None:
        return
    if set(effect) != {"before", "after"}:
        raise ToxlocError(
            f'effect needs "before" and "after", each an Evaluation.to_dict(); it has {", ".join(effect) or "nothing"}.'
        )
    method = "+".join(intervention.kind for intervention in interventions) or "baseline"
    if effect["after"]["method"] != method:
        raise ToxlocError(
            f"effect was measured with {effect['after']['method']!r}, but the export contains "
            f"{method!r}; give the measurements of {method!r}."
        )
