"""One interface for every way to turn toxicity down: fit, apply, revert, save, load; nothing of the model is lost.

This module and the methods import torch inside functions, so that methods can be listed and their settings checked
before torch is loaded.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from ..errors import ToxlocError
from ..support.files import new_folder, write_json
from ..support.settings import with_fields
from .settings import MethodSettings

if TYPE_CHECKING:
    from os import PathLike

    from torch import Tensor

    from ..localization.statistics import ContrastStatistics
    from ..models.loaded import AnyModel, LoadedModel
    from ..models.sites import AnySite, Site
    from ..texts.contrast import ContrastSet
    from ..texts.neutral import NeutralText
    from .evidence import Evidence

FORMAT_VERSION = 1
I = TypeVar("I", bound="Intervention")  # noqa: E741
KINDS: dict[str, type[Intervention]] = {}


class Intervention(ABC):
    """A reversible change of a model.

    A subclass says how it is applied (`_install`), what it is (`config`, `_tensors`, `_restore`) and is registered
    under its `kind`. A method, which finds its own strength, also has a `Settings` class and `_fit`.

    Attributes:
        kind: name of the method, in files and results.
        title: its name in figures and reports; by default the kind.
        paper: where it was published.
        colour: its colour in figures of a run; None for the next colour of the palette.
        Settings: class of the method's settings; None for an intervention that is only made by hand.
        bakeable: whether the method has a form in the weights.
        fitted_on: name and fingerprint of the model it was fitted on; empty if it was made by hand.
        record: what the fit chose and measured (strength, cost on the tuning text, ...), for reports.
    """

    kind: ClassVar[str]
    title: ClassVar[str] = ""
    paper: ClassVar[str] = "not recorded"
    colour: ClassVar[str | None] = None
    Settings: ClassVar[type[MethodSettings] | None] = None
    bakeable: ClassVar[bool] = False

    def __init_subclass__(cls, abstract: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if abstract:  # a form that several kinds share
            return
        if cls.kind in KINDS:
            raise TypeError(f"An intervention of kind {cls.kind!r} exists already: {KINDS[cls.kind].__name__}.")
        KINDS[cls.kind] = cls
        cls.title = cls.__dict__.get("title", cls.kind)
        if "Settings" in cls.__dict__ and cls.Settings is not None:
            cls.fit = classmethod(_fit_with(cls.Settings))  # type: ignore[assignment]

    def __init__(self) -> None:
        self.fitted_on: dict[str, str] = {}
        self.record: dict[str, Any] = {}
        self._undo: dict[int, tuple[LoadedModel, ExitStack]] = {}  # by the model's id; holds the model while applied

    @classmethod
    def fit(
        cls: type[I],
        lm: AnyModel,
        pairs: ContrastSet,
        settings: Any = None,
        *,
        neutral: NeutralText | None = None,
        evidence: Evidence | None = None,
        statistics: ContrastStatistics | None = None,
        **options: Any,
    ) -> I:
        """Fit the method to a model.

        Args:
            lm: the model; unchanged when this returns.
            pairs: the contrast set to fit on.
            settings: settings of the method's class `Settings`; options change single fields.
            neutral: everyday text; the budget is kept on its part `tune`. By default the built-in text.
            evidence: what was gathered for this model and these texts before, to share it between fits.
            statistics: statistics of `collect_contrast` that the fit is to use.
            options: fields of the method's settings by name.

        Raises:
            ToxlocError: a wrong setting, texts that the method cannot be fitted on, or no strength within the budget.
        """
        raise ToxlocError(f"{cls.__name__} is made by hand and has nothing to fit.")

    @classmethod
    def needs(cls, settings: Any) -> frozenset[str]:
        """Return the statistics that a fit with these settings takes from `Evidence.statistics`.

        They are gathered in one pass for all methods and scores of a run, a sweep or a benchmark: "moments",
        "gradients", "curvature", "reliance", "peaks".
        """
        return frozenset()

    @classmethod
    def _fit(cls: type[I], evidence: Evidence, settings: Any) -> I:
        """Find the edit and its strength."""
        raise NotImplementedError

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Return the settings that, with the tensors, make this intervention: JSON values only."""

    @abstractmethod
    def check(self, lm: LoadedModel) -> None:
        """Raise ToxlocError unless it fits this model's shape."""

    @abstractmethod
    def _install(self, lm: LoadedModel, stack: ExitStack) -> None:
        """Apply it; push what undoes each step onto the stack before the step is taken."""

    @abstractmethod
    def _tensors(self) -> dict[str, Tensor]:
        """Return the tensors to save."""

    @classmethod
    @abstractmethod
    def _restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Intervention:
        """Make the intervention that `config` and `_tensors` described."""

    @property
    def in_weights(self) -> bool:
        """Whether all of it is in the weights while it is applied, so that a saved model has it."""
        return False

    @property
    def fingerprint(self) -> str:
        """Hash of what it does: the same for two interventions that change a model alike."""
        digest = hashlib.sha256(json.dumps([self.kind, self.config()], sort_keys=True).encode())
        for name, tensor in sorted(self._tensors().items()):
            digest.update(name.encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def baked(self) -> Intervention:
        """Return the same change in a form that is in the weights; itself if it is so already.

        Raises:
            ToxlocError: there is no such form: it exists in hooks alone.
        """
        if self.in_weights:
            return self
        raise ToxlocError(
            f"{self!r} lives in hooks and has no form in the weights, so it cannot be exported; these "
            f"can: {', '.join(sorted(kind for kind, cls in KINDS.items() if cls.bakeable))}."
        )

    def low_rank(self) -> dict[Site, tuple[Tensor, Tensor]]:
        """Return u [r, d_in] and v [r, d_model] of every edited site, if the edit is ΔW = uᵀ v by construction."""
        return {}

    def leaves(self) -> list[Intervention]:
        """Return the interventions that it is made of: itself, but for a chain."""
        return [self]

    def where(self) -> str:
        """Say in words what it changes: layers, neurons or units.

        Example:
            >>> from toxloc import Meow2X
            >>> Meow2X(neurons=[(0, 5), (3, 17)]).where()
            '2 neurons (layer 0: 1, layer 3: 1)'
        """
        known = self.describe()
        layers = known.get("layers") or ([known["layer"]] if "layer" in known else [])
        units = [f"{known['n_units']} units"] if known.get("n_units") else []
        return " and ".join([*units, *([layers_in_words(layers)] if layers else [])]) or "all layers"

    def apply(self, lm: AnyModel) -> None:
        """Apply the intervention to a model, until `revert`.

        Raises:
            ToxlocError: it is applied to this model already, or was made for another shape.
        """
        from ..models.loaded import LoadedModel

        lm = LoadedModel.of(lm)
        if any(intervention is self for intervention in lm.interventions):
            raise ToxlocError(f"{self!r} is applied to {lm.name} already; revert it first.")
        self.check(lm)
        with ExitStack() as stack:
            self._install(lm, stack)
            self._undo[id(lm)] = lm, stack.pop_all()
        lm.interventions.append(self)

    def revert(self, lm: AnyModel) -> None:
        """Take the intervention off a model: weights come back bit for bit, hooks are removed.

        Raises:
            ToxlocError: it is not applied to this model, or another one was applied after it.
        """
        from ..models.loaded import LoadedModel

        lm = LoadedModel.of(lm)
        if not any(intervention is self for intervention in lm.interventions):
            raise ToxlocError(f"{self!r} is not applied to {lm.name}; there is nothing to revert.")
        if lm.interventions[-1] is not self:
            raise ToxlocError(f"{lm.interventions[-1]!r} was applied to {lm.name} after {self!r}; revert it first.")
        lm.interventions.pop()
        self._undo.pop(id(lm))[1].close()

    @contextmanager
    def applied(self, lm: AnyModel) -> Iterator[Intervention]:
        """Apply the intervention for a block, and take it off also after an exception.

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
        """Say what it is, what it was fitted on and what the fit measured."""
        return {"kind": self.kind, **self.config(), **self.record, "fitted_on": self.fitted_on}

    def save(self, folder: str | PathLike[str], overwrite: bool = False) -> None:
        """Write `intervention.json` and `tensors.safetensors`: the change itself, never a copy of the model.

        Raises:
            ToxlocError: the folder is not empty (and `overwrite` is off) or cannot be written.
        """
        from safetensors.torch import save_file

        with new_folder(folder, overwrite) as partial:
            # Copied, since safetensors refuses tensors that share memory, such as views of one matrix.
            save_file(
                {k: t.detach().to("cpu", copy=True).contiguous() for k, t in self._tensors().items()},
                partial / "tensors.safetensors",
            )
            write_json(
                partial / "intervention.json",
                {
                    "format_version": FORMAT_VERSION,
                    "kind": self.kind,
                    "config": self.config(),
                    "fitted_on": self.fitted_on,
                    "record": self.record,
                },
            )

    def note_fit(
        self,
        lm: LoadedModel,
        record: dict[str, Any],
        pairs: ContrastSet | None = None,
        neutral: NeutralText | None = None,
    ) -> None:
        """Note the model and the texts it was fitted on, and add to the record of the fit."""
        self.fitted_on = {"name": lm.name, "fingerprint": lm.fingerprint}
        texts = dict(self.record.get("texts", {}))
        if pairs is not None:
            texts |= {"contrast": pairs.name, "n_toxic": len(pairs.toxic), "n_neutral": len(pairs.neutral)}
        if neutral is not None:
            texts["neutral"] = neutral.name
        self.record = self.record | record | ({"texts": texts} if texts else {})

    def with_fit_of(self: I, other: Intervention) -> I:
        """Take over the record of the fit of another form of the same intervention."""
        self.fitted_on, self.record = other.fitted_on, other.record
        return self


def _fit_with(settings_class: type[MethodSettings]) -> Any:
    """Return the `fit` of a method whose options are the fields of its settings class."""

    def fit(
        cls: type[Intervention],
        lm: Any,
        pairs: ContrastSet,
        settings: Any = None,
        *,
        neutral: Any = None,
        evidence: Any = None,
        statistics: Any = None,
        **options: Any,
    ) -> Intervention:
        chosen = settings_class.of(settings, **options)
        from ..models.loaded import LoadedModel
        from .evidence import Evidence

        lm = LoadedModel.of(lm)
        if evidence is None:
            evidence = Evidence(lm, pairs, neutral, statistics=statistics)
        fitted = cls._fit(evidence, chosen)
        fitted.note_fit(lm, {}, pairs)
        return fitted

    fit.__signature__ = with_fields(inspect.signature(fit), settings_class)  # type: ignore[attr-defined]
    fields = "\n".join(f"    {name}: {field.description}." for name, field in settings_class.model_fields.items())
    fit.__doc__ = f"{Intervention.fit.__doc__}\n        Options:\n{fields}"
    return fit


def check_sites(lm: LoadedModel, sites: Iterable[AnySite]) -> None:
    """Raise ToxlocError if the model has not one of the sites."""
    for site in sites:
        lm.at(site)


def check_layers(lm: LoadedModel, layers: Iterable[int]) -> None:
    """Raise ToxlocError if one of the layers is not in the model."""
    for layer in layers:
        if not 0 <= layer < lm.n_layers:
            raise ToxlocError(f"Layer {layer} was asked for; {lm.name} has layers 0 to {lm.n_layers - 1}.")


def layers_in_words(layers: list[int]) -> str:
    """Name some layers in few words.

    Example:
        >>> layers_in_words([0, 1, 2]), layers_in_words([4])
        ('layers 0 to 2', 'layer 4')
    """
    if len(layers) > 2 and layers == list(range(layers[0], layers[-1] + 1)):
        return f"layers {layers[0]} to {layers[-1]}"
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"
