"""The base class of all methods that reduce toxicity: fit, apply, revert, save and load a reversible change of a model.

This module and the methods import torch inside functions, so that methods can be listed and their settings checked
before torch is loaded.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from ..errors import ToxlocError
from ..models.sites import PARTS
from ..support.files import new_folder, write_json
from ..support.settings import with_fields
from ..support.signals import Atomic, atomic, deliver
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

    A subclass implements how the change is applied (`_install`) and how it is saved and loaded (`config`, `_tensors`,
    `_restore`). It is registered under its `kind`. A method that finds the change and its strength from texts also
    defines a `Settings` class and `_fit`.

    Attributes:
        kind: name of the method in files and results.
        title: name of the method in figures and reports; by default the kind.
        paper: publication that describes the method.
        colour: colour of the method in figures of a run; None for the next colour of the palette.
        Settings: class of the method's settings; None if the intervention cannot be fitted, only constructed.
        bakeable: whether the method has a form that edits the weights.
        fitted_on: name and fingerprint of the model that it was fitted on; empty if it was constructed without a fit.
        record: choices and measurements of the fit (strength, cost on the tuning text, ...), for reports.
    """

    kind: ClassVar[str]
    title: ClassVar[str] = ""
    paper: ClassVar[str] = "not recorded"
    colour: ClassVar[str | None] = None
    Settings: ClassVar[type[MethodSettings] | None] = None
    bakeable: ClassVar[bool] = False

    def __init_subclass__(cls, abstract: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if abstract:  # a base class that several kinds share
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
        self._undo: dict[int, tuple[LoadedModel, ExitStack]] = {}  # by id(model); keeps the model while applied

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a copy or a pickle, which is applied to no model."""
        return self.__dict__ | {"_undo": {}}

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
            settings: an instance of the method's class `Settings`; options override single fields.
            neutral: everyday text; the strength is tuned on its part `tune`. By default the built-in text.
            evidence: evidence gathered earlier for this model and these texts, to share it between fits.
            statistics: statistics from `collect_contrast` for the fit to use.
            options: fields of the method's settings by name.

        Raises:
            ToxlocError: a setting is invalid, the method cannot be fitted on the texts, or no strength is within the
                budget.
        """
        raise ToxlocError(f"{cls.__name__} cannot be fitted; construct it directly.")

    @classmethod
    def needs(cls, settings: Any) -> frozenset[str]:
        """Return the names of the statistics that a fit with these settings takes from `Evidence.statistics`.

        The names are "moments", "gradients", "curvature", "reliance", "peaks" and "differences". A run, a sweep or a
        benchmark gathers the statistics of all its methods and scores in one pass.
        """
        return frozenset()

    @classmethod
    def _fit(cls: type[I], evidence: Evidence, settings: Any) -> I:
        """Find the edit and its strength."""
        raise NotImplementedError

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Return the settings that define this intervention together with its tensors, as JSON values."""

    @abstractmethod
    def check(self, lm: LoadedModel) -> None:
        """Raise ToxlocError if the intervention does not fit this model's shape."""

    @abstractmethod
    def _install(self, lm: LoadedModel, stack: ExitStack) -> None:
        """Apply the change; before each step, push the callback that undoes the step onto the stack."""

    @abstractmethod
    def _tensors(self) -> dict[str, Tensor]:
        """Return the tensors to save."""

    @classmethod
    @abstractmethod
    def _restore(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Intervention:
        """Rebuild the intervention from the values of `config` and `_tensors`."""

    @property
    def in_weights(self) -> bool:
        """Whether the applied change is entirely in the weights, so that a saved model contains it."""
        return False

    @property
    def fingerprint(self) -> str:
        """Hash of the kind, the settings and the tensors; equal hashes mean the same change of a model."""
        digest = hashlib.sha256(json.dumps([self.kind, self.config()], sort_keys=True).encode())
        for name, tensor in sorted(self._tensors().items()):
            digest.update(name.encode() + tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def baked(self) -> Intervention:
        """Return the same change in a form that edits the weights; itself or an equal copy if it does so already.

        Raises:
            ToxlocError: the change can only be made with hooks.
        """
        if self.in_weights:
            return self
        raise ToxlocError(
            f"{self!r} works with hooks and has no form in the weights, so it cannot be exported; these "
            f"kinds can: {', '.join(sorted(kind for kind, cls in KINDS.items() if cls.bakeable))}."
        )

    def low_rank(self) -> dict[Site, tuple[Tensor, Tensor]]:
        """Return u [r, d_in] and v [r, d_model] by edited site if ΔW = uᵀ v by construction, else an empty dict."""
        return {}

    def leaves(self) -> list[Intervention]:
        """Return the interventions that it consists of: the parts of a chain, otherwise itself."""
        return [self]

    def where(self) -> str:
        """Describe in words which layers, neurons or units it changes.

        Example:
            >>> from toxloc import Meow2X
            >>> Meow2X(neurons=[(0, 5), (3, 17)]).where()
            '2 neurons (layer 0: 1, layer 3: 1)'
        """
        known = self.describe()
        layers = known.get("layers") or ([known["layer"]] if "layer" in known else [])
        units = [f"{known['n_units']} units"] if known.get("n_units") else []
        return " and ".join([*units, *([layers_in_words(layers)] if layers else [])]) or "all layers"

    @atomic
    def apply(self, lm: AnyModel) -> None:
        """Apply the intervention to a model; `revert` undoes it.

        Ctrl-C waits until the intervention is applied; then it is reverted, and KeyboardInterrupt is raised.

        Raises:
            ToxlocError: it is already applied to this model, or it does not fit the model's shape, or it edits weights
                that are quantized by anything but a change of low rank.
        """
        from ..models.loaded import LoadedModel

        lm = LoadedModel.of(lm)
        with lm.lock:
            if any(intervention is self for intervention in lm.interventions):
                raise ToxlocError(f"{self!r} is applied to {lm.name} already; revert it first.")
            self.check(lm)
            _check_editable(lm, self)
            with ExitStack() as stack:
                self._install(lm, stack)
                deliver()  # if this raises KeyboardInterrupt, the stack undoes the installation
                self._undo[id(lm)] = lm, stack.pop_all()
            lm.interventions.append(self)

    @atomic
    def revert(self, lm: AnyModel) -> None:
        """Undo the intervention: restore the weights bit for bit and remove the hooks.

        Ctrl-C waits until the intervention is reverted; then KeyboardInterrupt is raised.

        Raises:
            ToxlocError: it is not applied to this model, or another intervention was applied after it.
        """
        from ..models.loaded import LoadedModel

        lm = LoadedModel.of(lm)
        with lm.lock:
            if not any(intervention is self for intervention in lm.interventions):
                raise ToxlocError(f"{self!r} is not applied to {lm.name}; there is nothing to revert.")
            if lm.interventions[-1] is not self:
                raise ToxlocError(f"{lm.interventions[-1]!r} was applied to {lm.name} after {self!r}; revert it first.")
            lm.interventions.pop()
            self._undo.pop(id(lm))[1].close()

    def applied(self, lm: AnyModel) -> AbstractContextManager[Intervention]:
        """Apply the intervention inside a `with` block; it is reverted at the end, also after an exception.

        Example:
            >>> with intervention.applied(lm):      # doctest: +SKIP
            ...     generate(lm, prompts)
        """
        return _Applied(self, lm)

    def describe(self) -> dict[str, Any]:
        """Return the kind, the settings, the record of the fit, and the model that it was fitted on."""
        return {"kind": self.kind, **self.config(), **self.record, "fitted_on": self.fitted_on}

    def save(self, folder: str | PathLike[str], overwrite: bool = False) -> None:
        """Save the change, not a copy of the model, as `intervention.json` and `tensors.safetensors`.

        Raises:
            ToxlocError: the folder is not empty (and `overwrite` is off) or cannot be written.
        """
        from safetensors.torch import save_file

        with new_folder(folder, overwrite) as partial:
            # Copy, since safetensors refuses tensors that share memory, such as views of one matrix.
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
        """Store the model and the texts that it was fitted on, and add `record` to the record of the fit."""
        self.fitted_on = {"name": lm.name, "fingerprint": lm.fingerprint}
        texts = dict(self.record.get("texts", {}))
        if pairs is not None:
            texts |= {"contrast": pairs.name, "n_toxic": len(pairs.toxic), "n_neutral": len(pairs.neutral)}
        if neutral is not None:
            texts["neutral"] = neutral.name
        self.record = self.record | record | ({"texts": texts} if texts else {})

    def with_fit_of(self: I, other: Intervention) -> I:
        """Copy `fitted_on` and `record` from another form of the same intervention, and return self."""
        self.fitted_on, self.record = other.fitted_on, other.record
        return self


class _Applied(Atomic):
    """The context manager of `Intervention.applied`."""

    def __init__(self, intervention: Intervention, lm: AnyModel):
        self._intervention, self._lm = intervention, lm

    def enter(self) -> Intervention:
        self._intervention.apply(self._lm)
        return self._intervention

    def exit(self) -> None:
        self._intervention.revert(self._lm)


def _fit_with(settings_class: type[MethodSettings]) -> Any:
    """Return a `fit` method whose options are the fields of a settings class."""

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
        if evidence is not None and (neutral is not None or statistics is not None):
            raise ToxlocError(
                "The evidence has its own neutral text and statistics; leave out neutral= and statistics=."
            )
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


def _check_editable(lm: LoadedModel, intervention: Intervention) -> None:
    """Raise ToxlocError if an intervention edits quantized weights by anything but a change of low rank."""
    if not lm.is_quantized:
        return
    for part in intervention.leaves():
        if part.in_weights and not part.low_rank():
            raise ToxlocError(
                f"{lm.name} is quantized, so its weights cannot be edited as {part!r} needs; use a form with hooks "
                "(mode='hooks') if the method has one, or TRNE."
            )


def check_sites(lm: LoadedModel, sites: Iterable[AnySite]) -> None:
    """Raise ToxlocError if the model lacks one of the sites."""
    for site in sites:
        lm.at(site)


def check_layers(lm: LoadedModel, layers: Iterable[int]) -> None:
    """Raise ToxlocError if one of the layers is not in the model."""
    for layer in layers:
        if not 0 <= layer < lm.n_layers:
            raise ToxlocError(f"There is no layer {layer} in {lm.name}; it has layers 0 to {lm.n_layers - 1}.")


def sites_in_words(sites: Iterable[Site]) -> str:
    """Describe sites: the layers of MLPs, the attention of layers, a number of experts of layers.

    Example:
        >>> from toxloc.models.sites import Site
        >>> sites_in_words([Site(0), Site(3, "attention"), Site(3, "expert", 1), Site(3, "expert", 2)])
        'layer 0 and the attention of layer 3 and 2 experts of layer 3'
    """
    by_part: dict[str, set[Site]] = {}
    for site in sites:
        by_part.setdefault(site.part, set()).add(site)
    words = []
    for part in [name for name in PARTS if name in by_part]:
        layers = layers_in_words(sorted({site.layer for site in by_part[part]}))
        n = len(by_part[part])
        counted = f"{n} expert{'s' if n > 1 else ''}" if part == "expert" else f"the {part.replace('_', ' ')}"
        words.append(layers if part == "mlp" else f"{counted} of {layers}")
    return " and ".join(words)


def layers_in_words(layers: list[int]) -> str:
    """Describe layers in words; three or more consecutive layers become a range.

    Example:
        >>> layers_in_words([0, 1, 2]), layers_in_words([4])
        ('layers 0 to 2', 'layer 4')
    """
    if len(layers) > 2 and layers == list(range(layers[0], layers[-1] + 1)):
        return f"layers {layers[0]} to {layers[-1]}"
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"
