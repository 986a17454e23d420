import logging
import subprocess
import sys

import pytest
import transformer_lens
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging as transformers_logging

from toxloc.support.quiet import LIBRARIES, NOTES, quiet


def state():
    return (
        [(logging.getLogger(name).level, list(logging.getLogger(name).filters)) for name in LIBRARIES],
        logging.root.level,
        list(logging.root.filters),
        list(logging.root.handlers),
        logging.root.manager.disable,
        transformers_logging.is_progress_bar_enabled(),
        are_progress_bars_disabled(),
    )


@pytest.fixture
def emitted(caplog):
    """Function that returns the messages that reached a handler, also of loggers that do not propagate."""
    loggers = {logger: logger.level for logger in map(logging.getLogger, LIBRARIES)}
    for logger in loggers:
        logger.setLevel(logging.WARNING)  # transformer_lens sets the level of transformers to ERROR
        if not logger.propagate:
            logger.addHandler(caplog.handler)
    yield lambda: [record.getMessage() for record in caplog.records]
    for logger, level in loggers.items():
        logger.setLevel(level)
        logger.removeHandler(caplog.handler)


@pytest.mark.parametrize("name", [f"{library}.models.some" for library in LIBRARIES])
def test_libraries_warn_before_and_after_but_not_while_quiet(emitted, name):
    logger = logging.getLogger(name)
    logger.warning("before")
    with quiet():
        logger.warning("hidden")
        logger.error("an error")
    logger.warning("after")
    assert emitted() == ["before", "an error", "after"]


def test_other_loggers_are_not_hidden(emitted):
    with quiet():
        logging.getLogger("user").warning("user logger")
        logging.warning("root logger")
    assert emitted() == ["user logger", "root logger"]


def test_on_the_root_logger_only_warnings_of_transformer_lens_are_hidden(emitted):
    code = compile(
        "import logging; logging.warning('a warning'); logging.error('an error')",
        f"{transformer_lens.__path__[0]}/hooks.py",
        "exec",
    )
    with quiet():
        exec(code)
    assert emitted() == ["an error"]
    exec(code)
    assert emitted() == ["an error", "a warning", "an error"]


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_the_logging_state_is_restored_also_after_an_error_and_when_nested(error):
    level = logging.getLogger("accelerate").level
    logging.getLogger("accelerate").setLevel(logging.CRITICAL)
    before = state()
    try:
        with quiet():
            assert not transformers_logging.is_progress_bar_enabled()
            assert are_progress_bars_disabled()
            assert logging.getLogger("accelerate").level == logging.CRITICAL
            assert logging.root.manager.disable == before[4]
            inside = state()
            with quiet():
                pass
            assert state() == inside
            if error:
                raise error
    except KeyboardInterrupt:
        pass
    assert state() == before
    logging.getLogger("accelerate").setLevel(level)


def test_disabled_bars_of_the_hub_stay_disabled():
    disable_progress_bars()
    try:
        with quiet():
            pass
        assert are_progress_bars_disabled()
        assert transformers_logging.is_progress_bar_enabled()
    finally:
        enable_progress_bars()


PROGRAM = """
import logging
from toxloc.support.quiet import quiet
with quiet():
    import transformer_lens  # sets the level of transformers' logger
    exec(compile("logging.warning('hidden')", transformer_lens.__file__, "exec"))
    logging.getLogger("user").warning("from the user")
print(logging.root.handlers, logging.getLogger("transformers").level == logging.WARNING)
"""


def test_no_handler_is_left_in_a_process_that_never_set_up_logging():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.stdout == "[] True\n", done.stderr
    assert "from the user" in done.stderr
    assert "hidden" not in done.stderr


@pytest.mark.parametrize(("name", "note"), NOTES.items())
def test_only_the_notes_of_torchao_are_hidden(caplog, name, note):
    import toxloc.models  # noqa: F401

    logger = logging.getLogger(name)
    with caplog.at_level(logging.WARNING):
        logger.addHandler(caplog.handler)
        logger.warning(f"{note}: a kernel")
        logger.warning("another message")
        logger.removeHandler(caplog.handler)
    assert {record.getMessage() for record in caplog.records} == {"another message"}
