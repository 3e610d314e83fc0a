"""Where the context is added, and whether the model read what was masked."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.checkpoint import checkpoint

from mam_kernels.integrations import MaskingStep, NotReadError, Place
from tests.real_cells import encoder, small_masker

CELLS, LENGTH, WIDTH = 6, 9, 32


@pytest.fixture
def values() -> torch.Tensor:
    return torch.rand(CELLS, LENGTH, generator=torch.Generator().manual_seed(0))


def masked_of(values: torch.Tensor):
    torch.manual_seed(0)
    masking = MaskingStep(small_masker(), mask_value=-1.0, embed_dim=WIDTH, seed=0)
    return masking(values, values, torch.ones_like(values, dtype=torch.bool))


class Recording(nn.Module):
    """Says what it was called with; ``tokens`` may come by position or by name, or in a dict."""

    def forward(self, first, tokens=None, *, total_embs=None):
        return first if tokens is None and total_embs is None else tokens


class Plain(nn.Module):
    def forward(self, tokens, mask=None):
        return tokens * 1.0


def embedded(masked) -> torch.Tensor:
    return masked.inputs[..., None].expand(-1, -1, WIDTH) * 1.0


def test_an_argument_is_named_however_the_module_is_called(values):
    masked = masked_of(values)
    tokens, module = embedded(masked), Recording()
    for place, call in (
        (Place(module, "tokens"), lambda: module(None, tokens)),
        (Place(module, 1), lambda: module(None, tokens)),
        (Place(module, "tokens"), lambda: module(None, tokens=tokens)),
        (Place(module, 1), lambda: module(first=None, tokens=tokens)),
    ):
        with masked.injected(place):
            found = call()
        torch.testing.assert_close(found, tokens + masked.encoder_shift)

    class ByKeyword(nn.Module):  # as Tahoe-x1's encoder
        def forward(self, *, total_embs, key_padding_mask=None):
            return total_embs

    by_keyword = ByKeyword()
    with masked.injected(Place(by_keyword, "total_embs")):
        found = by_keyword(total_embs=tokens)
    torch.testing.assert_close(found, tokens + masked.encoder_shift)


def test_a_dict_an_output_and_one_embedding_a_cell(values):
    masked = masked_of(values)

    class Takes(nn.Module):  # as CellPLM's encoder
        def forward(self, x_dict):
            return {"hidden": x_dict["h"]}

    class Gives(nn.Module):  # as scvi's layers
        def forward(self, x):
            return x

    cells = masked.inputs @ torch.ones(LENGTH, WIDTH)
    takes, gives = Takes(), Gives()
    given = {"h": cells, "other": 3}
    with masked.injected(Place(takes, "x_dict", key="h", layout="cells")):
        found = takes(given)["hidden"]
    torch.testing.assert_close(found, cells + masked.encoder_shift[:, 0])
    assert given["h"] is cells  # the caller's dict is as it was
    with masked.injected(Place(gives, output=True, layout="cells")):
        torch.testing.assert_close(gives(cells), cells + masked.encoder_shift[:, 0])


def test_a_layout_is_seen_by_shape_or_said_and_never_guessed(values):
    masked, square = masked_of(values), masked_of(values[:, :CELLS])
    tokens = embedded(masked)
    for turned in (False, True):
        module = Plain()
        given = tokens.transpose(0, 1) if turned else tokens
        with masked.injected(module):
            found = module(given)
        found = found.transpose(0, 1) if turned else found
        torch.testing.assert_close(found, tokens + masked.encoder_shift)

        both = embedded(square)
        fresh = Plain()
        with (
            pytest.raises(ValueError, match=r"encoder: expected layout='batch_first' or layout="),
            square.injected(fresh),
        ):
            fresh(both)
        layout = "sequence_first" if turned else "batch_first"
        shift = square.encoder_shift.transpose(0, 1) if turned else square.encoder_shift
        for place in (Place(fresh, layout=layout), module):  # said, or seen before
            used = place.module if isinstance(place, Place) else place
            with square.injected(place):
                torch.testing.assert_close(used(both), both + shift)

    attention = encoder(WIDTH)  # whose attention says batch_first
    with square.injected(attention):
        found = attention(both)
    torch.testing.assert_close(found, attention(both + square.encoder_shift))


def test_what_is_no_place_is_refused(values):
    masked = masked_of(values)
    tokens, module = embedded(masked), Plain()
    for place, call, message in (
        (Place(module, "no_such"), None, "argument: expected one that Plain.forward takes: tokens"),
        (Place(module, 5), None, r"argument: expected one that Plain.forward takes.*; got 5"),
        (Place(module, layout="square"), None, "layout: expected one of batch_first"),
        (Place(module, layout="cells"), lambda: module(tokens), r"expected token embeddings \(6, "),
        (Place(module, 1), lambda: module(tokens), "expected a module that is called with the arg"),
        (Place(module, key="h"), lambda: module(tokens), "expected a dict that holds 'h'"),
        (Place(module, key="h"), lambda: module({"x": tokens}), "expected a dict that holds 'h'"),
        (module, lambda: module(tokens[:, 0]), "say layout='cells' if it holds one a cell"),
        (module, lambda: module(tokens[1:]), r"token embeddings \(6, L, 32\); got"),
    ):
        with pytest.raises((TypeError, ValueError), match=message), masked.injected(place):
            call()
    with (
        pytest.raises(TypeError, match=r"encoder: expected a torch\.nn\.Module, or a Place of one"),
        masked.injected(Place("encoder")),
    ):
        pass


# Reading


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layers = nn.Linear(1, WIDTH), encoder(WIDTH)

    def forward(self, values):
        return self.layers(self.embed(values[..., None]))


def test_a_model_that_reads_something_else_is_an_error(values):
    masked, model = masked_of(values), Model()
    for given in (values, masked.labels):
        context = pytest.raises(NotReadError, match="encoder: its token embeddings were not made")
        with context, masked.injected(model.layers):
            model(given)
    with masked.injected(model.layers):
        model(masked.inputs)
    with masked.injected(model.layers):  # the first step alone is watched
        model(values)


@pytest.mark.parametrize(
    "made",
    [
        lambda x: torch.log1p(x.clamp(min=0)),
        lambda x: torch.stack([x * 0, x], dim=1)[:, 1],
        lambda x: x.to_sparse().to_dense(),
        lambda x: x.double().float(),
        lambda x: torch.zeros_like(x).copy_(x),
        lambda x: x.repeat(1, 2)[:, :LENGTH],
    ],
    ids=["function", "stacked", "sparse", "cast", "copied", "repeated"],
)
def test_what_was_made_of_the_inputs_counts(values, made):
    masked, model = masked_of(values), Model()
    with masked.injected(model.layers):
        model(made(masked.inputs))


def test_a_function_with_a_backward_pass_of_its_own_is_seen(values):
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 2

    masked, model = masked_of(values), Model()
    with masked.injected(model.layers):
        model(Double.apply(masked.inputs.clone().requires_grad_()))


def test_what_one_is_a_view_of_counts(values):
    """As BMFM-RNA's ``input_ids``, of which ours is one field."""
    input_ids, model = torch.stack([values, values], dim=1), Model()
    masked = masked_of(values)._replace(inputs=input_ids[:, 1])
    with masked.injected(model.layers):
        model(input_ids.sum(dim=1))


@pytest.mark.parametrize("trained", [True, False])
def test_embeddings_that_were_made_before_are_no_alarm(values, trained):
    masked, model = masked_of(values), Model()
    with torch.set_grad_enabled(trained):
        tokens = model.embed(masked.inputs[..., None])
        with masked.injected(model.layers):
            model.layers(tokens)
        turned = Plain()
        with masked.injected(turned):
            turned(tokens.transpose(0, 1))


def test_the_first_step_alone_is_watched(values, monkeypatch):
    """Afterwards no operation passes through Python, and no module is looked through."""
    masked, modes = masked_of(values), []
    model = Model()
    model.embed.register_forward_hook(lambda *_: modes.append(_get_current_dispatch_mode()))
    with masked.injected(model.layers):
        model(masked.inputs)
    monkeypatch.setattr("mam_kernels.integrations.masked_batch.is_compiled", lambda module: 1 / 0)
    for _ in range(3):
        with masked.injected(model.layers):
            model(masked.inputs)
    assert [mode is None for mode in modes] == [False, True, True, True]


@pytest.mark.parametrize("kind", ["autocast", "checkpointed", "compiled", "compiled within"])
def test_reading_is_seen_however_a_model_runs(values, kind):
    masked = masked_of(values)

    def run(given):
        model = Model()
        call = model
        if kind == "compiled":
            call = torch.compile(model, backend="aot_eager")
        elif kind == "compiled within":
            model.embed = torch.compile(model.embed, backend="aot_eager")
        elif kind == "checkpointed":
            call = lambda x: checkpoint(model, x, use_reentrant=False)  # noqa: E731
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"),
            masked.injected(model.layers),
        ):
            first = call(given)
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"),
            masked.injected(model.layers),
        ):
            again = call(given)  # compiled now, where it is
        torch.testing.assert_close(first, again)
        first[..., 0].pow(3).sum().backward()
        assert model.embed.weight.grad.abs().max() > 0

    run(masked.inputs)
    with pytest.raises(NotReadError, match="encoder: its token embeddings were not made"):
        run(values)
