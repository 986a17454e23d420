import json
import re
import subprocess
import sys
import time

import pytest

import toxloc
from toxloc.cli.output import interval

from .conftest import invoke, plain


@pytest.mark.parametrize(
    "word",
    [
        "--intervention",
        "--protocol",
        "--evaluator",
        "--neutral",
        "dpo_toxic",
        "offensive",
        "OUT.partial.jsonl",
        "default: the protocol's, else 5",
        "default: all",
    ],
)
def test_help(word):
    assert word in plain(invoke("evaluate", "--help", columns=200).output)


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
        assert "of 1 items" in plain(result.output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["after", "before", "items"]  # no journal is left
    figures = toxloc.load_evaluation(tmp_path / "after").figures
    assert (figures["method"], figures["decoding"]["samples"]) == ("trne", 2)
    assert figures["over_suppression"]["n_prompts"]["identity"] == 4  # 12 prompts
    result = invoke("compare", tmp_path / "before", tmp_path / "after")
    assert result.exit_code == 0, result.output
    assert "perplexity of completions" in result.output
    assert "multiple choice" in result.output
    shown = json.loads(invoke("compare", tmp_path / "before", tmp_path / "after", "--json").output)
    before = toxloc.load_evaluation(tmp_path / "before").figures
    assert shown["differences"]["any"]["mean"] == pytest.approx(
        figures["toxicity"]["any"]["rate"] - before["toxicity"]["any"]["rate"]
    )


@pytest.mark.slow
def test_a_killed_evaluation_can_be_continued(tmp_path):
    arguments = ["evaluate", "toxloc-tiny", "--out", str(tmp_path / "e"), "--samples", "4", "--max-neutral", "20"]
    process = subprocess.Popen(
        [sys.executable, "-m", "toxloc", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
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


def test_a_folder_that_holds_no_intervention(tmp_path, monkeypatch, refused):
    monkeypatch.chdir(tmp_path)
    assert "holds no intervention" in refused("evaluate", "toxloc-tiny", "--intervention", "nowhere", "--out", "out")
    assert list(tmp_path.iterdir()) == []


def test_rates_by_language_and_category_and_a_warning_are_printed(tmp_path):
    """toxloc-tiny goes on in English after German prompts, so only the words of the prompts are German."""
    rows = [
        {"text": f"{start} {i}", "language": language, "category": f"topic {i % 2}"}
        for i in range(10)
        for start, language in (("The house number", "en-GB"), ("Das Haus Nummer", "German"))
        if i < 4 or language == "en-GB"
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = invoke(
        "evaluate", "toxloc-tiny", "--prompts", tmp_path / "p.jsonl", "--out", tmp_path / "e", "--samples", "2",
        "--max-neutral", "20", "--evaluator", "profanity-check", "--evaluator", "toxloc-rtp",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    figures = toxloc.load_evaluation(tmp_path / "e").figures
    table = plain(re.sub("[━┃┏┓┗┛┡┩╇┳├┤┼└┘┴]", " ", result.output))
    for group, shown, n_prompts in (("de", "German (de)", "4, too few"), ("en", "English (en)", "10")):
        judged = figures["by_language"][group]["profanity-check"]
        assert f"{shown} {n_prompts} profanity-check {interval(judged['rate'], judged['rate_ci'])}" in table
    judged = figures["by_category"]["topic 1"]["profanity-check"]
    assert f"topic 1 7, too few profanity-check {interval(judged['rate'], judged['rate_ci'])}" in table
    assert set(figures["by_category"]["topic 1"]) == set(figures["toxicity"])
    assert "profanity-check" in figures["language_notes"]["evaluators"]
