"""The classifiers of Detoxify, loaded from a folder of transformers or a checkpoint file, or downloaded."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from ...errors import ToxlocError
from .classifier import RENAMED, Classifier

VARIANTS = {
    "original": ("Wikipedia comments of the Jigsaw 2018 challenge", "unitary/toxic-bert", ("en",)),
    "unbiased": (
        "Civil Comments of the Jigsaw 2019 challenge, with identity mentions",
        "unitary/unbiased-toxic-roberta",
        ("en",),
    ),
    "multilingual": (
        "Wikipedia comments in seven languages, Jigsaw 2020",
        "unitary/multilingual-toxic-xlm-roberta",
        ("en", "fr", "es", "it", "pt", "tr", "ru"),
    ),
}
CHECKPOINTS = (".ckpt", ".pt", ".pth", ".bin")


class Detoxify(Classifier):
    """Evaluator from a classifier of the package detoxify; as there, a score is the sigmoid of a class's logit.

    Args:
        variant: "original", "unbiased" or "multilingual".
        source: a folder in the format of transformers, or a checkpoint file of detoxify; by default detoxify's
            published checkpoint, which is downloaded. Checkpoints are read with `weights_only=True`, so that they
            cannot run code.
        base: for a checkpoint, a folder with the tokenizer and config.json of the model that it was trained from (for
            "original", bert-base-uncased); by default the checkpoint's folder if it contains config.json, else the hub.
        threshold: a text is toxic if its score is at least this threshold.
        device: device of the model; by default CUDA if available.

    Raises:
        ToxlocError: there is no such variant.

    Source: https://github.com/unitaryai/detoxify.

    Example:
        >>> Detoxify("original", "toxic_original-c1212f89.ckpt", base="bert-base-uncased")     # doctest: +SKIP
    """

    def __init__(
        self,
        variant: str = "original",
        source: str | None = None,
        *,
        base: str | None = None,
        threshold: float = 0.5,
        device: str | None = None,
    ):
        if variant not in VARIANTS:
            raise ToxlocError(f"There is no Detoxify variant {variant!r}; choose one of {', '.join(VARIANTS)}.")
        trained_on, hub, languages = VARIANTS[variant]
        card = {
            "trained_on": trained_on,
            "blind_to": "much implicit hate; scores mentions of identities and reclaimed "
            "words too high, the original more than the unbiased",
        }
        super().__init__(
            source or hub,
            name=f"detoxify-{variant}",
            threshold=threshold,
            card=card,
            languages=languages,
            device=device,
        )
        self.variant, self.base, self._published = variant, base, source is None

    def _load(self) -> tuple[Any, Any]:
        if self._published:
            return self._from_checkpoint(self._download())
        if Path(self.source).suffix in CHECKPOINTS:
            try:
                return self._from_checkpoint(torch.load(self.source, map_location="cpu", weights_only=True))
            except (RuntimeError, EOFError, UnpicklingError) as error:
                raise ValueError(f"{self.source} is not a checkpoint: {str(error).splitlines()[0]}") from error
        tokenizer, model = super()._load()
        # Some configs do not say that several classes can apply to a text.
        model.config.problem_type = "multi_label_classification"
        return tokenizer, model

    def _download(self) -> dict[str, Any]:
        # Only the addresses are used: detoxify's loader unpickles the whole checkpoint, which can run code.
        from detoxify.detoxify import MODEL_URLS

        try:
            return dict(
                # check_hash compares the SHA-256 with the digits at the end of the file's name, before it is opened.
                torch.hub.load_state_dict_from_url(
                    MODEL_URLS[self.variant], map_location="cpu", weights_only=True, check_hash=True
                )
            )
        except (OSError, RuntimeError) as error:
            raise ToxlocError(
                f"The Detoxify checkpoint {self.variant!r} could not be downloaded ({error}); on a connected machine, "
                f"download {MODEL_URLS[self.variant]} or the folder {self.source}, and give "
                f"detoxify-{self.variant}=PATH."
            ) from error

    def _from_checkpoint(self, saved: dict[str, Any]) -> tuple[Any, Any]:
        from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

        try:
            arch, classes = saved["config"]["arch"]["args"], saved["config"]["dataset"]["args"]["classes"]
            weights = saved["state_dict"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"it is not a checkpoint of detoxify: it has no {error}") from error
        folder = Path(self.source).parent
        base = self.base or (str(folder) if (folder / "config.json").is_file() else arch["model_type"])
        names = [RENAMED.get(name, name) for name in classes]
        # Some checkpoints have more outputs than named classes; these last outputs are for identities.
        names += [f"other_{i}" for i in range(len(names), arch["num_classes"])]
        try:
            config = AutoConfig.from_pretrained(
                base, num_labels=len(names), id2label=dict(enumerate(names)), problem_type="multi_label_classification"
            )
            tokenizer = AutoTokenizer.from_pretrained(base)
        except OSError as error:
            advice = (
                f"download the folder {self.source} on a connected machine and give {self.name}=PATH."
                if self._published
                else "put the tokenizer and config.json of that model into the folder of the checkpoint."
            )
            raise ToxlocError(
                f"The checkpoint of {self.name} was trained from {base}, which could not be loaded; {advice}"
            ) from error
        model = AutoModelForSequenceClassification.from_config(config).float()
        model.load_state_dict({name: value for name, value in weights.items() if not name.endswith("position_ids")})
        return tokenizer, model
