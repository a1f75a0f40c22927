"""Every lever written out in NumPy float64, at most fifteen lines each: what it must compute, without a thought of speed.

Conventions: a tensor with outputs comes as a matrix of (outputs, rest of the axes), one without as a single row. `memory` is a
dictionary that a lever keeps from step to step, empty before the first. Settings come by keyword, as the lever's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize

Array = NDArray[np.float64]
Arrays = list[Array]
Memory = dict[str, Any]
Gradient = Callable[[Arrays], Arrays]


# penalties: of one tensor, psi and its gradient


def var(w: Array, form: str = "variance", r: float = 1e-8, eps: float = 1e-8) -> tuple[float, Array]:
    size = np.sqrt(w**2 + r)
    m, V, sign = size.mean(), size.var(), w / size
    if form == "as_printed":
        psi = 1 / (m - m**2 + eps)
        return psi, -(psi**2) * (1 - 2 * m) * sign / w.size
    slope = 2 * (size - m) / w.size * sign  # of V
    if form == "variance":
        return 1 / (V + eps), -slope / (V + eps) ** 2
    return m**2 / (V + eps), 2 * m * sign / w.size / (V + eps) - m**2 * slope / (V + eps) ** 2


def l1(w: Array) -> tuple[float, Array]:
    return float(np.abs(w).sum()), np.sign(w)


def hoyer(w: Array) -> tuple[float, Array]:
    S1, S2 = np.abs(w).sum(), (w**2).sum()
    return S1**2 / S2, 2 * S1 / S2 * np.sign(w) - 2 * (S1 / S2) ** 2 * w


def safe(
    w: Arrays, memory: Memory, sparsity: float, every: int, ramp: str, total_steps: int = 8
) -> list[tuple[float, Array]]:
    def project(x: Arrays) -> Arrays:
        return [np.where(mask, 0, one) for mask, one in zip(smallest(x, sparsity, "global"), x, strict=True)]

    t = memory["t"] = memory.get("t", -1) + 1
    z, u = memory.get("zu", (project(w), [0 * one for one in w]))
    if t > 0 and t % every == 0:
        v = [a + b for a, b in zip(w, u, strict=True)]
        z = project(v)
        u = [a - b for a, b in zip(v, z, strict=True)]
    memory["zu"] = z, u
    share = {"constant": 1.0, "linear": t / total_steps, "cosine": (1 - math.cos(math.pi * t / total_steps)) / 2}[ramp]
    off = [a - b + c for a, b, c in zip(w, z, u, strict=True)]
    return [(float((one**2 - dual**2).sum()) / 2, share * one) for one, dual in zip(off, u, strict=True)]


# transforms: weights and gradients of all tensors that count -> gradients


def centred(g: Array, granularity: str = "channel") -> Array:
    mean: Array = g.mean(keepdims=True) if granularity == "tensor" else g.mean(1, keepdims=True)
    return g - mean


def autoscale(w: Arrays, g: Arrays, memory: Memory, scale: str = "log", granularity: str = "tensor") -> Arrays:
    sigma = float(np.concatenate([one.ravel() for one in g]).std())
    sigmas = [*memory.get("sigmas", ()), sigma]
    memory["sigmas"] = sigmas
    weights = [0.99 ** (len(sigmas) - 1 - s) for s in range(len(sigmas))]
    alpha = {
        "running_max": sigma / max(sigmas),
        "first": min(1.0, sigma / sigmas[0]),
        "ema": min(1.0, sigma / float(np.average(sigmas, weights=weights))),
        "log": 1 / (1 + max(0.0, math.log(sigmas[0] / sigma))),
    }[scale]
    return [alpha * centred(one, granularity) for one in g]


def zscore(w: Arrays, g: Arrays, memory: Memory, granularity: str = "tensor", eps: float | None = None) -> Arrays:
    def one(g: Array) -> Array:
        rows = g.reshape(1, -1) if granularity == "tensor" else g
        if rows.shape[1] < 2:
            return g
        floor = {"tensor": 1e-12, "channel": 1e-8}[granularity] if eps is None else eps
        std: Array = rows.std(1, ddof=1, keepdims=True)
        return (centred(rows) / (std + floor)).reshape(g.shape)

    return [one(tensor) for tensor in g]


def centralize(w: Arrays, g: Arrays, memory: Memory) -> Arrays:
    return [centred(one) for one in g]


def adaptive_clip(
    w: Arrays, g: Arrays, memory: Memory, clip: float = 0.01, eps: float = 1e-3, exclude_last_linear: bool = False
) -> Arrays:
    def one(w: Array, g: Array) -> Array:
        norm = np.linalg.norm(g, axis=1, keepdims=True)
        limit = clip * np.maximum(np.linalg.norm(w, axis=1, keepdims=True), eps)
        return np.where(norm > limit, g * limit / np.maximum(norm, 1e-6), g)

    return [one(*pair) for pair in zip(w, g, strict=True)]


def clip_norm(w: Arrays, g: Arrays, memory: Memory, max_norm: float, norm_type: float = 2.0) -> Arrays:
    norm = float(np.linalg.norm(np.concatenate([one.ravel() for one in g]), norm_type))
    return [one * min(1.0, max_norm / (norm + 1e-6)) for one in g]


def perpendicular(w: Arrays, g: Arrays, memory: Memory, rescale: bool = True, granularity: str = "tensor") -> Arrays:
    def one(w: Array, g: Array) -> Array:
        if granularity == "tensor" and len(w) > 1:
            return one(w.reshape(1, -1), g.reshape(1, -1)).reshape(g.shape)
        left = g - (w * g).sum(1, keepdims=True) / (w**2).sum(1, keepdims=True) * w
        before, after = (np.linalg.norm(rows, axis=1, keepdims=True) for rows in (g, left))
        noise = after <= 4 * np.finfo(np.float32).eps * before
        return np.where(noise, 0, left * (before / np.where(noise, 1, after) if rescale else 1))

    return [one(*pair) if pair[0].size else pair[1] for pair in zip(w, g, strict=True)]


def norm_growth(
    w: Arrays,
    g: Arrays,
    memory: Memory,
    max_growth: float = 1.01,
    eps: float = 1e-8,
    per: str = "tensor",
    floor: float = 0.0,
) -> Arrays:
    norms = [float(np.linalg.norm(one)) for one in g]
    norms = norms if per == "tensor" else [math.hypot(*norms)] * len(g)
    before = memory.get("before", [math.inf] * len(g))
    f = [max(n / (max(p, floor) + eps), max_growth) / max_growth for n, p in zip(norms, before, strict=True)]
    memory["before"] = [n / cut for n, cut in zip(norms, f, strict=True)]
    return [one / cut for one, cut in zip(g, f, strict=True)]


def zclip(
    w: Arrays, g: Arrays, memory: Memory, decay: float = 0.97, threshold: float = 2.5, max_norm: float | None = 1.0,
    warmup: int = 25, bound: str = "reciprocal", eps: float = 1e-6,
) -> Arrays:  # fmt: skip
    N = math.hypot(*(float(np.linalg.norm(one)) for one in g))
    norms = memory.setdefault("norms", [])
    m, v = memory.get("mv", (0.0, 0.0))
    x = N
    if "mv" in memory and (z := (N - m) / (math.sqrt(v) + eps)) > threshold:
        x = m + {"reciprocal": threshold**2 / z, "mean": 0.0, "fixed": threshold}[bound] * math.sqrt(v)
    to = x if max_norm is None else min(x, max_norm)
    m = decay * m + (1 - decay) * x
    v = decay * v + (1 - decay) * (x - m) ** 2
    norms.append(N)
    if len(norms) >= warmup:
        memory["mv"] = (m, v) if "mv" in memory else (float(np.mean(norms)), float(np.var(norms)))
    return [one * (to / (N + 1e-6) if to < N else 1.0) for one in g]


def ada_gc(
    w: Arrays, g: Arrays, memory: Memory, relative: float = 1.05, decay: float = 0.98, absolute: float = 1.0,
    start: int = 100, eps: float = 1e-8,
) -> Arrays:  # fmt: skip
    t = memory["t"] = memory.get("t", 0) + 1
    n = np.array([np.linalg.norm(one) for one in g])
    if t < start or t == 1:
        h = np.full(len(g), min(1.0, absolute / (np.linalg.norm(n) + eps)))
        memory["gamma"] = np.minimum(memory.get("gamma", np.inf), h * n)
    else:
        h = np.minimum(1, relative * np.maximum(memory["gamma"], eps) / np.maximum(n, eps))
        memory["gamma"] = decay * memory["gamma"] + (1 - decay) * h * n
    return [one * factor for one, factor in zip(g, h, strict=True)]


def norm_match(norms: Sequence[Array], beta: float = 0.9, max_factor: float = 10.0) -> Array:
    """Factors of the last step, from the norms of all branches in every step."""
    e = norms[0]
    for n in norms[1:]:
        e = beta * e + (1 - beta) * n
    factors: Array = np.clip(e.mean() / (e + 1e-12), 1 / max_factor, max_factor)
    return factors


def routed(w: Arrays, g: Arrays, label: str, units: int, rate: float) -> Arrays:
    """Weights of a two-layer MLP (first with its bias, second with its bias) after a plain step with routed gradients."""
    g = [one.copy() for one in g]
    forgets = [np.arange(len(w[0])) >= len(w[0]) - units] * 2
    if label == "forget":
        g[0][~forgets[0]], g[1][~forgets[1]], g[2][:, ~forgets[0]], g[3][:] = 0, 0, 0, 0
    return [a - rate * b for a, b in zip(w, g, strict=True)]


def tract(a: Array, gradient: Array, strength: float) -> Array:
    """`gradient` is of the outputs; a the inputs, by rows."""
    solved: Array = gradient.T @ a @ np.linalg.inv(a.T @ a / len(a) + strength * np.eye(a.shape[1]))
    return solved


def gradient_reversal(g: Array, strength: float = 1.0) -> Array:
    return -strength * g


# wrappers: the gradient at any weights -> the gradient of the step


def sam(gradient: Gradient, w: Arrays, rho: float = 0.05) -> Arrays:
    g = gradient(w)
    norm = math.sqrt(sum(float((one**2).sum()) for one in g))
    return gradient([a + rho * b / (norm + 1e-12) for a, b in zip(w, g, strict=True)])


def asam(gradient: Gradient, w: Arrays, rho: float = 0.5, eta: float = 0.01) -> Arrays:
    g = gradient(w)
    T = [np.abs(one) + eta if one.ndim > 1 else np.ones_like(one) for one in w]
    norm = math.sqrt(sum(float(((t * one) ** 2).sum()) for t, one in zip(T, g, strict=True)))
    return gradient([a + rho * t**2 * b / (norm + 1e-12) for a, t, b in zip(w, T, g, strict=True)])


def cram(
    gradient: Gradient, w: Arrays, sparsities: Sequence[float], rho: float = 0.15, sparse_grad: bool = True, plus: bool = True
) -> Arrays:  # fmt: skip
    g = gradient(w)
    moved = [a + rho * b for a, b in zip(w, g, strict=True)]
    sizes = np.concatenate([np.abs(one).ravel() for one in moved if one.ndim > 1])
    order = np.argsort(sizes, kind="stable")[: math.floor(sparsities[0] * sizes.size + 0.5)]
    gone = np.isin(np.arange(sizes.size), order)
    ends = np.cumsum([one.size if one.ndim > 1 else 0 for one in moved])
    masks = [gone[end - one.size : end].reshape(one.shape) if one.ndim > 1 else np.zeros(one.shape, bool)
             for one, end in zip(moved, ends, strict=True)]  # fmt: skip
    h = gradient([np.where(mask, 0, one) for one, mask in zip(moved, masks, strict=True)])
    if sparse_grad:
        h = [np.where(mask, 0, one) for one, mask in zip(h, masks, strict=True)]
    return [a + b for a, b in zip(h, g, strict=True)] if plus else h


def drift(
    gradient: Gradient, w: Arrays, power: float = 0.5, max_lr: float = 5.0, momentum: float = 0.9
) -> tuple[Arrays, float]:
    """The gradient itself, and what the learning rate is multiplied by."""

    def norm(x: Arrays) -> float:
        return math.sqrt(sum(float((one**2).sum()) for one in x))

    g = gradient(w)
    e = 0.01 / norm(g)
    ahead = gradient([a + e * b for a, b in zip(w, g, strict=True)])
    turned = norm([a - b for a, b in zip(ahead, g, strict=True)]) / e
    return g, min(2 / (turned / norm(g)) ** power, max_lr) * (1 - momentum)


# optimizers: weights and gradients -> weights


def sgd(
    w: Arrays, g: Arrays, memory: Memory, lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 5e-4,
    nesterov: bool = False,
) -> Arrays:  # fmt: skip
    g = [b + weight_decay * a for a, b in zip(w, g, strict=True)]
    v = [momentum * old + b for old, b in zip(memory["v"], g, strict=True)] if "v" in memory else g
    memory["v"] = v
    steps = [b + momentum * new if nesterov else new for b, new in zip(g, v, strict=True)]
    return [a - lr * step for a, step in zip(w, steps, strict=True)]


def grad_norm_smooth(H: Array, slope: Array, steps: int, gamma: float = 1.0) -> tuple[Array, float]:
    """On the quadratic `x H x / 2 - slope x`, from zero."""

    def f(x: Array) -> float:
        return float(x @ H @ x / 2 - slope @ x)

    x = np.zeros(len(slope))
    for _ in range(steps):
        g = H @ x - slope
        while True:
            regularised = np.linalg.norm(g) / (gamma + 1e-8)
            new = x - np.linalg.solve(H + regularised * np.eye(len(x)), g)
            if f(x) - f(new) >= np.linalg.norm(H @ new - slope) ** 2 / (8 * regularised):
                break
            gamma /= 2
        x, gamma = new, 2 * gamma
    return x, gamma


def mup(width: float) -> dict[str, tuple[float, float]]:
    """Factors of the learning rate, Adam's and SGD's, by role."""
    return {"input": (1.0, width), "hidden": (1 / width, 1.0), "output": (1.0, width), "fixed": (1.0, 1.0)}


def muon(
    w: Arrays, g: Arrays, memory: Memory, lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0,
    ns_steps: int = 5, renormalize: bool = False, sgd_lr: float = 0.1, sgd_momentum: float = 0.9,
) -> Arrays:  # fmt: skip
    found = sgd(w, g, memory, sgd_lr, sgd_momentum, 0.0, nesterov=True)
    b = memory["b"] = [
        momentum * old + (1 - momentum) * new for old, new in zip(memory.get("b", [0.0] * len(g)), g, strict=True)
    ]
    for at, one in enumerate(w):
        if one.ndim > 1:
            X = momentum * b[at] + (1 - momentum) * g[at]
            X /= np.sqrt((X**2).sum())
            for _ in range(ns_steps):
                A = X @ X.T
                X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
            one = one * np.sqrt(len(one) / (one**2).sum()) if renormalize else one
            found[at] = (1 - lr * weight_decay) * one - lr * np.sqrt(max(1, len(one) / one.shape[1])) * X
    return found


def adamw(
    w: Arrays, g: Arrays, memory: Memory, lr: float = 1e-3, weight_decay: float = 0.05,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
) -> Arrays:  # fmt: skip
    memory["g"] = [*memory.get("g", ()), g]
    t = len(memory["g"])

    def moment(beta: float, power: int, k: int) -> Array:
        total = sum(beta ** (t - 1 - s) * past[k] ** power for s, past in enumerate(memory["g"]))
        return np.asarray((1 - beta) * total / (1 - beta**t))

    return [
        one * (1 - lr * weight_decay) - lr * moment(betas[0], 1, k) / (np.sqrt(moment(betas[1], 2, k)) + eps)
        for k, one in enumerate(w)
    ]


def diffgrad(
    w: Arrays, g: Arrays, memory: Memory, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
    weight_decay: float = 0.0, decoupled: bool = False,
) -> Arrays:  # fmt: skip
    (b1, b2), t = betas, memory.get("t", 0) + 1
    off = lr * weight_decay if decoupled else 0.0
    g = g if decoupled else [b + weight_decay * a for a, b in zip(w, g, strict=True)]
    m, v, old = (memory.get(name, [0 * one for one in w]) for name in ("m", "v", "old"))
    m = [b1 * a + (1 - b1) * b for a, b in zip(m, g, strict=True)]
    v = [b2 * a + (1 - b2) * b**2 for a, b in zip(v, g, strict=True)]
    xi = [1 / (1 + np.exp(-np.abs(a - b))) for a, b in zip(old, g, strict=True)]
    memory |= {"t": t, "m": m, "v": v, "old": g}
    size = lr * math.sqrt(1 - b2**t) / (1 - b1**t)
    return [(1 - off) * a - size * x * b / (np.sqrt(c) + eps) for a, b, c, x in zip(w, m, v, xi, strict=True)]


def adam_ratio(own: Memory, g: Array, lr: float, betas: tuple[float, float], eps: float) -> tuple[Array, float]:
    """First moment over the root of the second, and the corrected rate that it is multiplied by."""
    t = own["t"] = own.get("t", 0) + 1
    own["m"], own["v"] = (b * own.get(k, 0 * g) + (1 - b) * g**p for k, b, p in zip("mv", betas, (1, 2), strict=True))
    return own["m"] / (np.sqrt(own["v"]) + eps), lr * math.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t)


def fira(
    w: Arrays, g: Arrays, memory: Memory, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6,
    weight_decay: float = 0.0, rank: int = 128, alpha: float = 0.25, max_growth: float = 1.01, residual: str = "package",
) -> Arrays:  # fmt: skip
    def one(own: Memory, w: Array, G: Array) -> Array:
        if G.ndim > 1 and len(G) < G.shape[1]:
            return one(own, w.T, G.T).T
        low = G.ndim > 1 and G.shape[1] > rank
        Q = own.setdefault("Q", np.linalg.svd(G)[2][:rank]) if low else np.eye(G.shape[-1])
        R = G @ Q.T
        u, size = adam_ratio(own, R, lr, betas, eps)
        if low:
            S = G - (alpha if residual == "package" else 1.0) * R @ Q
            S = S * (np.linalg.norm(u, axis=1) / (np.linalg.norm(R, axis=1) + 1e-8))[:, None]
            u = alpha * u @ Q + norm_growth([S], [S], own.setdefault("limiter", {}), max_growth)[0]
        return (1 - lr * weight_decay) * (w - size * u)

    return [one(memory.setdefault(str(at), {}), a, b) for at, (a, b) in enumerate(zip(w, g, strict=True))]


def perpendicular_step(w: Array, g: Array, u: Array, delta: float, wd_ratio: float, eps: float) -> tuple[Array, float]:
    """Of AdamP and SGDP: the step u, projected where w is scale-invariant by its gradient, and the factor of its decay."""
    for shape in ((len(w), -1), (1, -1)) if w.ndim > 1 else ():
        a, b, c = (one.reshape(shape) for one in (w, g, u))
        norms = np.linalg.norm(a, axis=1, keepdims=True)
        cosine = np.abs((a * b).sum(1)) / np.maximum(norms[:, 0] * np.linalg.norm(b, axis=1), eps)
        if cosine.max() < delta / math.sqrt(a.shape[1]):
            unit = a / (norms + eps)
            return (c - unit * (unit * c).sum(1, keepdims=True)).reshape(w.shape), wd_ratio
    return u, 1.0


def adamp(
    w: Arrays, g: Arrays, memory: Memory, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
    weight_decay: float = 0.0, delta: float = 0.1, wd_ratio: float = 0.1, nesterov: bool = False,
) -> Arrays:  # fmt: skip
    (b1, b2), t = betas, memory.get("t", 0) + 1
    m, v = (memory.get(name, [0 * one for one in w]) for name in ("m", "v"))
    m = [b1 * a + (1 - b1) * b for a, b in zip(m, g, strict=True)]
    v = [b2 * a + (1 - b2) * b**2 for a, b in zip(v, g, strict=True)]
    memory |= {"t": t, "m": m, "v": v}
    above = [b1 * a + (1 - b1) * b for a, b in zip(m, g, strict=True)] if nesterov else m
    u = [a / (np.sqrt(b / (1 - b2**t)) + eps) for a, b in zip(above, v, strict=True)]
    found = [perpendicular_step(*three, delta, wd_ratio, eps) for three in zip(w, g, u, strict=True)]
    return [(1 - lr * weight_decay * r) * a - lr / (1 - b1**t) * s for a, (s, r) in zip(w, found, strict=True)]


def sgdp(
    w: Arrays, g: Arrays, memory: Memory, lr: float = 0.1, momentum: float = 0.0, dampening: float = 0.0,
    weight_decay: float = 0.0, delta: float = 0.1, wd_ratio: float = 0.1, eps: float = 1e-8, nesterov: bool = False,
) -> Arrays:  # fmt: skip
    old = memory.get("b", [0 * one for one in w])
    b = memory["b"] = [momentum * c + (1 - dampening) * d for c, d in zip(old, g, strict=True)]
    u = [d + momentum * c for c, d in zip(b, g, strict=True)] if nesterov else b
    found = [perpendicular_step(*three, delta, wd_ratio, eps) for three in zip(w, g, u, strict=True)]
    off = lr * weight_decay / (1 - momentum)
    return [(1 - off * r) * a - lr * s for a, (s, r) in zip(w, found, strict=True)]


# after the step: weights before it, weights that the optimizer left -> weights; in `memory` its momentum "v"


def concentrate(
    w: Arrays, left: Arrays, memory: Memory, rate: float, scope: str = "global", preserve_norm: bool = True, lr: float = 0.1
) -> Arrays:  # fmt: skip
    def together(tensors: Arrays) -> Arrays:
        m = np.abs(np.concatenate([one.ravel() for one in tensors])).mean()
        found = [np.sign(one) * np.maximum(np.abs(one) - lr * rate * m, 0) for one in tensors]
        before, after = (sum(float((one**2).sum()) for one in of) for of in (tensors, found))
        return [one * (math.sqrt(before / after) if preserve_norm else 1) for one in found]

    matrices = [one for one in left if one.ndim > 1]
    found = iter(together(matrices) if scope == "global" else [together([one])[0] for one in matrices])
    return [next(found) if one.ndim > 1 else one for one in left]


def proximal_l1(w: Arrays, left: Arrays, memory: Memory, strength: float, lr: float = 0.1) -> Arrays:
    return [np.sign(one) * np.maximum(np.abs(one) - lr * strength, 0) if one.ndim > 1 else one for one in left]


def as_it_was(w: Arrays, left: Arrays, memory: Memory, **settings: Any) -> Arrays:
    return left


def spike_guard(
    w: Arrays, left: Arrays, memory: Memory, policy: str, threshold: float, warmup: int, decay: float = 0.97, **given: Any
) -> Arrays:  # fmt: skip
    n, m, v, start, low = memory.get("usual", (0, 0.0, 0.0, 0.0, 1.0))
    low, ready = min(1.0, low * 0.5 ** (-1 / 100)), n >= warmup
    change = [low * (b - a) for a, b in zip(w, left, strict=True)]
    u = math.sqrt(sum(float((one**2).sum()) for one in change))
    x, s = math.log(max(u, 0.1 * start * ready)), max(math.sqrt(v), 0.1)
    spike = ready and (x - m) / s > threshold
    share = 1.0 if not spike else 0.0 if policy == "skip" else math.exp(m) / u
    x, k = (min(x, m + threshold * s), 1 - decay) if ready else (x, 1 / (n + 1))
    start, low = start + (0 if ready else (u - start) / (n + 1)), low * (0.5 if spike and share else 1.0)
    memory["usual"] = n + 1, m + k * (x - m), (1 - k) * (v + k * (x - m) ** 2), start, low
    return [a + share * one for a, one in zip(w, change, strict=True)]


def classp(
    w: Arrays, g: Arrays, memory: Memory, lr: float, threshold: float, power: float = 1.0, eps: float = 1e-5, **given: Any
) -> Arrays:  # fmt: skip
    total = memory.get("G", [0 * one for one in w])
    if not given.get("scaling", True):
        memory["G"] = [a + np.abs(b) ** power for a, b in zip(total, g, strict=True)]
        return [a - lr * b for a, b in zip(w, g, strict=True)]
    g = [b * (b**2 > threshold) for b in g]
    total = memory["G"] = [a + np.abs(b) ** power for a, b in zip(total, g, strict=True)]
    return [a - lr * b / (eps + c) ** (1 / power) for a, b, c in zip(w, g, total, strict=True)]


def radius(w: Arrays, left: Arrays, memory: Memory, target: float, mode: str = "cap", **given: Any) -> Arrays:
    change = [b - a for a, b in zip(w, left, strict=True)]
    hidden = np.tanh(memory["inputs"] @ w[0].T + w[1])
    moved = (1 - hidden**2) * (memory["inputs"] @ change[0].T + change[1])
    along = moved @ w[2].T + hidden @ change[2].T + change[3]
    r = (along.max(1) - along.min(1)).max() / math.pi
    factor = target / r if mode == "set" else min(1.0, target / r)
    return [a + factor * b for a, b in zip(w, change, strict=True)]


def vector_clip(g: Array, limit: float) -> Array:
    return np.asarray(g * np.minimum(1, limit / np.abs(g).max(1, keepdims=True)))


def batch_size(parts: Array, examples: int, theta: float, nu: float) -> int:
    mean = parts.mean(0)
    signal = (mean**2).sum()
    inner = parts @ mean
    across = parts - inner[:, None] * mean / signal
    needed = [inner.var(ddof=1) / theta**2 / signal**2, across.var(0, ddof=1).sum() / nu**2 / signal]
    return int(np.ceil(examples * max(needed)))


def momentum_reset(w: Arrays, left: Arrays, memory: Memory, every: int, warmup: int) -> Arrays:
    done = memory.get("done", 0)
    since, memory["done"] = done % every + 1, done + 1
    rising = done >= every and since < warmup
    share = (1 - math.cos(math.pi * since / warmup)) / 2 if rising else 1.0
    if memory["done"] % every == 0:
        for name in memory.keys() - {"done"}:
            del memory[name]
    return [a + share * (b - a) for a, b in zip(w, left, strict=True)]


def stable_max(logits: Array, targets: NDArray[np.int64]) -> float:
    s = np.where(logits >= 0, logits + 1, 1 / (1 - np.minimum(logits, 0)))
    return float(-np.log(s[np.arange(len(s)), targets] / s.sum(1)).mean())


def z_loss(logits: Array, targets: NDArray[np.int64], strength: float) -> float:
    z = np.log(np.exp(logits).sum(1))
    return float((z - logits[np.arange(len(z)), targets] + strength * z**2).mean())


def gppo(r: Array, gain: Array, low: float, high: float, dual: float) -> tuple[float, Array]:
    """Sum over tokens of ratio r, and its gradient by their log-probabilities."""
    value = np.maximum(-gain * r, -gain * np.clip(r, 1 - low, 1 + high))
    over = (gain < 0) & (value > -dual * gain)
    return float(np.where(over, -dual * gain, value).sum()), np.where(over, 0, value)


def ppo(r: Array, gain: Array, low: float, high: float) -> float:
    return float(-np.minimum(gain * r, gain * np.clip(r, 1 - low, 1 + high)).sum())


def drpo(scores: Array, right: NDArray[np.bool_], share: Array, tau: float, lam: float) -> float:
    """Of one group; `share` is each rollout's length over the longest."""
    w = np.exp((1 - share[right]) / lam)
    against = tau * np.log(np.exp(scores[~right] / tau).mean())
    return float(-(w * (scores[right] - against)).sum() / w.sum())


def advantages(rewards: Array, groups: Sequence[int], eps: float) -> tuple[Array, Array]:
    """Of GRPO and of DLER."""
    by_group, off = np.zeros(len(rewards)), np.zeros(len(rewards))
    for group in set(groups):
        own = np.array(groups) == group
        off[own] = rewards[own] - rewards[own].mean()
        by_group[own] = off[own] / (rewards[own].std(ddof=1) + eps)
    return by_group, off / (off.std() + eps)


def dot_lengths(lengths: NDArray[np.int64], alpha: float, margin: int) -> NDArray[np.int64]:
    """Of one group that is all right."""
    limit = int(lengths.mean() + alpha * lengths.std(ddof=1))
    return np.where(lengths - limit >= margin, limit, lengths)


def dynamic_dpo(chosen: float, rejected: Array, beta: float) -> float:
    """With some rejected answers above the chosen one, and a reference that finds all alike."""
    near, easy = rejected[rejected >= chosen], rejected[rejected < chosen].mean()
    up, down = chosen - near, near - easy
    betas = beta * (1 + 0.5 * np.tanh((up - down - 2) / (np.abs(up) + np.abs(down))))
    return float(np.log1p(np.exp(-(betas * (chosen - near)).mean())))


def g2rl(phi: Array, rewards: Array, lam: float, cap: float) -> Array:
    novelty = np.zeros(len(phi))
    for i, one in enumerate(phi):
        others = [j for j in range(len(phi)) if j != i]
        w = np.exp(rewards[others]) / np.exp(rewards[others]).sum()
        cosines = phi[others] @ one / np.linalg.norm(phi[others], axis=1) / np.linalg.norm(one)
        novelty[i] = max(0.0, 1 - (w * cosines**2).sum())
    return np.clip(rewards * (1 + lam * rewards * novelty), -cap, cap)


def pseudo_huber(x: Array, c: float) -> float:
    d = x.shape[1]
    return float(((np.sqrt((x**2).sum(1) + (c * d) ** 2) - c * d) / d).mean())


def u_shaped(t: Array, a: float) -> Array:
    found: Array = a * (np.exp(a * t) + np.exp(a * (1 - t))) / (2 * (np.exp(a) - 1))
    return found


def attention_residual(sources: Array, q: Array, eps: float = 1e-6) -> Array:
    normed = sources / np.sqrt((sources**2).mean(1, keepdims=True) + eps)
    w = np.exp(normed @ q)
    found: Array = w @ sources / w.sum()
    return found


def noprop(guess: Array, target: Array, signal: tuple[float, float], blocks: int, eta: float) -> float:
    before, after = (one / (1 - one) for one in signal)
    return float(blocks / 2 * eta * (after - before) * ((guess - target) ** 2).sum(1).mean())


def perceptron(x: Array, w: Array, b: Array, v: Array, c: float) -> Array:
    return np.tanh(x @ w + b) @ v + c


def saturation(entropies: Array, gradients: Array, alpha: float) -> Array:
    h, g = entropies, np.log10(gradients)
    found: Array = alpha * (h.max() - h) / (h.max() - h.min()) + (1 - alpha) * (g.max() - g) / (g.max() - g.min())
    return found


def effective_rank(w: Array) -> float:
    s = np.linalg.svd(w, compute_uv=False)
    return float(np.exp(-(s / s.sum() * np.log(s / s.sum())).sum()))


def cosines(g: Array) -> Array:
    unit = g / np.linalg.norm(g, axis=1, keepdims=True)
    found: Array = unit @ unit.T
    return found


def negativity(nodes: Array, weights: Array, n: float) -> tuple[float, float]:
    size = np.abs(nodes * weights) ** n
    return float(abs(nodes.min() / nodes.max())), float(size[nodes < 0].sum() / size[nodes > 0].sum())


def update_ratio(w: Array, left: Array) -> float:
    return float(np.linalg.norm(left - w) / np.linalg.norm(w))


def nlm_cosine(w: Array, g: Array) -> float:
    return float(-(w * g).sum() / np.linalg.norm(w) / np.linalg.norm(g))


def noise_scale(parts: Sequence[Array], batch: int) -> dict[str, float]:
    small, large = batch, batch * len(parts)
    of_small, of_large = np.mean([(part**2).sum() for part in parts]), (np.mean(parts, 0) ** 2).sum()
    signal = (large * of_large - small * of_small) / (large - small)
    variance = (of_small - of_large) / (1 / small - 1 / large)
    return {"noise_scale": variance / signal, "noise_signal": signal, "noise_variance": variance}


def softmax_collapse(logits: Array, targets: NDArray[np.int64]) -> float:
    z = logits.astype(np.float32)
    away = np.exp(z - z.max(1, keepdims=True)).sum(1, dtype=np.float32)
    own = z[np.arange(len(z)), targets]
    return float(np.mean((own == z.max(1)) & (away == 1)))


def activations(outputs: Array, outlier: float = 6.0) -> dict[str, float]:
    each = np.sqrt((outputs**2).mean(0))
    outliers = (each > outlier * np.sort(each)[(len(each) - 1) // 2]).mean()
    return {
        "activation_max": np.abs(outputs).max(),
        "activation_outliers": outliers,
        "activation_silent": (each == 0).mean(),
    }


def attention(query: Array, key: Array) -> dict[str, float]:
    logits = query @ key.swapaxes(-1, -2) / math.sqrt(query.shape[-1])
    norms = [np.sqrt((one**2).sum(-1)).max() for one in (query, key)]
    return {"attention_logit": logits.max(), "attention_query_norm": norms[0], "attention_key_norm": norms[1]}


def smallest(w: Arrays, share: float, scope: str, size: Callable[[Array], Array] = np.abs) -> list[NDArray[np.bool_]]:
    """Where the smallest of the matrices are, exactly that share of them."""
    gone = [np.zeros(one.shape, bool) for one in w]
    matrices = [at for at, one in enumerate(w) if one.ndim > 1]
    for group in [matrices] if scope == "global" else [[at] for at in matrices]:
        sizes = np.concatenate([size(w[at]).ravel() for at in group])
        flat = np.zeros(sizes.size, bool)
        flat[np.argsort(sizes, kind="stable")[: math.floor(share * sizes.size + 0.5)]] = True
        parts = np.split(flat, np.cumsum([w[at].size for at in group])[:-1])
        for at, part in zip(group, parts, strict=True):
            gone[at] = part.reshape(w[at].shape)
    return gone


def gradual(
    w: Arrays, moved: Arrays, memory: Memory, final: float, begin: float, end: float, every: int, initial: float,
    power: float = 3, scope: str = "layer", reversible: bool = False, total_steps: int = 8,
) -> Arrays:  # fmt: skip
    t = memory["t"] = memory.get("t", 0) + 1
    t0, t1 = begin * total_steps, end * total_steps
    dense = [old + b - a for old, a, b in zip(memory.get("dense", w), w, moved, strict=True)]
    gone = memory.get("gone", [np.zeros(one.shape, bool) for one in w])
    if not reversible:
        dense = [np.where(mask, 0, one) for mask, one in zip(gone, dense, strict=True)]
    if t0 <= t and (t <= t1 or reversible) and (t - t0) % every == 0:
        left = max(0.0, 1 - (t - t0) / (t1 - t0))
        gone = smallest(dense, final + (initial - final) * left**power, scope)
    memory |= {"gone": gone, "dense": dense}
    return [np.where(mask, 0, one) for mask, one in zip(gone, dense, strict=True)]


def ac_dc(
    w: Arrays, moved: Arrays, memory: Memory, sparsity: float, warm_up: float, phase: float, last_dense: float,
    last_sparse: float, scope: str = "global", total_steps: int = 8,
) -> Arrays:  # fmt: skip
    t = memory["t"] = memory.get("t", 0) + 1
    first, middle = warm_up * total_steps, total_steps * (1 - last_sparse - last_dense)
    number = round((middle - first) / (phase * total_steps))
    starts = [*np.linspace(first, middle, number + 1), total_steps * (1 - last_sparse)]  # sparse, dense, .., sparse
    none = [np.zeros(one.shape, bool) for one in w]
    gone = memory.get("gone", none)
    w, memory["v"] = ([np.where(m, 0, x) for m, x in zip(gone, of, strict=True)] for of in (moved, memory["v"]))
    if t in starts:
        sparse = starts.index(t) % 2 == 0
        memory["gone"] = smallest(w, sparsity, scope) if sparse else none
        memory["v"] = [0 * v if sparse else v for v in memory["v"]]
    return [np.where(m, 0, x) for m, x in zip(memory.get("gone", none), w, strict=True)]


def sparse_start(w: Arrays, memory: Memory, sparsity: float, **settings: Any) -> Arrays:
    memory["gone"] = smallest(w, sparsity, "layer")
    return [np.where(mask, 0, x) for mask, x in zip(memory["gone"], w, strict=True)]


def dynamic_sparse(
    w: Arrays, moved: Arrays, memory: Memory, fraction: float, every: int, grow: str, stop: float = 0.75, seed: int = 0,
    total_steps: int = 8, **settings: Any,
) -> Arrays:  # fmt: skip
    t, gone, last = memory.get("t", 0) + 1, memory["gone"], stop * total_steps
    w, v = ([np.where(m, 0, x) for m, x in zip(gone, of, strict=True)] for of in (moved, memory["v"]))
    share = fraction / 2 * (1 + math.cos(math.pi * t / last)) * (t < last and t % every == 0)
    draws = uniform([x.shape for x in w if x.ndim > 1], 1_000_003 * seed + t)
    for at, old in [(at, old) for at, old in enumerate(gone) if old.ndim > 1]:
        growth = np.abs(memory["g"][at]) if grow == "gradient" else next(draws)
        k, new = int(share * (~old).sum()), old.ravel().copy()
        new[np.argsort(np.where(old, np.inf, np.abs(w[at])).ravel(), kind="stable")[:k]] = True
        new[np.argsort(np.where(new, -growth.ravel(), np.inf), kind="stable")[:k]] = False
        gone[at] = new.reshape(old.shape)
        w[at], v[at] = np.where(gone[at], 0, w[at]), np.where(old | gone[at], 0, v[at])
    memory |= {"t": t, "v": v}
    return w


def uniform(shapes: Sequence[tuple[int, ...]], seed: int) -> Iterator[Array]:
    """Numbers in [0, 1) one shape after the other; torch's, since a formula has none of its own."""
    generator = torch.Generator().manual_seed(seed)
    return iter([torch.rand(shape, generator=generator, dtype=torch.float64).numpy() for shape in shapes])


def outside(w: Array, n: int, m: int) -> NDArray[np.bool_]:
    """Where a weight is not among the n largest of its m consecutive inputs; nowhere if m does not divide them."""
    if w.ndim < 2 or w.shape[1] % m:
        return np.zeros(w.shape, bool)
    groups = np.abs(w).reshape(len(w), -1, m)
    rank = np.argsort(np.argsort(groups, axis=2, kind="stable"), axis=2)
    return (rank < m - n).reshape(w.shape)


def nm_decay(
    w: Arrays, moved: Arrays, memory: Memory, n: int, m: int, begin: float, end: float, method: str = "mask",
    decay: str = "linear", strength: float = 2e-4, indivisible: str = "", total_steps: int = 8, lr: float = 0.1,
) -> Arrays:  # fmt: skip
    t = memory["t"] = memory.get("t", 0) + 1
    dense, gone = memory.get("dense", w), memory.get("gone", [np.zeros(x.shape, bool) for x in w])
    pull = strength if method == "sr_ste" else 0.0
    memory["v"] = [v + pull * mask * x for v, mask, x in zip(memory["v"], gone, dense, strict=True)]
    dense = memory["dense"] = [x - lr * v for x, v in zip(dense, memory["v"], strict=True)]
    past, span = t - begin * total_steps, (end - begin) * total_steps
    fading = max(0.0, 1 - past / span) if decay == "linear" else math.exp(-math.log(100) * past / span) * (past < span)
    beta = 1.0 if past < 0 else fading if method == "mask" else 0.0
    memory["gone"] = [outside(x, n, m) & (past >= 0) for x in dense]
    return [np.where(mask, beta * x, x) for mask, x in zip(memory["gone"], dense, strict=True)]


def soft(w: Arrays, s: Sequence[float]) -> Arrays:
    cuts = [1 / (1 + math.exp(-one)) if x.ndim > 1 else 0.0 for one, x in zip(s, w, strict=True)]
    return [np.sign(x) * np.maximum(np.abs(x) - cut, 0) for x, cut in zip(w, cuts, strict=True)]


def soft_start(w: Arrays, memory: Memory, init: float, **settings: Any) -> Arrays:
    memory |= {"dense": w, "s": [init] * len(w), "vs": [0.0] * len(w)}
    return soft(w, memory["s"])


def soft_threshold(
    w: Arrays, moved: Arrays, memory: Memory, decay: float, init: float, momentum: float = 0.9, lr: float = 0.1,
    rate: float = 0.1,
) -> Arrays:  # fmt: skip
    active = [(x != 0) | (x.ndim < 2) for x in w]
    g = [a * one for a, one in zip(active, memory["g"], strict=True)]
    memory["v"] = [v - one + kept for v, one, kept in zip(memory["v"], memory["g"], g, strict=True)]
    for at, s in enumerate(memory["s"]):
        slope = -(np.sign(memory["dense"][at]) * g[at]).sum() / (2 + math.exp(s) + math.exp(-s))
        memory["vs"][at] = momentum * memory["vs"][at] + slope + decay * s
        memory["s"][at] = s - lr * memory["vs"][at]
    memory["dense"] = [x - rate * v for x, v in zip(memory["dense"], memory["v"], strict=True)]
    return soft(memory["dense"], memory["s"])


def movement(
    w: Arrays, moved: Arrays, memory: Memory, final: float, begin: float, end: float, every: int, initial: float,
    power: float = 3, scope: str = "layer", score_lr: float = 1e-2, total_steps: int = 8, lr: float = 0.1,
) -> Arrays:  # fmt: skip
    t, t0, t1 = memory.get("t", 0) + 1, begin * total_steps, end * total_steps
    dense, gone = memory.get("dense", w), memory.get("gone", [np.zeros(x.shape, bool) for x in w])
    score = memory.get("score", [0 * x for x in w])
    score = [s - score_lr * g * x for s, g, x in zip(score, memory["g"], dense, strict=True)]
    memory["v"] = [v - mask * g for v, mask, g in zip(memory["v"], gone, memory["g"], strict=True)]
    dense = [x - lr * v for x, v in zip(dense, memory["v"], strict=True)]
    if t >= t0 and (t - t0) % every == 0:
        left = max(0.0, 1 - (t - t0) / (t1 - t0))
        gone = smallest(score, final + (initial - final) * left**power, scope, np.array)
    memory |= {"t": t, "dense": dense, "gone": gone, "score": score}
    return [np.where(mask, 0, x) for mask, x in zip(gone, dense, strict=True)]


def projected(w: Array, energy: float) -> tuple[Array, Array]:
    """The matrix of the smallest rank that holds so much of the squares, and what pulls its singular values down."""
    u, s, v = np.linalg.svd(w, full_matrices=False)
    r = 1 + int((np.cumsum(s**2) < energy * (s**2).sum() * (1 - 1e-12)).sum())
    return (u[:, :r] * s[:r]) @ v[:r], u[:, :r] @ v[:r]


def low_rank(
    w: Arrays,
    moved: Arrays,
    memory: Memory,
    energy: float,
    every: int,
    nuclear: float,
    first_layer: str,
    lr: float = 0.1,
) -> Arrays:
    t = memory["t"] = memory.get("t", 0) + 1
    pull = memory.get("pull", [0 * one for one in w])
    memory["v"] = [v + nuclear * one for v, one in zip(memory["v"], pull, strict=True)]
    w = [b - lr * nuclear * one for b, one in zip(moved, pull, strict=True)]
    due = [t % every == 0 and one.ndim > 1 for one in w]
    found = [projected(one, energy) if now else (one, 0 * one) for now, one in zip(due, w, strict=True)]
    memory["pull"] = [one for _, one in found]
    return [one for one, _ in found]


# at the end: the weights after every step -> the weights that are kept


def ema(steps: Sequence[Arrays], decay: float = 0.999, warmup: bool = True, buffers: str = "recalibrate") -> Arrays:
    found = steps[0]
    for n, w in enumerate(steps[1:], start=1):
        d = min(decay, (1 + n) / (10 + n)) if warmup else decay
        found = [d * a + (1 - d) * b for a, b in zip(found, w, strict=True)]
    return found


def mean_weights(steps: Sequence[Arrays], start: float = 0.0, every: int = 1, buffers: str = "recalibrate") -> Arrays:
    counted = steps[math.floor(start * len(steps)) :: every]
    return [np.mean(each, axis=0) for each in zip(*counted, strict=True)]


def low_rank_end(steps: Sequence[Arrays], energy: float, every: int, **settings: Any) -> Arrays:
    last = len(steps) % every == 0
    return [one if last or one.ndim < 2 else projected(one, energy)[0] for one in steps[-1]]


def pruned_end(steps: Sequence[Arrays], sparsity: float, scope: str = "global", **settings: Any) -> Arrays:
    return [np.where(mask, 0, one) for mask, one in zip(smallest(steps[-1], sparsity, scope), steps[-1], strict=True)]


# levers that do not act in training by name


def rounded(x: Array, mantissa: int, least_exponent: int, largest: float) -> Array:
    """To the nearest number of a format with that many bits of mantissa, ties to even, saturating."""
    _, exponent = np.frexp(np.where(x == 0, 1, x))
    step = 2.0 ** (np.maximum(exponent - 1, least_exponent) - mantissa)
    nearest: Array = np.rint(x / step) * step
    return nearest.clip(-largest, largest)


def shrinkage(g: Array, q: Array) -> dict[str, float]:
    noise = q - g * (g * q).sum() / (g**2).sum()
    return {
        "projection": float((g * q).sum() / (g**2).sum()),
        "norm_ratio": float(np.linalg.norm(q) / np.linalg.norm(g)),
        "noise_to_signal": float(np.linalg.norm(noise) / np.linalg.norm(g)),
        "dead": float(((q == 0) & (g != 0)).sum() / (g != 0).sum()),
    }


def compensated(q: Arrays, projections: Sequence[float], decay: float = 0.9, cap: float = 10.0) -> Array:
    """The last gradient as the optimizer gets it, from the rounded ones and their shrinkages."""
    weights = [decay ** (len(q) - 1 - s) for s in range(len(q))]
    return q[-1] * min(1 / float(np.average(projections, weights=weights)), cap)


def one_shot(w: Arrays, sparsity: float) -> Arrays:
    sizes = np.concatenate([np.abs(one).ravel() for one in w])
    kept = np.ones(sizes.size, bool)
    kept[np.argsort(sizes, kind="stable")[: math.floor(sparsity * sizes.size + 0.5)]] = False
    parts = np.split(kept, np.cumsum([one.size for one in w])[:-1])
    return [np.where(part.reshape(one.shape), one, 0) for one, part in zip(w, parts, strict=True)]


def wanda(w: Array, x: Array, sparsity: float) -> Array:
    """The rows of one layer without what is smallest of |w| ||x||."""
    kept = np.ones(w.shape, bool)
    for row, score in zip(kept, np.abs(w) * np.linalg.norm(x, axis=0), strict=True):
        row[np.argsort(score, kind="stable")[: math.floor(sparsity * w.shape[1] + 0.5)]] = False
    return np.where(kept, w, 0)


def owl(w: Arrays, x: Array, sparsity: float, outlier: float, spread: float) -> Arrays:
    """Of linear layers in a row, each for itself."""
    ratios, sizes = [], np.array([one.size for one in w])
    for one in w:
        score = np.abs(one) * np.linalg.norm(x, axis=0)
        ratios.append((score > outlier * score.mean()).mean())
        x = x @ one.T
    share = (np.array(ratios) - min(ratios)) / (max(ratios) - min(ratios)) * 2 * spread
    return list(sparsity + (share * sizes).sum() / sizes.sum() - share)


def sparse_gpt(w: Array, x: Array, sparsity: float, damping: float = 0.01) -> Array:
    """One layer, one block: each column by the inverse of the Gram of the columns that are left."""
    w, gram = w.copy(), x.T @ x
    gram += damping * gram.diagonal().mean() * np.eye(len(gram))
    inverses = [np.linalg.inv(gram[i:, i:]) for i in range(len(gram))]
    score = w**2 / np.array([inverse[0, 0] for inverse in inverses])
    gone: Array = np.zeros(w.size, bool)
    gone[np.argsort(score.ravel(), kind="stable")[: math.floor(sparsity * w.size + 0.5)]] = True
    gone = gone.reshape(w.shape)
    for i, inverse in enumerate(inverses):
        w[:, i:] -= np.outer(w[:, i] * gone[:, i] / inverse[0, 0], inverse[0])
        w[gone[:, i], i] = 0
    return w


def channels(w: Arrays, sparsity: float) -> Arrays:
    """Two linear layers without the hidden units of smallest weights, in and out."""
    score = (w[0] ** 2).sum(1) + (w[1] ** 2).sum(0)
    kept = np.sort(np.argsort(score, kind="stable")[math.floor(sparsity * len(score) + 0.5) :])
    return [w[0][kept], w[1][:, kept]]


def skipped(active: Sequence[bool], costs: Sequence[float]) -> float:
    """What it costs to leave layers out, where costs add up."""
    return float(sum(cost for cost, stays in zip(costs, active, strict=True) if not stays))


def depth(costs: Sequence[float], remove: int) -> list[float]:
    """The least cost of leaving out 0, 1, .. layers: the smallest ones."""
    return [float(np.sort(costs)[:count].sum()) for count in range(remove + 1)]


def snip(w: Array, batches: Sequence[tuple[Array, Array]]) -> Array:
    """Of a linear layer under the mean squared error."""
    gradient: Array = np.mean([2 * (x @ w.T - y).T @ x / y.size for x, y in batches], axis=0)
    return np.abs(w * gradient)


def taylor(w: Array, batches: Sequence[tuple[Array, Array]]) -> Array:
    found: Array = np.sum([(w * (2 * (x @ w.T - y).T @ x / y.size)) ** 2 for x, y in batches], axis=0)
    return found


def grasp(w: Array, batches: Sequence[tuple[Array, Array]], temperature: float) -> Array:
    t = temperature
    gradient: Array = np.mean([2 / t * (x @ w.T / t - y).T @ x / y.size for x, y in batches], axis=0)
    hessian: Array = np.mean([2 / t**2 * x.T @ x / y.size for x, y in batches], axis=0)
    return w * (gradient @ hessian)


def recalibrate(batches: Sequence[Array]) -> tuple[Array, Array]:
    """Running mean and variance: plain means over the batches."""
    means = [batch.mean(0) for batch in batches]
    return np.mean(means, axis=0), np.mean([batch.var(0, ddof=1) for batch in batches], axis=0)


def adaptive(
    losses: Sequence[Sequence[float]], ratio: float = 1.5, floor: float = 0.15, least: int = 3, trial: float = 0.1,
    smoothing: float = 0.5,
) -> Arrays:  # fmt: skip
    """Shares of every epoch, from the losses of all stages in each; for losses that always fall, so without patience."""
    k, since, m, shares = 0, 0, np.array(losses[0]), []
    for epoch, loss in enumerate(losses):
        stages = len(loss)
        trying = trial * (since >= least and k + 1 < stages)
        share = np.array([floor * (stage < k) + trying * (stage == k + 1) for stage in range(stages)])
        share[k] = 1 - share.sum()
        shares.append(share)
        m = m if epoch == 0 else (1 - smoothing) * m + smoothing * np.array(loss)
        since += 1
        if since >= least and k + 1 < stages and m[k + 1] <= ratio * m[k]:
            k, since = k + 1, 0
    return shares


def released(losses: Sequence[Sequence[float]], smoothing: float = 0.9, start: float = 1e-3) -> Arrays:
    """Shares of every epoch before the nineteenth, where lambda is 0."""
    m, shares = np.full(3, start), []
    for epoch, loss in enumerate(losses):
        gap = (m[0] - m[1]) / (m[0] + 1e-8)
        ramp = min(1.0, max(0.0, (epoch - 4) / 10))
        medium = ramp / (1 + math.exp(-(gap - 0.5) / 0.1))
        shares.append(np.array([1 - medium, medium, 0]))
        m = (1 - smoothing) * m + smoothing * np.array(loss)
    return shares


def linear(epochs: int, stages: int = 3) -> Arrays:
    places = np.linspace(0, stages - 1, epochs)
    return [np.maximum(0, 1 - np.abs(place - np.arange(stages))) for place in places]


def mixed(weights: Sequence[float], epochs: int) -> Arrays:
    return [np.array(weights) / np.sum(weights)] * epochs


def easy_only(epochs: int, stages: int = 3) -> Arrays:
    return [np.eye(stages)[0]] * epochs


def hard_only(epochs: int, stages: int = 3) -> Arrays:
    return [np.eye(stages)[-1]] * epochs


def reverse(epochs: int, stages: int = 3) -> Arrays:
    places = np.linspace(stages - 1, 0, epochs)
    return [np.maximum(0, 1 - np.abs(place - np.arange(stages))) for place in places]


def curriculum(sizes: Mapping[str, int], shares: Mapping[str, float], draws: int) -> dict[str, tuple[float, int, int]]:
    """Of every stage: its draws, and how often its items come at least and at most."""
    number = {stage: draws * share for stage, share in shares.items()}
    return {k: (n, math.floor(n / sizes[k]), math.ceil(n / sizes[k])) for k, n in number.items()}


def span_loss(
    logits: Array, ids: Sequence[int], spans: Mapping[str, Sequence[int]], weights: Mapping[str, float]
) -> float:
    """`sum_s w_s mean CE(tokens of s)`; `spans` are places of tokens, each predicted by the logits before it."""
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    means = {name: np.mean([-log_p[at - 1, ids[at]] for at in places]) for name, places in spans.items()}
    return float(sum(weights[name] * mean for name, mean in means.items()))


def statistics(g: Array) -> dict[str, float]:
    norm, largest = float(np.linalg.norm(g)), float(np.abs(g).max())
    return {"mean": g.mean(), "variance": g.var(), "std": g.std(), "norm": norm, "max_abs": largest}


def weight_distribution(w: Arrays, bins: int, limit: float) -> tuple[Array, float, float]:
    ratios = [one / np.sqrt((one**2).mean()) for one in w]
    every = np.concatenate([one.ravel() for one in ratios])
    counts = np.histogram(every.clip(-limit, limit), bins, (-limit, limit))[0].astype(float)
    variances = [np.abs(one).var() / np.abs(one).mean() ** 2 for one in w]
    return counts, float((np.abs(every) < 0.1).mean()), float(np.mean(variances))


def hessian(inputs: Array) -> Array:
    """Of the mean squared error of one linear output."""
    return 2 * inputs.T @ inputs / len(inputs)


def section(w: Array, direction: Array, inputs: Array, targets: Array, coordinates: Sequence[float]) -> Array:
    """The mean squared error of a linear layer along a direction scaled, row by row, to the norm of the weights."""
    scale = np.linalg.norm(w, axis=1, keepdims=True) / np.linalg.norm(direction, axis=1, keepdims=True)
    return np.array([((inputs @ (w + a * scale * direction).T - targets) ** 2).mean() for a in coordinates])


# several losses: one gradient of those in the rows of G


def pcgrad(G: Array) -> Array:
    a, b = G
    found: Array = a + b - min(0, a @ b) * (b / (b @ b) + a / (a @ a))
    return found


def cagrad(G: Array, memory: Memory, c: float) -> Array:
    mean, w = G.mean(0), np.full(len(G), 1 / len(G))
    radius = c * np.linalg.norm(mean)

    def value(w: Array) -> float:
        return float(mean @ (w @ G) + radius * np.linalg.norm(w @ G))

    found = optimize.minimize(
        value, w, bounds=[(0, 1)] * len(G), constraints={"type": "eq", "fun": lambda w: w.sum() - 1}, tol=1e-15
    )
    best = found.x @ G
    joined: Array = mean + radius * best / np.linalg.norm(best)
    return joined


def equal_norm(G: Array, memory: Memory) -> Array:
    sizes = np.linalg.norm(G, axis=1, keepdims=True)
    found: Array = (sizes.mean() * G / sizes).sum(0)
    return found


def similarity_momentum(G: Array, memory: Memory, gamma: float, betas: tuple[float, float] = (0.9, 0.99)) -> Array:
    n, apart = np.linalg.norm(G, axis=1), ~np.eye(len(G), dtype=bool)
    psi = (2 * np.outer(n, n) / (n[:, None] ** 2 + n**2))[apart].mean()
    m = memory["m"] = betas[0] * memory.get("m", 0) + (1 - betas[0]) * G
    new = (n.mean() / n) @ G if psi < gamma else (np.abs(m) * G).sum(0)
    found: Array = new / np.linalg.norm(new) * np.linalg.norm(G.sum(0))
    return found


def gradient_dropout(G: Array, drawn: Array, leak: float) -> Array:
    positive = (1 + G.sum(0) / np.abs(G).sum(0)) / 2 > drawn
    found: Array = (np.where((G > 0) == positive, 1, leak) * G).sum(0)
    return found


def bend(w: Array, v: Array, critical: float = -0.8, main: float = -0.5) -> Arrays:
    """A winner and a loser after the smooth rule; the weak threshold is 0."""
    c = w @ v / np.linalg.norm(w) / np.linalg.norm(v)
    a = np.pi / 2 * (c / main if c >= main else 1 + min(1, (c - main) / (critical - main)) ** 2)
    return [w - np.sin(a) * (w @ v) / (v @ v) * v, v - np.sin(min(a, np.pi / 2)) * (w @ v) / (w @ w) * w]


def gcond(G: Array, memory: Memory) -> Array:
    V, n, won = G.copy(), np.linalg.norm(G, axis=1), memory.setdefault("won", [[] for _ in G])
    memory["ema"] = 0.95 * memory.get("ema", n) + 0.05 * n
    old = memory.get("old", 0 * G)
    s = 0.8 * np.maximum(0, (G * old).sum(1) / n / np.maximum(np.linalg.norm(old, axis=1), 1e-9))
    for _ in range(2 * len(G)):
        U = V / np.linalg.norm(V, axis=1, keepdims=True)
        c, i, j = min((U[i] @ U[j], i, j) for i in range(len(G)) for j in range(i + 1, len(G)))
        if c < -1e-9:
            first, second = judge(i, j, won, s, n / memory["ema"])
            V[first], V[second] = bend(V[first], V[second])
    memory["old"], memory["t"] = G, memory.get("t", 0) + 1
    memory["m"] = 0.9 * memory.get("m", 0) + 0.1 * V.sum(0)
    found: Array = memory["m"] / (1 - 0.9 ** memory["t"])
    return found


def judge(i: int, j: int, won: list[list[bool]], s: Array, strength: Array) -> tuple[int, int]:
    """Winner and loser."""
    tired = [won[k][-3:] == [True] * 3 for k in (i, j)]
    score = [s[k] + 0.2 * strength[k] / (strength[i] + strength[j]) for k in (i, j)]
    first = tired[0] if tired[0] != tired[1] else score[1] > score[0]
    won[i].append(not first)
    won[j].append(bool(first))
    return (j, i) if first else (i, j)


def shared_or_own(W: Array, own: Array, scores: Array, x: Array, errors: Array) -> Arrays:
    m = (scores <= 0.5) * 1.0
    dW = errors.T @ x
    return [x @ (m * W + (1 - m) * own).T, m * dW, (1 - m) * dW, -(dW * (W - own)).sum(0, keepdims=True)]


def occurrence_weights(counts: Array, power: float) -> Array:
    w = np.array([0 if c == 0 else c**-power for c in counts])
    found: Array = w * counts.sum() / (w @ counts)
    return found


def dynamics_weights(losses: Sequence[Sequence[float]], decay: float, temperature: float) -> Arrays:
    mean, least, found = np.array(losses[0]), np.array(losses[0]), []
    for loss in map(np.array, losses):
        mean, least = decay * mean + (1 - decay) * loss, np.minimum(least, loss)
        x = np.exp(least / mean / temperature)
        found.append(x - x.mean() + 1)
    return found


# examples and their order


def example_scores(epochs: Arrays, targets: NDArray[np.int64]) -> Arrays:
    p = [np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in epochs]
    errors = np.mean([np.linalg.norm(one - np.eye(p[0].shape[1])[targets], axis=1) for one in p], axis=0)
    right = np.array([z.argmax(1) == targets for z in epochs])
    falls = (right[:-1] & ~right[1:]).sum(0)
    return [errors, np.where(right.any(0), falls, np.inf)]


def batch_coreset(features: Array, count: int) -> Arrays:
    d = np.abs(features[:, None] - features).sum(2)
    likeness, chosen = d.max() - d, list[int]()
    for _ in range(count):
        gains = [likeness[[*chosen, j]].max(0).sum() if j not in chosen else -1 for j in range(len(d))]
        chosen.append(int(np.argmax(gains)))
    order = np.sort(chosen)
    return [order, np.bincount(likeness[order].argmax(0), minlength=count)]


def variance_sampler(p: Array, diversity: Array, alpha: float, beta: float, mix: float) -> Array:
    score = alpha * p * (1 - p) + beta * diversity
    found: Array = mix * score / score.sum() + (1 - mix) / len(p)
    return found


def beta_difficulty(
    items: int, tries: Sequence[Sequence[Sequence[int]]], prior: tuple[float, float], seen: float, unseen: float
) -> Arrays:
    known = np.tile(np.array(prior)[:, None], items)
    for ids, *outcomes in tries:
        decay = np.array([seen if item in ids else unseen for item in range(items)])
        known = np.array(prior)[:, None] + decay * (known - np.array(prior)[:, None])
        known[:, ids] += outcomes
    return list(known)


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    bins: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        free = [capacity - sum(lengths[other] for other in one) for one in bins]
        fits = [(room, at) for at, room in enumerate(free) if room >= lengths[row]]
        if fits:
            bins[min(fits)[1]].append(row)
        else:
            bins.append([row])
    return bins


# many workers: what is made of the vectors in the rows


def nearest_neighbours(sent: Array, f: int) -> Array:
    near = np.argsort(np.linalg.norm(sent - sent[0], axis=1))[: len(sent) - f]
    found: Array = sent[near].mean(0)
    return found


def median(sent: Array, f: int) -> Array:
    return np.median(sent, axis=0)


def trimmed_mean(sent: Array, f: int) -> Array:
    found: Array = np.sort(sent, axis=0)[f : len(sent) - f].mean(0)
    return found


def krum(sent: Array, f: int, select: int) -> Array:
    apart = np.sort(np.linalg.norm(sent[:, None] - sent, axis=2), axis=1)
    found: Array = sent[np.argsort(apart[:, 1 : len(sent) - f - 1].sum(1))[:select]].mean(0)
    return found


def coding_plan(n: int, B: int, W: int, lam: int) -> list[list[float]]:
    s = math.ceil(B * lam / (W - 1 + B))
    multiplexed = (lam + 1) * (W - 1 + B) / (n * (B + (W - 1) * (lam + 1)))
    return [[1 / n, 0], [(lam + 1) / n, 0], [(s + 1) / n, B], [multiplexed, W - 2 + B]]


def gradient_difference(gradients: Array, points: Array, C1: float, C2: float, restart: int) -> Arrays:
    def clip(v: Array, most: float) -> Array:
        return v * min(1.0, most / float(np.linalg.norm(v)))

    found: Arrays = []
    for r, g in enumerate(gradients):
        if r % restart == 0:
            found.append(clip(g, C1))
        else:
            step = float(np.linalg.norm(points[r] - points[r - 1]))
            found.append(found[-1] + clip(g - gradients[r - 1], C2 * step))
    return found


def group_clip(inputs: Array, errors: Array, clips: tuple[float, float]) -> Arrays:
    each = [(e[:, None] * x, e) for e, x in zip(errors * 2 / errors.shape[1], inputs, strict=True)]
    clipped = [[g * min(1, c / np.linalg.norm(g)) for g, c in zip(one, clips, strict=True)] for one in each]
    return [np.mean(parts, axis=0) for parts in zip(*clipped, strict=True)]


def host(box: tuple[int, int, int, int], masks: Mapping[str, NDArray[np.bool_]]) -> tuple[str, float]:
    """The organ that holds the largest part of a box (x0, y0, x1, y1, in pixels), and that part."""
    x0, y0, x1, y1 = box
    parts = {organ: float(mask[y0:y1, x0:x1].mean()) for organ, mask in masks.items()}
    organ = max(parts, key=lambda name: parts[name])
    return organ, parts[organ]


def hard_concrete(alpha: Array, u: Array) -> tuple[Array, Array, float]:
    """Drawn gates, those without noise, and how many are open in the mean."""

    def stretched(s: Array) -> Array:
        return np.clip(1.2 * s - 0.1, 0, 1)

    def sigmoid(x: Array) -> Array:
        return 1 / (1 + np.exp(-x))

    drawn = stretched(sigmoid((np.log(u + 1e-8) - np.log(1 - u + 1e-8) + alpha) / 0.83))
    return drawn, stretched(sigmoid(alpha)), sigmoid(alpha - 0.83 * np.log(0.1 / 1.1)).sum()


def mask_tuning(weight: Array, scores: Array, inputs: Array, targets: Array) -> tuple[Array, Array]:
    """Outputs of a masked linear layer, and the gradient of half the squared error and the penalty by the scores."""
    outputs = inputs @ (weight * (scores > 5e-3)).T
    return outputs, (outputs - targets).T @ inputs * weight + 1e-4 * np.sign(scores)


def binarize(weight: Array, gradient: Array, o: float) -> tuple[Array, Array]:
    """Binary weights, and the gradient by the full ones."""
    size, signs = np.abs(weight), np.where(weight >= 0, 1.0, -1.0)
    near, far = size <= 0.1, size > 1.5
    slope = np.where(near, 0.1 ** (1 / o) / 0.1, np.maximum(size, 0.1) ** ((1 - o) / o) / o) * ~far
    return size.mean() * signs, size.mean() * gradient * slope + (gradient * signs).mean() * np.sign(weight)


def align(full: list[Array], sparse: list[Array], weight: float) -> float:
    gaps = [np.abs(one - other) for one, other in zip(full, sparse, strict=True)]
    return 2 * weight * float(np.mean([np.where(gap < 1, gap**2 / 2, gap - 0.5).mean() for gap in gaps]))


def magnitude_invariant(x: Array, weights: list[Array], start: Array) -> Array:
    """Predicted parameters, of a perceptron without biases."""
    found = np.concatenate([np.cos(np.pi / 2 * x), np.sin(np.pi / 2 * x)])
    for place, weight in enumerate(weights):
        found = weight @ (found if place == 0 else np.where(found > 0, found, 0.01 * found))
    predicted: Array = start + found
    return predicted


def block_codes(x: Array, book: Array, block: int) -> tuple[Array, Array]:
    rows = np.pad(x, (0, -len(x) % block)).reshape(-1, block)
    absmax = np.abs(rows).max(1)
    scaled = (rows / absmax[:, None]).reshape(-1)[: len(x)]
    above = np.clip(np.searchsorted(book, scaled), 1, len(book) - 1)
    nearer = (book[above] - scaled < scaled - book[above - 1]).astype(int)
    return np.asarray(above - 1 + nearer), absmax


def zeroth_order(delta: Array, z: Array, d: float, lr: float, clip: float, floor: float) -> Array:
    return np.asarray(np.maximum(delta - lr * np.clip(d, -clip, clip) * z, floor))


def subspace(history: Array, g: Array, keep: float, *, standardise: bool) -> Array:
    centred = history - history.mean(0)
    if standardise:
        deviation = centred.std(0)
        centred = centred / np.where(deviation > 0, deviation, 1)
    variance, directions = np.linalg.eigh(centred.T @ centred)
    variance, directions = variance[::-1], directions[:, ::-1]
    rank = int((np.cumsum(variance) / variance.sum() < keep * (1 - 1e-6)).sum()) + 1
    return directions[:, :rank] @ (directions[:, :rank].T @ g)


def dynamic_map() -> Array:
    found = [0.0, 1.0]
    for i in range(7):
        bounds = np.linspace(0.1, 1, 2**i + 1)
        middles = 10.0 ** (i - 6) * (bounds[1:] + bounds[:-1]) / 2
        found += [*middles, *-middles]
    return np.sort(np.array(found))


def eight_bit_momentum(
    gradients: Sequence[Array], book: Array, block: int, lr: float = 0.1, momentum: float = 0.9
) -> Array:
    w, v = 0 * gradients[0], 0 * gradients[0]
    for g in gradients:
        v = momentum * v + g
        w = w - lr * v
        codes, absmax = block_codes(v.ravel(), book, block)
        v = (book[codes] * np.repeat(absmax, block)[: v.size]).reshape(v.shape)
    return w


def codes(weight: Array, top: int) -> tuple[Array, Array]:
    scale = np.abs(weight).max(1, keepdims=True) / top
    found = np.rint(weight / scale)
    return found, found * scale
