"""Load a saved intervention."""

from os import PathLike
from pathlib import Path

from ..errors import ToxlocError
from ..support.files import read_json, read_tensors
from .base import FORMAT_VERSION, KINDS, Intervention
from .chain import Chain as Chain  # imported to register this kind, which is not a method
from .registry import find_methods


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
        known = intervention.fitted_on
        if not isinstance(intervention.record, dict) or not isinstance(known, dict):
            raise TypeError("fitted_on and record must be objects")
        if known and not (isinstance(known["name"], str) and isinstance(known["fingerprint"], str)):
            raise TypeError("fitted_on must have a name and a fingerprint")
        intervention.describe(), repr(intervention), intervention.fingerprint  # their errors come here, not later
    except ToxlocError as error:
        raise ToxlocError(f"The intervention in {folder} is damaged: {error}") from error
    except Exception as error:  # each kind reads its own settings, whose damage takes many forms
        raise ToxlocError(f"The intervention in {folder} is damaged or incomplete: {error!r:.300}") from error
    return intervention
