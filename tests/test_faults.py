"""Kills at random moments, full disks, read-only folders, and too few file handles or too little memory."""

import errno
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import cache

import pytest
import torch

import toxloc
import toxloc.evaluation.evaluators.registry
from tests.children import Child, address_space, forks, limited, next_file, outcome_of, running
from tests.conftest import TEXTS, bits, random_hf, random_model, same_bits, tokenizer
from toxloc import ContrastSet, Meow2X, PromptSet, ToxlocError
from toxloc.cli import entry
from toxloc.evaluation.evaluators.base import FunctionEvaluator
from toxloc.interventions.rank_one import RankOne
from toxloc.support.faults import fault_of
from toxloc.support.files import check_free
from toxloc.sweeps.grid import Plan, load_grid
from toxloc.sweeps.store import Store
from toxloc.sweeps.worker import work

pytestmark = forks
PAIRS = ContrastSet(TEXTS[:2], TEXTS[2:])
JUDGE = FunctionEvaluator("has-e", lambda texts: [0.75 * ("e" in text) for text in texts])
RUN = ["--samples", "1", "--max-prompts", "4", "--max-texts", "16", "--max-neutral", "16", "--knockouts", "0"]
RUN += ["--max-new-tokens", "4", "--method", "trne", "--budget", "0.05", "--evaluator", "profanity-check"]
EVALUATE = ["--prompts", "prompts.txt", "--samples", "4", "--max-new-tokens", "8", "--max-neutral", "16"]
EVALUATE += ["--evaluator", "profanity-check"]
GRID = {
    "models": ["model"],
    "contrasts": ["builtin"],
    "benchmarks": {"a": {"prompts": "prompts.txt", "max_prompts": 3}, "b": {"prompts": "prompts.txt"}},
    "methods": [{"method": "trne", "settings": {"budget": 0.05}}],
    "evaluators": ["toxloc-guard", "profanity-check"],
    "samples": 2,
    "max_new_tokens": 4,
    "max_texts": 16,
    "max_neutral": 16,
    "resources": {"cpus": 1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model, a file of prompts, and a grid."""
    root = tmp_path_factory.mktemp("faults")
    random_hf("gpt2").save_pretrained(root / "model")
    tokenizer().save_pretrained(root / "model")
    (root / "prompts.txt").write_text("\n".join(f"Number {i} said that it" for i in range(8)))
    (root / "grid.yaml").write_text(json.dumps(GRID))
    Meow2X(neurons=[(0, 3)], scale=0.5, mode="weights").save(root / "edit")
    toxloc.load_prompts(str(root / "prompts.txt"))
    toxloc.load_model(str(root / "model"))  # imports libraries, which the children then share
    toxloc.evaluation.evaluators.registry.get_evaluators(["profanity-check"])[0].score(["a"])
    return root


def arguments_of(command, out):
    """Return the arguments of a command that writes a folder; its inputs are in the current folder."""
    return {
        "run": ["run", "--model", "model", "--out", str(out), *RUN],
        "evaluate": ["evaluate", "model", "--out", str(out), *EVALUATE],
        "suppress": ["suppress", "model", "--out", str(out), "--max-texts", "16", "--max-neutral", "16"],
        "export": ["export", "edit", "--model", "model", "--out", str(out), "--any-model"],
        "sweep": ["sweep", "grid.yaml", "--out", str(out)],
    }[command]


def do(command, out, folder):
    """Run a command in this process; of a sweep, only the worker, because a sweep starts it as a new process."""
    os.chdir(folder)
    if command == "sweep":
        plan, store = Plan(load_grid("grid.yaml")), Store(out)
        store.remove_unfinished()
        work(plan, store.open_cells(plan.cells), store)
    else:
        sys.argv = ["toxloc", *arguments_of(command, out)]
        try:
            entry()
        except SystemExit as stop:
            if stop.code:
                raise


def content(command, out):
    """Return what must not depend on kills."""
    if command == "sweep":
        cells = (json.loads(path.read_text()) for path in (out / "cells").glob("*.json"))
        return {cell["id"]: {**cell, "seconds": None, "peak_memory": None} for cell in cells}
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.json*")}


def check_whole(command, out):
    """Check that the killed command left no incomplete result under its final name."""
    if command == "run" and out.exists():
        assert set(toxloc.RunResult.load(out).methods) == {"baseline", "trne"}
    elif command == "evaluate" and out.exists():
        toxloc.load_evaluation(out)
    elif command == "sweep":
        assert all("toxicity" in json.loads(path.read_text()) for path in out.glob("cells/*.json"))
        for path in out.glob("interventions/*"):
            toxloc.load_intervention(path)


def is_done(command, out):
    return len(list(out.glob("cells/*.json"))) == 2 if command == "sweep" else out.exists()


def unfinished(folder):
    """Return the files and folders that toxloc writes only for a while."""
    return [path.name for path in folder.rglob(".*") if path.suffix in (".partial", ".old", ".lock")]


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    """Return a function that runs a command once, and returns its folder and the time it took."""

    @cache
    def computed(command):
        out, began = tmp_path_factory.mktemp("undisturbed") / command, time.monotonic()
        finish(command, out, folder)
        return out, time.monotonic() - began

    return computed


def finish(command, out, folder):
    assert outcome_of(do, command, out, folder) == ["returned", None]
    assert [path.read_text() for path in out.glob("failed/*.json")] == []


COMMANDS = ["run", "evaluate", "sweep"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_killed_command_ends_like_an_undisturbed_command(folder, undisturbed, tmp_path, command):
    whole, seconds = undisturbed(command)
    child = Child(do, command, tmp_path / "out", folder)
    time.sleep(random.uniform(0.4, 0.9) * seconds)
    child.kill()
    check_whole(command, tmp_path / "out")
    if not is_done(command, tmp_path / "out"):
        finish(command, tmp_path / "out", folder)
    assert content(command, tmp_path / "out") == content(command, whole)
    assert unfinished(tmp_path) == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_killed_at_many_moments_ends_like_an_undisturbed_command(folder, tmp_path, command):
    def started(out):
        arguments = [sys.executable, "-m", "toxloc", *arguments_of(command, out)]
        return subprocess.Popen(arguments, cwd=folder, start_new_session=True, stderr=subprocess.DEVNULL)

    began = time.monotonic()
    assert started(tmp_path / "undisturbed").wait() == 0
    seconds = time.monotonic() - began
    random.seed(0)
    for trial in range(10):
        out = tmp_path / f"out-{trial}"
        for _ in range(3):
            process = started(out)
            time.sleep(random.uniform(0.3, 1) * seconds)  # earlier, only libraries are loaded
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            check_whole(command, out)
        if not is_done(command, out) or command == "sweep":
            assert started(out).wait() == 0
        assert content(command, out) == content(command, tmp_path / "undisturbed")
    assert unfinished(tmp_path) == []


@pytest.fixture(scope="module")
def lm():
    return random_model()


@pytest.fixture(scope="module")
def savers(lm):
    """A function per kind of artefact that saves it to a folder, under an applied edit of the weights."""
    edit = Meow2X(neurons=[(0, 3), (1, 5)], scale=0.5, mode="weights")
    loc = toxloc.localize(lm, PAIRS, draws=10)
    evaluation = toxloc.evaluate(lm, PromptSet(TEXTS[:2]), [JUDGE], max_new_tokens=2, fluency=False)
    savers = {
        "intervention": edit.save,
        "localization": loc.save,
        "evaluation": evaluation.save,
        "export": lambda out: toxloc.export_hf(lm, out),
        "adapter": lambda out: toxloc.export_peft(edit, lm, out),
    }

    def saved(kind, out):
        with edit.applied(lm):
            savers[kind](out)

    return saved


KINDS = ["intervention", "localization", "evaluation", "export", "adapter"]


def failed_save(save, kind, out, lm, fault):
    """Save under a fault; return the message, the unfinished files, and whether the model is unchanged."""
    before = bits(lm)
    try:
        with fault():
            save(kind, out)
        message = ""
    except (ToxlocError, OSError) as error:  # the command line prints an OSError as a sentence too
        message = str(error) if isinstance(error, ToxlocError) else fault_of(error) or repr(error)
    left = [path.name for path in out.parent.iterdir() if not (path == out and message == "")]
    return message, left, same_bits(before, lm) and lm.interventions == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_save_to_a_full_disk_ends_in_a_sentence(savers, lm, tmp_path, kind):
    def child():
        return failed_save(savers, kind, tmp_path / "out", lm, lambda: limited(resource.RLIMIT_FSIZE, 100))

    assert outcome_of(child)[0] == "returned"
    message, left, unchanged = outcome_of(child)[1]
    assert "File too large" in message
    assert "\n" not in message
    assert (left, unchanged) == ([], True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_save_with_few_file_handles_is_whole_or_ends_in_a_sentence(savers, lm, tmp_path, kind):
    def child():
        savers(kind, tmp_path / "first")  # imports what it needs
        shutil.rmtree(tmp_path / "first")
        messages = []
        for spare in range(8):
            limit = next_file() + spare
            message, left, unchanged = failed_save(
                savers, kind, tmp_path / "out", lm, lambda limit=limit: limited(resource.RLIMIT_NOFILE, limit)
            )
            assert (left, unchanged) == ([], True)
            messages.append(message)
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
        return messages

    outcome, messages = outcome_of(child)
    assert outcome == "returned", messages
    assert "Too many open files" in messages[0]
    assert all("\n" not in message for message in messages)
    assert messages[-1] == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("kind", KINDS)
def test_a_save_to_a_read_only_folder_ends_in_a_sentence(savers, lm, tmp_path, kind):
    for path in (tmp_path, *tmp_path.parents):
        if not path.stat().st_mode & 0o001:
            path.chmod(0o755)

    def child():
        os.setuid(65534)
        return failed_save(savers, kind, tmp_path / "out", lm, lambda: limited(resource.RLIMIT_CORE, 0))

    message, left, unchanged = outcome_of(child)[1]
    assert f"{tmp_path} cannot be written to" in message
    assert (left, unchanged) == ([], True)


def test_a_save_without_memory_ends_in_a_sentence(tmp_path):
    edit = toxloc.TRNE([RankOne(0, torch.zeros(16 << 20), torch.zeros(8))])

    def child():
        edit.save(tmp_path / "first")
        with limited(resource.RLIMIT_AS, address_space() + (1 << 20)):
            edit.save(tmp_path / "out")

    outcome, message = outcome_of(child)
    assert outcome == "ToxlocError"
    assert "Cannot allocate memory; close other programs" in message
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_on_a_full_disk_ends_in_a_sentence(folder, tmp_path, command):
    def child():
        sys.stderr = (tmp_path / "errors").open("w", buffering=1)
        try:
            with limited(resource.RLIMIT_FSIZE, 1500):
                do(command, tmp_path / "out", folder)
        except ToxlocError as error:  # of the worker of a sweep
            print(f"Error: {error}", file=sys.stderr)
            raise SystemExit(2) from None

    assert outcome_of(child) == ["SystemExit", "2"]
    errors = (tmp_path / "errors").read_text()
    assert "File too large" in errors
    assert "Traceback" not in errors
    assert unfinished(tmp_path) == []
    assert not is_done(command, tmp_path / "out")


def test_an_evaluation_continues_after_a_full_disk(folder, undisturbed, tmp_path):
    def child():
        with limited(resource.RLIMIT_FSIZE, 1500):
            do("evaluate", tmp_path / "out", folder)

    assert outcome_of(child) == ["SystemExit", "2"]
    assert 0 < (tmp_path / "out.partial.jsonl").stat().st_size <= 1500
    finish("evaluate", tmp_path / "out", folder)
    assert content("evaluate", tmp_path / "out") == content("evaluate", undisturbed("evaluate")[0])


@pytest.mark.parametrize("command", ["run", "evaluate", "suppress", "export"])
def test_a_second_command_that_writes_the_same_folder_stops_at_once(folder, tmp_path, monkeypatch, capsys, command):
    out = tmp_path / "out"
    with running(do, command, out, folder, until=(tmp_path / ".out.lock").exists):
        with pytest.raises(SystemExit) as stop:
            do(command, out, folder)
        assert stop.value.code == 2
        assert f"Another process is writing {out}; wait for it" in capsys.readouterr().err
    check_free(out, overwrite=False)  # after a kill, the lock blocks nobody
    assert not (tmp_path / ".out.lock").exists()


def test_a_command_without_memory_for_the_model_ends_in_a_sentence(folder, tmp_path):
    def child():
        sys.stderr = (tmp_path / "errors").open("w", buffering=1)
        sys.argv = ["toxloc", "suppress", "toxloc-tiny", "--out", str(tmp_path / "out")]
        with limited(resource.RLIMIT_AS, address_space() + (8 << 20)):  # toxloc-tiny takes 17 MB
            entry()

    assert outcome_of(child) == ["SystemExit", "2"]
    errors = (tmp_path / "errors").read_text()
    assert "Cannot allocate memory" in errors
    assert "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["errors"]


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EMFILE, "Too many open files", "prompts.txt")])
def test_faults_of_the_machine_end_a_command_with_a_sentence(monkeypatch, capsys, error):
    def app():
        raise error

    monkeypatch.setattr("toxloc.cli.app", app)
    with pytest.raises(SystemExit) as stop:
        entry()
    assert stop.value.code == 2
    assert re.fullmatch(r"Error: [A-Z][^.\n]+\.\n", capsys.readouterr().err)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 KiB."""
    (tmp_path / "disk").mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path / "disk")]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs permission to mount a disk")
    yield tmp_path / "disk"
    subprocess.run(["umount", str(tmp_path / "disk")], check=True)


@pytest.mark.parametrize("kind", KINDS)
def test_no_space_is_left_on_a_small_disk(savers, lm, small_disk, kind):
    (small_disk / "filler").write_bytes(bytes(60 << 10))
    message, left, unchanged = failed_save(
        savers, kind, small_disk / "out", lm, lambda: limited(resource.RLIMIT_CORE, 0)
    )
    assert "No space left on device" in message
    assert (left, unchanged) == (["filler"], True)
