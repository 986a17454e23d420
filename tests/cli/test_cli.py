import copy
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import toxloc
from toxloc.cli import app, entry

SMALL = ["--samples", "1", "--max-prompts", "4", "--max-texts", "30", "--max-neutral", "30", "--knockouts", "0"]


FEW = ["--max-texts", "20", "--max-neutral", "20"]


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "160"})


def plain(text):
    return re.sub(r"\s+", " ", re.sub(r"[│╭╮╰╯─]|\x1b\[[0-9;]*m", " ", text))


def test_help_names_every_option_and_the_warning():
    text = plain(CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "200"}).output)
    for word in ("--model", "--contrast", "--prompts", "--samples", "--seed", "--device", "--out", "offensive",
                 "three minutes"):
        assert word in text


@pytest.mark.parametrize(("command", "words"), [
    ("suppress", ("--method", "--budget", "--kl-budget", "--max-neutral", "--seed", "toxloc export")),
    ("evaluate", ("--intervention", "--protocol", "--evaluator", "--neutral", "dpo_toxic", "offensive", "goes on")),
    ("compare", ("What toxloc evaluate wrote", "--json", "refused")),
    ("export", ("INTERVENTION_FOLDER", "--model", "--format", "--any-model", "model card")),
])
def test_help_of_the_other_commands(command, words):
    text = plain(CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output)
    assert not [word for word in words if word not in text]


def test_help_loads_no_heavy_library():
    code = "import sys, toxloc.cli; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'plotly')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_version():
    assert toxloc.__version__ in CliRunner().invoke(app, ["--version"]).output


def test_a_run_ends_with_a_table_and_the_report(tmp_path):
    result = CliRunner().invoke(app, ["run", "--out", str(tmp_path / "r"), *SMALL], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    assert "trne" in result.output
    assert str(tmp_path / "r" / "report.html") in result.output
    assert (tmp_path / "r" / "results.json").is_file()


@pytest.fixture(scope="module")
def suppressed(tmp_path_factory):
    out = tmp_path_factory.mktemp("suppress") / "trne"
    result = invoke("suppress", "toxloc-tiny", "--out", out, "--budget", "0.05", "--kl-budget", "0.2", *FEW)
    assert result.exit_code == 0, result.output
    return out, plain(result.output)


def test_suppress_saves_the_change_and_says_where_it_is_and_what_it_costs(suppressed):
    out, text = suppressed
    fitted = toxloc.load_intervention(out)
    assert "Changes: layers 0 to 7" in text
    assert str(out) in text.replace(" ", "")
    assert fitted.record["budget"] == {"perplexity": 0.05, "kl": 0.2}
    assert fitted.record["texts"] == {"contrast": "builtin", "n_toxic": 20, "n_neutral": 20, "neutral": "builtin"}
    for part in ("tuned", "check"):
        assert f"{fitted.record[f'{part}_perplexity_ratio'] - 1:+.2%}" in text
        assert f"{fitted.record[f'{part}_kl']:.3g}" in text


def test_export_writes_the_edited_model_and_the_adapter(suppressed, tmp_path, lm):
    ids = lm.tokenizer("<|endoftext|>You are such a", return_tensors="pt").input_ids
    with torch.no_grad(), toxloc.load_intervention(suppressed[0]).applied(lm):
        wanted = lm.hf(ids).logits
    for form in ("hf", "peft"):
        result = invoke("export", suppressed[0], "--model", "toxloc-tiny", "--out", tmp_path / form, "--format", form)
        assert result.exit_code == 0, result.output
        assert "builtin (20 toxic, 20 neutral)" in (tmp_path / form / "README.md").read_text()
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    adapted = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "peft", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(whole(ids).logits, wanted, rtol=0, atol=0)
        torch.testing.assert_close(adapted(ids).logits, wanted, rtol=1e-5, atol=1e-5)
        assert (wanted - lm.hf(ids).logits).abs().max() > 1e-3


def test_export_is_for_the_model_it_was_fitted_on(suppressed, tmp_path, lm):
    torch.manual_seed(0)
    other = tmp_path / "other"
    copy.deepcopy(lm.hf).apply(lm.hf._init_weights).save_pretrained(other)
    lm.tokenizer.save_pretrained(other)
    arguments = ["export", suppressed[0], "--model", other, "--out", tmp_path / "out"]
    refused = invoke(*arguments)
    assert isinstance(refused.exception, toxloc.ToxlocError)
    assert f"was fitted on toxloc-tiny (fingerprint {lm.fingerprint}), and this is other (" in str(refused.exception)
    assert not (tmp_path / "out").exists()
    assert invoke(*arguments, "--any-model").exit_code == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_evaluations_of_a_model_and_an_edit_are_compared(suppressed, tmp_path):
    items = tmp_path / "items" / "hellaswag.jsonl"
    items.parent.mkdir()
    items.write_text(json.dumps({"ctx": "He took his coat and", "endings": ["went out.", "of under zx."], "label": 0}))
    few = ["--max-prompts", "12", "--samples", "2", "--max-neutral", "20", "--choices", items]
    for name, more in (("before", []), ("after", ["--intervention", suppressed[0]])):
        result = invoke("evaluate", "toxloc-tiny", "--out", tmp_path / name, *few, *more)
        assert result.exit_code == 0, result.output
        assert "12 prompts × 2" in result.output
        assert "prompts like these" in result.output
        assert "of 1 right" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["after", "before", "items"]  # no journal is left
    figures = toxloc.load_evaluation(tmp_path / "after").figures
    assert (figures["method"], figures["decoding"]["samples"]) == ("trne", 2)
    assert figures["over_suppression"]["n_prompts"]["identity"] == 30
    result = invoke("compare", tmp_path / "before", tmp_path / "after")
    assert result.exit_code == 0, result.output
    assert "perplexity of completions" in result.output
    assert "multiple choice" in result.output
    shown = json.loads(invoke("compare", tmp_path / "before", tmp_path / "after", "--json").output)
    before = toxloc.load_evaluation(tmp_path / "before").figures
    assert shown["differences"]["any"]["mean"] == pytest.approx(
        figures["toxicity"]["any"]["rate"] - before["toxicity"]["any"]["rate"])


def test_a_killed_evaluation_goes_on(tmp_path):
    arguments = ["evaluate", "toxloc-tiny", "--out", str(tmp_path / "e"), "--samples", "4", "--max-neutral", "20"]
    process = subprocess.Popen([sys.executable, "-m", "toxloc", *arguments], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    journal = tmp_path / "e.partial.jsonl"
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 64):
        time.sleep(0.02)
    process.kill()
    process.communicate()
    kept = journal.read_bytes().splitlines()[1:-1]
    assert 64 <= len(kept) < 520
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert not journal.exists()
    rows = [json.loads(line) for line in (tmp_path / "e" / "completions.jsonl").read_text().splitlines()]
    assert len(rows) == 520
    for i, k, text in map(json.loads, kept):
        assert rows[4 * i + k]["completion"] == text


@pytest.mark.parametrize(("arguments", "words"), [
    (["evaluate", "toxloc-tiny", "--protocol", "rtp"], "There is no protocol 'rtp'; there are RealToxicityPrompts"),
    (["evaluate", "toxloc-tiny", "--protocol", "ProFS", "--samples", "5"], "ProFS fixes samples=1"),
    (["evaluate", "toxloc-tiny", "--intervention", "nowhere"], "holds no intervention"),
    (["evaluate", "toxloc-tiny", "--top-p", "2"], "top_p=2.0 is out of range"),
    (["suppress", "./nowhere"], "There is no model folder at './nowhere'"),
    (["suppress", "toxloc-tiny", "--method", "meow"], "Unknown method 'meow'; choose one of trne"),
    (["suppress", "toxloc-tiny", "--budget", "-1"], "not -1.0"),
    (["suppress", "toxloc-tiny", "--contrast", "none.csv"], "There is no file none.csv"),
    (["suppress", "toxloc-tiny", "--device", "cuda:42"], "torch sees"),
    (["export", "nowhere", "--model", "toxloc-tiny"], "holds no intervention"),
    (["export", "nowhere", "--model", "toxloc-tiny", "--format", "gguf"], "Unknown format 'gguf'; choose one of hf"),
    (["export", "steering", "--model", "toxloc-tiny"], "lives in hooks and has no form in the weights"),
])
def test_the_other_commands_errors(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    toxloc.Steering(torch.ones(256), layer=1, strength=1.0).save("steering")
    monkeypatch.setattr(sys, "argv", ["toxloc", *arguments, "--out", "out"])
    with pytest.raises(SystemExit) as stop:
        entry()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["steering"]


@pytest.mark.parametrize(("arguments", "words"), [
    (["--model", "./nowhere"], "There is no model folder at './nowhere'"),
    (["--prompts", "none.csv"], "There is no file none.csv"),
    (["--samples", "0"], "samples=0"),
    (["--device", "cuda:42"], "torch sees"),
    (["--prompts", "[/b]:smile:.csv"], "There is no file [/b]:smile:.csv"),
    (["--model", "./[red]model"], "There is no model folder at './[red]model'"),
])
def test_a_users_error_is_one_sentence_without_a_traceback(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.setattr(sys, "argv", ["toxloc", "run", "--out", str(tmp_path / "r"), *arguments])
    with pytest.raises(SystemExit) as stop:
        entry()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_nothing(tmp_path):
    process = subprocess.Popen([sys.executable, "-m", "toxloc", "run", "--out", str(tmp_path / "r")],
                               stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                               env=os.environ | {"OMP_NUM_THREADS": "2"},
                               # in case the tests themselves run where Ctrl-C is ignored, as in the background
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".r.*.partial")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list(tmp_path.glob(".r.*.partial"))
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.rstrip().endswith("Stopped. Nothing was written.")
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []
