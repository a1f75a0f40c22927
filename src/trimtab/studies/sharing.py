"""Share a run and its pruned network in the layout of the Hugging Face Hub; a plain folder is a place like the Hub."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from fnmatch import fnmatch
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trimtab.deploy import save_sparse
from trimtab.files import check_free, replace_atomically, write_text
from trimtab.inputs import read_json_mapping
from trimtab.runs.metric import metric_of
from trimtab.runs.recipe import Recipe
from trimtab.runs.run_folder import RunFolder
from trimtab.studies.model_card import Shared, model_card
from trimtab.studies.prune_run import pruned_file, read_pruned
from trimtab.studies.pruned_network import pruned_network
from trimtab.studies.statistics import sparsity_label

FILES = (
    "README.md", "config.json", "recipe.yaml", "run.json", "metrics.jsonl", "model.safetensors", "pruned-*.safetensors",
    "pruning-test.json", "pruning-validation.json",
)  # fmt: skip
"""What a shared run holds; nothing else is sent or taken. Checkpoints and trackers' tables stay at home."""
HUB = re.compile(r"hf://(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError("the Hub needs huggingface_hub: pip install 'trimtab[hub]'") from error
    return huggingface_hub


def _on_hub(place: str) -> re.Match[str] | None:
    """The parts of `hf://USER/NAME[@REVISION]`, None for a folder."""
    found = HUB.fullmatch(place)
    if found is None and place.startswith("hf:"):
        raise ValueError(f"{place!r} is no place on the Hub; write hf://USER/NAME, or hf://USER/NAME@REVISION to pull")
    return found


def _taken(source: Path, target: Path) -> None:
    """Copy the files of a shared run, each whole or not at all; links are not followed."""
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir()):
        if file.is_file() and not file.is_symlink() and any(fnmatch(file.name, name) for name in FILES):
            replace_atomically(target / file.name, partial(shutil.copyfile, file))


def _fill(folder: RunFolder, out: Path, sparsity: float | None, root: str | None, licence: str | None) -> None:
    """Everything that is shared, into an empty folder."""
    recipe: Recipe = folder.recipe
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"root": None})})  # a path of this machine
    made = pruned_network(folder, sparsity, root=root)
    _taken(folder.path, out)
    recipe.write(out / "recipe.yaml")
    network = {
        "name": recipe.model.name,
        **made.data.network_arguments,
        **recipe.model.arguments,
    }
    sparse_file = None
    if made.sparsity > 0:
        sparse_file = f"pruned-{sparsity_label(made.sparsity).replace(' %', '')}.safetensors"
        metadata = {"recipe": recipe.name, "method": recipe.method, "sparsity": f"{made.sparsity:.6g}"}
        save_sparse(made.model, out / sparse_file, metadata=metadata)
    config = {
        "library_name": "trimtab",
        "trimtab_version": version("trimtab"),
        "network": network,
        "method": recipe.method,
        "sparsity": made.sparsity,
        "sparse_file": sparse_file,
    }
    write_text(out / "config.json", json.dumps(config, indent=1) + "\n")
    measured = [pruned_file(folder, split) for split in ("test", "validation")]
    rows = [row for file in measured if file.is_file() for row in read_pruned(file).rows]
    shared = Shared(recipe, network, rows, sparse_file, made.sparsity, version("trimtab"), licence)
    write_text(out / "README.md", model_card(shared, metric_of(made.data.task)))


def push(
    run: Path | str,
    to: str,
    *,
    sparsity: float | None = None,
    root: str | None = None,
    licence: str | None = None,
    private: bool = True,
) -> str:
    """Share a finished run: dense network, pruned network as a sparse file, recipe, metrics, measurements, a model card.

    Args:
        run: a finished run folder; it is not changed. Its data's place is left out of the shared recipe.
        to: `hf://USER/NAME`, or a folder that is empty or not there yet.
        sparsity: of the pruned network; 0: dense alone. Default 0.9 [ours], or what the recipe's N:M pattern fixes.
        root: where the data lie, if not where the recipe says (for recalibration).
        licence: the card's, by its short name on the Hub such as `apache-2.0`; none is named by default.
        private: whether a new place on the Hub is private.

    Returns:
        The folder, or the address of the commit.

    Raises:
        ValueError: the run is not finished, the folder is not empty, or `to` is no place.
        ImportError: the Hub is named and huggingface_hub is missing.
    """
    folder, hub = RunFolder(Path(run)), _on_hub(to)
    if not folder.finished:
        raise ValueError(f"{folder.path} is not a finished run; train it first")
    client = None if hub is None else _hub()
    if hub is None:
        check_free(Path(to))
    elif hub["revision"]:
        raise ValueError(f"{to}: a push takes no revision; write hf://{hub['name']}")
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        _fill(folder, out, sparsity, root, licence)
        if hub is None:
            _taken(out, Path(to))
            return to
        api = client.HfApi(library_name="trimtab", library_version=version("trimtab"))  # type: ignore[union-attr]
        api.create_repo(hub["name"], repo_type="model", private=private, exist_ok=True)
        message = f"{folder.recipe.name}, {folder.recipe.method}"
        return str(api.upload_folder(repo_id=hub["name"], folder_path=out, commit_message=message))


def pull(source: str, out: Path | str) -> RunFolder:
    """Take a shared run over as a run folder that every command reads.

    What is taken is data: the known files alone, no link followed. A network that the recipe names as `package.module:function`
    is run only with `--trust-code`.

    Args:
        source: a folder that `push` left, or `hf://USER/NAME`, with `@REVISION` for a commit, branch or tag.
        out: a folder that is empty or not there yet.

    Raises:
        ValueError: `source` holds no shared run, or `out` is not empty.
        ImportError: the Hub is named and huggingface_hub is missing.
    """
    hub, target = _on_hub(source), Path(out)
    check_free(target)
    with tempfile.TemporaryDirectory() as temporary:
        held = Path(source)
        if hub is not None:
            held = Path(temporary)
            _hub().snapshot_download(
                hub["name"],
                revision=hub["revision"],
                local_dir=held,
                allow_patterns=list(FILES),
                library_name="trimtab",
            )
        if (
            not (held / "config.json").is_file()
            or read_json_mapping(held / "config.json").get("library_name") != "trimtab"
        ):
            raise ValueError(f"{source} holds no run that `trimtab push` shared: no config.json of it")
        if not RunFolder(held).finished:
            raise ValueError(f"{source} holds no finished run")
        _ = RunFolder(held).recipe  # refused here if it cannot be read
        _taken(held, target)
    return RunFolder(target)
