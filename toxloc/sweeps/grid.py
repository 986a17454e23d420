"""A grid: what a sweep's file may say, and the cells that it stands for."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from itertools import product
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from ..errors import ToxlocError
from ..evaluation.evaluators.base import FunctionEvaluator
from ..evaluation.evaluators.registry import DEFAULT, check_evaluator_names, get_evaluators
from ..generation.decoding import Decoding
from ..interventions.registry import method_settings
from ..localization.score_names import ScoreName
from ..models.settings import ModelSettings
from ..models.sources import resolve
from ..support.settings import Settings, option
from ..texts.contrast import ContrastSet
from ..texts.loading import load_contrast, load_neutral, load_prompts
from ..texts.neutral import NeutralText
from ..texts.prompts import PROVOCATIVE, PromptSet
from ..texts.settings import NeutralSettings
from ..version import __version__


class Benchmark(Settings):
    """Prompts that every model completes; provocative ones, where the file says which are."""

    prompts: str = option(..., "what load_prompts takes")
    which: str | None = option(None, "all, toxic, nontoxic or challenging prompts alone")
    text_column: str | None = option(None, "the column with the prompts")
    words: int | None = option(None, "only the first so many words of each text are the prompt", ge=1)
    max_prompts: int = option(100, "prompts, at most", ge=1)


class Treatment(Settings):
    """A method with settings; where a setting is a list, each of its values in turn."""

    method: str = option(..., "name of the method")
    settings: dict[str, Any] = option({}, "settings of the method")

    def variants(self) -> Iterator[dict[str, Any]]:
        """Yield every combination of the settings' values, the last setting changing fastest.

        scikit-learn's ParameterGrid sorts the names, which would change the order of the file.
        """
        values = [value if isinstance(value, list) else [value] for value in self.settings.values()]
        for chosen in product(*values):
            yield dict(zip(self.settings, chosen, strict=True))

    @model_validator(mode="after")
    def _check(self) -> "Treatment":
        for settings in self.variants():
            method_settings(self.method, **settings)
        return self


class Resources(Settings):
    """What a worker has: on Ray it is reserved for it, on this machine it is the number of its threads."""

    cpus: int | None = option(None, "default: 1 on Ray; here its share among the jobs", ge=1)
    gpus: float = option(0, "for Ray", ge=0)


class Grid(NeutralSettings, ModelSettings):
    """Models × contrast sets × seeds × methods with their settings × benchmarks."""

    models: tuple[str, ...] = option(..., "what load_model takes", min_length=1)
    contrasts: tuple[str, ...] = option(("builtin",), "what load_contrast takes", min_length=1)
    benchmarks: dict[str, Benchmark] = option(..., "prompts by name", min_length=1)
    methods: tuple[Treatment, ...] = option(..., "methods with their settings", min_length=1)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = option((0,), "seeds for every random draw", min_length=1)
    evaluators: tuple[str, ...] = option(DEFAULT, "judges of the completions", min_length=1)
    scores: tuple[ScoreName, ...] = option(
        ("activation", "gradient_norm", "attribution"), "localization scores", min_length=1
    )
    samples: int = option(Decoding.samples, "completions per prompt")
    max_new_tokens: int = option(Decoding.max_new_tokens, "length of a completion in tokens")
    top_p: float = option(Decoding.top_p, "nucleus sampling")
    temperature: float = option(Decoding.temperature, "temperature of the sampling; 0 is greedy")
    max_texts: int = option(400, "contrast texts of each side, at most", ge=8)
    precision: Literal["highest", "high", "medium"] = option("highest", "precision of float32 matrix products")
    resources: Resources = option(Resources(), "processors and devices of a worker")

    @property
    def decoding(self) -> Decoding:
        """How completions are sampled."""
        return Decoding(self.samples, self.max_new_tokens, self.top_p, self.temperature)

    @model_validator(mode="after")
    def _check(self) -> "Grid":
        check_evaluator_names(self.evaluators)
        if self.decoding.temperature == 0 and self.samples > 1:
            raise ToxlocError(f"temperature=0 writes the same completion {self.samples} times; set samples to 1.")
        for name in ("models", "contrasts", "seeds", "evaluators"):
            values = getattr(self, name)
            twice = next((value for value in values if values.count(value) > 1), None)
            if twice is not None:
                raise ToxlocError(f"{name} holds {twice!r} twice.")
        variants = [
            (one.method, json.dumps(settings, sort_keys=True)) for one in self.methods for settings in one.variants()
        ]
        for one in variants:
            if variants.count(one) > 1:
                raise ToxlocError(f"methods hold {one[0]} with the settings {one[1]} twice.")
        return self


@dataclass(frozen=True)
class Cell:
    """One configuration.

    Attributes:
        model: as the grid names it.
        contrast: likewise.
        seed: of every draw.
        method: what turns toxicity down.
        settings: of the method.
        benchmark: name of the prompts.
        localization_id: of where toxicity lies: of model, contrast set and seed, by content.
        fit_id: of what is fitted: everything above but the benchmark, by content.
        baseline_id: of the unedited model on the benchmark, by content.
        id: of the cell, by content: files by what they hold, never by where they lie.
    """

    model: str
    contrast: str
    seed: int
    method: str
    settings: dict[str, Any] = field(hash=False)
    benchmark: str
    localization_id: str
    fit_id: str
    baseline_id: str
    id: str

    @property
    def treatment(self) -> str:
        """The method with its settings, in one line."""
        return treatment(self.method, self.settings)

    @property
    def budget(self) -> str:
        """The budget that its method keeps, in words; "none" if its settings fix the strength."""
        return method_settings(self.method, **self.settings).budget_in_words

    @property
    def group(self) -> tuple[str, str, int]:
        """Cells of one group share a localization."""
        return self.model, self.contrast, self.seed

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


def treatment(method: str, settings: Mapping[str, Any]) -> str:
    """Name a method with its settings in one line.

    Example:
        >>> treatment("trne", {"budget": 0.01, "rounds": 2})
        'trne, budget 0.01, rounds 2'
    """
    return ", ".join([method, *(f"{name.replace('_', ' ')} {_short(value)}" for name, value in settings.items())])


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name} {one}" for name, one in value.items())
    return str(value)


class Plan:
    """A grid whose files, models and evaluators are all there, with its cells in order.

    Args:
        grid: what was asked for.
        root: folder in which relative paths of the grid start.
        name: of the grid.
        checked: another process has seen already that all is there.

    Raises:
        ToxlocError: something cannot be had, or two cells are the same; the message names it.
    """

    def __init__(self, grid: Grid, root: str | PathLike[str] = ".", name: str = "grid", *, checked: bool = False):
        self.grid, self.root, self.name = grid, Path(root), name
        self._pairs: dict[tuple[str, int], ContrastSet] = {}
        if not checked:
            self._check()

    def _check(self) -> None:
        grid = self.grid
        for model in grid.models:
            resolve(self.located(model))
        for judge in get_evaluators([self.located_evaluator(one) for one in grid.evaluators]):
            if isinstance(judge, FunctionEvaluator):
                raise ToxlocError(
                    f"The evaluator {judge.name!r} is a function of this process, which the workers of a "
                    "sweep do not know; give evaluators that load by name, folder or hub id."
                )
        known: dict[str, Cell] = {}
        for cell in self.cells:  # which reads all texts
            other = known.setdefault(cell.id, cell)
            if other is not cell:
                raise ToxlocError(
                    f"{cell.model}, {cell.contrast}, {cell.benchmark} hold the same as {other.model}, "
                    f"{other.contrast}, {other.benchmark} under other names; leave one out."
                )

    @cached_property
    def cells(self) -> list[Cell]:
        """Models outermost, then contrast sets, seeds, methods, settings, and benchmarks."""
        return list(self._expanded())

    def located(self, source: str) -> str:
        """Return a source as the loaders take it: a path that starts in the root, if there is one, or the name."""
        path = self.root / Path(source).expanduser()
        return str(path) if path.exists() else source

    def located_evaluator(self, name: str) -> str:
        """Return an evaluator's name with the path after its `=`, if there is one, starting in the root."""
        head, equals, source = name.partition("=")
        source, at, threshold = source.partition("@")
        return head + equals + (self.located(source) if source else "") + at + threshold

    @cached_property
    def prompts(self) -> dict[str, PromptSet]:
        """The prompts of every benchmark."""
        found = {}
        for name, one in self.grid.benchmarks.items():
            opened = load_prompts(
                self.located(one.prompts), which=one.which, text_column=one.text_column, words=one.words
            )
            found[name] = (opened.only(PROVOCATIVE) or opened).sampled(one.max_prompts, self.grid.seeds[0])
        return found

    def pairs(self, contrast: str, seed: int) -> ContrastSet:
        """Texts of a contrast set that begin with no prompt of any benchmark."""
        if (contrast, seed) not in self._pairs:
            judged = [text for prompts in self.prompts.values() for text in prompts.texts]
            free = load_contrast(self.located(contrast)).without(judged)
            self._pairs |= {(contrast, one): free.limited(self.grid.max_texts, one) for one in self.grid.seeds}
        return self._pairs[contrast, seed]

    @cached_property
    def neutral(self) -> NeutralText:
        """The everyday text."""
        return load_neutral(self.located(self.grid.neutral), limit=self.grid.max_neutral)

    @property
    def variants(self) -> list[tuple[str, dict[str, Any]]]:
        """Every method of the grid with every combination of its settings."""
        return [(one.method, settings) for one in self.grid.methods for settings in one.variants()]

    def _expanded(self) -> Iterator[Cell]:
        g = self.grid
        judged: dict[str, Any] = {"decoding": g.decoding.to_dict(), "evaluators": g.evaluators}
        neutral = _id([self.neutral.fit, self.neutral.tune, self.neutral.check])
        prompts = {name: _id(one.texts) for name, one in self.prompts.items()}
        for model, contrast, seed in product(g.models, g.contrasts, g.seeds):
            unedited = {
                "toxloc": __version__,
                "model": self._model(model),
                "seed": seed,
                "dtype": g.dtype,
                "precision": g.precision,
            }
            pairs = self.pairs(contrast, seed)
            read = {**unedited, "contrast": _id([pairs.toxic, pairs.neutral, pairs.paired]), "neutral": neutral}
            localization = _id({**read, "scores": g.scores})
            for method, settings in self.variants:
                fit = {**read, "method": method, "settings": settings}
                for benchmark, texts in prompts.items():
                    there = {**judged, "judged": texts}
                    yield Cell(
                        model,
                        contrast,
                        seed,
                        method,
                        settings,
                        benchmark,
                        localization,
                        _id(fit),
                        _id({**unedited, **there}),
                        _id({**fit, **there}),
                    )

    def _model(self, name: str) -> str:
        source = resolve(self.located(name))
        return name if source.kind in ("built-in", "packaged", "hub") else _content(Path(source.location))


@cache
def _content(folder: Path) -> str:
    """Hash of a model's folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".bin", ".json", ".model", ".txt"):
            with path.open("rb") as stream:
                digest.update(f"{path.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _id(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:12]


def load_grid(path: str | PathLike[str]) -> Grid:
    """Read a grid from a YAML file.

    Raises:
        ToxlocError: no such file, no YAML, an unknown key, a value of the wrong kind, settings that do not go together,
            or the same configuration twice; the message says where in the file.

    Example:
        >>> load_grid("examples/offline-grid.yaml").models      # doctest: +SKIP
        ('toxloc-tiny', ...)
    """
    import yaml

    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ToxlocError(f"There is no grid file {path}; check the path.") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ToxlocError(f"{path} cannot be read as YAML: {error}") from error
    return grid_of(content, path.name)


def grid_of(content: Any, name: str = "grid") -> Grid:
    """Make a grid of what a file holds.

    Raises:
        ToxlocError: see `load_grid`.
    """
    if not isinstance(content, dict):
        raise ToxlocError(f"{name} holds no grid; it needs at least the keys models, benchmarks and methods.")
    try:
        return Grid.model_validate(content)
    except ValidationError as error:
        raise ToxlocError(f"{name}: " + "; ".join(_told(one) for one in _causes(error)[:3])) from None


def _causes(error: ValidationError) -> list[Any]:
    """The errors without those that follow from others: pydantic also calls a list too short if an item is wrong."""
    errors = error.errors()
    return [
        one
        for one in errors
        if one["type"] != "too_short"
        or not any(other["loc"][: len(one["loc"])] == one["loc"] for other in errors if other is not one)
    ]


def _told(error: Any) -> str:
    """One of pydantic's errors in words."""
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _keys(error["loc"][:-1])
        return f"{where} is not a key" + (f" there; there are {', '.join(known)}" if known else "")
    if error["type"] == "missing":
        return f"{where} is missing"
    if error["type"] == "value_error":  # a ToxlocError from a validator
        return (f"{where}: " if where else "") + str(error["ctx"]["error"]).removesuffix(".")
    return f"{where}={error['input']!r}: {error['msg'].replace('Input should be', 'it must be')}"


def _keys(where: Sequence[Any]) -> list[str]:
    """Name the keys that may stand at a place of the file."""
    parts: dict[str, type[Settings]] = {"benchmarks": Benchmark, "methods": Treatment, "resources": Resources}
    part = parts.get(str(where[0])) if where else Grid
    return list(part.model_fields) if part else []
