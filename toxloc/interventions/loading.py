"""Load a saved intervention."""

from os import PathLike
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import ToxlocError
from ..support.files import read_json, read_tensors
from ..support.settings import first_problem
from .base import FORMAT_VERSION, KINDS, Intervention
from .chain import Chain as Chain  # imported to register this kind, which is not a method
from .registry import find_methods


class _Model(BaseModel):
    name: str
    fingerprint: str


class _Texts(BaseModel):
    contrast: str = ""
    n_toxic: int = 0
    n_neutral: int = 0
    neutral: str = ""


class _Record(BaseModel):
    """The part of a fit's record that is read again; each method adds its own results."""

    tuned_perplexity_ratio: float | None = None
    tuned_kl: float | None = None
    check_perplexity_ratio: float | None = None
    check_kl: float | None = None
    texts: _Texts = _Texts()


class _Fit(BaseModel):
    model_config = ConfigDict(strict=True)

    fitted_on: _Model | None
    record: _Record


def load_intervention(folder: str | PathLike[str]) -> Intervention:
    """Load an intervention that `Intervention.save` wrote.

    Raises:
        ToxlocError: the folder contains no intervention, or one that is damaged, of an unknown kind or of another
            format version.

    Example:
        >>> load_intervention("toxloc-runs/latest/trne")    # doctest: +SKIP
    """
    folder = Path(folder)
    saved = read_json(folder / "intervention.json", "intervention")
    if saved.get("format_version") != FORMAT_VERSION:
        raise ToxlocError(
            f"{folder} has format version {saved.get('format_version')}, but this toxloc reads format version "
            f"{FORMAT_VERSION}; load it with the toxloc that saved it."
        )
    find_methods()
    if not isinstance(saved.get("kind"), str) or saved["kind"] not in KINDS:
        raise ToxlocError(
            f"{folder} holds an intervention of the unknown kind {saved.get('kind')!r:.60}; known: {', '.join(KINDS)}."
        )
    tensors = read_tensors(folder / "tensors.safetensors", "intervention")
    try:
        intervention = KINDS[saved["kind"]]._restore(saved["config"], tensors)
        intervention.fitted_on, intervention.record = saved["fitted_on"], saved["record"]
        for part in (intervention, *intervention.leaves()):
            _Fit.model_validate({"fitted_on": part.fitted_on or None, "record": part.record})
        intervention.describe(), repr(intervention), intervention.fingerprint  # their errors come here, not later
    except ValidationError as error:
        raise ToxlocError(f"The intervention in {folder} is damaged: {first_problem(error)}") from error
    except ToxlocError as error:
        raise ToxlocError(f"The intervention in {folder} is damaged: {error}") from error
    except Exception as error:  # each kind reads its own settings, whose damage takes many forms
        raise ToxlocError(f"The intervention in {folder} is damaged or incomplete: {error!r:.300}") from error
    return intervention
