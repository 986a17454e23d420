"""Published ways to measure toxicity, by name, so that results can be compared.

A protocol fixes which prompts are completed, how they are completed, which figures are reported and how fluency is
measured. Figures of different protocols, or of different versions of one, cannot be compared, and `compare` refuses.
The Perspective API, a web service that several papers judged by, is replaced by evaluators of your choice, which the
results name.
"""

from dataclasses import asdict, dataclass
from typing import Any

from ..errors import ToxlocError
from ..generation.decoding import Decoding
from ..models.batching import encode
from ..models.loaded import LoadedModel
from ..texts.loading import load_prompts
from ..texts.prompts import PromptSet


@dataclass(frozen=True)
class Protocol:
    """One published way to measure.

    Attributes:
        name: as it is asked for.
        version: rises whenever something below changes.
        source: the paper, or the code.
        which: the prompts of RealToxicityPrompts that are completed.
        n_prompts: drawn of them; None for all.
        max_prompt_tokens: longer prompts are left out; None for no limit.
        decoding: how they are completed.
        figures: of `Toxicity`, those that the paper reports.
        all_labels: a completion's score is the highest among all labels of an evaluator, not its deciding one.
        judge: the paper's evaluator, if it can be had; None for one that cannot.
        fluency: how language is measured: "text" (perplexity of everyday text, each read alone), "sentences" (the mean
            of the texts' own perplexities), "strided" (of one document in overlapping windows), "completions"
            (perplexity of completions under the unedited model), None for not at all.
        differs: what is not as in the paper.
    """

    name: str
    version: int
    source: str
    which: str
    n_prompts: int | None
    max_prompt_tokens: int | None
    decoding: Decoding
    figures: tuple[str, ...]
    all_labels: bool
    judge: str | None
    fluency: str | None
    differs: str

    @property
    def id(self) -> str:
        """Name and version, as results carry it."""
        return f"{self.name}/{self.version}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self) | {"figures": list(self.figures)}

    def load(self, source: str, lm: LoadedModel, max_prompts: int | None = None, seed: int = 0) -> PromptSet:
        """Load the prompts that the protocol completes, fewer if asked for.

        Raises:
            ToxlocError: what `load_prompts` raises, or every prompt is too long.
        """
        prompts = load_prompts(source, which=self.which)
        if self.max_prompt_tokens is not None:
            lengths = [len(row) - lm.prepend_bos for row in encode(lm, prompts.texts, lm.context)]
            kept = [i for i, length in enumerate(lengths) if length <= self.max_prompt_tokens]
            if not kept:
                raise ToxlocError(f"Every prompt of {source} is longer than the {self.max_prompt_tokens} tokens of "
                                  f"{self.name}.")
            prompts = prompts.take(kept)
        limits = [count for count in (self.n_prompts, max_prompts) if count is not None]
        return prompts.sampled(min(limits), seed) if limits else prompts


_RTP = "expected_max", "probability"
_PERSPECTIVE = "Perspective API, a web service, is replaced by the evaluators given"
PROTOCOLS = {protocol.name: protocol for protocol in (
    Protocol("RealToxicityPrompts", 1, "Gehman et al. 2020, arXiv:2009.11462", which="all", n_prompts=None,
             max_prompt_tokens=None, decoding=Decoding(samples=25), figures=_RTP, all_labels=False, judge=None,
             fluency=None, differs=_PERSPECTIVE),
    Protocol("DExperts", 1, "Liu et al. 2021, arXiv:2105.03023", which="nontoxic", n_prompts=10_000,
             max_prompt_tokens=None, decoding=Decoding(samples=25), figures=_RTP, all_labels=False, judge=None,
             fluency="completions",
             differs=f"{_PERSPECTIVE}; completions are read by the unedited model, not by GPT-2 XL"),
    Protocol("ml-aura", 1, "Suau et al. 2024, arXiv:2407.12824", which="all", n_prompts=None,
             max_prompt_tokens=None, decoding=Decoding(samples=25, top_p=1.0), figures=("rate",), all_labels=False,
             judge="roberta-toxicity", fluency="sentences",
             differs="sentences are those of the everyday text given, not the paper's sample of Wikipedia"),
    Protocol("ml-act", 1, "Rodriguez et al. 2024, arXiv:2410.23054", which="all", n_prompts=1000,
             max_prompt_tokens=None,
             decoding=Decoding(samples=1, max_new_tokens=32, top_p=0.3, repetition_penalty=1.2), figures=("rate",),
             all_labels=False, judge="roberta-toxicity", fluency="text",
             differs="no MMLU; the instruct model that the paper asks too is an evaluator of your choice"),
    Protocol("dpo_toxic", 1, "Lee et al. 2024, arXiv:2401.01967", which="challenging", n_prompts=None,
             max_prompt_tokens=32, decoding=Decoding(samples=1, temperature=0.0), figures=("mean",), all_labels=True,
             judge=None, fluency="text", differs=f"{_PERSPECTIVE}, with as many attributes as they have labels"),
    Protocol("ProFS", 1, "Uppaal et al. 2024, arXiv:2405.13967", which="challenging", n_prompts=None,
             max_prompt_tokens=None, decoding=Decoding(samples=1, max_new_tokens=10, temperature=0.0),
             figures=("mean",), all_labels=False, judge="detoxify-original", fluency="strided",
             differs="decoding is greedy; zero-shot tasks are left to the lm-eval extra"),
)}


def get_protocol(name: str) -> Protocol:
    """Look a protocol up, whatever its capitals.

    Raises:
        ToxlocError: there is none of that name.

    Example:
        >>> get_protocol("realtoxicityprompts").decoding.samples
        25
    """
    for protocol in PROTOCOLS.values():
        if protocol.name.lower().replace("_", "-") == name.lower().replace("_", "-"):
            return protocol
    raise ToxlocError(f"There is no protocol {name!r}; there are {', '.join(PROTOCOLS)}.")
