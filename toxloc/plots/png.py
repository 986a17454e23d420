"""Export of figures to PNG files, for papers and slides."""

import os
from os import PathLike
from pathlib import Path

import plotly.graph_objects as go

from ..errors import ToxlocError
from ..support.files import replacing

HEIGHT = 500  # pixels, for a figure without a height


def write_png(
    figure: go.Figure, path: str | PathLike[str], *, width: int = 1000, height: int | None = None, scale: float = 2
) -> None:
    """Write a figure as a PNG file with a white background. Uses kaleido and Chrome, and needs no access to the web.

    Args:
        figure: any Plotly figure; it is not changed.
        path: the file; an existing file is replaced only when the picture is complete.
        width: width in layout pixels.
        height: height in layout pixels; None for the height of the figure.
        scale: pixels of the file per layout pixel.

    Raises:
        ToxlocError: kaleido or Chrome is missing, or the file cannot be written.

    Example:
        >>> write_png(loc.heatmap(), "depth.png")     # doctest: +SKIP
    """
    path = Path(path)
    white = go.Figure(figure).update_layout(paper_bgcolor="white", plot_bgcolor="white")
    picture = _render(white, width, height or white.layout.height or HEIGHT, scale)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_bytes(picture)
    except OSError as error:
        raise ToxlocError(f"{path} cannot be written ({error.strerror}); choose another place.") from None


def _render(figure: go.Figure, width: int, height: int, scale: float) -> bytes:
    try:
        import kaleido
        from kaleido.errors import BrowserFailedError, ChromeNotFoundError
    except ImportError:
        raise ToxlocError(
            "A PNG needs kaleido, version 1 or later; install it with: pip install 'toxloc[png]'"
        ) from None
    # figure.to_image would load MathJax from the web, and plotly before 6.1 supports only old versions of kaleido.
    try:
        picture: bytes = kaleido.calc_fig_sync(
            figure,
            opts={"format": "png", "width": width, "height": height, "scale": scale},
            kopts={"page_generator": kaleido.PageGenerator(mathjax=False)},
        )
    except ChromeNotFoundError:
        raise ToxlocError(
            "A PNG needs Chrome or Chromium, and kaleido finds neither; run plotly_get_chrome, or set "
            f"BROWSER_PATH to the browser's executable (now {os.environ.get('BROWSER_PATH') or 'not set'})."
        ) from None
    except BrowserFailedError:
        raise ToxlocError(
            "The browser that kaleido found does not start; run plotly_get_chrome, or set BROWSER_PATH "
            f"to the executable of Chrome or Chromium (now {os.environ.get('BROWSER_PATH') or 'not set'})."
        ) from None
    return picture
