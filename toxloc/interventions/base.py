"""One interface for every way to turn toxicity down: apply, revert, save, load; nothing of the model is lost."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import ToxlocError
from ..models.loaded import AnyModel, LoadedModel
from ..support.files import new_folder, read_json, write_json
from ..texts.contrast import ContrastSet
from ..texts.neutral import NeutralText

FORMAT_VERSION = 1
KINDS: dict[str, "type[Intervention]"] = {}


class Intervention(ABC):
    """A reversible change of a model.

    Subclasses say how they are put in force (`_install`), what they are (`config`, `_tensors`, `_restore`) and
    are registered under their `kind`.

    Attributes:
        kind: name of the method, in files and results.
        bakeable: whether the method has a form that lies in the weights.
        fitted_on: name and fingerprint of the model it was fitted on; empty if it was made by hand.
        record: what the fit found and chose (strength, cost on the tuning text, ...), for reports.
    """

    kind: ClassVar[str]
    bakeable: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.kind in KINDS:
            raise TypeError(f"An intervention of kind {cls.kind!r} exists already: {KINDS[cls.kind].__name__}.")
        KINDS[cls.kind] = cls

    def __init__(self) -> None:
        self.fitted_on: dict[str, str] = {}
        self.record: dict[str, Any] = {}
        self._undo: WeakKeyDictionary[LoadedModel, ExitStack] = WeakKeyDictionary()

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Return the settings that, with the tensors, make this intervention: JSON values only."""

    @abstractmethod
    def check(self, lm: LoadedModel) -> None:
        """Raise ToxlocError unless it fits this model's shape."""

    @abstractmethod
    def _install(self, lm: LoadedModel, stack: ExitStack) -> None:
        """Put it in force, pushing what undoes each step onto the stack before the step is taken."""

    @abstractmethod
    def _tensors(self) -> dict[str, Tensor]:
        """Return the tensors to save."""

    @classmethod
    @abstractmethod
    def _restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> "Intervention":
        """Make the intervention that `config` and `_tensors` described."""

    @property
    def in_weights(self) -> bool:
        """Whether all of it lies in the weights while it is applied, so that a saved model has it."""
        return False

    @property
    def fingerprint(self) -> str:
        """Hash of what it does: the same for two interventions that change a model alike."""
        digest = hashlib.sha256(json.dumps([self.kind, self.config()], sort_keys=True).encode())
        for name, tensor in sorted(self._tensors().items()):
            digest.update(name.encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def baked(self) -> "Intervention":
        """Return the same change in a form that lies in the weights; itself if it does so already.

        Raises:
            ToxlocError: there is no such form: it lives in hooks alone.
        """
        if self.in_weights:
            return self
        raise ToxlocError(f"{self!r} lives in hooks and has no form in the weights, so it cannot be exported; these "
                          f"can: {', '.join(sorted(kind for kind, cls in KINDS.items() if cls.bakeable))}.")

    def apply(self, lm: AnyModel) -> None:
        """Put the intervention in force on a model, until `revert`.

        Raises:
            ToxlocError: it is in force on this model already, or was made for another shape.
        """
        lm = LoadedModel.of(lm)
        if any(intervention is self for intervention in lm.applied):
            raise ToxlocError(f"{self!r} is applied to {lm.name} already; revert it first.")
        self.check(lm)
        with ExitStack() as stack:
            self._install(lm, stack)
            self._undo[lm] = stack.pop_all()
        lm.applied.append(self)

    def revert(self, lm: AnyModel) -> None:
        """Take the intervention off a model: weights come back bit for bit, hooks are removed.

        Raises:
            ToxlocError: it is not in force on this model, or another one was applied after it.
        """
        lm = LoadedModel.of(lm)
        if not any(intervention is self for intervention in lm.applied):
            raise ToxlocError(f"{self!r} is not applied to {lm.name}; there is nothing to revert.")
        if lm.applied[-1] is not self:
            raise ToxlocError(f"{lm.applied[-1]!r} was applied to {lm.name} after {self!r}; revert it first.")
        lm.applied.pop()
        self._undo.pop(lm).close()

    @contextmanager
    def applied(self, lm: AnyModel) -> Iterator["Intervention"]:
        """Keep the intervention in force for a block, and take it off also after an exception.

        Example:
            >>> with intervention.applied(lm):      # doctest: +SKIP
            ...     generate(lm, prompts)
        """
        self.apply(lm)
        try:
            yield self
        finally:
            self.revert(lm)

    def describe(self) -> dict[str, Any]:
        """Say what it is, what it was fitted on and what the fit found."""
        return {"kind": self.kind, **self.config(), **self.record, "fitted_on": self.fitted_on}

    def save(self, folder: str | PathLike[str], overwrite: bool = False) -> None:
        """Write `intervention.json` and `tensors.safetensors`: the change itself, never a copy of the model.

        Raises:
            ToxlocError: the folder is not empty (and `overwrite` is off) or cannot be written.
        """
        with new_folder(folder, overwrite) as partial:
            save_file({k: t.detach().cpu().contiguous() for k, t in self._tensors().items()},
                      partial / "tensors.safetensors")
            write_json(partial / "intervention.json", {
                "format_version": FORMAT_VERSION, "kind": self.kind, "config": self.config(),
                "fitted_on": self.fitted_on, "record": self.record,
            })

    def note_fit(self, lm: LoadedModel, record: dict[str, Any], pairs: ContrastSet | None = None,
                 neutral: NeutralText | None = None) -> None:
        """Remember the model and the texts it was fitted on and, besides what is known, what the fit found."""
        self.fitted_on = {"name": lm.name, "fingerprint": lm.fingerprint}
        texts = dict(self.record.get("texts", {}))
        if pairs is not None:
            texts |= {"contrast": pairs.name, "n_toxic": len(pairs.toxic), "n_neutral": len(pairs.neutral)}
        if neutral is not None:
            texts["neutral"] = neutral.name
        self.record = self.record | record | ({"texts": texts} if texts else {})


def load_intervention(folder: str | PathLike[str]) -> Intervention:
    """Read what `Intervention.save` wrote.

    Raises:
        ToxlocError: there is none in the folder, it is damaged, or a newer toxloc wrote it.

    Example:
        >>> load_intervention("toxloc-runs/latest/trne")    # doctest: +SKIP
    """
    folder = Path(folder)
    saved = read_json(folder / "intervention.json", "intervention")
    if saved.get("format_version") != FORMAT_VERSION:
        raise ToxlocError(f"{folder} has format version {saved.get('format_version')}, this toxloc reads "
                          f"{FORMAT_VERSION}; load it with the version that saved it.")
    if saved.get("kind") not in KINDS:
        raise ToxlocError(f"{folder} holds an intervention of kind {saved.get('kind')!r}; "
                          f"known are {', '.join(KINDS)}.")
    try:
        intervention = KINDS[saved["kind"]]._restore(saved["config"], load_file(folder / "tensors.safetensors"))
        intervention.fitted_on, intervention.record = saved["fitted_on"], saved["record"]
    except (KeyError, OSError) as error:
        raise ToxlocError(f"The intervention in {folder} is damaged or incomplete: {error}") from error
    return intervention


def check_layers(lm: LoadedModel, layers: Iterable[int]) -> None:
    """Raise ToxlocError if one of the layers is not in the model."""
    for layer in layers:
        if not 0 <= layer < lm.n_layers:
            raise ToxlocError(f"Layer {layer} was asked for; {lm.name} has layers 0 to {lm.n_layers - 1}.")


@torch.no_grad()
def overwrite(weight: Tensor, value: Tensor, stack: ExitStack) -> None:
    """Give a weight a new value, having first put its old bits, and the way back, on the stack.

    The value is computed in float32 by the caller and rounded to the weight's type here, once. Subtracting the
    change again would not restore a rounded weight; copying the snapshot does.
    """
    snapshot = weight.detach().clone()

    def restore() -> None:
        with torch.no_grad():
            weight.copy_(snapshot)

    stack.callback(restore)
    weight.copy_(value)


def check_mode(mode: str) -> None:
    """Raise ToxlocError unless the mode is "hooks" or "weights"."""
    if mode not in MODES:
        raise ToxlocError(f"Unknown mode {mode!r}; choose one of {', '.join(MODES)}.")

MODES = ("hooks", "weights")
