"""Validate the backends of this machine against the reference, operation by operation."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import reference
from .._core import checks, dispatch
from .._core.call import Choice, Draw, Weighting
from ..ops.latent_attention import reference as latent
from ..ops.selection import reference as selection
from ..ops.value_attention import reference as value
from . import cases
from .tolerances import Comparison, compare, compare_mask, element_error

EPS = 1e-8
SEED, STEP = 0x1234_5678_9ABC_DEF0, 0xC0DE_0007
# Another weighting than the published one: it shows a forgotten ``eps`` or temperature.
WEIGHTING = {"temperature": 0.5, "eps": 0.03}

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class ValidationError(RuntimeError):
    """A backend disagrees with the reference by more than its tolerance."""


@dataclass(frozen=True)
class Finding:
    """The comparisons of one operation and case on one backend."""

    backend: str
    op: str
    dtype: torch.dtype
    case: str
    comparisons: tuple[Comparison, ...]

    @property
    def failures(self) -> tuple[Comparison, ...]:
        return tuple(comparison for comparison in self.comparisons if not comparison.holds)


def words() -> tuple[Tensor, Tensor]:
    """The seed and the step of the checks, as operations take them."""
    return torch.tensor(SEED, dtype=torch.int64), torch.tensor(STEP, dtype=torch.int64)


def check_value_path(
    case: cases.ValueCase, backend: str, temperature: float = 1.0, eps: float = EPS
) -> tuple[Comparison, ...]:
    """The masking step on values, its moments against the reference and its mask against the race
    of its own importance.
    """
    cells = checks.require_cells("values", case.values, case.valid)
    exact = cells._replace(values=cells.values.double())
    seed, step = words()
    choice = Choice(case.maskable, case.num_masked, 0.0, case.latents, len(case.latents))
    arguments = (choice, Weighting(eps, 1.0 / temperature), Draw(seed, step, case.sample_ids))
    run = dispatch.implementation("value_mask", backend, cells.values)
    mask, importance, *moments = run(cells, case.slope, *arguments)
    alone = dispatch.implementation("value_attention", backend, cells.values)(cells, case.slope)
    truth = value.mask(exact, case.slope.double(), *arguments)
    plain = value.mask(cells._replace(values=cells.values.float()), case.slope, *arguments)
    found = [compare("importance", importance, plain[1], truth[1], torch.float32, element_error)]
    for name, fused, separate, at_precision, right in zip(
        ("log M", "mean", "variance"), moments, alone, plain[2:], truth[2:], strict=True
    ):
        found.append(compare(f"{name}, fused", fused, at_precision, right, torch.float32))
        found.append(compare(name, separate, at_precision, right, torch.float32))
    draw = {
        "valid": case.maskable,
        "seed": seed,
        "step": step,
        "sample_ids": case.sample_ids,
        "eps": eps,
        "temperature": temperature,
    }
    found.append(compare_mask("mask", mask, importance, case.num_masked, **draw))
    return tuple(found)


def check_token_path(
    case: cases.TokenCase, backend: str, temperature: float = 1.0, eps: float = EPS
) -> tuple[Comparison, ...]:
    """Attention, its gradients, importance and mask of the token path."""
    dtype, scale = case.key.dtype, case.key.shape[-1] ** -0.5
    seed, step = words()

    def run(op: str, *arguments: object) -> Any:  # as many tensors as the operation gives
        return dispatch.implementation(op, backend, case.key)(*arguments)

    exact = case.query.double(), case.key.double(), case.value.double()
    right = latent.forward(*exact, case.valid, scale)
    plain = latent.forward(case.query, case.key, case.value, case.valid, scale)
    output, logsumexp = run("latent_attention", case.query, case.key, case.value, case.valid, scale)
    alone = run("attention_logsumexp", case.query, case.key, case.valid, scale)
    found = [
        compare("output", output, plain[0], right[0], dtype),
        compare("log-sum-exp", logsumexp, plain[1], right[1], torch.float32),
        compare("log-sum-exp alone", alone, plain[1], right[1], torch.float32),
    ]

    generator = torch.Generator().manual_seed(6)
    grad_output = torch.randn(output.shape, generator=generator).to(output)
    grad_logsumexp = torch.randn(logsumexp.shape, generator=generator).to(logsumexp)
    for name, gradient in (("", None), (" with that of the log-sum-exp", grad_logsumexp)):
        given = (case.query, case.key, case.value, case.valid, output, logsumexp, scale)
        got = run("latent_attention_backward", grad_output, gradient, *given)
        at_precision = latent.backward(grad_output, gradient, *given)
        widened = None if gradient is None else gradient.double()
        truth = latent.backward(grad_output.double(), widened, *exact, case.valid, *right, scale)
        for which, *three in zip(("query", "key", "value"), got, at_precision, truth, strict=True):
            # The gradient of a whole tensor is one row: the error of a sum is relative to its
            # terms, not to what is left of them.
            left, middle, best = (x[None] for x in three)
            found.append(compare(f"gradient of the {which}{name}", left, middle, best, dtype))

    right_importance = latent.importance(
        exact[0], exact[1], right[1], case.latents, case.valid, scale
    )
    plain_importance = latent.importance(
        case.query, case.key, plain[1], case.latents, case.valid, scale
    )
    alone = run(
        "attention_importance", case.query, case.key, logsumexp, case.latents, case.valid, scale
    )
    choice = Choice(case.maskable, case.num_masked, 0.0, case.latents, len(case.latents))
    arguments = (choice, Weighting(eps, 1.0 / temperature), Draw(seed, step, case.sample_ids))
    mask, fused = run("token_mask", case.query, case.key, logsumexp, case.valid, scale, *arguments)
    found.append(compare("importance", alone, plain_importance, right_importance, torch.float32))
    found.append(
        compare("importance, fused", fused, plain_importance, right_importance, torch.float32)
    )
    draw = {
        "valid": case.maskable,
        "seed": seed,
        "step": step,
        "sample_ids": case.sample_ids,
        "eps": eps,
        "temperature": temperature,
    }
    found.append(compare_mask("mask", mask, fused, case.num_masked, **draw))
    return tuple(found)


def check_selection(case: cases.SelectionCase, backend: str) -> tuple[Comparison, ...]:
    """A draw against the race in float64."""
    seed, step = words()
    run = dispatch.implementation("sample_without_replacement", backend, case.weights)
    mask = run(*_draw_arguments(case))
    draw = {"valid": case.valid, "seed": seed, "step": step, "sample_ids": case.sample_ids}
    return (compare_mask("mask", mask, case.weights, case.num_samples, **draw),)


def check_race(case: cases.SelectionCase, backend: str) -> tuple[Comparison, ...]:
    """A draw whose keys are equal or far apart, so that every backend must agree with the reference
    on every position.
    """
    run = dispatch.implementation("sample_without_replacement", backend, case.weights)
    wrong = run(*_draw_arguments(case)) != selection.select(*_draw_arguments(case))
    return (Comparison("positions", float(wrong.sum()), 0.0),)


def _draw_arguments(case: cases.SelectionCase) -> tuple:
    return (case.weights, case.num_samples, case.valid, Draw(*words(), case.sample_ids))


def check_latents(
    num_latents: int, size: int, backend: str, device: torch.device | str
) -> tuple[Comparison, ...]:
    """The random subset of the latents, which every backend must draw to the bit."""
    seed, step = words()
    like = torch.empty(1, device=device)
    got = dispatch.implementation("draw_latents", backend, like)(
        num_latents, size, Draw(seed, step, None), like.device
    )
    expected = reference.draw_latents(num_latents, size, seed, step, like.device)
    return (Comparison("indices", float(not torch.equal(got, expected)), 0.0),)


def findings(backend: str, device: torch.device | str) -> Iterator[Finding]:
    """Every comparison of one backend on one device."""
    dtypes = (torch.float64,) if backend == "reference" else DTYPES
    for dtype in dtypes:
        yield from _run("value path", backend, dtype, device, cases.value_cases(), check_value_path)
        yield from _run("token path", backend, dtype, device, cases.token_cases(), check_token_path)
        yield from _run(
            "selection", backend, dtype, device, cases.selection_cases(), check_selection
        )
    dtype = dtypes[0]
    yield from _run("selection", backend, dtype, device, cases.race_cases(), check_race)
    yield from _run(
        "value path",
        backend,
        dtype,
        device,
        cases.value_cases(),
        partial(check_value_path, temperature=WEIGHTING["temperature"], eps=WEIGHTING["eps"]),
    )
    yield from _run(
        "token path",
        backend,
        dtype,
        device,
        cases.token_cases(),
        partial(check_token_path, temperature=WEIGHTING["temperature"], eps=WEIGHTING["eps"]),
    )
    for num_latents, size in ((1, 1), (5, 5), (128, 38)):
        yield Finding(
            backend,
            "latents",
            torch.int64,
            f"{size} of {num_latents}",
            check_latents(num_latents, size, backend, device),
        )


def _run(
    op: str, backend: str, dtype: torch.dtype, device, some_cases: Iterator, one: Callable
) -> Iterator[Finding]:
    for case in some_cases:
        yield Finding(backend, op, dtype, case.name, one(case.to(device, dtype), backend))


def default_device(backend: str) -> str:
    """Where a backend is validated when no device is named: on the GPU if it takes one."""
    if backend == "reference":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return dispatch._device_of(backend)


def check(backend: str | None = None, device: str | torch.device | None = None) -> str:
    """Validate this machine's backends against the float64 reference: every operation, its
    gradients and its draws.

    Args:
        backend: one of ``mam_kernels.backends()``; None takes every one that runs here.
        device: where to run it; None takes the one it is made for.

    Returns:
        A table, a line for each backend, operation and type: cases, comparisons, and the error that
        came closest to its tolerance. It is printed too.

    Raises:
        ValidationError: an error was above its tolerance; the message names each.
        BackendUnavailableError: the named backend does not run here.
    """
    if backend is not None:
        dispatch.named(backend)
        missing = dispatch.backends()[backend]
        if isinstance(missing, dispatch.Unavailable):
            raise dispatch.BackendUnavailableError(
                f"backend: {backend!r} cannot be validated: {missing.reason}"
            )
    names = (
        [name for name, state in dispatch.backends().items() if state]
        if backend is None
        else [backend]
    )
    found = [
        finding for name in names for finding in findings(name, device or default_device(name))
    ]
    table = summary(found)
    print(table)
    failures = [(finding, failure) for finding in found for failure in finding.failures]
    if failures:
        lines = [f"{f.backend}, {f.op}, {f.dtype}, {f.case}: {failure}" for f, failure in failures]
        raise ValidationError("a backend disagrees with the reference:\n" + "\n".join(lines))
    return table


def summary(found: list[Finding]) -> str:
    """The findings as a table."""
    groups: dict[tuple, list[Finding]] = {}
    for finding in found:
        groups.setdefault(
            (finding.backend, finding.op, str(finding.dtype).removeprefix("torch.")), []
        ).append(finding)
    lines = [
        f"{'backend':<10} {'operation':<11} {'type':<9} {'cases':>5} {'compared':>8}  "
        "closest to its tolerance"
    ]
    for (backend, op, dtype), group in groups.items():
        comparisons = [comparison for finding in group for comparison in finding.comparisons]
        worst = max(
            comparisons,
            key=lambda c: c.error / c.allowed if c.allowed else float(c.error > 0) * 1e9,
        )
        verdict = "ok  " if all(comparison.holds for comparison in comparisons) else "MISS"
        lines.append(
            f"{backend:<10} {op:<11} {dtype:<9} {len(group):>5} {len(comparisons):>8}  "
            f"{verdict} {worst}"
        )
    return "\n".join(lines)
