"""Losses of policies on a bandit that answers with a word, after as many fillers as it likes.

Eight prompts, each with one right word of twenty (or four). A rollout is fillers and a word; the policy is a table of logits.

python evidence/levers/policy.py      # five seeds, a CPU minute -> docs/evidence/levers-policy.json
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from figures import Row, best, measure
from torch import Tensor

from trimtab.losses.policy import (
    batch_advantage,
    dot_lengths,
    drpo,
    dynamic_dpo,
    g2rl,
    gppo,
    gradient_features,
    group_advantage,
    ppo,
    void_turn_mask,
)

PROMPTS, GROUP, WORDS, LONGEST, UPDATES, INNER, RATE = 8, 32, 20, 64, 60, 4, 4.0
RATES = (1.0, 2.0, 4.0, 8.0)
PROMPT = torch.arange(PROMPTS).repeat_interleave(GROUP)


def rollouts(logits: Tensor, generator: torch.Generator, right: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (b, t), lengths (b,), whether the word is right; token 0 is the filler, right for prompt p: p + 1 and after."""
    tokens = torch.multinomial(logits.softmax(-1)[PROMPT], LONGEST, replacement=True, generator=generator)
    word = tokens != 0
    lengths = torch.where(word.any(1), word.int().argmax(1) + 1, LONGEST)
    last = tokens.gather(1, lengths[:, None] - 1)[:, 0]
    return tokens, lengths, (last > PROMPT) & (last <= PROMPT + right)


def logp_of(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.log_softmax(-1)[PROMPT].gather(1, tokens)


def start(wrong: float | None = None) -> Tensor:
    """Logits that like fillers; `wrong`: those of the wrong words, so that the right one is likelier than they."""
    logits = torch.zeros(PROMPTS, WORDS + 1)
    logits[:, 0] = 2.0
    if wrong is not None:
        logits[:, 1:] = wrong
        logits[torch.arange(PROMPTS), torch.arange(PROMPTS) + 1] = 0.5
    return logits.requires_grad_()


Run = list[tuple[float, float, float, float]]


def train(
    name: str, seed: int, rate: float = RATE, *, wrong: float | None = None, limit: int = 0, answers: int = 1
) -> Run:
    """Reward, entropy, length and different right words of each update.

    `wrong`: as of `start`; `limit`: longer rollouts have no reward; `answers`: right words of a prompt.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = start(wrong)
    kept: Run = []
    for _ in range(UPDATES):
        tokens, lengths, found = rollouts(logits.detach(), generator, answers)
        found = found & (lengths <= limit) if limit else found
        rewards = found.float()
        mask = torch.arange(LONGEST) < lengths[:, None]
        if name == "dot":  # what is cut has lost its word
            rewards = rewards * (dot_lengths(lengths, found, PROMPT, margin=2) == lengths)
        if name == "g2rl":
            table = logits.detach()[PROMPT][:, None].expand(-1, LONGEST, -1)
            rewards, _ = g2rl(gradient_features(table, tokens, torch.eye(WORDS + 1), mask), 2 * rewards - 1, PROMPT)
        advantage = (batch_advantage if name == "batch" else group_advantage)(rewards, PROMPT)
        old = None
        for _ in range(INNER):
            logp = logp_of(logits, tokens)
            old = logp.detach() if old is None else old
            if name == "drpo":
                loss, _ = drpo(logp, old, rewards, mask, PROMPT, delta=0.01, beta=10.0)
            else:
                loss, _ = (gppo if name == "gppo" else ppo)(logp, old, advantage, mask, low=0.2, high=0.28)
            (slope,) = torch.autograd.grad(loss, logits)
            logits.data -= rate * slope
        table = logits.detach().log_softmax(-1)
        entropy = -(table.exp() * table).sum(1).mean()
        last = tokens.gather(1, lengths[:, None] - 1)[:, 0]
        words = {(int(p), int(w)) for p, w in zip(PROMPT[found], last[found], strict=True)}
        kept.append((found.float().mean().item(), entropy.item(), lengths.float().mean().item(), len(words) / PROMPTS))
    return kept


@cache
def rate_of(name: str, **setting: Any) -> float:
    """That whose reward over the first half of a run is best."""
    return best(RATES, lambda rate, seed: sum(row[0] for row in train(name, seed, rate, **setting)[: UPDATES // 2]))


def tuned(name: str, seed: int, **setting: Any) -> Run:
    return train(name, seed, rate_of(name, **setting), **setting)


def until(run: Run, reward: float) -> int:
    """Updates until the reward is reached; all of them where it never is."""
    return next((step for step, row in enumerate(run) if row[0] >= reward), len(run))


def preferences(kind: str, seed: int) -> float:
    """Chosen answers that end above all eight rejected ones, after 60 steps of DPO on a table of scores.

    Two of the eight are as likely as the chosen one, six are far off: what remains to be learned is at the boundary.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = -5 + torch.randn(200, generator=generator)
    near = chosen[:, None] + 0.5 * torch.randn(200, 2, generator=generator) + 0.5
    far = chosen[:, None] - 8 + torch.randn(200, 6, generator=generator)
    scores = torch.cat([chosen[:, None], near, far], 1)
    shared = torch.randn(
        200, 9, 16, generator=generator
    )  # answers have features in common, so that they pull at each other
    weight = torch.zeros(16, requires_grad=True)
    own = torch.zeros(200, 9, requires_grad=True)
    optimizer = torch.optim.Adam([weight, own], lr=0.01)
    for _ in range(60):
        now = scores + own + shared @ weight
        if kind == "dynamic":
            loss, _ = dynamic_dpo(now[:, 0], now[:, 1:], scores[:, 0], scores[:, 1:])
        else:
            gaps = (now[:, :1] - scores[:, :1]) - (now[:, 1:] - scores[:, 1:])
            loss = -torch.nn.functional.logsigmoid(gaps.mean(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    now = (scores + own + shared @ weight).detach()
    return (now[:, :1] > now[:, 1:]).all(1).float().mean().item()


def voids(kind: str, seed: int) -> tuple[float, float]:
    """Largest gradient of a run, and its reward at last, where a third of the rollouts drift off into unlikely words.

    Such a rollout has a turn without code or answer, sixteen words drawn evenly, and is wrong. PPO's lower bound does not
    hold the ratio of a token of negative advantage.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = start()
    largest = reward = 0.0
    for _ in range(UPDATES):
        tokens, lengths, found = rollouts(logits.detach(), generator)
        drifts = torch.rand(len(tokens), generator=generator) < 1 / 3
        tokens[drifts, :16] = torch.randint(1, WORDS + 1, (int(drifts.sum()), 16), generator=generator)
        lengths[drifts], found = 16, found & ~drifts
        mask = torch.arange(LONGEST) < lengths[:, None]
        advantage = group_advantage(found.float(), PROMPT)
        if kind == "masked":
            turns = [["hm ..."] if drifted else ["```run()```"] for drifted in drifts.tolist()]
            mask = mask & void_turn_mask(turns)[:, None]
        rows = mask.any(1)
        old = None
        for _ in range(INNER):
            logp = logp_of(logits, tokens)
            old = logp.detach() if old is None else old
            loss, _ = ppo(logp[rows], old[rows], advantage[rows], mask[rows], low=0.2, high=0.28)
            (slope,) = torch.autograd.grad(loss, logits)
            largest = max(largest, slope.norm().item())
            logits.data -= RATE * slope
        reward = found.sum().item() / max(1, int((~drifts).sum()))
    return largest, reward


def figures(seed: int) -> Row:
    """What the table shows, of one seed."""
    found: Row = {}
    for name in ("ppo", "gppo"):  # the same policy, step and batch, so that entropies are of one thing
        run = train(name, seed)
        at = until(run, 0.9)
        found |= {f"{name} updates to 0.9": at, f"{name} entropy at 0.9": run[min(at, UPDATES - 1)][1]}
        found[f"{name} entropy after 30"] = run[29][1]
    for name in ("ppo", "gppo"):
        found |= {f"{name} tuned updates to 0.9": until(tuned(name, seed), 0.9), f"{name} rate": rate_of(name)}
    for name in ("ppo", "dot"):
        run = train(name, seed, wrong=-20.0)
        found |= {
            f"{name} right length at first": run[0][2],
            f"{name} right length": run[-1][2],
            f"{name} right reward": run[-1][0],
        }
    for name in ("ppo", "drpo"):
        run = tuned(name, seed, wrong=-4.0)
        found |= {f"{name} wordy length": run[-1][2], f"{name} wordy reward": run[-1][0]}
        found[f"{name} wordy rate"] = rate_of(name, wrong=-4.0)
    for name in ("ppo", "batch"):
        run = tuned(name, seed, limit=4)
        found |= {f"{name} limited updates to 0.9": until(run, 0.9), f"{name} limited reward": run[-1][0]}
        found |= {f"{name} limited length": run[-1][2], f"{name} limited rate": rate_of(name, limit=4)}
    for name in ("ppo", "g2rl"):
        run = tuned(name, seed, answers=4)
        found |= {
            f"{name} right words": run[-1][3],
            f"{name} open reward": run[-1][0],
            f"{name} open entropy": run[-1][1],
        }
        found[f"{name} open rate"] = rate_of(name, answers=4)
    for kind in ("plain", "dynamic"):
        found[f"{kind} preferences"] = preferences(kind, seed)
    for kind in ("plain", "masked"):
        found[f"{kind} largest gradient"], found[f"{kind} void reward"] = voids(kind, seed)
    assert all(math.isfinite(value) for value in found.values())
    return found


if __name__ == "__main__":
    measure("policy", figures)
