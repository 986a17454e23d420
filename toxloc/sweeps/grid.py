"""The grid of a sweep: the keys of its file, and the cells that it expands to."""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from itertools import product
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError, model_validator

from ..errors import ToxlocError
from ..evaluation.evaluators.base import FunctionEvaluator
from ..evaluation.evaluators.registry import DEFAULT, Wanted, check_evaluator_names, get_evaluators
from ..generation.decoding import Decoding
from ..interventions.registry import method_settings
from ..localization.score_names import ScoreName
from ..models.settings import ModelSettings
from ..models.sources import resolve
from ..support.arguments import short_repr
from ..support.bounded_yaml import parse_yaml
from ..support.settings import Seed, Settings, option
from ..texts.contrast import ContrastSet
from ..texts.loading import load_contrast, load_neutral, load_prompts
from ..texts.neutral import NeutralText
from ..texts.prompts import PROVOCATIVE, PromptSet
from ..texts.settings import NeutralSettings
from ..version import __version__

MAX_CELLS = 100_000


class Benchmark(Settings):
    """Prompts that every model completes: only the provocative prompts, if the source marks any."""

    prompts: str = option(..., "source of the prompts, as for load_prompts")
    which: str | None = option(None, "subset of the prompts: all, toxic, nontoxic or challenging")
    text_column: str | None = option(None, "column of prompts")
    words: int | None = option(
        None, "truncate longer texts to this many words; drop shorter texts and duplicates", ge=1
    )
    max_prompts: int = option(100, "maximum number of prompts", ge=1)


class Treatment(Settings):
    """A method with settings; a setting that is a list stands for each of its values."""

    method: str = option(..., "name of the method")
    settings: dict[str, Any] = option({}, "settings of the method")

    def variants(self) -> Iterator[dict[str, Any]]:
        """Yield every combination of the settings' values, the last setting changing fastest.

        scikit-learn's ParameterGrid is not used because it sorts the names, which would change the order of the file.
        """
        for combination in product(*self._values()):
            yield dict(zip(self.settings, combination, strict=True))

    def __len__(self) -> int:
        """Return the number of variants, without making them."""
        return math.prod(map(len, self._values()))

    def _values(self) -> list[list[Any]]:
        return [value if isinstance(value, list) else [value] for value in self.settings.values()]

    @model_validator(mode="after")
    def _check(self) -> "Treatment":
        if len(self) == 0:
            empty = next(name for name, value in self.settings.items() if value == [])
            raise ToxlocError(f"the setting {empty} of {self.method} is an empty list; give at least one value.")
        _check_count(len(self), f"The settings of {self.method} have")
        for settings in self.variants():
            method_settings(self.method, **settings)
        return self


class Resources(Settings):
    """Resources of a worker. Ray reserves them for the worker; without Ray, `cpus` is its number of threads."""

    cpus: int | None = option(None, "processors; default: 1 on Ray, else OMP_NUM_THREADS or an equal share", ge=1)
    gpus: float = option(0, "GPUs, on Ray only", ge=0)


class Grid(NeutralSettings, ModelSettings):
    """A grid: models × contrast sets × seeds × methods with their settings × benchmarks."""

    models: tuple[str, ...] = option(..., "models, as for load_model", min_length=1)
    contrasts: tuple[str, ...] = option(("builtin",), "contrast sets, as for load_contrast", min_length=1)
    benchmarks: dict[str, Benchmark] = option(..., "prompts by the name of the benchmark", min_length=1)
    methods: tuple[Treatment, ...] = option(..., "methods with their settings", min_length=1)
    seeds: tuple[Seed, ...] = option((0,), "seeds for the random draws", min_length=1)
    evaluators: tuple[str, ...] = option(DEFAULT, "evaluators of the completions", min_length=1)
    scores: tuple[ScoreName, ...] = option(
        ("activation", "gradient_norm", "attribution"), "localization scores", min_length=1
    )
    samples: int = option(Decoding.samples, "completions per prompt")
    max_new_tokens: int = option(Decoding.max_new_tokens, "length of a completion in tokens")
    top_p: float = option(Decoding.top_p, "probability mass of nucleus sampling")
    temperature: float = option(Decoding.temperature, "temperature of the sampling; 0 is greedy")
    max_texts: int = option(400, "maximum number of contrast texts of each side", ge=8)
    precision: Literal["highest", "high", "medium"] = option("highest", "precision of float32 matrix products")
    resources: Resources = option(Resources(), "processors and GPUs of a worker")

    @property
    def decoding(self) -> Decoding:
        """How completions are sampled."""
        return Decoding(self.samples, self.max_new_tokens, self.top_p, self.temperature)

    @model_validator(mode="after")
    def _check(self) -> "Grid":
        check_evaluator_names(self.evaluators)
        axes = self.models, self.contrasts, self.seeds, self.benchmarks
        _check_count(math.prod(map(len, axes)) * sum(map(len, self.methods)), "The grid has")
        if self.decoding.temperature == 0 and self.samples > 1:
            raise ToxlocError(f"temperature=0 gives the same completion {self.samples} times; set samples to 1.")
        for name in ("models", "contrasts", "seeds", "evaluators"):
            for value, times in Counter(getattr(self, name)).items():
                if times > 1:
                    raise ToxlocError(f"{name} contains {value!r} {times} times; keep one of them.")
        variants = [
            (entry.method, json.dumps(settings, sort_keys=True))
            for entry in self.methods
            for settings in entry.variants()
        ]
        for (method, settings), times in Counter(variants).items():
            if times > 1:
                raise ToxlocError(
                    f"methods contain {method} with the settings {settings} {times} times; keep one of them."
                )
        return self


def _check_count(count: int, beginning: str) -> None:
    if count > MAX_CELLS:
        raise ToxlocError(
            f"{beginning} {count:,} combinations, more than {MAX_CELLS:,}; divide it into several grids, which may "
            "share a folder."
        )


@dataclass(frozen=True)
class Cell:
    """One configuration of a grid.

    The ids are hashes of everything that the result depends on, such as texts, models, settings and the version of
    toxloc. Local files are hashed by their content, not by their path.

    Attributes:
        model: name of the model in the grid.
        contrast: name of the contrast set in the grid.
        seed: seed for the random draws of the cell.
        method: name of the method.
        settings: settings of the method.
        benchmark: name of the benchmark.
        localization_id: id of the localization, which depends on the model, the contrast set and the seed.
        fit_id: id of the fitted intervention, which depends on everything above but the benchmark.
        baseline_id: id of the evaluation of the unedited model on the benchmark.
        id: id of the cell.
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
        """The method and its settings, in one line."""
        return treatment(self.method, self.settings)

    @property
    def budget(self) -> str:
        """The budget of the method, such as "perplexity 0.01"; "none" if the settings fix the strength."""
        return method_settings(self.method, **self.settings).budget_in_words

    @property
    def group(self) -> tuple[str, str, int]:
        """Model, contrast set and seed; cells of one group share a localization."""
        return self.model, self.contrast, self.seed

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


def treatment(method: str, settings: Mapping[str, Any]) -> str:
    """Return a method and its settings in one line.

    Example:
        >>> treatment("trne", {"budget": 0.01, "rounds": 2})
        'trne, budget 0.01, rounds 2'
    """
    return ", ".join([method, *(f"{name.replace('_', ' ')} {_short(value)}" for name, value in settings.items())])


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name} {item}" for name, item in value.items())
    return str(value)


class Plan:
    """The cells of a grid, after a check that its models, texts and evaluators are available.

    Args:
        grid: the grid.
        root: folder that relative paths in the grid start from.
        name: name of the grid.
        checked: skip the checks, because another process has already made them.

    Raises:
        ToxlocError: a model, a text or an evaluator is not available, an evaluator is a function of this process, or
            two cells are the same; the message names it.
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
        for judge in get_evaluators([self.located_evaluator(name) for name in grid.evaluators]):
            if isinstance(judge, FunctionEvaluator):
                raise ToxlocError(
                    f"The evaluator {judge.name!r} is a function of this process, which the workers of a sweep cannot "
                    "load; give evaluators that can be loaded by name, folder or hub id."
                )
        by_id: dict[str, Cell] = {}
        for cell in self.cells:  # reads all texts
            other = by_id.setdefault(cell.id, cell)
            if other is not cell:
                raise ToxlocError(
                    f"{cell.model}, {cell.contrast}, {cell.benchmark} have the same content as {other.model}, "
                    f"{other.contrast}, {other.benchmark}; remove one of them."
                )

    @cached_property
    def cells(self) -> list[Cell]:
        """All cells, in nested order: models outermost, then contrast sets, seeds, methods, settings and benchmarks."""
        return list(self._expanded())

    def located(self, source: str) -> str:
        """Return the path of a source below the root if it exists, or the source unchanged."""
        path = os.path.join(self.root, os.path.expanduser(source))
        return path if os.path.exists(path) else source  # unlike Path.exists, False for a name that is too long

    def located_evaluator(self, name: str) -> str:
        """Return an evaluator's name with the source after its `=`, if it has one, replaced as by `located`."""
        head, equals, source = name.partition("=")
        source, at, threshold = source.partition("@")
        return head + equals + (self.located(source) if source else "") + at + threshold

    @cached_property
    def prompts(self) -> dict[str, PromptSet]:
        """The prompts of every benchmark; all cells use the prompts drawn with the first seed."""
        by_benchmark = {}
        for name, benchmark in self.grid.benchmarks.items():
            prompts = load_prompts(
                self.located(benchmark.prompts),
                which=benchmark.which,
                text_column=benchmark.text_column,
                words=benchmark.words,
            )
            prompts = prompts.only(PROVOCATIVE) or prompts
            by_benchmark[name] = prompts.sampled(benchmark.max_prompts, self.grid.seeds[0])
        return by_benchmark

    def pairs(self, contrast: str, seed: int) -> ContrastSet:
        """Return the texts of a contrast set that do not begin with a prompt of any benchmark."""
        if (contrast, seed) not in self._pairs:
            judged = [text for prompts in self.prompts.values() for text in prompts.texts]
            free = load_contrast(self.located(contrast)).without(judged)
            self._pairs |= {
                (contrast, grid_seed): free.limited(self.grid.max_texts, grid_seed) for grid_seed in self.grid.seeds
            }
        return self._pairs[contrast, seed]

    @cached_property
    def neutral(self) -> NeutralText:
        """The everyday text of the grid."""
        return load_neutral(self.located(self.grid.neutral), limit=self.grid.max_neutral)

    @property
    def variants(self) -> list[tuple[str, dict[str, Any]]]:
        """Every method of the grid with every combination of its settings."""
        return [(entry.method, settings) for entry in self.grid.methods for settings in entry.variants()]

    def _expanded(self) -> Iterator[Cell]:
        g = self.grid
        judging: dict[str, Any] = {
            "decoding": g.decoding.to_dict(),
            "evaluators": [self._evaluator(name) for name in g.evaluators],
        }
        neutral = _id([self.neutral.fit, self.neutral.tune, self.neutral.check])
        prompts = {name: _id(prompt_set.texts) for name, prompt_set in self.prompts.items()}
        for model, contrast, seed in product(g.models, g.contrasts, g.seeds):
            unedited = {
                "toxloc": __version__,
                "model": self._model(model),
                "seed": seed,
                "dtype": g.dtype,
                "precision": g.precision,
                **({"quantize": g.quantize} if g.quantize else {}),  # offload changes no bits
            }
            pairs = self.pairs(contrast, seed)
            fitted_on = {**unedited, "contrast": _id([pairs.toxic, pairs.neutral, pairs.paired]), "neutral": neutral}
            localization = _id({**fitted_on, "scores": g.scores})
            for method, settings in self.variants:
                fit = {**fitted_on, "method": method, "settings": settings}
                for benchmark, texts in prompts.items():
                    judged = {**judging, "judged": texts}
                    yield Cell(
                        model,
                        contrast,
                        seed,
                        method,
                        settings,
                        benchmark,
                        localization,
                        _id(fit),
                        _id({**unedited, **judged}),
                        _id({**fit, **judged}),
                    )

    def _model(self, name: str) -> str:
        source = resolve(self.located(name))
        return name if source.kind in ("built-in", "packaged", "hub") else _content(Path(source.location))

    def _evaluator(self, name: str) -> list[Any] | str:
        """Return an evaluator's name; with the content in place of the path if it is loaded from a file or folder."""
        wanted = Wanted.parse(self.located_evaluator(name))
        if wanted.source is None or not os.path.exists(wanted.source):
            return name
        return [wanted.maker.name, _content(Path(wanted.source)), wanted.threshold]


@cache
def _content(source: Path) -> str:
    """Return a hash of a file, or of the weights, configuration and tokenizer files in a model's folder."""
    digest = hashlib.sha256()
    for path in sorted(source.iterdir()) if source.is_dir() else [source]:
        if path == source or path.suffix in (".safetensors", ".bin", ".json", ".model", ".txt"):
            with path.open("rb") as stream:
                digest.update(f"{path.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _id(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:12]


def load_grid(path: str | PathLike[str]) -> Grid:
    """Read a grid from a YAML file.

    Raises:
        ToxlocError: the file does not exist or is not YAML, or it contains an unknown key, an invalid value, settings
            that exclude each other, or the same configuration twice; the message says where in the file.

    Example:
        >>> load_grid("examples/offline-grid.yaml").models      # doctest: +SKIP
        ('toxloc-tiny', ...)
    """
    path = Path(path)
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ToxlocError(f"There is no grid file {path}; check the path.") from None
    except (ValueError, OSError) as error:
        raise ToxlocError(f"{path} cannot be read as YAML: {error}.") from error
    return grid_of(content, path.name)


def grid_of(content: Any, name: str = "grid") -> Grid:
    """Make a grid from the parsed content of a file.

    Raises:
        ToxlocError: see `load_grid`.
    """
    if not isinstance(content, dict):
        raise ToxlocError(f"{name} holds no grid; a grid needs at least the keys models, benchmarks and methods.")
    try:
        return Grid.model_validate(content)
    except ValidationError as error:
        raise ToxlocError(f"{name}: " + "; ".join(_message(cause) for cause in _causes(error)[:3])) from None


def _causes(error: ValidationError) -> list[Any]:
    """Return the errors without consequences of others: an invalid item also makes pydantic call its list too short."""
    errors = error.errors()
    return [
        cause
        for cause in errors
        if cause["type"] != "too_short"
        or not any(other["loc"][: len(cause["loc"])] == cause["loc"] for other in errors if other is not cause)
    ]


def _message(error: Any) -> str:
    """Return one of pydantic's errors as a phrase that names the place, the value and the fix."""
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _keys(error["loc"][:-1])
        return f"{where} is not a valid key" + (f"; valid keys are {', '.join(known)}" if known else "")
    if error["type"] == "missing":
        return f"{where} is missing"
    if error["type"] == "value_error":  # a ToxlocError from a validator
        return (f"{where}: " if where else "") + str(error["ctx"]["error"]).removesuffix(".")
    return f"{where}={short_repr(error['input'], 80)}: {error['msg'].replace('Input should be', 'it must be')}"


def _keys(where: Sequence[Any]) -> list[str]:
    """Return the valid keys at a place in the file."""
    parts: dict[str, type[Settings]] = {"benchmarks": Benchmark, "methods": Treatment, "resources": Resources}
    part = parts.get(str(where[0])) if where else Grid
    return list(part.model_fields) if part else []
