"""Losses of policies on a bandit that answers with a word, after as many fillers as it likes.

Eight prompts, each with one right word of twenty. A rollout is fillers and then a word; the policy is one table of logits.

python evidence/levers/policy.py      # three seeds, under a minute -> docs/evidence/levers-policy.json
"""

from __future__ import annotations

import torch
from figures import measure
from torch import Tensor

from trimtab.losses.policy import dot_lengths, gppo, group_advantage, ppo

PROMPTS, GROUP, WORDS, LONGEST, UPDATES, INNER, RATE = 8, 32, 20, 64, 60, 4, 4.0


def rollouts(logits: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (b, t), lengths (b,), whether the word is right; token 0 is the filler, the right word of prompt p is p + 1."""
    prompt = torch.arange(PROMPTS).repeat_interleave(GROUP)
    tokens = torch.multinomial(logits.softmax(-1)[prompt], LONGEST, replacement=True, generator=generator)
    word = tokens != 0
    lengths = torch.where(word.any(1), word.int().argmax(1) + 1, LONGEST)
    last = tokens.gather(1, lengths[:, None] - 1)[:, 0]
    return tokens, lengths, last == prompt + 1


def train(name: str, seed: int, *, right: bool) -> list[tuple[float, float, float]]:
    """Reward, entropy and length of each update; `right`: from a policy that is wordy but never wrong."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.zeros(PROMPTS, WORDS + 1)
    logits[:, 0] = 2.0
    if right:
        logits[:, 1:] = -20.0
        logits[torch.arange(PROMPTS), torch.arange(PROMPTS) + 1] = 0.5
    logits.requires_grad_()
    prompt = torch.arange(PROMPTS).repeat_interleave(GROUP)
    kept: list[tuple[float, float, float]] = []
    for _ in range(UPDATES):
        tokens, lengths, found = rollouts(logits.detach(), generator)
        rewards = found.float()
        if name == "dot":
            rewards = rewards * (
                dot_lengths(lengths, found, prompt, margin=2) == lengths
            )  # what is cut has lost its word
        advantage = group_advantage(rewards, prompt)
        mask = torch.arange(LONGEST) < lengths[:, None]
        old = None
        for _ in range(INNER):
            logp = logits.log_softmax(-1)[prompt].gather(1, tokens)
            old = logp.detach() if old is None else old
            loss, _ = (gppo if name == "gppo" else ppo)(logp, old, advantage, mask, low=0.2, high=0.28)
            (slope,) = torch.autograd.grad(loss, logits)
            logits.data -= RATE * slope
        table = logits.detach().log_softmax(-1)
        entropy = -(table.exp() * table).sum(1).mean()
        kept.append((found.float().mean().item(), entropy.item(), lengths.float().mean().item()))
    return kept


def figures(seed: int) -> dict[str, float]:
    """What the table shows, of one seed."""
    plain, kept = (train(name, seed, right=False) for name in ("ppo", "gppo"))
    found: dict[str, float] = {}
    for name, run in (("ppo", plain), ("gppo", kept)):
        at = next(step for step, (reward, _, _) in enumerate(run) if reward >= 0.9)
        found |= {f"{name} updates to 0.9": at, f"{name} entropy at 0.9": run[at][1]}
        found[f"{name} entropy after 30"] = run[29][1]
    for name in ("ppo", "dot"):
        run = train(name, seed, right=True)
        found |= {
            f"{name} length at first": run[0][2],
            f"{name} length at last": run[-1][2],
            f"{name} reward at last": run[-1][0],
        }
    return found


if __name__ == "__main__":
    measure("policy", figures, 3)
