"""Test that contenders agree on the same batches and that the script reports all measurements; times are not tested."""

import json
from contextlib import nullcontext

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer import Typer
from typer.testing import CliRunner

import toxloc.localization.text_statistics
from benchmarks import speed
from tests.conftest import TEXTS, bits, random_model, same_bits
from toxloc.localization.text_statistics import collect
from toxloc.models.batching import batches

FAMILIES = ["gpt2", "llama", "olmo2"]


def command(*arguments):
    app = Typer()
    app.command()(speed.main)
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    """For models this small, a second thread costs more time than it saves."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def on_tiny(monkeypatch, tiny):
    """Make the script use a tiny model, and made-up measurements in place of separate processes."""
    monkeypatch.setattr(speed.toxloc, "load_model", lambda *_, **__: tiny)
    monkeypatch.setattr(
        speed,
        "in_process",
        lambda name, count, setting, memory=True: (
            None
            if name == "filtered cache" and count > 4
            else speed.SingleRun(0.5 * count, 1_000_000 * count if memory else None)
        ),
    )
    monkeypatch.setattr(speed.gc, "collect", lambda: 0)  # slow in a process that has loaded all tests
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.parametrize("name", speed.CONTENDERS)
def test_every_contender_reads_the_same_batches_and_leaves_the_model_unchanged(monkeypatch, tiny, name):
    read = []

    def recorded(*args, **kwargs):
        for batch in batches(*args, **kwargs):
            read.append((batch.ids, batch.mask))
            yield batch

    monkeypatch.setattr(speed, "batches", recorded)
    monkeypatch.setattr(toxloc.localization.text_statistics, "batches", recorded)
    before = bits(tiny)
    speed.CONTENDERS[name](tiny, TEXTS * 3)
    expected = [(batch.ids, batch.mask) for batch in batches(tiny, TEXTS * 3)]
    assert len(read) == len(expected)
    assert all(
        torch.equal(x, y) for got, wanted in zip(read, expected, strict=True) for x, y in zip(got, wanted, strict=True)
    )
    assert same_bits(before, tiny)
    assert not any(p.requires_grad or p.grad is not None for p in tiny.hf.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_alternatives_agree_with_the_passes(family):
    lm = random_model(family)
    for alternative in (speed.cache_of_everything, speed.filtered_cache):
        for expected, actual in zip(speed.activation_pass(lm, TEXTS), alternative(lm, TEXTS), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    gradients = collect(lm, TEXTS, skip_first=False).G.values()
    for expected, actual in zip(gradients, speed.full_autograd(lm, TEXTS), strict=True):
        assert (actual - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_floor_is_what_torch_counts(family):
    """Uses eager attention, because torch does not count the operations of every fused kernel."""
    lm = random_model(family)
    lm.hf.set_attn_implementation("eager")
    text = TEXTS[2]
    width = next(batches(lm, [text])).ids.shape[1]
    multiples = speed.floor(lm, width)

    def counted(run):
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()

    batch = next(batches(lm, [text]))
    forward = counted(lambda: speed.plain(lm, [text]))
    hidden = counted(lambda: lm.forward_hidden(batch.ids, batch.mask))
    autograd = counted(lambda: speed.full_autograd(lm, [text]))
    assert hidden / forward == pytest.approx(multiples["activation pass"], rel=0.001)
    assert autograd / forward == pytest.approx(multiples["full autograd"], rel=0.001)
    assert 1 < multiples["full autograd"] < multiples["gradient pass"]
    parts = ("plain", "backward", "G", "sketches", "attributions")
    assert multiples["gradient pass"] == pytest.approx(sum(multiples[part] for part in parts))
    unembedding = multiples["plain"] - multiples["activation pass"]
    assert speed.floor(lm, width, 0.75)["gradient pass"] == pytest.approx(multiples["gradient pass"] - unembedding / 2)


def test_rounds_go_through_all_jobs_and_the_first_is_not_counted(monkeypatch):
    monkeypatch.setattr(speed.gc, "collect", lambda: 0)
    ran = []
    seconds = speed.interleaved({name: lambda name=name: ran.append(name) for name in "abc"}, repeats=4, seed=0)
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 4, "b": 4, "c": 4}
    rounds = [ran[start : start + 3] for start in range(0, 15, 3)]
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len({tuple(order) for order in rounds}) > 1


def test_texts_are_of_both_kinds_and_repeat_from_the_start():
    texts = speed.Setting().texts(1100)
    pairs = toxloc.load_contrast()
    assert sorted(texts[:1040]) == sorted(pairs.toxic + pairs.neutral)
    assert texts[1040:] == texts[:60] == speed.Setting().texts(60)
    assert {text in set(pairs.toxic) for text in texts[:60]} == {True, False}


@pytest.mark.skipif(not speed.Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
def test_the_peak_is_the_memory_that_a_contender_holds(monkeypatch, tiny):
    monkeypatch.setitem(speed.CONTENDERS, "plain", lambda lm, texts: [torch.ones(16_000_000)])
    run = speed.single_run(tiny, TEXTS, "plain", memory=True)
    assert run.peak_bytes == pytest.approx(64e6, rel=0.1)
    assert run.seconds > 0


@pytest.mark.slow
@pytest.mark.skipif(not speed.Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
def test_memory_is_measured_in_a_separate_process():
    run = speed.in_process("filtered cache", 8, speed.Setting(device="cpu"))
    assert 0 < run.peak_bytes < 200e6
    assert 0 < run.seconds < 60


@pytest.mark.parametrize(("script", "raises"), [("kill -9 $$", False), ("echo no such model >&2; exit 1", True)])
def test_a_process_out_of_memory_has_no_result_and_other_failures_are_named(monkeypatch, tmp_path, script, raises):
    executable = tmp_path / "python"
    executable.write_text(f"#!/bin/sh\n{script}\n")
    executable.chmod(0o755)
    monkeypatch.setattr(speed.sys, "executable", str(executable))
    with pytest.raises(toxloc.ToxlocError, match="no such model") if raises else nullcontext():
        assert speed.in_process("plain", 1, speed.Setting("nothing")) is None


@pytest.mark.usefixtures("on_tiny")
def test_the_result_contains_all_measurements(tmp_path):
    out = tmp_path / "new" / "speed.json"
    printed = command("--texts", 4, "--repeats", 2, "--sizes", "2,6", "--seed", 3, "--out", out)
    assert [path.name for path in out.parent.iterdir()] == ["speed.json"]
    result = json.loads(out.read_text())
    assert result["command"] == (
        "python -m benchmarks.speed --model toxloc-tiny --dtype float32 --seed 3 --texts 4 --repeats 2 --sizes 2,6"
    )
    assert {"device", "dtype", "threads", "torch", "tokens", "positions", "floor"} <= set(result)
    assert [entry["name"] for entry in result["contenders"]] == list(speed.CONTENDERS)
    for entry in result["contenders"]:
        assert len(entry["times"]) == 2 and entry["peak_bytes"] == 4_000_000
        for name in ("seconds", "of_plain"):
            assert entry[name]["q25"] <= entry[name]["median"] <= entry[name]["q75"]
        assert entry["name"] in printed
    assert result["contenders"][0]["of_plain"] == {"median": 1, "q25": 1, "q75": 1}
    small, large = result["growth"]
    assert (small["texts"], large["texts"]) == (2, 6) and small["tokens"] < large["tokens"]
    assert list(small["contenders"]) == list(speed.GROWING)
    assert large["contenders"]["gradient pass"] == {"seconds": 3.0, "peak_bytes": 6_000_000}
    assert large["contenders"]["filtered cache"] is None


@pytest.mark.usefixtures("on_tiny")
def test_memory_and_growth_can_be_left_out(monkeypatch, tmp_path):
    monkeypatch.delattr(speed, "in_process")
    command("--texts", 2, "--repeats", 1, "--no-memory", "--no-growth", "--out", tmp_path / "speed.json")
    result = json.loads((tmp_path / "speed.json").read_text())
    assert "growth" not in result
    assert {entry["peak_bytes"] for entry in result["contenders"]} == {None}
