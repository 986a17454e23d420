"""The class of the tasks in this folder: generation from toxic prompts, scored by judges. Needs toxloc[lm-eval]."""

from collections.abc import Callable, Sequence
from typing import Any

import datasets

from ...errors import ToxlocError
from ...evaluation.judging import judge
from ...support.arguments import whole_number
from ...texts.loading import load_prompts
from ..judges import get_judges

try:
    from lm_eval.api.metrics import mean
    from lm_eval.api.task import ConfigurableTask
except ImportError as error:
    raise ToxlocError("lm-evaluation-harness is not installed; run pip install 'toxloc[lm-eval]'.") from error

FILTER = "none"  # the name that lm-eval uses for tasks without filters


class RealToxicityPrompts(ConfigurableTask):  # type: ignore[misc]
    """A task that completes prompts and reports toxicity figures of every judge.

    The figures of a judge NAME, and of the combined judgements, are

    * `NAME_rate`: share of completions that are toxic,
    * `NAME_mean`: mean score,
    * `NAME_expected_max`: mean over prompts of the highest score among a prompt's completions,
    * `NAME_probability`: share of prompts with at least one toxic completion.

    The last two are the figures of RealToxicityPrompts (Gehman et al. 2020, arXiv:2009.11462); they are reported if
    there is more than one completion per prompt. All completions are judged at once, after the last one is generated.
    The standard errors are lm-eval's for means, over prompts.

    Args:
        config: the content of a YAML file of this folder. Its `metadata`, which also holds the values of lm-eval's
            option `--metadata`, may have the keys `judges` (see `get_judges`), `data` (source of the prompts, see
            `load_prompts`; by default the `dataset_path`), `which` (the prompts to select, see `load_prompts`) and
            `samples` (completions per prompt, 1 by default).

    Raises:
        ToxlocError: a judge, the data, or a value in the metadata is wrong.

    Example:
        >>> tasks = TaskManager(include_path=FOLDERS["lm-eval"], metadata={"data": "builtin"})     # doctest: +SKIP
        >>> simple_evaluate("hf", "pretrained=gpt2", tasks=["toxloc_rtp"], task_manager=tasks)     # doctest: +SKIP
    """

    def __init__(self, config: dict[str, Any]) -> None:
        options = dict(config.get("metadata") or {})
        self.judges = get_judges(options.get("judges"))
        self.samples = whole_number(options.get("samples", 1), "samples", at_least=1)
        # For the file of results:
        options["judges"] = {judge.name: judge.about() for judge in self.judges}
        self._by_completions: dict[tuple[str, ...], dict[str, float]] = {}
        super().__init__(
            config={name: value for name, value in config.items() if name != "class"}
            | {
                "metadata": options,
                "metric_list": [],  # `aggregation` and `higher_is_better` replace it: the names depend on the judges
                "repeats": self.samples,
                "filter_list": [{"name": FILTER, "filter": [{"function": "take_first_k", "k": self.samples}]}],
            }
        )

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        """Read the prompts."""
        options = self.config.metadata
        prompts = load_prompts(
            str(options.get("data", self.config.dataset_path)),
            which=options.get("which", "all"),
            split=self.config.test_split,
        )
        columns = {"text": prompts.texts, "kind": prompts.kinds, "toxicity": prompts.scores}
        rows = datasets.Dataset.from_dict({name: column for name, column in columns.items() if column is not None})
        self.dataset = datasets.DatasetDict({self.config.test_split: rows})

    def apply_filters(self) -> None:
        """Judge all completions, once lm-eval has generated them."""
        super().apply_filters()
        self._by_completions = self._judged([request.filtered_resps[FILTER] for request in self.instances])

    def _judged(self, completions: list[list[str]]) -> dict[tuple[str, ...], dict[str, float]]:
        """Return the figures by metric for each list of completions [n_prompts][samples]."""
        columns: dict[str, Any] = {}
        for name, judgement in judge(completions, self.judges).items():
            columns |= {f"{name}_rate": judgement.toxic.mean(1), f"{name}_mean": judgement.scores.mean(1)}
            if self.samples > 1:
                columns |= {
                    f"{name}_expected_max": judgement.scores.max(1),
                    f"{name}_probability": judgement.toxic.any(1).astype(float),
                }
        return {
            tuple(texts): {metric: float(values[i]) for metric, values in columns.items()}
            for i, texts in enumerate(completions)
        }

    def process_results(self, doc: dict[str, Any], results: Sequence[Sequence[str]]) -> dict[str, float]:
        """Return the figures of a prompt, by metric."""
        return self._by_completions[tuple(results[0])]

    @property
    def metrics(self) -> list[str]:
        """Names of the figures."""
        blank = [""] * self.samples  # an empty text is not passed to the judges
        return list(self._judged([blank])[tuple(blank)])

    def aggregation(self) -> dict[str, Callable[[Sequence[float]], float]]:
        return dict.fromkeys(self.metrics, mean)

    def higher_is_better(self) -> dict[str, bool]:
        return dict.fromkeys(self.metrics, False)
