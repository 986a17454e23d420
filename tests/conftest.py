"""Fixtures for all tests. Models are tiny and random, or toxloc-tiny. Every test checks the shape annotations."""

import atexit
import os
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path

# Set before `datasets` is imported: tests must not read or write the user's cache.
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="toxloc-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start

import jaxtyping

import tests.typechecker  # noqa: F401

with jaxtyping.install_import_hook("toxloc", "tests.typechecker.checked"):
    import toxloc.runs.pipeline

import gguf
import numpy as np
import pytest
import torch
from filelock import FileLock

import toxloc
from benchmarks.families import LAYOUTS, random_hf, random_model, tokenizer  # noqa: F401

atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)

TEXTS = [
    "You are a fool and a liar.",
    "The soup needs salt.",
    "Why would anyone say that to a friend of mine?",
    "Good morning!",
    "He left the door open again, and the rain came in all night.",
]


SLOW = (
    "runs/test_pipeline",
    "runs/test_run",
    "sweeps/test_runner",
    "cli/test_run",
    "cli/test_evaluate",
    "interventions/test_registry",
)


def pytest_collection_modifyitems(items):
    """Run the slowest files first, so that no worker process is still busy with a slow file at the end."""
    items.sort(key=lambda item: f"{item.path.parent.name}/{item.path.stem}" not in SLOW)


def write_gguf(path, layers=2, d=32, d_mlp=64, heads=2, leave_out=None):
    """Write a random llama model with a byte-level vocabulary as a GGUF file."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    rng = np.random.default_rng(0)
    w = gguf.GGUFWriter(path, "llama")
    w.add_context_length(64)
    w.add_embedding_length(d)
    w.add_block_count(layers)
    w.add_feed_forward_length(d_mlp)
    w.add_head_count(heads)
    w.add_head_count_kv(heads)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(10000.0)
    w.add_rope_dimension_count(d // heads)
    tokens = ["<s>", "</s>", *bytes_to_unicode().values(), "th"]
    w.add_vocab_size(len(tokens))
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(tokens)
    w.add_token_types([3, 3, *[1] * 257])
    w.add_token_merges(["t h"])
    w.add_bos_token_id(0)
    w.add_eos_token_id(1)

    def tensor(name, *shape):
        values = rng.normal(0, 0.3, shape).astype(np.float32)
        if name != leave_out:
            w.add_tensor(name, values)

    tensor("token_embd.weight", len(tokens), d)
    tensor("output_norm.weight", d)
    tensor("output.weight", len(tokens), d)
    for i in range(layers):
        for name, *shape in (
            ("attn_norm", d),
            ("attn_q", d, d),
            ("attn_k", d, d),
            ("attn_v", d, d),
            ("attn_output", d, d),
            ("ffn_norm", d),
            ("ffn_gate", d_mlp, d),
            ("ffn_up", d_mlp, d),
            ("ffn_down", d, d_mlp),
        ):
            tensor(f"blk.{i}.{name}.weight", *shape)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def bits(lm):
    return [p.detach().clone() for p in lm.hf.parameters()]


def same_bits(before, lm):
    return all(torch.equal(a, b) for a, b in zip(before, lm.hf.parameters(), strict=True))


def asks_for_nothing_else(html):
    """Return whether a page is self-contained: it loads no script, style or picture."""
    body = re.sub(r"<script>.*?</script>", "", html, flags=re.S)
    return not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=|@import|url\(", body)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def tiny():
    return random_model()


@pytest.fixture(params=sorted(LAYOUTS))  # one family per layout; tests/benchmarks/test_coverage.py covers all families
def any_family(request):
    return random_model(request.param)


@pytest.fixture(scope="session")
def lm():
    """Load toxloc-tiny; tests must leave it unchanged."""
    return toxloc.load_model("toxloc-tiny")


@pytest.fixture(scope="session")
def pairs():
    """Load a small contrast set."""
    return toxloc.load_contrast("builtin").limited(60, seed=1)


@pytest.fixture(scope="session")
def neutral():
    return toxloc.load_neutral("builtin", limit=40)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """Do a full run with small settings, which all worker processes share."""
    shared = tmp_path_factory.getbasetemp()
    out = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "small-run"
    with FileLock(f"{out}.lock"):
        if not out.exists():
            toxloc.run("toxloc-tiny", out=out, samples=2, max_prompts=12, max_texts=80, max_neutral=60, knockouts=6)
    return toxloc.RunResult.load(out)


@pytest.fixture
def ctrl_c():
    """The usual handler of Ctrl-C, also where the tests run in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def few_texts(tmp_path_factory):
    """An environment in which the built-in texts are an eighth of the real ones, so that lessons are quick."""
    root = tmp_path_factory.mktemp("few-texts")
    package = Path(toxloc.__file__).parent
    texts, models = package / "support" / "assets" / "prompts", package / "support" / "assets" / "models"

    def left_out(folder, names):
        return [name for name in names if name == "__pycache__" or Path(folder, name) == models]

    shutil.copytree(package, root / "toxloc", ignore=left_out)
    (root / models.relative_to(package.parent)).symlink_to(models)
    for path in texts.glob("*.jsonl"):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        (root / path.relative_to(package.parent)).write_text("".join(lines[::8]), encoding="utf-8")
    binaries = Path(sys.executable).parent
    return os.environ | {
        "PYTHONPATH": str(root),
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "HF_MODULES_CACHE": str(root / "modules"),  # evaluate writes to these two, and inspect-ai to the third
        "HF_METRICS_CACHE": str(root / "metrics"),
        "XDG_DATA_HOME": str(root / "data"),
    }


@pytest.fixture
def unchecked(monkeypatch):
    """Switch the check of annotations off, so that a test can pass values of wrong types, as users do."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
