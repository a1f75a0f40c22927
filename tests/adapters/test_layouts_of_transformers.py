"""What the networks of transformers hold, by their owner's word."""

from __future__ import annotations

import warnings

import pytest
import torch

import trimtab
from trimtab.parameters import Rule, select

transformers = pytest.importorskip("transformers")

TOKENS = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}


def gpt2() -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=2, n_head=2, **TOKENS)
    return transformers.GPT2LMHeadModel(config)


def matrices_left_out(model: torch.nn.Module) -> set[str]:
    left_out = select(model, Rule(frozen=True)).left_out
    return {entry.name for entry, _ in left_out if entry.parameter.ndim > 1}


def test_gpt2_groups_run_along_the_inputs_of_conv1d() -> None:
    model = gpt2()
    trimtab.pruning.one_shot(model, pattern="2:4")
    weights = [module.weight for module in model.modules() if type(module).__name__ == "Conv1D"]
    assert len(weights) == 8
    for weight in weights:
        inputs, outputs = weight.shape
        assert bool(((weight.reshape(inputs // 4, 4, outputs) != 0).sum(1) == 2).all())


def test_gpt2_keeps_the_head_that_is_tied_to_the_first_embedding() -> None:
    model = gpt2()
    pruned = trimtab.pruning.one_shot(model, 0.5, scope="layer", keep_last=True)
    assert [entry.name for entry, reason in pruned.left_out if "kept" in reason] == ["transformer.wte.weight"]
    assert bool((model.lm_head.weight != 0).all())


def test_all_nine_products_of_gpt2_are_rounded() -> None:
    model = gpt2()
    lever = trimtab.precision.LowPrecision(activations="e4m3")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trimtab.attach(torch.optim.SGD(model.parameters()), lever, model=model)
    seen = {}
    for name, module in model.named_modules():
        if type(module).__name__ in ("Conv1D", "Linear"):
            module.register_forward_hook(lambda module, inputs, output, name=name: seen.update({name: output.detach()}))
    model(torch.arange(8).view(1, 8))
    assert len(seen) == 9
    for output in seen.values():
        assert torch.equal(output, trimtab.precision.quantize(output, "e4m3"))


@pytest.mark.slow
def test_what_is_no_weight_of_a_product() -> None:
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    mamba = transformers.MambaModel(transformers.MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1))
    assert matrices_left_out(mamba) == {"layers.0.mixer.A_log"}
    whisper = transformers.WhisperModel(
        transformers.WhisperConfig(
            vocab_size=64, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, decoder_start_token_id=0, **TOKENS,
        )
    )  # fmt: skip
    assert matrices_left_out(whisper) == {"encoder.embed_positions.weight", "decoder.embed_positions.weight"}
    swin = transformers.Swinv2Config(image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
    assert {name.rpartition(".")[2] for name in matrices_left_out(transformers.Swinv2Model(swin))} == {"logit_scale"}
    convnext = transformers.ConvNextV2Config(hidden_sizes=[8, 8], depths=[1, 1], num_stages=2)
    left = matrices_left_out(transformers.ConvNextV2Model(convnext))
    assert len(left) == 4
    assert all(".grn." in name for name in left)
    bert = transformers.BertModel(transformers.BertConfig(vocab_size=32, **small))
    assert matrices_left_out(bert) == {"embeddings.position_embeddings.weight"}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "axes"), [("Mixtral", (1, 2, 0)), ("GptOss", (2, 1, 0))])
def test_fused_experts(kind: str, axes: tuple[int, int, int]) -> None:
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2, head_dim=8, **TOKENS,
    )  # fmt: skip
    model = getattr(transformers, f"{kind}Model")(config)
    experts = [entry for entry in select(model).chosen if ".experts." in entry.name]
    assert len(experts) == 2
    for entry in experts:
        assert (entry.output_axis, entry.input_axis, entry.stack_axis) == axes
        inputs = 16 if "gate_up" in entry.name else 24
        assert entry.parameter.shape[axes[1]] == inputs
