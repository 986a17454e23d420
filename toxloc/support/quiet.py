"""Hide the notices of the libraries that load models."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

LIBRARIES = ("transformers", "huggingface_hub", "accelerate", "transformer_lens")


@contextmanager
def quiet() -> Iterator[None]:
    """Hide warnings and progress bars of the libraries that load models. Errors, and all other loggers, stay.

    The levels, filters and handlers of the loggers, and the progress bars, are as before after the block.

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


@contextmanager
def _without_bars() -> Iterator[None]:
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars  # type: ignore[attr-defined]
    from transformers.utils import logging as of_transformers

    of_transformers.get_verbosity()  # sets up the library's logger; on first use it overwrites the logger's level
    bars, hub_bars = of_transformers.is_progress_bar_enabled(), not are_progress_bars_disabled()
    of_transformers.disable_progress_bar()  # those of huggingface_hub too
    try:
        yield
    finally:
        if bars:
            of_transformers.enable_progress_bar()  # those of huggingface_hub too
        elif hub_bars:
            enable_progress_bars()
        if bars and not hub_bars:
            disable_progress_bars()


@contextmanager
def _without_root_warnings() -> Iterator[None]:
    """Hide the warnings that transformer_lens sends to the root logger, which belongs to the user."""
    handlers, keep = list(logging.root.handlers), _not_from("transformer_lens")
    logging.root.addFilter(keep)
    try:
        yield
    finally:
        logging.root.removeFilter(keep)
        for handler in [added for added in logging.root.handlers if added not in handlers]:
            logging.root.removeHandler(handler)  # `logging.warning` adds a handler where there is none


def _not_from(package: str) -> Callable[[logging.LogRecord], bool]:
    """Return a filter that drops warnings, and records below them, whose code lies in a package's folder."""
    spec = find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []

    def keep(record: logging.LogRecord) -> bool:
        inside = any(Path(record.pathname).is_relative_to(folder) for folder in folders)
        return record.levelno >= logging.ERROR or not inside

    return keep
