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
    """Look up what a run measured of the intervention it saved in `folder`, for a model card.

    Returns None where the folder lies in no run, or the run is of another intervention or model.
    """
    path = Path(folder).resolve().parent / "results.json"
    if not path.is_file():
        return None
    results = read_json(path, "finished run")
    if results["about_model"]["fingerprint"] != lm.fingerprint:
        return None
    before, *runs = results["runs"]
    known = intervention.describe()
    return next(({"before": before, "after": run} for run in runs if run["config"] == known), None)


def model_card(lm: LoadedModel, interventions: Sequence[Any], effect: dict[str, Any] | None, *, adapter: bool) -> str:
    """Return README.md of an exported model or adapter.

    Args:
        lm: the model.
        interventions: what is in the exported weights.
        effect: figures before and after, see `export_hf`; None if nothing was measured.
        adapter: whether it is an adapter and not a whole model.

    Raises:
        ToxlocError: `effect` is of another method.
    """
    _check_effect(effect, interventions)
    edits = [
        {
            "where": part.where(),
            "paper": part.paper,
            "known": part.describe(),
            "settings": json.dumps(part.describe(), indent=2, ensure_ascii=False),
        }
        for one in interventions
        for part in one.leaves()
    ]
    adds_bos = lm.tokenizer("a")["input_ids"][:1] == [lm.tokenizer.bos_token_id]
    return render(
        "model_card.md.j2",
        html=False,
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
    method = "+".join(one.kind for one in interventions) or "baseline"
    if effect["after"]["method"] != method:
        raise ToxlocError(
            f"effect was measured with {effect['after']['method']!r}, but what is exported is "
            f"{method!r}; give the figures of that."
        )
