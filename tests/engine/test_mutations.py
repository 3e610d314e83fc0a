"""A wrong backend is found out: mistakes are planted in a copy of the reference, which then stands
in for a backend.

Each mutant is one mistake that somebody makes when writing a kernel. ``mam.testing.check`` must
report it; the copy without a mistake
must pass. Two kinds: a line of the source changed (``LINES``), and a backend that misuses its
arguments or its results (``WRAPPERS``).
"""

import importlib
import importlib.util
import inspect
import re
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType

import pytest
import torch
from torch import Tensor

import mam_kernels as mam
from mam_kernels._core import dispatch, philox
from mam_kernels.ops.latent_attention import reference as latent
from mam_kernels.ops.selection import reference as selection
from mam_kernels.ops.value_attention import reference as value
from mam_kernels.testing import cases, tolerances

checker = importlib.import_module(
    "mam_kernels.testing.check"
)  # the package's own `check` is the function

pytestmark = pytest.mark.filterwarnings("ignore:Sparse")  # torch calls its CSR support beta

SOURCES = {"philox": philox, "selection": selection, "value": value, "latent": latent}
FOLDERS = {"value_attention": "value", "latent_attention": "latent", "selection": "selection"}

# name -> file, and the replacements in it, each of which must be found exactly once
LINES: dict[str, tuple[str, list[tuple[str, str]]]] = {
    # Philox
    "nine rounds": ("philox", [("ROUNDS = 10", "ROUNDS = 9")]),
    "key schedule forgotten": (
        "philox",
        [("k0, k1 = (k0 + WEYL[0]) & WORD, (k1 + WEYL[1]) & WORD", "pass")],
    ),
    "key schedule swapped": (
        "philox",
        [("(k0 + WEYL[0]) & WORD, (k1 + WEYL[1])", "(k0 + WEYL[1]) & WORD, (k1 + WEYL[0])")],
    ),
    "high and low product swapped": (
        "philox",
        [("    return high, low\n", "    return low, high\n")],
    ),
    "carry of the product lost": (
        "philox",
        [("(high_half + (low_half >> 16)) >> 16", "high_half >> 16")],
    ),
    "high word of the seed lost": ("philox", [("(seed >> 32) & WORD", "0 * seed")]),
    "words of the seed swapped": (
        "philox",
        [
            (
                "k0, k1 = seed & WORD, (seed >> 32) & WORD",
                "k1, k0 = seed & WORD, (seed >> 32) & WORD",
            )
        ],
    ),
    "words of a block reversed": (
        "philox",
        [("torch.stack(words, dim=-1)", "torch.stack(words[::-1], dim=-1)")],
    ),
    "word-major layout of positions": (
        "philox",
        [("torch.stack(words, dim=-1)", "torch.stack(words, dim=-2)")],
    ),
    "block counted from one": (
        "philox",
        [
            (
                "torch.arange((num_positions + 3) // 4,",
                "torch.arange(1, (num_positions + 3) // 4 + 1,",
            )
        ],
    ),
    "sample id and step exchanged": (
        "philox",
        [
            (
                "        sample_ids[:, None],\n        step.to(sample_ids.device),",
                "        step.to(sample_ids.device),\n        sample_ids[:, None],",
            )
        ],
    ),
    "step forgotten": (
        "philox",
        [("        step.to(sample_ids.device),", "        0 * step.to(sample_ids.device),")],
    ),
    "step cut to 16 bits": (
        "philox",
        [("        step.to(sample_ids.device),", "        step.to(sample_ids.device) & 0xFFFF,")],
    ),
    "sample id cut to 31 bits": (
        "philox",
        [("        sample_ids[:, None],", "        sample_ids[:, None] & 0x7FFFFFFF,")],
    ),
    "one stream for everything": (
        "philox",
        [("torch.full_like(blocks[None, :], stream)", "torch.zeros_like(blocks[None, :])")],
    ),
    "streams swapped": (
        "philox",
        [("STREAM_POSITIONS = 0\nSTREAM_LATENTS = 1", "STREAM_POSITIONS = 1\nSTREAM_LATENTS = 0")],
    ),
    "uniforms of 24 bits": (
        "philox",
        [
            (
                "(bits.to(torch.float32) + 0.5) * 2.0**-32",
                "((bits >> 8).to(torch.float32) + 0.5) * 2.0**-24",
            )
        ],
    ),
    "uniforms that reach 1": ("philox", [(".clamp(max=LARGEST_UNIFORM)", "")]),
    "signed bits": (
        "philox",
        [("bits.to(torch.float32) + 0.5", "bits.to(torch.int32).abs().to(torch.float32) + 0.5")],
    ),
    # Selection
    "exponential of the other tail": (
        "selection",
        [("-torch.log1p(-philox.uniforms(bits)", "-torch.log(philox.uniforms(bits)")],
    ),
    "uniform keys": (
        "selection",
        [
            (
                "-torch.log1p(-philox.uniforms(bits).to(weights.dtype))",
                "philox.uniforms(bits).to(weights.dtype)",
            )
        ],
    ),
    "keys times weights": ("selection", [("exponential / weights", "exponential * weights")]),
    "ties to the higher index": (
        "selection",
        [
            (
                "order = torch.argsort(keys, dim=-1, stable=True)",
                "order = keys.shape[-1] - 1 - torch.argsort(keys.flip(-1), dim=-1, stable=True)",
            )
        ],
    ),
    "k one too many": ("selection", [("rank < count[:, None]", "rank <= count[:, None]")]),
    "k one too few": ("selection", [("rank < count[:, None]", "rank < count[:, None] - 1")]),
    "k of the first row for all": ("selection", [("rank < count[:, None]", "rank < count[0]")]),
    "as many as k asks for, drawable or not": ("selection", [(" & torch.isfinite(keys)\n", "\n")]),
    "padding drawn": ("selection", [("        drawable &= valid\n", "        pass\n")]),
    "zero weights drawn": (
        "selection",
        [("(weights + eps >= tiny)", "(weights + eps >= 0)")],
    ),
    "negative weights drawn": (
        "selection",
        [
            ("(weights >= 0) & (weights + eps >= tiny)", "(weights != 0)"),
            ("weights + eps, 0.0)", "weights.abs(), 0.0)"),
        ],
    ),
    "infinite weights drawn": (
        "selection",
        [
            (" & torch.isfinite(weights)\n", " & ~torch.isnan(weights)\n"),
            ("weights + eps, 0.0)", "weights.clamp(max=9.0), 0.0)"),
        ],
    ),
    "eps forgotten": (
        "selection",
        [("torch.where(drawable, weights + eps, 0.0)", "torch.where(drawable, weights, 0.0)")],
    ),
    "eps added after the power": (
        "selection",
        [
            ("torch.where(drawable, weights + eps, 0.0)", "torch.where(drawable, weights, 0.0)"),
            ("** inverse_temperature\n", "** inverse_temperature + eps\n"),
        ],
    ),
    "temperature ignored": ("selection", [(") ** inverse_temperature\n", ")\n")]),
    "temperature upside down": (
        "selection",
        [(") ** inverse_temperature\n", ") ** (1.0 / inverse_temperature)\n")],
    ),
    "the row's index instead of its sample id": (
        "selection",
        [("if draw.sample_ids is None else draw.sample_ids\n", "\n")],
    ),
    "latents not sorted": ("selection", [("order[:size].sort().values", "order[:size]")]),
    "the largest latents": ("selection", [("order[:size].sort()", "order[-size:].sort()")]),
    # Values
    "log-partition without the zeros": (
        "value",
        [
            (
                "partition = weight_of_zeros + weight.sum(dim=-1)",
                "partition = weight.sum(dim=-1) + 0 * weight_of_zeros",
            )
        ],
    ),
    "every position counted as a zero": (
        "value",
        [("return self.zeros.sum()", "return self.zeros.sum() + self.values.numel()")],
    ),
    "zeros weigh one after the shift too": (
        "value",
        [("cell.num_zeros * torch.exp(-shift)", "cell.num_zeros * torch.ones_like(shift)")],
    ),
    "no shift": (
        "value",
        [
            (
                "torch.cat([lowest, score], dim=-1).amax(dim=-1).detach()",
                "torch.zeros_like(slope)",
            )
        ],
    ),
    "shift that forgets the zeros": (
        "value",
        [
            (
                "(slope * 0.0 if cell.num_zeros else",
                "(torch.full_like(slope, -torch.inf) if cell.num_zeros else",
            )
        ],
    ),
    "shift not added back": (
        "value",
        [("return shift + torch.log(partition)", "return torch.log(partition)")],
    ),
    "mean of the values that are not zero": (
        "value",
        [
            (
                "(weight * cell.values).sum(dim=-1) / partition",
                "(weight * cell.values).sum(dim=-1) / weight.sum(dim=-1).clamp(min=1e-30)",
            )
        ],
    ),
    "variance without the square of the mean": (
        "value",
        [
            (
                "weight_of_zeros * mean**2 + (weight * (cell.values - mean[..., None]) ** 2).sum(dim=-1)",
                "(weight * cell.values**2).sum(dim=-1)",
            )
        ],
    ),
    "variance without the zeros": (
        "value",
        [("weight_of_zeros * mean**2 + (weight", "0 * weight_of_zeros + (weight")],
    ),
    "importance of all latents": (
        "value",
        [
            ("slope[latents].to(", "slope.to("),
            ("chosen, partition[latents])", "chosen, partition)"),
        ],
    ),
    "importance of the first latents": (
        "value",
        [
            ("slope[latents].to(", "slope[: latents.numel()].to("),
            ("chosen, partition[latents])", "chosen, partition[: latents.numel()])"),
        ],
    ),
    "importance of one head": (
        "value",
        [
            (
                "- log_partition[..., None]).sum(dim=(0, 1))",
                "- log_partition[..., None])[:, 0].sum(dim=0)",
            )
        ],
    ),
    "importance of the zeros forgotten": (
        "value",
        [("importance[cell.zeros] = torch.exp(-log_partition).sum()", "pass")],
    ),
    "unnormalised importance of the zeros": (
        "value",
        [("torch.exp(-log_partition).sum()", "torch.ones_like(log_partition).sum()")],
    ),
    "padding is a value": ("value", [("exists & (values != 0)", "(values != 0)")]),
    "padding is a zero": (
        "value",
        [
            (
                "return Cell(values[columns], columns, exists & (values == 0))",
                "return Cell(values[columns], columns, ~(exists & (values != 0)))",
            )
        ],
    ),
    "stored entries of CSR are zeros too": ("value", [("    zeros[columns] = False\n", "")]),
    "padding of CSR is a zero": (
        "value",
        [
            (
                "exists = values.new_ones(num_positions, dtype=torch.bool) if valid is None else valid\n    columns = columns.to(torch.int64)",
                "exists = values.new_ones(num_positions, dtype=torch.bool)\n    columns = columns.to(torch.int64)",
            )
        ],
    ),
    "stored padding of CSR is a value": (
        "value",
        [("values[exists[columns]], columns[exists[columns]]", "values, columns")],
    ),
    "rows of CSR end one entry early": (
        "value",
        [("slice(start, stop)", "slice(start, max(start, stop - 1))")],
    ),
    "columns of CSR taken for sorted": (
        "value",
        [("columns = columns.to(torch.int64)", "columns = columns.to(torch.int64).sort().values")],
    ),
    "values rounded to float16": (
        "value",
        [
            (
                "values.to(torch.promote_types(values.dtype, torch.float32))\n    if crow",
                "values.half().float()\n    if crow",
            )
        ],
    ),
    "an empty row is NaN": (
        "value",
        [
            (
                "return torch.full_like(slope, -torch.inf), torch.zeros_like(slope), torch.zeros_like(slope)",
                "return torch.full_like(slope, torch.nan), torch.zeros_like(slope), torch.zeros_like(slope)",
            )
        ],
    ),
    # Tokens
    "scores without scale": (
        "latent",
        [("scores = scale * torch.einsum", "scores = torch.einsum")],
    ),
    "padding attended to": (
        "latent",
        [
            (
                "return scores if valid is None else scores.masked_fill(~valid, -torch.inf)",
                "return scores",
            )
        ],
    ),
    "NaN of the padding in the scores": (
        "latent",
        [
            ("query, _kept(key, valid))", "query, key)"),
            (
                "scores.masked_fill(~valid, -torch.inf)",
                "scores + torch.where(valid, 0.0, -torch.inf)",
            ),
        ],
    ),
    "NaN of the padding in the output": (
        "latent",
        [("attention, _kept(value[b], _row(valid, b)))", "attention, value[b])")],
    ),
    "an empty row divides by zero": (
        "latent",
        [
            (
                "torch.exp(scores - torch.where(empty, 0.0, logsumexp)[..., None])",
                "torch.exp(scores - logsumexp[..., None])",
            ),
            (
                "torch.where(empty[..., None] | torch.isneginf(scores), 0.0, attention)",
                "attention",
            ),
        ],
    ),
    "padding of the first row for all": (
        "latent",
        [("None if flags is None else flags[b]", "None if flags is None else flags[0]")],
    ),
    "log-sum-exp in base 2": (
        "latent",
        [
            (
                "torch.logsumexp(scores, dim=-1)",
                "torch.logsumexp(scores, dim=-1) / 0.6931471805599453",
            )
        ],
    ),
    "output not normalised": (
        "latent",
        [
            (
                "attention = cell_attention(scores, sums[-1])\n        outputs",
                "attention = scores.exp()\n        outputs",
            )
        ],
    ),
    "values where keys belong": (
        "latent",
        [
            (
                "scores = cell_scores(query, key[b], _row(valid, b), scale)\n        sums",
                "scores = cell_scores(query, value[b], _row(valid, b), scale)\n        sums",
            )
        ],
    ),
    "gradient of the query without scale": (
        "latent",
        [("grad_query += scale * torch", "grad_query += torch")],
    ),
    "gradient of the key without scale": (
        "latent",
        [("grad_keys.append(scale * torch", "grad_keys.append(torch")],
    ),
    "gradient of the query of one cell": (
        "latent",
        [("grad_query += scale", "grad_query = scale")],
    ),
    "gradient of the log-sum-exp ignored": (
        "latent",
        [("        delta = delta - grad_logsumexp\n", "        pass\n")],
    ),
    "gradient of the log-sum-exp of the wrong sign": (
        "latent",
        [("delta = delta - grad_logsumexp", "delta = delta + grad_logsumexp")],
    ),
    "gradient of the softmax without its sum": (
        "latent",
        [("(grad_attention - delta[b][..., None])", "grad_attention")],
    ),
    "gradient of the value from the scores": (
        "latent",
        [
            (
                'grad_values.append(torch.einsum("nhl,nhd->lhd", attention,',
                'grad_values.append(torch.einsum("nhl,nhd->lhd", attention**2,',
            )
        ],
    ),
    "NaN of the padding in the gradient": (
        "latent",
        [
            (
                "kept_key, kept_value = _kept(key[b], _row(valid, b)), _kept(value[b], _row(valid, b))",
                "kept_key, kept_value = key[b], value[b]",
            )
        ],
    ),
    "token importance of all latents": (
        "latent",
        [("query[latents], key[b]", "query, key[b]"), ("logsumexp[b, latents]", "logsumexp[b]")],
    ),
    "token importance of other latents than the log-sum-exp": (
        "latent",
        [("query[latents], key[b]", "query[: latents.numel()], key[b]")],
    ),
    "token importance of the most attentive head": (
        "latent",
        [(".sum(dim=(0, 1))", ".sum(dim=0).amax(dim=0)")],
    ),
}


def _whatever_the_line_breaks(code: str) -> str:
    """A pattern for ``code`` however a formatter breaks its lines inside of brackets."""
    if code.startswith((" ", "\n")) or code.endswith("\n"):  # a whole line: indentation counts
        return re.escape(code)
    tokens = re.findall(r"\w+|[^\w\s]", code)
    parts = [re.escape(tokens[0])]
    for token in tokens[1:]:
        parts.append((r"\s*,?\s*" if token in ")]" else r"\s*") + re.escape(token))
    return "".join(parts)


def mutated(name: str, replacements: list[tuple[str, str]]) -> ModuleType:
    """A copy of a source file, with replacements; the module that ``import`` gives stays as it is."""
    original = SOURCES[name]
    source = inspect.getsource(original)
    for old, new in replacements:
        pattern = _whatever_the_line_breaks(old)
        found = len(re.findall(pattern, source))
        assert found == 1, (
            f"the line to mutate occurs {found} times in {original.__name__}: {old!r}"
        )
        source = re.sub(pattern, lambda _, new=new: new, source)
    copy = importlib.util.module_from_spec(original.__spec__)
    exec(compile(source, f"<{name}, mutated>", "exec"), copy.__dict__)
    return copy


def backend_of(
    name: str | None = None, replacements: list[tuple[str, str]] | None = None
) -> Callable[[str], Callable]:
    """A backend made of copies of the reference, one of them with a mistake: operation -> function."""
    copies = {each: mutated(each, replacements or [] if each == name else []) for each in SOURCES}
    copies["selection"].philox = copies["philox"]
    copies["value"].select = copies["latent"].select = copies["selection"].select
    return lambda op: getattr(
        copies[FOLDERS[dispatch.IMPLEMENTATIONS[op][0]]], dispatch.IMPLEMENTATIONS[op][1]
    )


def plant(monkeypatch: pytest.MonkeyPatch, backend: Callable[[str], Callable]) -> None:
    """Make it what runs by the name of the reference; the oracles of the checks are the untouched
    functions.
    """
    monkeypatch.setattr(dispatch, "_implementation", lambda op, name: backend(op))


def float32_findings(first: str = "selection") -> Iterator[checker.Finding]:
    """Those of a backend that takes float32, as every kernel does; by its own name the reference is
    held to float64 alone.

    ``first`` is where a mistake is looked for first: nothing but time depends on it.
    """
    for op in sorted(
        ("latents", "selection", "value path", "token path"), key=lambda op: op != first
    ):
        if op == "latents":
            yield checker.Finding(
                "reference",
                op,
                torch.int64,
                "38 of 128",
                checker.check_latents(128, 38, "reference", "cpu"),
            )
        for some_cases, check in CHECKS.get(op, ()):
            yield from checker._run(op, "reference", torch.float32, "cpu", some_cases(), check)


CHECKS = {
    "selection": [
        (cases.selection_cases, checker.check_selection),
        (cases.race_cases, checker.check_race),
    ],
    "value path": [
        (cases.value_cases, partial(checker.check_value_path, **options))
        for options in ({}, checker.WEIGHTING)
    ],
    "token path": [
        (cases.token_cases, partial(checker.check_token_path, **options))
        for options in ({}, checker.WEIGHTING)
    ],
}


def first_failure(first: str) -> checker.Finding | None:
    """The first comparison that fails."""
    return next((finding for finding in float32_findings(first) if finding.failures), None)


# Backends that misuse their arguments or results: op -> what takes the right function and gives a
# wrong one


def _changed_result(
    change: Callable[[Tensor], Tensor], which: int
) -> Callable[[Callable], Callable]:
    """One of the results is changed; ``which`` counts them, a lone tensor is number 0."""

    def wrap(right: Callable) -> Callable:
        def wrong(*arguments):
            result = right(*arguments)
            if isinstance(result, Tensor):
                return change(result)
            return tuple(change(x) if index == which else x for index, x in enumerate(result))

        return wrong

    return wrap


def _changed_argument(
    change: Callable[[object], object], which: int, field: str | None = None
) -> Callable[[Callable], Callable]:
    """An argument is changed, or a field of it where it is a structure."""

    def wrong_of(x: object) -> object:
        return change(x) if field is None else x._replace(**{field: change(getattr(x, field))})

    def wrap(right: Callable) -> Callable:
        return lambda *arguments: right(
            *(wrong_of(x) if index == which else x for index, x in enumerate(arguments))
        )

    return wrap


def _as_if_contiguous(x: Tensor | None) -> Tensor | None:
    """What is read when strides are ignored."""
    if x is None or x.layout != torch.strided or x.is_contiguous():
        return x
    strides = torch.empty(x.shape, device="meta").stride()
    return x.as_strided(x.shape, strides)


def _without_tail(x: Tensor) -> Tensor:
    """The positions beyond the last whole block of 16 are not written."""
    x = x.clone()
    x[:, x.shape[1] // 16 * 16 :] = 0
    return x


def _last_element_wrong(x: Tensor) -> Tensor:
    x = x.clone()
    x.view(-1)[-1] = x.view(-1)[-1] * 1.001 + 1e-3
    return x


def _last_row_as_first(x: Tensor) -> Tensor:
    return torch.cat([x[:-1], x[:1]])


# Tensors of (B, L) or of tokens, by where they stand: number of the argument, field of a structure
_CELLS = {"values": (0, "values"), "valid": (0, "valid")}
_TENSORS: dict[str, dict[str, tuple]] = {
    "value_attention": _CELLS,
    "value_mask": {**_CELLS, "maskable": (2, "maskable")},
    "sample_without_replacement": {"weights": (0,), "valid": (2,)},
    "latent_attention": {"key": (1,), "value": (2,), "valid": (3,)},
    "latent_attention_backward": {"key": (3,), "value": (4,), "valid": (5,)},
    "attention_logsumexp": {"key": (1,), "valid": (2,)},
    "attention_importance": {"key": (1,), "valid": (4,)},
    "token_mask": {"key": (1,), "valid": (3,), "maskable": (5, "maskable")},
}

WRAPPERS: dict[str, tuple[str, Callable[[Callable], Callable]]] = {}
for _op, _arguments in _TENSORS.items():
    for _name, _where in _arguments.items():
        WRAPPERS[f"{_op} ignores the strides of {_name}"] = (
            _op,
            _changed_argument(_as_if_contiguous, *_where),
        )
        if _name not in ("valid", "maskable"):
            continue
        WRAPPERS[f"{_op} takes {_name} upside down"] = (
            _op,
            _changed_argument(lambda x: None if x is None else ~x, *_where),
        )
        WRAPPERS[f"{_op} ignores {_name}"] = (_op, _changed_argument(lambda x: None, *_where))
for _op in ("value_mask", "token_mask", "sample_without_replacement"):
    WRAPPERS[f"{_op} shifts the mask by one"] = (
        _op,
        _changed_result(lambda x: x.roll(1, dims=1), 0),
    )
    WRAPPERS[f"{_op} leaves the tail of the mask unwritten"] = (
        _op,
        _changed_result(_without_tail, 0),
    )
    WRAPPERS[f"{_op} inverts the mask"] = (_op, _changed_result(lambda x: ~x, 0))
    WRAPPERS[f"{_op} gives the last row the mask of the first"] = (
        _op,
        _changed_result(_last_row_as_first, 0),
    )
for _op in ("value_mask", "token_mask"):
    WRAPPERS[f"{_op} leaves the tail of the importance unwritten"] = (
        _op,
        _changed_result(_without_tail, 1),
    )
    WRAPPERS[f"{_op} gives half of the importance"] = (_op, _changed_result(lambda x: 0.5 * x, 1))
    WRAPPERS[f"{_op} gives the last row the importance of the first"] = (
        _op,
        _changed_result(_last_row_as_first, 1),
    )
for _op, _results in {"value_attention": 3, "latent_attention": 2, "latent_attention_backward": 3, "attention_logsumexp": 1,
                      "attention_importance": 1, "draw_latents": 1}.items():  # fmt: skip
    for _index in range(_results):
        change = (lambda x: x.flip(0)) if _op == "draw_latents" else _last_element_wrong
        WRAPPERS[f"{_op} has a wrong last element in result {_index}"] = (
            _op,
            _changed_result(change, _index),
        )
for _index, _quantity in enumerate(("log-partition", "mean", "variance"), start=2):
    WRAPPERS[f"value_mask has a wrong last element in the {_quantity}"] = (
        "value_mask",
        _changed_result(_last_element_wrong, _index),
    )
# Where the masks have the choice, the weighting and the draw
for _op, _choice in {"value_mask": 2, "token_mask": 5}.items():
    for _what, _argument in {
        "ignores eps": (lambda x: 0.0, _choice + 1, "eps"),
        "ignores the temperature": (lambda x: 1.0, _choice + 1, "inverse_temperature"),
        "ignores the sample ids": (lambda x: None, _choice + 2, "sample_ids"),
        "takes the k of the first row for all": (
            lambda x: x[:1].expand_as(x),
            _choice,
            "num_masked",
        ),
    }.items():
        WRAPPERS[f"{_op} {_what}"] = (_op, _changed_argument(*_argument))
WRAPPERS["sample_without_replacement ignores the sample ids"] = (
    "sample_without_replacement",
    _changed_argument(lambda x: None, 3, "sample_ids"),
)
WRAPPERS["latent_attention_backward ignores the gradient of the log-sum-exp"] = (
    "latent_attention_backward",
    _changed_argument(lambda x: None, 1),
)


# The tests


def test_a_copy_of_the_reference_without_a_mistake_passes_every_check_in_float32(monkeypatch):
    plant(monkeypatch, backend_of())
    found = list(float32_findings())
    assert len(found) > 70
    assert {finding.op for finding in found} == {"value path", "token path", "selection", "latents"}
    assert [str(failure) for finding in found for failure in finding.failures] == []


@pytest.mark.parametrize("name", LINES)
def test_a_mistake_in_one_line_is_found(name, monkeypatch):
    plant(monkeypatch, backend_of(*LINES[name]))
    first = {"value": "value path", "latent": "token path"}.get(LINES[name][0], "selection")
    assert first_failure(first) is not None


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_misused_argument_or_a_wrong_result_is_found(name, monkeypatch):
    op, wrap = WRAPPERS[name]
    right = backend_of()
    plant(monkeypatch, lambda each: wrap(right(each)) if each == op else right(each))
    first = (
        "value path"
        if op.startswith("value")
        else "selection"
        if op in ("sample_without_replacement", "draw_latents")
        else "token path"
    )
    assert first_failure(first) is not None


def test_check_raises_and_names_backend_operation_type_case_and_quantity(monkeypatch):
    plant(monkeypatch, backend_of(*LINES["k one too many"]))
    with pytest.raises(
        mam.testing.ValidationError,
        match=r"reference, value path, torch\.float64, cells: mask: error",
    ):
        mam.testing.check("reference")


def test_check_prints_which_operation_missed_and_still_prints_the_others(monkeypatch, capsys):
    plant(monkeypatch, backend_of(*LINES["gradient of the query without scale"]))
    with pytest.raises(mam.testing.ValidationError):
        mam.testing.check("reference")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if "MISS" in line] == ["token"]
    assert sum("  ok" in line for line in lines) >= 3


def test_check_passes_and_returns_its_table_for_every_backend_that_runs_here(capsys):
    table = mam.testing.check()
    assert table in capsys.readouterr().out
    available = [name for name, state in mam.backends().items() if state]
    assert all(any(line.startswith(name) for line in table.splitlines()) for name in available)
    assert "MISS" not in table


def test_planting_a_mistake_left_the_reference_untouched():
    backend_of(*LINES["keys times weights"])
    keys = selection.race_keys(torch.tensor([[1.0, 2.0]]), torch.tensor([[2**31, 2**31]]))
    torch.testing.assert_close(keys, torch.tensor([[1.0, 0.5]]) * torch.tensor(2.0).log())


# The measures that decide


def test_nan_an_infinity_elsewhere_and_another_shape_are_errors_of_every_measure():
    truth = torch.tensor([[1.0, 2.0], [3.0, -torch.inf]])
    assert tolerances.row_error(truth.clone(), truth.double()) == 0.0
    for got in (
        torch.tensor([[1.0, torch.nan], [3.0, -torch.inf]]),
        torch.tensor([[1.0, 2.0], [-torch.inf, 3.0]]),
        truth[:1],
    ):
        assert tolerances.row_error(got, truth.double()) == float("inf")
    assert tolerances.element_error(
        torch.tensor([torch.nan, 1.0]), torch.ones(2, dtype=torch.float64)
    ) == float("inf")
    assert not tolerances.Comparison("anything", float("nan"), 1.0).holds


def test_errors_are_relative_to_the_row_or_to_the_element():
    truth = torch.tensor([[100.0, 1.0], [0.0, 1e-3]], dtype=torch.float64)
    got = truth + torch.tensor([[0.0, 0.1], [0.0, 1e-5]])
    assert tolerances.row_error(got, truth) == pytest.approx(1e-2)
    assert tolerances.element_error(got, truth) == pytest.approx(0.1)
    assert tolerances.element_error(
        torch.tensor([0.0, 1.0]), torch.tensor([1e-30, 1.0], dtype=torch.float64)
    ) == float("inf")


def test_twice_the_error_of_plain_pytorch_is_allowed_and_not_more():
    truth = torch.ones(1, 1, dtype=torch.float64)
    plain = truth + 1e-3
    assert tolerances.compare("x", truth + 1.9e-3, plain, truth, torch.float32).holds
    assert not tolerances.compare("x", truth + 2.1e-3, plain, truth, torch.float32).holds


@pytest.mark.parametrize(
    ("relative_shift", "misplaced"),
    [(0.1 * tolerances.KEY_MARGIN, 0), (100 * tolerances.KEY_MARGIN, 1)],
)
def test_only_keys_within_rounding_of_the_threshold_may_change_sides(relative_shift, misplaced):
    # Weights that put the 10th and the 11th key of a row a relative distance apart; the mask takes
    # the 11th in place of the 10th.
    seed, step = checker.words()
    bits = philox.random_bits(30, torch.tensor([0]), step, seed, philox.STREAM_POSITIONS)
    exponential = selection.race_keys(torch.ones(1, 30, dtype=torch.float64), bits)
    order = exponential[0].argsort()
    weights = torch.ones(1, 30, dtype=torch.float64)
    weights[0, order[10]] = exponential[0, order[10]] / (
        exponential[0, order[9]] * (1 + relative_shift)
    )
    mask = torch.zeros(1, 30, dtype=torch.bool)
    mask[0, order[:9]] = mask[0, order[10]] = True
    assert (
        tolerances.misplaced(mask, weights, torch.tensor([10]), seed=seed, step=step) == misplaced
    )


def test_a_position_too_many_or_too_few_is_always_counted():
    seed, step = checker.words()
    mask = mam.sample_without_replacement(torch.ones(1, 30), 10, seed=seed, step=step)
    assert (
        tolerances.misplaced(mask, torch.ones(1, 30), torch.tensor([10]), seed=seed, step=step) == 0
    )
    assert (
        tolerances.misplaced(mask, torch.ones(1, 30), torch.tensor([11]), seed=seed, step=step) >= 1
    )
    assert (
        tolerances.misplaced(mask, torch.ones(1, 30), torch.tensor([9]), seed=seed, step=step) >= 1
    )
