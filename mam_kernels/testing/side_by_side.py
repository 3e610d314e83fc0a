"""The masking step beside the paper computation: same cells, same weights, same process, and no
ratio unless the results agree.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from .agreement import Disagreement, forward, forward_backward, paper_twin, require_agreement
from .measure import Contender, Timing, time_interleaved
from .memory import Peak, peak_memory, tensor_bytes
from .paper import PaperMasking, PaperOutput

PAPER = "paper computation"
COMPILED = "paper computation, torch.compile"
SDPA = "scaled_dot_product_attention, no mask"
DIRECTIONS: dict[str, Callable[[nn.Module], Callable]] = {
    "forward": forward,
    "forward + backward": forward_backward,
}


@dataclass(frozen=True)
class Variant:
    """One way to run the masking step: a backend on a layout of the tokens, with input sets of the
    same cells to take turns with.
    """

    name: str
    backend: str
    tokens: Sequence[Tensor]


@dataclass(frozen=True)
class Row:
    """One line of a comparison."""

    what: str  # was computed, such as "forward"
    contender: str
    baseline: str  # the contender that ratios are against
    cells: int  # rows that one call processes
    timing: Timing  # of a call
    # Time of the baseline over that of the contender, per cell; None for the baseline itself.
    ratio: float | None
    peak: Peak  # beyond inputs and outputs
    input_bytes: int  # of a call

    @property
    def us_a_cell(self) -> float:
        """Median time in microseconds."""
        return self.timing.median / self.cells * 1e6

    @property
    def memory_ratio(self) -> float | None:
        """Peak memory beyond inputs and outputs, as a multiple of the inputs."""
        return None if self.peak.bytes is None else self.peak.bytes / self.input_bytes

    @property
    def ratio_of_first_call(self) -> float | None:
        """The same for a call right after other work."""
        return (
            None
            if self.ratio is None or self.timing.first is None
            else self.ratio * self.timing.median / self.timing.first
        )

    def record(self) -> dict:
        """As plain data for a JSON file."""
        return {
            "what": self.what,
            "contender": self.contender,
            "cells_per_call": self.cells,
            **self.timing.record(self.cells),
            "baseline": self.baseline,
            "ratio": self.ratio,
            "ratio_of_first_call": self.ratio_of_first_call,
            "peak_bytes_beyond_inputs_and_outputs": self.peak.bytes,
            "input_bytes": self.input_bytes,
            "peak_method": self.peak.method,
        }


def side_by_side(
    module: nn.Module,
    variants: Sequence[Variant],
    paper_tokens: Sequence[Tensor],
    *,
    rivals: Sequence[str] = (),
    samples: int = 7,
    seconds: float | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> list[Row]:
    """Check, then measure, the masking step of `module` in every variant against the paper
    computation.

    Args:
        module: a `mam_kernels.MultinomialAttentionMasking`; each variant runs a copy of it with its
            own backend.
        variants: what to measure. Their tokens are the cells of a call; time counts per cell, so
            they may hold more than ...
        paper_tokens: ... the cells of a call of the paper computation, dense, one tensor an input
            set. Agreement is checked on these.
        rivals: what else runs on these: `COMPILED`, and `SDPA`, which computes the context alone.
            One that does not run here is left out.
        samples, seconds: as in `time_interleaved`, for each direction.
        progress: is told what goes on, a line at a time.

    Raises:
        Disagreement: a variant or a rival does not compute what the paper computes; nothing is
            measured then.
    """
    paper = paper_twin(module)
    modules = {variant.name: with_backend(module, variant.backend) for variant in variants}
    for variant in variants:
        progress(f"{variant.name}: comparing with the paper computation")
        require_agreement(
            modules[variant.name], _like(paper_tokens[0], variant.tokens[0]), paper=paper
        )
    others: dict[str, nn.Module] = {}
    for name in rivals:
        progress(f"{name}: comparing with the paper computation")
        others |= _rival(name, paper, paper_tokens[0], progress)
    rows = []
    for direction, step in DIRECTIONS.items():
        progress(f"{direction}: measuring")
        contenders = {PAPER: Contender(step(paper), [(tokens,) for tokens in paper_tokens])}
        for name, rival in others.items():
            contenders[name] = Contender(step(rival), [(tokens,) for tokens in paper_tokens])
        for variant in variants:
            contenders[variant.name] = Contender(
                step(modules[variant.name]), [(tokens,) for tokens in variant.tokens]
            )
        rows += measure_against(PAPER, contenders, what=direction, samples=samples, seconds=seconds)
    return rows


class _AttendOnly(nn.Module):
    """`PaperMasking.attend_only` as a module with the paper computation's parameters."""

    def __init__(self, paper: PaperMasking) -> None:
        super().__init__()
        self.paper = paper

    @property
    def latents(self) -> Tensor:
        return self.paper.latents

    def forward(self, tokens: Tensor) -> PaperOutput:
        return self.paper.attend_only(tokens)


def _rival(
    name: str, paper: PaperMasking, tokens: Tensor, progress: Callable[[str], None]
) -> dict[str, nn.Module]:
    """A rival by its name, checked; nothing where it does not run."""
    rival: nn.Module
    if name == COMPILED:
        # A compiled module is a module; torch's annotation says only that it can be called.
        rival = cast(nn.Module, torch.compile(copy.deepcopy(paper)))
    else:
        rival = _AttendOnly(paper)
    try:
        for step in DIRECTIONS.values():
            step(rival)(_small(tokens))
        found = rival(tokens)
    except Exception as error:
        # torch.compile needs a C++ compiler, and raises errors of many types where it fails.
        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        progress(f"{name}: left out, because it does not run here ({reason})")
        return {}
    wanted = paper(tokens)
    for what in ("context", "penalty"):
        if not torch.allclose(getattr(found, what), getattr(wanted, what), rtol=1e-3, atol=1e-4):
            raise Disagreement(f"{name}: its {what} is not that of the paper computation")
    return {name: rival}


def measure_against(
    baseline: str,
    contenders: Mapping[str, Contender],
    *,
    what: str,
    samples: int = 7,
    seconds: float | None = None,
) -> list[Row]:
    """Time and peak memory of contenders that take one tensor of cells (B, ...), and their ratios
    to one of them.

    Nothing is checked here: the caller has checked that the contenders compute the same.
    """
    device = contenders[baseline].inputs[0][0].device
    # Memory first, before anything that a contender keeps between calls has grown to the full size.
    peaks = {name: _peak(contender, device) for name, contender in contenders.items()}
    timings = time_interleaved(contenders, device=device, samples=samples, seconds=seconds)
    cells = {name: contender.inputs[0][0].shape[0] for name, contender in contenders.items()}
    reference_time = timings[baseline].median / cells[baseline]
    return [
        Row(
            what=what,
            contender=name,
            baseline=baseline,
            cells=cells[name],
            timing=timings[name],
            ratio=None
            if name == baseline
            else reference_time / (timings[name].median / cells[name]),
            peak=peaks[name],
            input_bytes=tensor_bytes(contender.inputs[0]),
        )
        for name, contender in contenders.items()
    ]


def _peak(contender: Contender, device: torch.device) -> Peak:
    (tokens,) = contender.inputs[0]
    return peak_memory(contender.function, (tokens,), small_inputs=(_small(tokens),), device=device)


def _small(tokens: Tensor) -> Tensor:
    """Two cells of sixteen positions, of the same kind."""
    if tokens.layout is torch.sparse_csr:
        return torch.eye(2, 16, dtype=tokens.dtype, device=tokens.device).to_sparse_csr()
    return tokens[:2, :16].detach().clone().requires_grad_(tokens.requires_grad)


def _like(tokens: Tensor, example: Tensor) -> Tensor:
    return tokens.to_sparse_csr() if example.layout is torch.sparse_csr else tokens


def with_backend(module: nn.Module, backend: str) -> nn.Module:
    """A copy of a masking module that runs on a backend."""
    module = copy.deepcopy(module)
    vars(module)["backend"] = backend
    return module
