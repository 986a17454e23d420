"""Hide the warnings and progress bars of the libraries that load models."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path

LIBRARIES = ("transformers", "huggingface_hub", "accelerate", "transformer_lens")
NOTES = {  # what torchao logs when it is imported, by logger; transformers imports it wherever it is installed
    "torchao": "Failed to load",  # kernels for GPUs that the machine does not have
    "torch.utils._pytree": "Calling register_constant() on Enum subclasses is deprecated",
}


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the warnings and progress bars of the libraries that load models. Errors and other loggers are not hidden.

    After the block, the levels, filters and handlers of the loggers and the state of the progress bars are restored.

    Example:
        >>> with quiet():                                           # doctest: +SKIP
        ...     model = transformers.AutoModelForCausalLM.from_pretrained("gpt2")
    """
    with _without_bars(), _without_root_warnings():
        loggers = [logging.getLogger(name) for name in LIBRARIES]
        levels = [logger.level for logger in loggers]
        try:
            for logger in loggers:
                logger.setLevel(max(logger.getEffectiveLevel(), logging.ERROR))
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def hide_notes_of_torchao() -> None:
    """Hide the notes for developers that torchao logs when it is imported."""
    for name, note in NOTES.items():
        logging.getLogger(name).addFilter(partial(_lacks, note))


def _lacks(note: str, record: logging.LogRecord) -> bool:
    return note not in record.getMessage()


@contextmanager
def _without_bars() -> Iterator[None]:
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars  # type: ignore[attr-defined]
    from transformers.utils import logging as transformers_logging

    transformers_logging.get_verbosity()  # sets the logger up now: the set-up overwrites its level
    bars, hub_bars = transformers_logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()  # also disables the bars of huggingface_hub
    try:
        yield
    finally:
        if bars:
            transformers_logging.enable_progress_bar()  # also enables the bars of huggingface_hub
        elif hub_bars:
            enable_progress_bars()
        if bars and not hub_bars:
            disable_progress_bars()


@contextmanager
def _without_root_warnings() -> Iterator[None]:
    """Hide the warnings that transformer_lens sends to the root logger; the user's messages there are not hidden."""
    handlers, keep = list(logging.root.handlers), _not_from("transformer_lens")
    logging.root.addFilter(keep)
    try:
        yield
    finally:
        logging.root.removeFilter(keep)
        for handler in [added for added in logging.root.handlers if added not in handlers]:
            logging.root.removeHandler(handler)  # `logging.warning` adds a handler if the root logger has none


def _not_from(package: str) -> Callable[[logging.LogRecord], bool]:
    """Return a filter that drops records below the level ERROR that come from code in a package's folder."""
    spec = find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []

    def keep(record: logging.LogRecord) -> bool:
        inside = any(Path(record.pathname).is_relative_to(folder) for folder in folders)
        return record.levelno >= logging.ERROR or not inside

    return keep
