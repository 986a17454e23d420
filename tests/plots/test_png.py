import re
import struct
import sys

import plotly.graph_objects as go
import pytest

from toxloc import ToxlocError, plots


@pytest.fixture
def figure():
    return go.Figure(go.Scatter(y=[1, 2]), layout={"height": 120, "paper_bgcolor": "rgba(0,0,0,0)"})


@pytest.fixture
def drawn(monkeypatch):
    """Replace the renderer of kaleido by a stub that records its options, and return the record."""
    kaleido = pytest.importorskip("kaleido", reason="kaleido is not installed")
    options = {}

    def calc_fig_sync(figure, opts, kopts):
        options.update(opts, paper=figure.layout.paper_bgcolor)
        return b"picture"

    monkeypatch.setattr(kaleido, "calc_fig_sync", calc_fig_sync)
    return options


def test_a_picture_is_white_and_as_high_as_its_figure(figure, drawn, tmp_path):
    plots.write_png(figure, tmp_path / "new" / "a.png", width=300)
    assert drawn == {"format": "png", "width": 300, "height": 120, "scale": 2, "paper": "white"}
    assert (tmp_path / "new" / "a.png").read_bytes() == b"picture"
    assert figure.layout.paper_bgcolor == "rgba(0,0,0,0)"


def test_a_file_is_replaced_only_when_the_picture_is_complete(figure, drawn, tmp_path, monkeypatch):
    import kaleido

    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with monkeypatch.context() as broken:
        broken.setattr(kaleido, "calc_fig_sync", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            plots.write_png(figure, path)
    assert path.read_bytes() == b"old"
    plots.write_png(figure, path)
    assert path.read_bytes() == b"picture"
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_the_error_names_a_path_that_cannot_be_written(figure, drawn, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "a.png"):
        with pytest.raises(ToxlocError, match=re.escape(f"{path} cannot be written")):
            plots.write_png(figure, path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_without_kaleido_the_error_says_how_to_install_it(figure, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(ToxlocError, match=r"pip install 'toxloc\[png\]'"):
        plots.write_png(figure, tmp_path / "a.png")


def test_without_chrome_the_error_says_how_to_get_it(figure, tmp_path, monkeypatch):
    pytest.importorskip("kaleido", reason="kaleido is not installed")
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "chrome"))
    with pytest.raises(ToxlocError, match=r"plotly_get_chrome.* BROWSER_PATH .*now .*chrome"):
        plots.write_png(figure, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_chrome_draws_a_png_of_the_requested_size(figure, tmp_path):
    pytest.importorskip("kaleido", reason="kaleido is not installed")
    try:
        plots.write_png(figure, tmp_path / "a.png", width=200, scale=1.5)
    except ToxlocError as error:
        pytest.skip(f"no browser: {error}")
    written = (tmp_path / "a.png").read_bytes()
    assert written[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", written[16:24]) == (300, 180)
