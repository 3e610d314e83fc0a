"""The engine inside PyTorch's own systems: compilation, CUDA graphs, autocast, checkpointing,
torch.func, export, and copies of state.

What runs in several processes is in test_processes.py; the plain cases of some systems are in
test_modules.py.
"""

import io
import shutil
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad, jacrev, jvp, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

import mam_kernels as mam
from tests.engine.test_modules import D, module_of, rand, same, tokens_of
from tests.examples import run_examples
from tests.test_readme import ROOT

PAGE = ROOT / "docs" / "pytorch_systems.md"
WIDTH = 6
BOTH = ["values", "embeddings"]

both_kinds = pytest.mark.parametrize("kind", BOTH)
both_contexts = pytest.mark.parametrize("context_from", ["all", "visible"])
narrow_types = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:.torch.jit.script"
    ),  # torch's own, when its compiler is loaded
    pytest.mark.filterwarnings(
        "ignore:There is a performance drop"
    ),  # vmap runs the kernels in a loop
]


class Model(nn.Module):
    """A training step whose loss depends on everything that a masking step returns, on the mask
    above all.
    """

    def __init__(self, kind: str = "values", **options: object) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.masking = module_of(kind, **options)
        self.injection = mam.ContextInjection(self.masking.latent_dim, WIDTH, "both")
        self.embed, self.head = nn.Linear(1 if kind == "values" else D, WIDTH), nn.Linear(WIDTH, 1)

    def forward(
        self, tokens: Tensor, valid: Tensor | None = None, **options: object
    ) -> tuple[Tensor, Tensor]:
        """The loss and the mask."""
        out = self.masking(tokens, valid, **options)
        embedded = tokens[..., None] if self.masking.input_dim is None else tokens
        encoder, decoder = self.injection(out.context)
        hidden = self.embed(embedded.masked_fill(out.mask[..., None], -1.0)) + encoder + decoder
        error = (self.head(hidden) - embedded).square().mean(dim=-1)
        return torch.where(
            out.mask, error, 0.0
        ).sum() / out.mask.sum() + 1e-2 * out.penalty, out.mask


def step_of(
    model: Callable, parameters: nn.Module, tokens: Tensor, valid: Tensor | None = None, **options
) -> tuple[Tensor, list[Tensor]]:
    """The mask of a training step, its loss, and the gradient of every parameter."""
    loss, mask = model(tokens, **({} if valid is None else {"valid": valid}), **options)
    return mask, [loss.detach(), *torch.autograd.grad(loss, list(parameters.parameters()))]


def agree(
    one: tuple[Tensor, list[Tensor]], other: tuple[Tensor, list[Tensor]], **tolerances: float
) -> None:
    assert torch.equal(one[0], other[0])
    torch.testing.assert_close(one[1], other[1], **tolerances)


def batches(kind: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Tokens, valid and maskable of several sizes."""
    for rows, positions in ((3, 20), (4, 33), (7, 21), (2, 64)):
        valid = torch.arange(positions) < torch.arange(positions - rows, positions)[:, None]
        yield tokens_of(kind, rows, positions), valid, rand(rows, positions, seed=4) < 0.7


# torch.compile


@pytest.fixture
def _compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_compiler")
@pytest.mark.parametrize(
    ("kind", "context_from", "padded", "maskable"),
    [
        ("values", "all", True, True),
        ("values", "visible", False, True),
        ("embeddings", "all", True, False),
        ("embeddings", "visible", True, True),
    ],
)
def test_a_compiled_training_step_equals_eager_and_serves_every_size_once_it_is_dynamic(
    kind, context_from, padded, maskable
):
    model, counter, compilations = (
        Model(kind, context_from=context_from),
        CompileCounterWithBackend("aot_eager"),
        [],
    )
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for number, (tokens, valid, allowed) in enumerate(batches(kind)):
        arguments = (tokens, valid if padded else None)
        options = {
            "maskable": allowed if maskable else None,
            "seed": torch.tensor(11),
            "step": torch.tensor(number),
        }
        options["sample_ids"] = torch.arange(len(tokens)) + 100 * number
        agree(
            step_of(compiled, model, *arguments, **options),
            step_of(model, model, *arguments, **options),
            rtol=1e-4,
            atol=1e-5,
        )
        compilations.append(counter.frame_count)
    assert compilations == [1, 2, 2, 2]  # for one size, then for all


@pytest.mark.usefixtures("_compiler")
def test_a_step_number_or_a_seed_as_an_int_compiles_anew_at_most_once():
    module, counter, tokens = (
        module_of(mask_ratio=0.5),
        CompileCounterWithBackend("aot_eager"),
        tokens_of("values", 4, 60),
    )
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for options in [
        *({"seed": 5, "step": step} for step in (0, 1, 2, 3, 2**32 - 1)),
        *({"seed": s, "step": 9} for s in (6, -7, 2**62)),
    ]:
        assert torch.equal(compiled(tokens, **options).mask, module(tokens, **options).mask)
    assert counter.frame_count <= 3  # the first, any step, any seed
    assert torch.equal(compiled(tokens, seed=2**63 + 9).mask, module(tokens, seed=2**63 + 9).mask)


@pytest.mark.usefixtures("_compiler")
@narrow_types
@both_kinds
def test_a_compiled_training_step_under_autocast_equals_eager(kind, dtype):
    model, tokens = Model(kind), tokens_of(kind)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=dtype):
        ours, theirs = (
            step_of(function, model, tokens, seed=torch.tensor(1)) for function in (compiled, model)
        )
    agree(ours, theirs, rtol=2e-2, atol=2e-3)


@pytest.mark.slow
@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))),
    reason="torch's compiler needs a C++ compiler on the CPU",
)
@pytest.mark.usefixtures("_compiler")
def test_a_training_step_compiled_by_inductor_equals_eager():
    model, (tokens, valid, maskable) = Model(context_from="visible"), next(batches("values"))
    options = {"maskable": maskable, "seed": torch.tensor(1), "step": torch.tensor(2)}
    compiled = torch.compile(model, fullgraph=True)
    agree(
        step_of(compiled, model, tokens, valid, **options),
        step_of(model, model, tokens, valid, **options),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.usefixtures("_compiler")
def test_sparse_cells_are_refused_by_torch_and_run_beside_a_compiled_model():
    module, injection, tokens = module_of(), mam.ContextInjection(16, WIDTH), tokens_of("CSR")
    with pytest.raises(torch._dynamo.exc.Unsupported, match="sparse"):
        torch.compile(module, fullgraph=True, backend="aot_eager")(tokens, seed=1)
    torch.compiler.reset()
    beside = torch.compiler.disable(module)
    compiled = torch.compile(
        lambda tokens: injection(beside(tokens, seed=1).context)[1] * 2, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(tokens), injection(module(tokens, seed=1).context)[1] * 2)


# CUDA graphs: replay of a forward pass is in conformance/test_masking.py


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@both_kinds
def test_a_training_step_replays_in_a_cuda_graph(kind):
    model, tokens = Model(kind).cuda(), tokens_of(kind).cuda()
    step = torch.zeros((), dtype=torch.int64, device="cuda")
    seed = torch.full((), 11, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            step_of(model, model, tokens, seed=seed, step=step)
    torch.cuda.current_stream().wait_stream(stream)
    graph, without_seed = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step_of(model, model, tokens, seed=seed, step=step)
    for number in (0, 5):
        step.fill_(number)
        graph.replay()
        agree(captured, step_of(model, model, tokens, seed=11, step=number), rtol=1e-4, atol=1e-5)
    with torch.cuda.graph(without_seed):
        drawn = model.masking(tokens, num_masked=8).mask
    masks = []
    for _ in range(2):
        without_seed.replay()
        masks.append(drawn.clone())
    assert not torch.equal(*masks)  # each replay takes its own seed from torch's generator


# Autocast and loss scaling


@narrow_types
def test_autocast_leaves_the_value_path_in_float32_gradients_too(dtype):
    module, tokens = module_of(mask_ratio=0.5), tokens_of("values", 4, 60)
    plain = module(tokens, seed=1)
    with torch.autocast("cpu", dtype=dtype):
        out = module(tokens, seed=1)
        gradients = torch.autograd.grad(
            out.context.square().sum() + out.penalty, list(module.parameters())
        )
    assert same(out, plain)
    expected = torch.autograd.grad(
        plain.context.square().sum() + plain.penalty, list(module.parameters())
    )
    assert all(torch.equal(mine, right) for mine, right in zip(gradients, expected, strict=True))


@narrow_types
@both_contexts
def test_autocast_computes_the_token_path_as_narrow_tokens_would(context_from, dtype):
    module, tokens = (
        module_of("embeddings", mask_ratio=0.5, context_from=context_from),
        tokens_of("embeddings", 4, 60),
    )
    with torch.autocast("cpu", dtype=dtype):
        out = module(tokens, seed=1)
    assert same(out, module(tokens.to(dtype), seed=1))
    assert [x.dtype for x in out] == [torch.bool, *[torch.float32] * 3]


@narrow_types
@both_kinds
def test_loss_scaling_scales_the_gradients(kind, dtype):
    model, tokens = Model(kind), tokens_of(kind, 8, 40)

    def gradients(scale: float) -> list[Tensor]:
        with torch.autocast("cpu", dtype=dtype):
            loss, _ = model(tokens, seed=1)
        return [
            x / scale for x in torch.autograd.grad(scale * loss, list(model.masking.parameters()))
        ]

    for scaled, plain in zip(gradients(2.0**8), gradients(1.0), strict=True):
        torch.testing.assert_close(scaled, plain, rtol=2e-2, atol=2e-2 * float(plain.abs().max()))


@both_kinds
def test_training_in_float16_skips_steps_that_overflow_and_goes_on(kind):
    model, tokens, moved = Model(kind), tokens_of(kind, 8, 40), []
    optimizer, scaler = (
        torch.optim.SGD(model.parameters(), lr=1e-2),
        torch.amp.GradScaler("cpu", init_scale=2.0**60, backoff_factor=2.0**-12),
    )
    for step in range(8):
        before = {name: x.clone() for name, x in model.state_dict().items()}
        with torch.autocast("cpu", dtype=torch.float16):
            loss, _ = model(tokens, seed=1, step=step)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        moved.append(
            {name for name, x in model.state_dict().items() if not torch.equal(x, before[name])}
        )
    assert moved[0] == set()
    assert moved[-1] == set(before)
    assert scaler.get_scale() < 2.0**60
    assert all(bool(x.isfinite().all()) for x in model.state_dict().values())


# Activation checkpointing: with a given seed it is in test_modules.py


@pytest.mark.parametrize("use_reentrant", [False, True])
@both_kinds
def test_a_recomputed_step_without_a_seed_hides_the_same_positions(kind, use_reentrant):
    model, tokens, scale = (
        Model(kind, mask_ratio=0.5),
        tokens_of(kind, 3, 60),
        torch.ones((), requires_grad=True),
    )
    masks = []

    def step(tokens: Tensor, scale: Tensor) -> Tensor:
        loss, mask = model(tokens)
        masks.append(mask)
        return scale * loss

    torch.manual_seed(5)
    plain = torch.autograd.grad(step(tokens, scale), list(model.parameters()))
    torch.manual_seed(5)
    checkpoint(step, tokens, scale, use_reentrant=use_reentrant).backward()
    assert len(masks) == 3
    assert torch.equal(masks[1], masks[0])
    assert torch.equal(masks[2], masks[0])
    torch.testing.assert_close([parameter.grad for parameter in model.parameters()], list(plain))


def test_a_recomputed_step_with_a_seed_needs_no_state_of_the_generator():
    model, tokens, scale, masks = (
        Model(mask_ratio=0.5),
        tokens_of("values", 3, 60),
        torch.ones((), requires_grad=True),
        [],
    )

    def step(tokens: Tensor, scale: Tensor) -> Tensor:
        loss, mask = model(tokens, seed=1, step=2)
        masks.append(mask)
        return scale * loss

    checkpoint(step, tokens, scale, use_reentrant=False, preserve_rng_state=False).backward()
    assert torch.equal(*masks)


@pytest.mark.usefixtures("_compiler")
def test_a_recomputed_step_may_be_compiled():
    model, tokens = Model(mask_ratio=0.5), tokens_of("values", 3, 60)

    def recomputed(tokens: Tensor) -> tuple[Tensor, Tensor]:
        return checkpoint(model, tokens, use_reentrant=False)

    results = []
    for function in (torch.compile(recomputed, fullgraph=True, backend="aot_eager"), model):
        torch.manual_seed(5)
        loss, mask = function(tokens)
        results.append(
            (mask, [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))])
        )
    agree(*results, rtol=1e-4, atol=1e-5)


# torch.func


def functional(module: nn.Module) -> tuple[dict[str, Tensor], Callable[..., mam.MaskingOutput]]:
    """The parameters, and the module as a function of them."""
    state = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return state, lambda state, *arguments, **options: functional_call(
        module, state, arguments, options
    )


def loss_of(out: mam.MaskingOutput) -> Tensor:
    return out.context.square().sum() + out.penalty


@both_contexts
@both_kinds
def test_functional_gradients_equal_those_of_autograd(kind, context_from):
    module, tokens, valid = (
        module_of(kind, context_from=context_from),
        tokens_of(kind),
        rand(3, 20, seed=5) < 0.8,
    )
    state, call = functional(module)
    gradients, mask = grad(
        lambda state: ((out := call(state, tokens, valid, seed=1)), (loss_of(out), out.mask))[1],
        has_aux=True,
    )(state)
    expected = module(tokens, valid, seed=1)
    assert torch.equal(mask, expected.mask)
    for mine, right in zip(
        gradients.values(),
        torch.autograd.grad(loss_of(expected), list(module.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-5)


@both_contexts
@both_kinds
def test_vmap_gives_the_gradients_of_each_cell(kind, context_from):
    module, tokens, ids = (
        module_of(kind, context_from=context_from),
        tokens_of(kind),
        torch.tensor([4, 9, 2**31]),
    )
    state, call = functional(module)

    def of_a_cell(state: dict[str, Tensor], tokens: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        out = call(state, tokens[None], seed=1, sample_ids=cell[None])
        return loss_of(out), out.mask[0]

    gradients, masks = vmap(grad(of_a_cell, has_aux=True), in_dims=(None, 0, 0))(state, tokens, ids)
    assert torch.equal(masks, module(tokens, seed=1, sample_ids=ids).mask)
    for b in range(3):
        alone = module(tokens[b : b + 1], seed=1, sample_ids=ids[b : b + 1])
        for mine, right in zip(
            gradients.values(),
            torch.autograd.grad(loss_of(alone), list(module.parameters())),
            strict=True,
        ):
            torch.testing.assert_close(mine[b], right, rtol=1e-4, atol=1e-5)


@both_kinds
def test_vmap_runs_an_ensemble_of_modules(kind):
    modules, tokens = [module_of(kind), module_of(kind)], tokens_of(kind)
    with torch.no_grad():
        modules[1].latents.mul_(-3.0)
    state, _ = stack_module_state(modules)
    outputs = vmap(lambda state: functional_call(modules[0], state, (tokens,), {"seed": 1}))(state)
    for index, module in enumerate(modules):
        assert torch.equal(outputs.mask[index], module(tokens, seed=1).mask)
        torch.testing.assert_close(outputs.context[index], module(tokens, seed=1).context)


@both_kinds
def test_jacobians_go_backward_and_forward_mode_is_refused(kind):
    module, tokens = module_of(kind), tokens_of(kind)
    state, call = functional(module)
    jacobian = jacrev(lambda state: call(state, tokens, seed=1).context)(state)
    context = module(tokens, seed=1).context
    (row,) = torch.autograd.grad(context[2, 3], [module.latents])
    torch.testing.assert_close(jacobian["latents"][2, 3], row, rtol=1e-4, atol=1e-6)
    with pytest.raises(
        NotImplementedError,
        match=r"forward-mode derivatives \(jvp, jacfwd, hessian\) are not computed; use reverse",
    ):
        jvp(lambda state: call(state, tokens, seed=1).context, (state,), (state,))


@both_kinds
def test_second_functional_derivatives_are_refused(kind):
    module, tokens = module_of(kind), tokens_of(kind)
    state, call = functional(module)
    first = grad(lambda state: loss_of(call(state, tokens, seed=1)))
    with pytest.raises(RuntimeError, match="there is no second derivative"):
        grad(lambda state: first(state)["latents"].sum())(state)


def test_vmap_without_a_seed_wants_to_know_whether_the_draws_are_to_differ():
    weights = torch.ones(4, 2, 30)
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(lambda weights: mam.sample_without_replacement(weights, 9))(weights)
    masks = vmap(
        lambda weights: mam.sample_without_replacement(weights, 9), randomness="different"
    )(weights)
    assert masks.sum(dim=-1).tolist() == [[9, 9]] * 4
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) == 4


def test_token_attention_alone_is_transformed_too():
    query, tokens = torch.randn(3, 2, 4), torch.randn(2, 9, 2, 4)

    def total(query):
        return mam.latent_attention(query, tokens, tokens)[0].square().sum()

    (expected,) = torch.autograd.grad(total(query.requires_grad_()), [query])
    torch.testing.assert_close(grad(total)(query.detach()), expected)


@pytest.mark.usefixtures("_compiler")
@both_kinds
def test_compiled_transforms_are_refused(kind):
    module, tokens = module_of(kind), tokens_of(kind)
    state, call = functional(module)
    gradient = torch.compile(
        grad(lambda state: loss_of(call(state, tokens, seed=torch.tensor(1)))),
        fullgraph=True,
        backend="aot_eager",
    )
    with pytest.raises(
        torch._dynamo.exc.Unsupported,
        match=r"a transform of torch\.func cannot be compiled; call it outside",
    ):
        gradient(state)


# torch.export


@pytest.mark.parametrize(("context_from", "strict"), [("all", False), ("visible", True)])
@both_kinds
def test_an_exported_program_of_any_size_is_saved_loaded_and_hides_the_same_positions(
    kind, context_from, strict
):
    module, (tokens, valid, _) = module_of(kind, context_from=context_from), next(batches(kind))
    sizes = {0: torch.export.Dim("cells"), 1: torch.export.Dim("genes")}
    options = {
        "valid": valid,
        "seed": torch.tensor(0),
        "step": torch.tensor(0),
        "sample_ids": torch.arange(3),
    }
    shapes = {
        "tokens": sizes,
        "valid": sizes,
        "seed": None,
        "step": None,
        "sample_ids": {0: sizes[0]},
    }
    program, file = (
        torch.export.export(module, (tokens,), options, dynamic_shapes=shapes, strict=strict),
        io.BytesIO(),
    )
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for number, (tokens, valid, _) in enumerate(batches(kind)):
        options = {
            "valid": valid,
            "seed": torch.tensor(7),
            "step": torch.tensor(number),
            "sample_ids": torch.arange(len(tokens)) + 5,
        }
        out, expected = loaded(tokens, **options), module(tokens, **options)
        assert isinstance(out, mam.MaskingOutput)
        assert torch.equal(out.mask, expected.mask)
        torch.testing.assert_close(out, expected)


@both_contexts
@both_kinds
def test_an_exported_program_trains(kind, context_from):
    model, tokens = Model(kind, context_from=context_from), tokens_of(kind)
    exported = torch.export.export(model, (tokens,), {"seed": torch.tensor(0)}).module()
    options = {"seed": torch.tensor(4)}
    agree(
        step_of(exported, exported, tokens, **options),
        step_of(model, model, tokens, **options),
        rtol=1e-4,
        atol=1e-5,
    )


def test_an_exported_seed_that_was_an_int_is_a_constant_and_a_missing_one_is_drawn():
    module, tokens = module_of(mask_ratio=0.5), tokens_of("values", 4, 60)
    fixed = torch.export.export(module, (tokens,), {"seed": 7}).module()
    assert torch.equal(fixed(tokens, seed=7).mask, module(tokens, seed=7).mask)
    with pytest.raises(AssertionError, match="seed"):
        fixed(tokens, seed=8)
    drawn = torch.export.export(module, (tokens,)).module()
    torch.manual_seed(1)
    first, second = drawn(tokens).mask, drawn(tokens).mask
    torch.manual_seed(1)
    assert torch.equal(module(tokens).mask, first)
    assert not torch.equal(first, second)


# State


@both_kinds
def test_a_module_built_on_the_meta_device_is_filled_by_a_state_or_initialised(kind):
    module, tokens = module_of(kind), tokens_of(kind)
    with torch.device("meta"):
        loaded, initialised = (
            mam.MultinomialAttentionMasking(module.input_dim, 16, 6, 4) for _ in range(2)
        )
        injection = mam.ContextInjection(16, WIDTH, "separate")
    assert all(parameter.is_meta for part in (loaded, injection) for parameter in part.parameters())
    loaded.load_state_dict(module.state_dict(), strict=True, assign=True)
    assert all(
        isinstance(parameter, nn.Parameter) and parameter.requires_grad
        for parameter in loaded.parameters()
    )
    assert same(loaded(tokens, seed=1), module(tokens, seed=1))
    for part in (initialised, injection):
        part.to_empty(device="cpu")
        with torch.no_grad():
            for parameter in part.parameters():
                parameter.fill_(torch.nan)
        for inner in part.modules():
            if hasattr(inner, "reset_parameters"):
                inner.reset_parameters()
        assert all(bool(parameter.isfinite().all()) for parameter in part.parameters())
    assert initialised(tokens, seed=1).mask.sum(dim=1).tolist() == [6, 6, 6]


def test_a_state_with_a_missing_a_strange_or_a_misshapen_entry_is_refused_by_name():
    module = module_of()
    for change, named in (
        (lambda state: state.pop("latents"), "Missing key.*latents"),
        (lambda state: state.update(extra=torch.zeros(1)), "Unexpected key.*extra"),
        (lambda state: state.update(latents=torch.zeros(7, 16)), "size mismatch for latents"),
    ):
        state = dict(module.state_dict())
        change(state)
        with pytest.raises(RuntimeError, match=named):
            module.load_state_dict(state, strict=True)


@both_kinds
def test_a_whole_module_survives_torch_save(kind):
    model, tokens, file = (
        Model(kind, temperature=0.5, context_from="visible"),
        tokens_of(kind),
        io.BytesIO(),
    )
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    agree(
        step_of(loaded, loaded, tokens, seed=1),
        step_of(model, model, tokens, seed=1),
        rtol=0,
        atol=0,
    )
    assert repr(loaded) == repr(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@both_contexts
@both_kinds
def test_a_model_cast_to_another_type_masks_and_trains_in_it(kind, context_from, dtype):
    model, tokens = Model(kind, context_from=context_from).to(dtype), tokens_of(kind).to(dtype)
    out = model.masking(tokens, seed=1)
    wide = torch.promote_types(dtype, torch.float32)
    assert [x.dtype for x in out[1:]] == [wide] * 3
    exact = Model(kind, context_from=context_from).double()
    exact.load_state_dict(model.state_dict())
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(
        out.importance.double(),
        exact.masking(tokens.double(), seed=1).importance,
        rtol=tolerance,
        atol=0,
    )
    mask, (loss, *gradients) = step_of(model, model, tokens, seed=1)
    assert torch.equal(mask, out.mask)
    assert loss.dtype == wide
    assert all(x.dtype == dtype and bool(x.isfinite().all()) for x in gradients)


@pytest.mark.parametrize("scheme", ["encoder", "separate"])
def test_an_injection_gives_shifts_of_its_own_type_or_of_that_of_autocast(scheme):
    injection, context = mam.ContextInjection(16, WIDTH, scheme), rand(3, 16)
    plain, _ = injection(context)
    assert plain.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert injection(context)[0].dtype == torch.bfloat16
    shift, _ = injection.bfloat16()(context)
    assert shift.dtype == torch.bfloat16
    torch.testing.assert_close(shift.float(), plain, rtol=0.02, atol=0.02)


# The page


def test_the_examples_of_the_page_run():
    assert "masker" in run_examples(PAGE)
