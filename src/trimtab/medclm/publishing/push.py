"""`push`: a folder that `publish` wrote, onto the Hugging Face Hub: nothing but what it wrote, and only as it wrote it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from trimtab.inputs import named, read_json_mapping, utf8
from trimtab.medclm.building.folder import listed_file
from trimtab.medclm.publishing.annotations import PICTURES

FILES = (
    "README.md", "croissant.json", "statistics.json", "manifest.json", "rows.jsonl", "records.jsonl", "rejected.jsonl",
    PICTURES, "data/*.parquet", "shards/*.tar", "organs/*.json",
)  # fmt: skip
"""What `publish` writes; nothing else is sent. In a pattern `*` also stands for folders."""
HUB = re.compile(r"hf://datasets/(?P<name>[\w.-]+/[\w.-]+)")


@dataclass(frozen=True)
class Release:
    """What of a folder goes to the Hub.

    Attributes:
        path: the folder.
        licence: short name, from the card.
        files: path -> bytes, of what is sent.
        left_out: paths in the folder that `publish` did not write: not sent.
    """

    path: Path
    licence: str
    files: Mapping[str, int]
    left_out: tuple[str, ...]


def release_in(path: Path) -> Release:
    """The release in a folder of `publish`, checked: card with licence, Croissant, and every Parquet file as Croissant has it.

    Raises:
        FileNotFoundError: `publish` wrote no such folder, or a file of it is gone.
        ValueError: the card names no licence, or a file has changed since.
    """
    card, metadata = path / "README.md", path / "croissant.json"
    if not metadata.is_file() or not card.is_file():
        lacks = "croissant.json" if card.is_file() else "README.md"
        raise FileNotFoundError(f"{path} has no {lacks}: only what `trimtab medclm publish` wrote can be pushed")
    with named(metadata):
        listed = {str(one["contentUrl"]): str(one["sha256"]) for one in read_json_mapping(metadata)["distribution"]}
    for name, sha256 in listed.items():
        if not (path / name).is_file():
            raise FileNotFoundError(f"{path} has no {name}, which croissant.json lists; publish the set again")
        if listed_file(path / name).sha256 != sha256:
            raise ValueError(f"{path / name} is not the file that croissant.json lists; publish the set again")
    found = {
        file.relative_to(path).as_posix(): file
        for file in sorted(path.rglob("*"))
        if file.is_file() and not file.is_symlink()
    }
    sent = {name: file.stat().st_size for name, file in found.items() if any(fnmatch(name, one) for one in FILES)}
    return Release(path, _licence(card), sent, tuple(name for name in found if name not in sent))


def _licence(card: Path) -> str:
    parts = utf8(card).split("---\n")
    with named(card):
        header: Any = yaml.safe_load(parts[1]) if len(parts) > 2 and not parts[0] else None
    licence = header.get("license") if isinstance(header, dict) else None
    if not isinstance(licence, str) or not licence:
        raise ValueError(f"{card} names no licence in its header; publish the set again with --licence")
    return licence


def push(release: Release, to: str, *, private: bool = True, message: str = "") -> str:
    """Send a release to the Hub, all files in one commit, with the token that `hf auth login` or HF_TOKEN holds.

    Who may read it then loads it by `datasets.load_dataset("USER/NAME")`. Files there that this release lacks stay.

    Args:
        release: of `release_in`.
        to: `hf://datasets/USER/NAME`; made if it is not there.
        private: whether a new one is private.
        message: of the commit; default names the version of Trimtab.

    Returns:
        The address of the commit.

    Raises:
        ImportError: huggingface_hub is missing.
        ValueError: `to` is no data set on the Hub, there is no token, or the Hub refuses.
        ConnectionError: the Hub does not answer.
    """
    name = on_hub(to)
    try:
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise ImportError("the Hub needs huggingface_hub: pip install 'trimtab[hub]'") from error
    token = get_token()
    if not token:
        raise ValueError(f"no token to push to {to} with: `hf auth login`, or set HF_TOKEN; nothing was sent")
    api = HfApi(token=token, library_name="trimtab", library_version=version("trimtab"))
    try:
        api.create_repo(name, repo_type="dataset", private=private, exist_ok=True)
        return str(
            api.upload_folder(
                repo_id=name, repo_type="dataset", folder_path=release.path, allow_patterns=list(release.files),
                commit_message=message or f"Published with Trimtab {version('trimtab')}",
            )
        )  # fmt: skip
    except HfHubHTTPError as error:
        said = " ".join(str(error.server_message or error).split())
        raise ValueError(f"the Hub at {api.endpoint} refuses {name}: {said}") from error
    except Exception as error:
        if all(one.__name__ != "TransportError" for one in type(error).__mro__):  # httpx's or httpx2's, by the version
            raise
        raise ConnectionError(f"the Hub at {api.endpoint} does not answer: {error}") from error


def on_hub(to: str) -> str:
    """USER/NAME of `hf://datasets/USER/NAME`.

    Raises:
        ValueError: it is something else.

    >>> on_hub("hf://datasets/me/chest-boxes")
    'me/chest-boxes'
    """
    found = HUB.fullmatch(to)
    if found is None:
        raise ValueError(f"{to!r} is no data set on the Hub; write hf://datasets/USER/NAME")
    return found["name"]
