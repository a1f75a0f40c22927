"""Tiny language models with a tokenizer, as folders of transformers."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ("rudder", "sail", "keel", "tide", "wind", "harbour", "anchor", "mast")
TOKENS = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}


@cache
def text(sentences: int = 300, seed: int = 0) -> str:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(WORDS), (sentences, 4), generator=generator).tolist()
    return "\n".join("the " + " and the ".join(WORDS[word] for word in row) + "." for row in drawn)


def tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        [text()], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<end>"])
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")


def llama(**more: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=300, num_key_value_heads=2, max_position_embeddings=64, **sizes, **TOKENS, **more)
    )


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=300, n_positions=64, n_embd=32, n_layer=2, n_head=2, **TOKENS))


OTHERS = {
    "OPT": {"ffn_dim": 64}, "Qwen2": {"num_key_value_heads": 2}, "Mistral": {"num_key_value_heads": 2, "sliding_window": 16},
    "Gemma": {"num_key_value_heads": 1, "head_dim": 8}, "Phi3": {"num_key_value_heads": 2},
    "Mixtral": {"num_key_value_heads": 2, "num_local_experts": 4},
}  # fmt: skip


def other(kind: str) -> torch.nn.Module:
    """An untaught model of another kind: tied embeddings (Gemma, OPT), fused projections (Phi3), experts (Mixtral)."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=300, max_position_embeddings=64, **sizes, **TOKENS, **OTHERS[kind]
    )
    model: torch.nn.Module = getattr(transformers, f"{kind}ForCausalLM")(config)
    return model.eval()


def taught(model: torch.nn.Module, steps: int = 30) -> torch.nn.Module:
    """A little training, so that weights are of unequal use."""
    tokens = torch.tensor(tokenizer()(text())["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        starts = torch.randint(len(tokens) - 32, (8,), generator=generator).tolist()
        rows = torch.stack([tokens[start : start + 32] for start in starts])
        optimizer.zero_grad()
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
    return model.eval()


def saved(model: torch.nn.Module, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
