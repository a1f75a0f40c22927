"""Curvature: products for the largest eigenvalue, the price of a product, the error of the trace; against other tools.

Power iteration as PyHessian does it is written out here and checked against PyHessian where that is installed; curvlinops
(`pip install curvlinops-for-pytorch`) is compared with where it is installed.
"""

from __future__ import annotations

import copy
import importlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from harness import cpu_ratio_in_turns, peak_extra_bytes, record
from torch import Tensor, nn

from trimtab import datasets, models
from trimtab.observe.curvature import Hessian, MatrixOperator, Objective, top_eigenvalues, trace
from trimtab.observe.curvature.krylov import Krylov
from trimtab.observe.curvature.operator import SymmetricOperator

LOSS = nn.functional.cross_entropy
IMAGES = 256
SEEDS = range(5)
ACCURACY = 1e-3
LIMIT, STEPS = 120, 20
TRACE_PRODUCTS, TRACE_REPEATS = 30, 100


def optional(name: str) -> Any:
    """The module, or None after saying why not."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        print(f"{name} left out: {type(error).__name__}: {error}")
        return None


def digits() -> tuple[Tensor, Tensor]:
    data = datasets.load("digits")
    images, targets = next(iter(datasets.Batches(data.train, data, IMAGES, seed=0).epoch(0)))
    return images, targets


def trained(name: str, batch: tuple[Tensor, Tensor], steps: int = 60) -> nn.Module:
    """A network after that many steps on the batch, in evaluation mode."""
    torch.manual_seed(0)
    images, targets = batch
    if name == "mlp":
        pixels = images[0].numel()
        model: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 64), nn.Tanh(), nn.Linear(64, 10))
    else:
        model = models.create(name, num_classes=10, in_channels=images.shape[1], image_size=images.shape[2])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.randint(len(targets), (64,), generator=generator)
        optimizer.zero_grad()
        LOSS(model(images[chosen]), targets[chosen]).backward()
        optimizer.step()
    return model.eval()


def power_iteration(operator: SymmetricOperator, start: Tensor, products: int) -> list[float]:
    """The estimate after each product: v <- A v / ||A v||, value v . A v (what PyHessian does)."""
    vector, values = start / start.norm(), []
    for _ in range(products):
        product = operator @ vector
        values.append(float(torch.dot(vector, product)))
        vector = product / (product.norm() + 1e-6)
    return values


def lanczos_values(operator: SymmetricOperator, start: Tensor) -> list[float]:
    """The largest Ritz value after each product, as `top_eigenvalues` has it."""
    krylov, values = Krylov(operator), []
    krylov.start(start)
    for _ in range(STEPS):
        krylov.step()
        values.append(float(torch.linalg.eigvalsh(krylov.projection()[0])[-1]))
    return values


def needed(values: Sequence[float], exact: float) -> int:
    """Products after which the error is and stays at most `ACCURACY`; those tried, where it never is."""
    outside = [at for at, value in enumerate(values, 1) if abs(value - exact) > ACCURACY * abs(exact)]
    return (outside[-1] if outside else 0) + 1


def median(values: Sequence[float]) -> float:
    return float(statistics.median(values))


def check_power_iteration(peer: Any, model: nn.Module, batch: tuple[Tensor, Tensor], hessian: Hessian) -> None:
    """Ours gives what PyHessian gives from the same start."""
    torch.manual_seed(1)
    found = peer.hessian(copy.deepcopy(model), LOSS, data=batch, cuda=False).eigenvalues(maxIter=30, tol=0.0)[0][0]
    torch.manual_seed(1)
    start = torch.cat([torch.randn(p.shape).reshape(-1) for p in model.parameters()])
    own = power_iteration(hessian, start, 30)[-1]
    assert abs(own - found) <= 1e-3 * abs(found), (own, found)


def curvlinops_products(
    peer: Any, model: nn.Module, batch: tuple[Tensor, Tensor], ncv: int | None
) -> tuple[int, float]:
    """Products and value of SciPy's `eigsh` on curvlinops' operator, as its documentation has it, at tolerance 1e-3."""
    from scipy.sparse.linalg import LinearOperator, eigsh

    params = [p for p in model.parameters() if p.requires_grad]
    operator = peer.HessianLinearOperator(model, nn.CrossEntropyLoss(), params, [batch], check_deterministic=False)
    scipy, taken = operator.to_scipy(), 0

    def product(vector: Any) -> Any:
        nonlocal taken
        taken += 1
        return scipy.matvec(vector)

    counted = LinearOperator(scipy.shape, matvec=product, dtype=scipy.dtype)
    (value,) = eigsh(counted, k=1, which="LA", tol=ACCURACY, ncv=ncv, return_eigenvectors=False, rng=0)
    return taken, float(value)


def eigenvalue_rows(pyhessian: Any, curvlinops: Any, batch: tuple[Tensor, Tensor], steps: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    batch = (batch[0][:128], batch[1][:128])
    for network in ("mlp", "digits_cnn", "resnet_digits"):
        model = trained(network, batch, steps)
        name = f"{network} after {steps} steps"
        hessian = Hessian(Objective(model, LOSS, batch))
        exact = top_eigenvalues(hessian, tolerance=1e-6, max_products=LIMIT)
        assert exact.converged
        power, lanczos, certified = [], [], []
        for seed in SEEDS:
            generator = torch.Generator().manual_seed(seed)
            start = torch.randn(hessian.size, generator=generator)
            power.append(needed(power_iteration(hessian, start, LIMIT), exact.values[0]))
            lanczos.append(needed(lanczos_values(hessian, start), exact.values[0]))
            found = top_eigenvalues(hessian, seed=seed)
            assert found.converged
            assert abs(found.values[0] - exact.values[0]) <= ACCURACY * exact.values[0]
            certified.append(found.products)
        detail = {"Lanczos": median(lanczos), "certified": median(certified), "power iteration": median(power)}
        rows.append(
            {
                "question": f"{name}: products until the largest eigenvalue is within 1e-3, Lanczos / power iteration, "
                f"median of {len(SEEDS)} starts",
                "ratio": median(lanczos) / median(power), "bar": "<= 0.5", "met": median(lanczos) <= 0.5 * median(power),
                **detail,
            }
        )  # fmt: skip
        rows.append(
            {
                "question": f"{name}: products of top_eigenvalues as called by default (residual 1e-3) / power iteration "
                "that stops where its error, which it does not know, is 1e-3",
                "ratio": median(certified) / median(power), "bar": "none",
            }
        )  # fmt: skip
        if pyhessian is not None:
            check_power_iteration(pyhessian, model, batch, hessian)
        if curvlinops is not None:
            for ncv, how in ((None, "as it comes"), (6, "with a subspace of 6 instead of 20")):
                taken, value = curvlinops_products(curvlinops, model, batch, ncv)
                assert abs(value - exact.values[0]) <= ACCURACY * exact.values[0], (value, exact.values)
                row: dict[str, Any] = {
                    "question": f"{name}: products, top_eigenvalues / eigsh on curvlinops' operator {how}, both stop at "
                    "residual 1e-3",
                    "ratio": median(certified) / taken, "curvlinops": taken,
                }  # fmt: skip
                bar = {"bar": "<= 0.5", "met": median(certified) <= 0.5 * taken} if ncv is None else {"bar": "none"}
                rows.append(row | bar)
    return rows


def product_rows(pyhessian: Any, curvlinops: Any, batch: tuple[Tensor, Tensor]) -> list[dict[str, Any]]:
    model = trained("resnet_digits", batch)
    images, targets = batch
    weights = list(model.parameters())
    gradients = torch.autograd.grad(LOSS(model(images), targets), weights, create_graph=True)
    size = sum(weight.numel() for weight in weights)
    vector = torch.randn(size, generator=torch.Generator().manual_seed(0))
    parts = [part.view(w.shape) for part, w in zip(vector.split([w.numel() for w in weights]), weights, strict=True)]

    def floor() -> Tensor:
        found = torch.autograd.grad(gradients, weights, parts, retain_graph=True)
        return torch.cat([part.reshape(-1) for part in found])

    def anew() -> Tensor:
        slopes = torch.autograd.grad(LOSS(model(images), targets), weights, create_graph=True)
        return torch.cat([part.reshape(-1) for part in torch.autograd.grad(slopes, weights, parts)])

    hessian = Hessian(Objective(model, LOSS, batch))
    torch.testing.assert_close(hessian @ vector, floor(), rtol=1e-3, atol=1e-4)
    peers: dict[str, Callable[[], Any]] = {"a graph built for each product": anew}
    if pyhessian is not None:
        copied = copy.deepcopy(model)
        holder = pyhessian.hessian(copied, LOSS, data=batch, cuda=False)
        product = importlib.import_module("pyhessian.utils").hessian_vector_product
        peers["PyHessian, one batch"] = lambda: product(holder.gradsH, holder.params, parts)
        loader = pyhessian.hessian(copy.deepcopy(model), LOSS, dataloader=[batch], cuda=False)
        peers["PyHessian, a loader"] = lambda: loader.dataloader_hv_product(parts)
    if curvlinops is not None:
        linear = curvlinops.HessianLinearOperator(
            model, nn.CrossEntropyLoss(), weights, [batch], check_deterministic=False
        )
        torch.testing.assert_close(linear @ vector, floor(), rtol=1e-3, atol=1e-4)
        peers["curvlinops"] = lambda: linear @ vector
    ratio, least = cpu_ratio_in_turns(floor, lambda: hessian @ vector, repeats=15, warm_up=2)
    rows: list[dict[str, Any]] = [
        {
            "question": f"resnet_digits, {IMAGES} images: a product / the same through a gradient graph kept by hand, CPU time",
            "ratio": ratio, "bar": "<= 1.1", "met": ratio <= 1.1, "least": least,
            "MiB of the kept graph": peak_extra_bytes(lambda: Hessian(hessian.objective) @ vector) / 2**20,
        }
    ]  # fmt: skip
    for name, call in peers.items():
        ratio, _ = cpu_ratio_in_turns(call, lambda: hessian @ vector, repeats=7)
        rows.append(
            {"question": f"resnet_digits: one product / one product of {name}, CPU time", "ratio": ratio, "bar": "none"}
        )
    return rows


def trace_rows(curvlinops: Any, batch: tuple[Tensor, Tensor]) -> list[dict[str, Any]]:
    """Root mean square errors at equal products, on an exact Hessian of a small trained network."""
    images, targets = batch[0][:128], batch[1][:128]
    torch.manual_seed(0)
    model = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    for _ in range(60):
        optimizer.zero_grad()
        LOSS(model(images), targets).backward()
        optimizer.step()
    hessian = Hessian(Objective(model.double(), LOSS, (images.double(), targets)))
    matrix = hessian @ torch.eye(hessian.size, dtype=torch.float64)
    operator, exact = MatrixOperator(matrix), float(matrix.trace())

    def error(estimate: Callable[[int], float]) -> float:
        return float(torch.tensor([estimate(seed) - exact for seed in range(TRACE_REPEATS)]).square().mean().sqrt())

    def hutchinson(seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        probes = 2.0 * torch.randint(2, (hessian.size, TRACE_PRODUCTS), generator=generator).double() - 1
        return float((probes * (matrix @ probes)).sum() / TRACE_PRODUCTS)

    own = error(lambda seed: trace(operator, TRACE_PRODUCTS, seed=seed).value)
    peers = {"Hutchinson's estimator, which PyHessian uses": error(hutchinson)}
    if curvlinops is not None:

        def seeded(call: Callable[[], Any]) -> Callable[[int], float]:
            def estimate(seed: int) -> float:
                torch.manual_seed(seed)
                return float(call())

            return estimate

        peers["curvlinops' hutchpp_trace"] = error(seeded(lambda: curvlinops.hutchpp_trace(matrix, TRACE_PRODUCTS)))
        peers["curvlinops' hutchinson_trace"] = error(
            seeded(lambda: curvlinops.hutchinson_trace(matrix, TRACE_PRODUCTS))
        )
    return [
        {
            "question": f"error of the trace after {TRACE_PRODUCTS} products, default / {name}, root mean square of "
            f"{TRACE_REPEATS} (known to 10 %)",
            "ratio": own / other, "bar": "<= 1.1", "met": own <= 1.1 * other, "relative error": own / exact,
        }
        for name, other in peers.items()
    ]  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    pyhessian, curvlinops = optional("pyhessian"), optional("curvlinops")
    batch = digits()
    rows = [row for steps in (60, 400) for row in eigenvalue_rows(pyhessian, curvlinops, batch, steps)]
    rows += product_rows(pyhessian, curvlinops, batch)
    rows += trace_rows(curvlinops, batch)
    record("curvature", rows)


if __name__ == "__main__":
    main()
