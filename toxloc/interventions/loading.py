"""Load a saved intervention."""

from os import PathLike
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors import ToxlocError
from ..support.files import read_json
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
    if saved.get("kind") not in KINDS:
        raise ToxlocError(
            f"{folder} holds an intervention of the unknown kind {saved.get('kind')!r}; known: {', '.join(KINDS)}."
        )
    try:
        intervention = KINDS[saved["kind"]]._restore(saved["config"], load_file(folder / "tensors.safetensors"))
        intervention.fitted_on, intervention.record = saved["fitted_on"], saved["record"]
    except ToxlocError:
        raise
    except (KeyError, OSError, TypeError, AttributeError, ValueError, SafetensorError) as error:
        raise ToxlocError(f"The intervention in {folder} is damaged or incomplete: {error}") from error
    return intervention
