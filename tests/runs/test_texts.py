import json

import pytest

from toxloc import ToxlocError
from toxloc.runs.settings import RunSettings
from toxloc.runs.texts import read_texts


def test_contrast_texts_and_prompts_of_one_file_do_not_overlap(tmp_path, lm):
    rows = [
        {
            "prompt": {"text": f"opening {i}", "toxicity": 0.9 if i % 2 else 0.1},
            "continuation": {"text": " goes on", "toxicity": 0.1},
        }
        for i in range(40)
    ]
    path = tmp_path / "rtp.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    texts = read_texts(RunSettings(contrast=str(path), prompts=str(path), max_prompts=5)).complete(lm, [])
    judged = set(texts.judged.texts) | set(texts.everyday.texts)
    assert len(judged) == 10
    held_out = {*texts.held_out.toxic, *texts.held_out.neutral}
    assert held_out
    assert not held_out & {*texts.contrast.toxic, *texts.contrast.neutral}
    for text in [*texts.contrast.toxic, *texts.contrast.neutral, *held_out]:
        assert not any(text.startswith(f"{prompt} ") for prompt in judged)


def test_check_text_shares_nothing_with_the_tuning_text(tmp_path, lm):
    lines = [f"Line number {i} has quite a few words in it indeed." for i in range(60)]
    (tmp_path / "a.txt").write_text("\n".join(lines[:40]))
    (tmp_path / "b.txt").write_text("\n".join(lines[20:]))
    settings = RunSettings(neutral=str(tmp_path / "a.txt"), check=str(tmp_path / "b.txt"))
    texts = read_texts(settings).complete(lm, [])
    assert not {*texts.check} & {*texts.neutral.fit, *texts.neutral.tune}
    assert set(texts.check) >= set(lines[40:])
    (tmp_path / "seen.txt").write_text("\n".join(texts.neutral.fit + texts.neutral.tune))
    with pytest.raises(ToxlocError, match=r"--check \S*seen\.txt .* --neutral \S*a\.txt; give another file"):
        read_texts(RunSettings.of(settings, check=str(tmp_path / "seen.txt"), max_neutral=40))


def test_a_contrast_set_that_the_model_writes_is_not_read_from_a_file():
    read = read_texts(RunSettings(contrast="sampled", max_prompts=20))
    assert read.contrast is None
    assert (len(read.sampling), len(read.judged)) == (10, 10)
    assert not set(read.sampling.texts) & set(read.judged.texts)
