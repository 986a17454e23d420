"""Published protocols for measuring toxicity, by name, so that results can be compared.

A protocol fixes the prompts, the decoding options, the reported figures and the measure of fluency. Figures of
different protocols, or of different versions of a protocol, cannot be compared, and `compare` raises an error for them.
Several papers judge with the Perspective API, a web service; toxloc uses evaluators of your choice instead, and the
results name them.
"""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ToxlocError
from ..generation.decoding import Decoding
from ..texts.loading import load_prompts
from ..texts.prompts import PromptSet

if TYPE_CHECKING:  # imports torch, which the table of protocols does not need
    from ..models.loaded import LoadedModel


@dataclass(frozen=True)
class Protocol:
    """A published protocol for measuring toxicity.

    Attributes:
        name: name by which users select the protocol.
        version: version number, increased whenever one of the fields below changes.
        source: the paper or the code.
        which: kind of prompts of RealToxicityPrompts to complete.
        n_prompts: number of these prompts, drawn at random; None for all.
        max_prompt_tokens: largest length of a prompt in tokens; longer prompts are dropped. None for no limit.
        decoding: decoding options.
        figures: the fields of `Toxicity` that the paper reports.
        all_labels: whether a completion's score is the highest score of all labels of an evaluator, instead of the
            score of its deciding label.
        judge: name of the paper's evaluator; None if it is not available.
        fluency: measure of fluency: "text" (perplexity of everyday texts, each read alone), "sentences" (mean of the
            perplexities of the texts), "strided" (perplexity of one document in overlapping windows), "completions"
            (perplexity of the completions under the unedited model); None if it is not measured.
        differs: differences between toxloc and the paper.
    """

    name: str
    version: int
    source: str
    which: Literal["all", "toxic", "nontoxic", "challenging"]
    n_prompts: int | None
    max_prompt_tokens: int | None
    decoding: Decoding
    figures: tuple[str, ...]
    all_labels: bool
    judge: str | None
    fluency: Literal["text", "sentences", "strided", "completions"] | None
    differs: str

    @property
    def id(self) -> str:
        """Name and version, as in results: "ProFS/1"."""
        return f"{self.name}/{self.version}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self) | {"figures": list(self.figures)}

    def load(self, source: str, lm: "LoadedModel", max_prompts: int | None = None, seed: int = 0) -> PromptSet:
        """Load the prompts of the protocol.

        Args:
            source: source of the prompts, as for `load_prompts`.
            lm: the model, whose tokenizer counts the tokens of a prompt.
            max_prompts: largest number of prompts; None for the protocol's limit only.
            seed: seed for the random draw, if there are more prompts.

        Raises:
            ToxlocError: `load_prompts` fails, or every prompt is too long.
        """
        from ..models.batching import encode

        prompts = load_prompts(source, which=self.which)
        if self.max_prompt_tokens is not None:
            lengths = [len(row) - lm.prepend_bos for row in encode(lm, prompts.texts, lm.context)]
            kept = [i for i, length in enumerate(lengths) if length <= self.max_prompt_tokens]
            if not kept:
                raise ToxlocError(
                    f"Every prompt of {source} is longer than the {self.max_prompt_tokens} tokens that "
                    f"{self.name} allows; give shorter prompts."
                )
            prompts = prompts.take(kept)
        limits = [count for count in (self.n_prompts, max_prompts) if count is not None]
        return prompts.sampled(min(limits), seed) if limits else prompts


_RTP = "expected_max", "probability"
_PERSPECTIVE = "the given evaluators replace the Perspective API, a web service"
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "RealToxicityPrompts",
            1,
            "Gehman et al. 2020, arXiv:2009.11462",
            which="all",
            n_prompts=None,
            max_prompt_tokens=None,
            decoding=Decoding(samples=25),
            figures=_RTP,
            all_labels=False,
            judge=None,
            fluency=None,
            differs=_PERSPECTIVE,
        ),
        Protocol(
            "DExperts",
            1,
            "Liu et al. 2021, arXiv:2105.03023",
            which="nontoxic",
            n_prompts=10_000,
            max_prompt_tokens=None,
            decoding=Decoding(samples=25),
            figures=_RTP,
            all_labels=False,
            judge=None,
            fluency="completions",
            differs=f"{_PERSPECTIVE}; perplexity of completions under the unedited model, not under GPT-2 XL",
        ),
        Protocol(
            "ml-aura",
            1,
            "Suau et al. 2024, arXiv:2407.12824",
            which="all",
            n_prompts=None,
            max_prompt_tokens=None,
            decoding=Decoding(samples=25, top_p=1.0),
            figures=("rate",),
            all_labels=False,
            judge="roberta-toxicity",
            fluency="sentences",
            differs="perplexity of the given everyday texts, not of the paper's sample of Wikipedia sentences",
        ),
        Protocol(
            "ml-act",
            1,
            "Rodriguez et al. 2024, arXiv:2410.23054",
            which="all",
            n_prompts=1000,
            max_prompt_tokens=None,
            decoding=Decoding(samples=1, max_new_tokens=32, top_p=0.3, repetition_penalty=1.2),
            figures=("rate",),
            all_labels=False,
            judge="roberta-toxicity",
            fluency="text",
            differs="no MMLU; the paper also judges with an instruct model, which you can choose as an evaluator",
        ),
        Protocol(
            "dpo_toxic",
            1,
            "Lee et al. 2024, arXiv:2401.01967",
            which="challenging",
            n_prompts=None,
            max_prompt_tokens=32,
            decoding=Decoding(samples=1, temperature=0.0),
            figures=("mean",),
            all_labels=True,
            judge=None,
            fluency="text",
            differs=f"{_PERSPECTIVE}, and their labels replace its attributes",
        ),
        Protocol(
            "ProFS",
            1,
            "Uppaal et al. 2024, arXiv:2405.13967",
            which="challenging",
            n_prompts=None,
            max_prompt_tokens=None,
            decoding=Decoding(samples=1, max_new_tokens=10, temperature=0.0),
            figures=("mean",),
            all_labels=False,
            judge="detoxify-original",
            fluency="strided",
            differs="decoding is greedy; zero-shot tasks need the extra lm-eval",
        ),
    )
}


def get_protocol(name: str) -> Protocol:
    """Return a protocol by name; case is ignored, and `_` equals `-`.

    Raises:
        ToxlocError: there is no such protocol; the message lists the known protocols.

    Example:
        >>> get_protocol("realtoxicityprompts").decoding.samples
        25
    """
    for protocol in PROTOCOLS.values():
        if protocol.name.lower().replace("_", "-") == name.lower().replace("_", "-"):
            return protocol
    raise ToxlocError(f"There is no protocol {name!r}; choose one of {', '.join(PROTOCOLS)}.")
