"""Resolve names of models: built-in models, models from a package index, local folders, GGUF files and hub ids."""

import difflib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import ToxlocError
from ..support.assets import ASSETS
from .gguf import converted_folder
from .packaged import CATALOGUE, fetched_folder

BUILT_IN = {"toxloc-tiny": ASSETS / "models" / "toxloc-tiny"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,96})?")
_WEIGHTS = ("*.safetensors", "*.bin")


@dataclass(frozen=True)
class Source:
    """The source of a model.

    Attributes:
        name: name of the model in results.
        kind: "built-in", "packaged", "gguf", "folder" or "hub".
        location: folder or hub id, for `from_pretrained`.
    """

    name: str
    kind: str
    location: str


def resolve(name: str) -> Source:
    """Resolve the name of a model to its source.

    Built-in and packaged names take precedence over files and folders, and these over hub ids. The hub is not
    contacted. A GGUF file is converted on first use.

    Raises:
        ToxlocError: the name is not a known name, a path or a hub id; a packaged model has not been fetched; or the
            folder or file is missing or incomplete.

    Example:
        >>> resolve("toxloc-tiny").kind
        'built-in'
    """
    if name in BUILT_IN:
        return Source(name, "built-in", str(BUILT_IN[name]))
    if name in CATALOGUE:
        return Source(name, "packaged", str(fetched_folder(name)))
    path = Path(os.path.expanduser(name))
    if path.suffix == ".gguf":
        if not os.path.isfile(path):
            raise ToxlocError(f"There is no GGUF file at {name}; check the path.")
        return Source(path.stem, "gguf", str(converted_folder(path)))
    if os.path.isdir(path):  # unlike Path.is_dir, False for a name that is too long
        _check_folder(path)
        return Source(path.resolve().name, "folder", str(path))
    if os.path.exists(path):
        raise ToxlocError(f"{name} is a file but not a .gguf file; give a model folder, a .gguf file or a hub id.")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not _HUB_ID.fullmatch(name):
        raise ToxlocError(
            f"There is no model folder at {name!r}; give a folder with config.json and weights, a .gguf file, "
            f"a hub id such as 'org/model', or a known name ({', '.join([*BUILT_IN, *CATALOGUE])})."
        )
    if "/" not in name and (close := _similar(name, 0.8)):
        raise ToxlocError(f"There is no model {name!r}; did you mean {close!r}? A hub id is written org/name.")
    return Source(name, "hub", name)


def downloaded(source: Source) -> Source:
    """Return the source with the folder of its files; a model from the hub is downloaded.

    Raises:
        ToxlocError: the hub has no such model, or cannot be reached.
    """
    if source.kind != "hub":
        return source
    from huggingface_hub import snapshot_download

    others = ["*.json", "*.txt", "*.model", "*.jinja", "*.py"]
    try:
        folder = snapshot_download(source.location, allow_patterns=[*others, "*.safetensors"])
        if not any(Path(folder).glob("*.safetensors")):
            folder = snapshot_download(source.location, allow_patterns=[*others, "*.bin"])
    except (OSError, ValueError) as error:
        raise not_on_hub(source.name, error) from error
    return replace(source, kind="folder", location=folder)


def _similar(name: str, cutoff: float) -> str | None:
    """Return the known name most similar to `name`, or None if none has at least this similarity (0 to 1)."""
    return next(iter(difflib.get_close_matches(name, [*BUILT_IN, *CATALOGUE], n=1, cutoff=cutoff)), None)


def not_on_hub(name: str, reason: Exception) -> ToxlocError:
    """Return an error that says why a hub id could not be loaded, and suggests an alternative."""
    close = _similar(name, 0.6)
    hint = f" Did you mean {close!r}?" if close else ""
    text = str(reason)
    if "gated" in text or "403" in text or "401" in text:
        why = "the hub requires a login or an accepted licence (run `hf auth login`), or has no such model"
    elif "404" in text or "is not a valid model identifier" in text or "not a local folder" in text:
        why = "the hub has no such model"
    else:
        why = "the model hub could not be reached"
    return ToxlocError(
        f"{name!r} is neither built in ({', '.join(BUILT_IN)}) nor a local folder, and {why}; "
        f"download the model on a connected machine and give its folder or .gguf file instead.{hint}"
    )


def check_no_code(name: str, error: Exception, *, can_allow: bool = False) -> None:
    """Check whether transformers refused to load a model because it would have to run the model's own code.

    Args:
        name: name of the model.
        error: the error that transformers raised.
        can_allow: whether `trust_remote_code` would allow it, as for `load_model`.

    Raises:
        ToxlocError: it did.
    """
    if "custom code" not in str(error):
        return
    advice = "which toxloc never runs; give a model of a family that transformers itself implements."
    if can_allow:
        advice = (
            "which is not run unless you allow it: if you have read the code and trust it, give trust_remote_code=True "
            "(--trust-remote-code)."
        )
    raise ToxlocError(f"{name!r} brings its own code (auto_map in config.json), {advice}") from error


def _check_folder(path: Path) -> None:
    """Check that a model folder has a configuration, weights and a tokenizer."""
    if not (path / "config.json").is_file():
        hint = " It holds .gguf files: name one of them." if any(path.glob("*.gguf")) else ""
        raise ToxlocError(f"{path} has no config.json, so it is not a Hugging Face model folder.{hint}")
    if not any(file for pattern in _WEIGHTS for file in path.glob(pattern)):
        raise ToxlocError(f"{path} has a config.json but no weights (*.safetensors or *.bin); finish the download.")
    if not any((path / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ToxlocError(f"{path} has no tokenizer files; save the tokenizer there with tokenizer.save_pretrained.")
