"""Folders of language models: what is pruned, what it costs, what is written, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel, LlamaConfig

from tests.studies.language import models
from tests.studies.language.models import gpt2, llama, saved, taught, text, tokenizer
from trimtab.cli import main
from trimtab.cli.flags import check_words, flags_of
from trimtab.cli.help import told
from trimtab.cli.language_pruning import LanguagePruneArguments
from trimtab.deploy import load_macko, load_sparse
from trimtab.pruning.scopes import removed_count
from trimtab.studies.language import (
    PruneOptions,
    load_language_model,
    prune_language_folder,
    prune_language_model,
    sequences,
    text_quality,
    tokens_of,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("models")
    return {"llama": saved(taught(llama()), place / "llama"), "gpt2": saved(taught(gpt2()), place / "gpt2")}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(text(), encoding="utf-8")
    return file


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def zeros(folder: Path) -> dict[str, float]:
    state = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    return {name: float((tensor == 0).double().mean()) for name, tensor in state.items() if tensor.ndim > 1}


FEW: dict[str, Any] = {"samples": 8, "length": 32}


@pytest.mark.parametrize("kind", sorted(models.OTHERS))
def test_other_kinds_come_back_as_they_were_measured(kind: str, corpus: Path, tmp_path: Path) -> None:
    source, out = saved(models.other(kind), tmp_path / kind), tmp_path / "out"
    report = prune_language_folder(
        source, out, PruneOptions("sparse_gpt"), calibrate=corpus, windows=4, forms=("sparse",), **FEW
    )
    assert report.after is not None
    assert {row.sparsity for row in report.layers} == {0.5}
    assert any("Embedding" in reason for reason in report.left_out.values())
    again = load_language_model(source).model
    load_sparse(out / "sparse.safetensors", again)
    state = load_language_model(out).model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in again.state_dict().items())
    held = corpus.read_text(encoding="utf-8")
    held = held[len(held) - int(0.1 * len(held)) :]
    quality = text_quality(load_language_model(out).model, tokens_of(held, tokenizer()), 32, len(held.encode()), 4)
    assert quality.perplexity == report.after.perplexity


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("score", ["wanda", "sparse_gpt", "magnitude"])
def test_a_folder_is_pruned_into_a_new_one(
    kind: str, score: Any, folders: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    source, out = folders[kind], tmp_path / "out"
    before = tree(source)
    report = prune_language_folder(source, out, PruneOptions(score, 0.5), calibrate=corpus, **FEW)
    assert tree(source) == before
    found = zeros(out)
    pruned = {row.name: row for row in report.layers}
    assert len(pruned) == {"llama": 21, "gpt2": 8}[kind]
    for row in pruned.values():
        inside = math.prod(row.shape)
        assert found[row.name] == row.sparsity == pytest.approx(0.5, abs=0.02)
        assert row.removed == removed_count(0.5, inside)
    dense = [name for name in found if name not in pruned]
    assert max(found[name] for name in dense) < 0.01
    told_of = " ".join(report.left_out)
    assert all(word in told_of for word in {"llama": ("embed_tokens", "lm_head"), "gpt2": ("wte", "wpe")}[kind])
    assert report.before is not None
    assert report.after is not None
    assert report.before.perplexity < 20  # of 300 tokens: it has learnt something, and keeps it
    assert 0.9 * report.before.perplexity < report.after.perplexity < 100
    again = load_language_model(out)
    held = text()[-int(0.1 * len(text())) :]
    tokens = tokens_of(held, again.tokenizer)
    assert text_quality(again.model, tokens, 32, len(held)).loss == pytest.approx(report.after.loss, rel=1e-5)
    kept = json.loads((out / "pruning.json").read_text())
    assert kept["after"]["perplexity"] == pytest.approx(report.after.perplexity)
    assert len(kept["layers"]) == len(pruned)
    assert not list(tmp_path.glob(".*.part"))


def test_perplexity_is_that_of_the_labels_in_transformers() -> None:
    model, row = llama(), torch.arange(2, 34).unsqueeze(0)
    found = text_quality(model, row[0], 32, 64)
    with torch.no_grad():
        loss = float(model(input_ids=row, labels=row).loss)
    assert found.loss == pytest.approx(loss, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(loss), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(loss / math.log(2) * 32 / 64, rel=1e-5)
    two = text_quality(model, torch.cat([row[0], row[0]]), 32, 128)  # windows do not see each other
    assert two.loss == pytest.approx(loss, rel=1e-5)
    assert two.tokens == 62


def test_the_calibrated_scores_are_those_of_the_library_itself() -> None:
    from trimtab.parameters import Rule
    from trimtab.pruning import Wanda, one_shot

    data = sequences(torch.arange(300).repeat(2), 16, 4)
    here, there = llama(), llama()
    prune_language_model(here, data, PruneOptions("wanda", 0.5))
    one_shot(
        there,
        0.5,
        score=Wanda(data, forward=lambda model, batch: model(batch)),
        rule=Rule(include=("model.layers.*_proj.weight",)),
    )
    assert all(
        torch.equal(one, other)
        for one, other in zip(here.state_dict().values(), there.state_dict().values(), strict=True)
    )


def test_owl_names_patterns_and_rounding() -> None:
    data = sequences(torch.arange(300).repeat(2), 16, 4)
    model = taught(llama(), 3)
    pruned, shares = prune_language_model(model, data, PruneOptions("sparse_gpt", 0.6, owl=True))
    by_block = {name.split(".")[2]: share for name, share in shares.items()}
    assert len(set(by_block.values())) == 3
    assert pruned.sparsity == pytest.approx(0.6, abs=1e-3)
    model = llama()
    pruned, _ = prune_language_model(model, data, PruneOptions("wanda", {"model.layers.0.*": 0.75}))
    assert {name.split(".")[2] for name, count in pruned.removed.items() if count} == {"0"}
    pruned, _ = prune_language_model(llama(), data, PruneOptions("wanda", pattern="2:4"))
    assert all(bool((mask.reshape(-1, 4).sum(1) == 2).all()) for mask in pruned.masks.values())
    model = llama()
    prune_language_model(model, data, PruneOptions("sparse_gpt", 0.5, quantize=3))
    weight = model.model.layers[0].mlp.up_proj.weight
    assert max(len(row.unique()) for row in weight) <= 8
    model = llama()
    pruned, _ = prune_language_model(model, data, PruneOptions("wanda", 0.5, head=True, exclude=("*.mlp.*",)))
    assert "lm_head.weight" in pruned.masks
    assert not any("mlp" in name for name in pruned.masks)
    assert {reason for entry, reason in pruned.left_out if "mlp" in entry.name} == {"excluded"}


def test_files_beside_hold_the_same_network(folders: dict[str, Path], corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = prune_language_folder(
        folders["llama"], out, PruneOptions("wanda", 0.6), calibrate=corpus, forms=("sparse", "compact", "macko"), **FEW
    )
    dense = AutoModelForCausalLM.from_pretrained(out).state_dict()
    sparse, macko = load_sparse(out / "sparse.safetensors"), load_macko(out / "macko.safetensors")
    assert all(torch.equal(sparse[name], tensor) for name, tensor in dense.items())
    for row in report.layers:
        assert torch.equal(macko[row.name], dense[row.name].half().float())
    names = ("model", "sparse", "compact", "macko")
    sizes = {name: report.files[f"{name}.safetensors"] for name in names}
    assert sizes["compact"] < sizes["macko"] < sizes["model"]
    assert sizes["sparse"] < sizes["model"]
    assert report.after is not None
    assert report.of_forms["compact"].loss == pytest.approx(report.after.loss, abs=0.05)
    assert report.of_forms["compact"].loss != report.after.loss


def test_the_command(
    folders: dict[str, Path], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["prune", str(folders["gpt2"]), "--calibrate", str(corpus), "--samples", "4", "--length", "32"]
    assert (
        main([*words, "--out", str(tmp_path / "a"), "--pattern", "2:4", "--measure", str(corpus), "--windows", "2"])
        == 0
    )
    said = capsys.readouterr().out
    assert "perplexity" in said
    assert "transformer.h.0.attn.c_attn.weight" in said
    assert f'from_pretrained("{tmp_path / "a"}")' in said
    names = ["--sparsity", "transformer.h.0.*=0.3", "transformer.h.1.*=0.7", "--json"]
    assert main([*words, "--out", str(tmp_path / "b"), *names]) == 0
    told_json = json.loads(capsys.readouterr().out)
    assert {round(row["sparsity"], 1) for row in told_json["layers"]} == {0.3, 0.7}
    assert main([*words, "--out", str(tmp_path / "b")]) == 2
    assert "is not empty" in capsys.readouterr().err
    plain = ["prune", str(folders["gpt2"]), "--score", "magnitude", "--out", str(tmp_path / "c"), "--length", "32"]
    assert main(plain) == 0
    assert "perplexity not measured" in capsys.readouterr().out


def test_help_of_the_command_for_models(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["prune", str(folders["gpt2"]), "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 25
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("usage: trimtab prune MODEL")
    assert lines[-1].endswith("trimtab prune MODEL --help-all")
    for example in told(LanguagePruneArguments)[1]:
        check_words(example.split()[2:], flags_of(LanguagePruneArguments), "prune")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--calibrate", "CORPUS", "--sparsity", "1.5"], "sparsity must lie"),
        (["--calibrate", "CORPUS", "--sparsity", "half"], "--sparsity takes one number, or PATTERN=NUMBER"),
        (["--calibrate", "CORPUS", "--sparsity", "nowhere.*=0.5"], "'nowhere.*' matches none of the 21"),
        (["--calibrate", "CORPUS", "--exclude", "nowhere.*"], "exclude 'nowhere.*' matches none"),
        (["--calibrate", "CORPUS", "--quantize", "4"], "give score sparse_gpt with it"),
        (["--calibrate", "CORPUS", "--pattern", "2:4", "--owl"], "owl chooses the sparsity of each block"),
        (["--calibrate", "CORPUS", "--pattern", "2:5"], r"does not divide"),
        (["--calibrate", "CORPUS", "--pattern", "2:4", "--sparsity", "0.6"], "fixes the sparsity at 0.5"),
        (["--calibrate", "CORPUS", "--length", "65"], "more than the 64 tokens"),
        (["--calibrate", "CORPUS", "--samples", "0"], "samples must be"),
        (["--calibrate", "CORPUS", "--damping", "0.1"], "give score sparse_gpt with it, not wanda"),
        (["--calibrate", "CORPUS", "--bits", "4"], "bits=4 is of a compact file"),
        (["--calibrate", "CORPUS", "--device", "nowhere"], "device 'nowhere' cannot be used here"),
        (["--calibrate", "SHORT"], "fewer than one sequence of 64"),
        (["--calibrate", "EMPTY"], "is empty"),
        (["--calibrate", "LATIN"], "line 1 is not UTF-8"),
        (["--calibrate", "nowhere.txt"], "nowhere.txt does not exist"),
        ([], "wanda needs calibration data"),
        (["--score", "magnitude", "--owl"], "owl needs calibration data"),
    ],
)
def test_bad_input_is_one_error_and_nothing_is_written(
    words: list[str],
    message: str,
    folders: dict[str, Path],
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "short").write_text("the sail")
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "latin").write_bytes("Hafen \xfc".encode("latin-1"))
    places = {"CORPUS": corpus, "SHORT": tmp_path / "short", "EMPTY": tmp_path / "empty", "LATIN": tmp_path / "latin"}
    out = tmp_path / "out"
    given = [str(places.get(word, word)) for word in words]
    assert main(["prune", str(folders["llama"]), *given, "--out", str(out), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not out.exists()
    assert not list(tmp_path.glob(".*.part"))


def test_the_new_folder_is_not_inside_the_old_one(folders: dict[str, Path]) -> None:
    before = tree(folders["llama"])
    for out in (folders["llama"], folders["llama"] / "pruned"):
        with pytest.raises(ValueError, match=r"lies in .*, which is not changed"):
            prune_language_folder(folders["llama"], out, PruneOptions("magnitude"))
    assert tree(folders["llama"]) == before


def test_weights_that_are_no_numbers_are_named(corpus: Path, tmp_path: Path) -> None:
    model = llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = torch.nan
    folder = saved(model, tmp_path / "model")
    with pytest.raises(ValueError, match=r"NaN or infinite weights in model\.layers\.1\.mlp\.up_proj\.weight$"):
        prune_language_folder(folder, tmp_path / "out", calibrate=corpus, **FEW)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_says_what_it_would_cost_and_writes_nothing(
    folders: dict[str, Path], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "prune",
        str(folders["llama"]),
        "--calibrate",
        str(corpus),
        "--length",
        "32",
        "--windows",
        "3",
        "--dry-run",
    ]
    out = tmp_path / "out"
    assert main([*words, "--samples", "4", "--owl", "--to", "compact", "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["writes"] == str(out)
    assert [part["times"] for part in said["parts"]] == [16, 9]  # 4 sequences: order, OWL, then 1, 2 and 3 of 3 blocks
    assert main([*words, "--out", str(out)]) == 0
    assert "nothing was written" in " ".join(capsys.readouterr().out.split())
    assert not out.exists()
    assert main([*words, "--sparsity", "1.5"]) == 2


def test_what_is_left_dense_is_told_of_matrices_and_files_may_be_read(
    folders: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    report = prune_language_folder(
        folders["llama"], tmp_path / "out", measure=corpus, calibrate=corpus, windows=1, **FEW
    )
    assert not any("norm" in name for name in report.left_out)
    modes = {file.stat().st_mode & 0o777 for file in (tmp_path / "out").iterdir()}
    assert len(modes) == 1


def test_what_is_no_folder_of_a_model_is_said(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--calibrate", str(corpus), "--out", str(tmp_path / "out")]
    assert main(["prune", "meta/llama"]) == 2
    assert "meta/llama is not a run folder, nor one of a language model" in capsys.readouterr().err
    assert main(["prune", "meta/llama", *words]) == 2
    assert (
        "meta/llama is no folder; give one that save_pretrained wrote, nothing is downloaded" in capsys.readouterr().err
    )
    assert main(["prune", str(tmp_path), *words]) == 2
    assert "has no config.json" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def damaged(folder: Path, what: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    if what == "code":
        config["auto_map"] = {"AutoModelForCausalLM": "evil.Model"}
        (folder / "evil.py").write_text("raise SystemExit('the code of the folder ran')")
    if what == "quantised":
        config["quantization_config"] = {"quant_method": "bitsandbytes"}
    if what == "kind":
        config["model_type"] = "vit"
    (folder / "config.json").write_text("{" if what == "json" else json.dumps(config))
    if what == "pickle":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    if what == "weights":
        (folder / "model.safetensors").write_bytes(b"\x00" * 64)
    if what == "missing":
        from safetensors.torch import load_file, save_file

        state = load_file(folder / "model.safetensors")
        del state["model.layers.0.mlp.up_proj.weight"]
        save_file(state, folder / "model.safetensors", {"format": "pt"})
    if what == "tokenizer":
        for file in folder.glob("tokenizer*"):
            file.unlink()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("code", "asks to run Python code of the folder"),
        ("quantised", "is quantised"),
        ("kind", "says model_type 'vit', which is no causal language model"),
        ("json", "config.json is damaged"),
        ("pickle", "holds no .safetensors file; pickled weights can run code"),
        ("weights", "could not be read"),
        ("missing", "lacks weights of its LlamaForCausalLM, such as model.layers.0.mlp.up_proj.weight"),
        ("tokenizer", "has no tokenizer"),
    ],
)
def test_a_folder_that_does_not_fit_is_named(
    what: str, message: str, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(llama(), tmp_path / "model")
    damaged(folder, what)
    words = ["prune", str(folder), "--calibrate", str(corpus), "--out", str(tmp_path / "out"), "--quiet"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_calibration_data_that_never_reach_a_layer_are_named() -> None:
    model = llama()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.model.aside = torch.nn.Linear(8, 8)
    with pytest.raises(ValueError, match=r"never reach model\.aside\.weight"):
        prune_language_model(model, [torch.arange(16).unsqueeze(0)], PruneOptions("wanda", 0.5))
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_an_error_while_writing_leaves_nothing(
    folders: dict[str, Path], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trimtab.studies.language.prune.save_sparse", full)
    out = tmp_path / "out"
    with pytest.raises(OSError, match=f"could not write {out}"):
        prune_language_folder(
            folders["llama"], out, PruneOptions("magnitude"), forms=("sparse",), measure=corpus, length=32, windows=1
        )
    assert list(tmp_path.iterdir()) == []


def test_code_of_a_folder_runs_only_when_it_is_trusted(corpus: Path, tmp_path: Path) -> None:
    folder = saved(llama(), tmp_path / "model")
    code = "from transformers import LlamaForCausalLM\nclass Own(LlamaForCausalLM):\n    pass\n"
    (folder / "own.py").write_text(code)
    config = json.loads((folder / "config.json").read_text()) | {"auto_map": {"AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config))
    words = [
        "prune",
        str(folder),
        "--score",
        "magnitude",
        "--out",
        str(tmp_path / "out"),
        "--quiet",
        "--measure",
        str(corpus),
    ]
    assert main([*words, "--windows", "1", "--length", "32"]) == 2
    assert main([*words, "--windows", "1", "--length", "32", "--trust-code"]) == 0


def test_halves_stay_halves(tmp_path: Path, corpus: Path) -> None:
    folder = saved(llama().bfloat16(), tmp_path / "model")
    prune_language_folder(folder, tmp_path / "out", PruneOptions("sparse_gpt", 0.5), calibrate=corpus, **FEW)
    assert load_language_model(tmp_path / "out").model.dtype == torch.bfloat16
    assert LlamaConfig.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
    assert tokenizer().vocab_size == load_language_model(tmp_path / "out").tokenizer.vocab_size


def test_what_is_of_the_head_alone_stays_with_it() -> None:
    """BERT's head has a layer before the output layer: calibration runs without the head and never reaches it."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    net = BertLMHeadModel(BertConfig(vocab_size=40, max_position_embeddings=16, is_decoder=True, **sizes))
    data = [torch.randint(40, (2, 8))]
    pruned, _ = prune_language_model(net, data)
    assert all(name.startswith("bert.encoder") for name in pruned.masks)
    reasons = {entry.name: reason for entry, reason in pruned.left_out}
    assert reasons["cls.predictions.transform.dense.weight"].startswith("output layer, left dense")
    pruned, _ = prune_language_model(net, data, PruneOptions(head=True))
    assert "cls.predictions.transform.dense.weight" in pruned.masks
