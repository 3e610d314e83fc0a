"""Calls past torch's dispatcher: where they go past it, they compute the same; where somebody
watches, or a tensor is not what it seems, they do not.
"""

import contextlib

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import mam_kernels as mam
from mam_kernels._core import direct, dispatch, extension, registration
from mam_kernels.ops.value_attention import step as value_step
from tests.engine.test_modules import D, module_of, rand

KINDS = ["values", "embeddings"]
BACKENDS = [name for name in ("reference", "cpu") if mam.backends()[name]]
both_kinds = pytest.mark.parametrize("kind", KINDS)
pytestmark = pytest.mark.skipif(
    extension.looking() is None, reason="no extension module is built: every call is dispatched"
)


def cells(kind: str) -> Tensor:
    return rand(3, 12) if kind == "values" else rand(3, 12, D)


def results(module: nn.Module, tokens: Tensor, **options: object) -> list[Tensor]:
    """Everything that a training step gives: the output, then the gradients."""
    module.zero_grad()
    tokens = tokens.clone().requires_grad_(module.input_dim is not None)
    out = module(tokens, **{"seed": 5, **options})
    (out.context.square().sum() + out.penalty).backward()
    gradients = [parameter.grad for parameter in module.parameters()]
    return [*(x.detach() for x in out), *gradients, *([] if tokens.grad is None else [tokens.grad])]


def assert_same(got: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        assert torch.equal(one, other)


class Watching(TorchDispatchMode):
    """Writes down the operations of the package that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "mam_kernels":
            self.seen.append(function._schema.name.partition("::")[2])
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def counted(monkeypatch):
    """How often the dispatcher is passed through."""
    calls = []
    flat = registration.Operation.flat

    def noted(self, *parts):
        calls.append(self.name)
        return flat(self, *parts)

    monkeypatch.setattr(registration.Operation, "flat", noted)
    yield calls
    monkeypatch.undo()


def test_torch_has_the_names_that_the_way_past_the_dispatcher_needs():
    # Private to torch: without them calls are right, but slower, and nothing else would say so.
    assert direct.KNOWN


@both_kinds
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("context_from", ["all", "visible"])
def test_a_step_past_the_dispatcher_equals_one_that_passes_through(
    kind, backend, context_from, monkeypatch
):
    module = module_of(kind, backend=backend, context_from=context_from)
    tokens = cells(kind)
    with counted(monkeypatch) as calls:
        got = results(module, tokens)
        assert not calls
        monkeypatch.setattr(registration, "nobody_watches", lambda: False)
        assert_same(got, results(module, tokens))
        assert len(calls) > 1


@both_kinds
def test_a_mode_of_the_dispatcher_sees_a_step_and_its_gradient(kind):
    module, tokens = module_of(kind), cells(kind)
    wanted = results(module, tokens)
    with Watching() as mode:
        assert_same(results(module, tokens), wanted)
    name = "scalar_masking" if kind == "values" else "token_masking"
    assert mode.seen == [name, f"{name}_backward"]


def test_a_mode_of_functions_sees_a_step():
    seen = []

    class Noting(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    module = module_of("values")
    with Noting():
        module(cells("values"), seed=1)
    assert any("scalar_masking" in name for name in seen)


def test_the_profiler_sees_a_step_and_its_gradient():
    module = module_of("values")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        results(module, cells("values"))
    names = {event.key for event in profile.key_averages()}
    assert {"mam_kernels::scalar_masking", "mam_kernels::scalar_masking_backward"} <= names


@pytest.mark.parametrize("pre_dispatch", [False, True])
def test_a_tracer_writes_the_operation_down(pre_dispatch):
    weights = rand(2, 9)

    def draw(weights: Tensor) -> Tensor:
        return mam.sample_without_replacement(weights, 3, seed=1)

    traced = make_fx(draw, pre_dispatch=pre_dispatch)(weights)
    assert "mam_kernels.sample_without_replacement" in traced.code
    other = rand(2, 9).flip(1)
    assert torch.equal(traced(other), draw(other))


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit")
def test_the_tracer_of_torchscript_writes_the_operation_down():
    weights = rand(2, 9)
    traced = torch.jit.trace(
        lambda weights: mam.sample_without_replacement(weights, 3, seed=1), (weights,)
    )
    assert "mam_kernels::sample_without_replacement" in str(traced.inlined_graph)


def test_fake_tensors_have_shapes_and_no_values():
    with FakeTensorMode() as mode:
        module = module_of("values")
        out = module(torch.empty(3, 12), seed=1)
        (out.context.sum() + out.penalty).backward()
    assert out.mask.fake_mode is mode
    assert out.context.shape == (3, module.latent_dim)
    assert module.latents.grad.shape == module.latents.shape


class Subclass(Tensor):
    """A tensor that notes what is done with it."""

    seen: list[str] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.seen.append(str(function))
        return super().__torch_function__(function, types, args, kwargs or {})


def test_a_subclass_is_dispatched():
    Subclass.seen.clear()
    weights = rand(2, 9)
    got = mam.sample_without_replacement(weights.as_subclass(Subclass), 3, seed=1)
    assert torch.equal(torch.Tensor(got.float()), mam.sample_without_replacement(
        weights, 3, seed=1).float())  # fmt: skip
    assert any("mam_kernels.sample_without_replacement" in name for name in Subclass.seen)


def negated(x: Tensor) -> Tensor:
    """Of the same values, negated lazily: its memory holds ``-x``."""
    view = torch._neg_view(-x)  # contiguous, other than the imaginary part of a conjugate
    assert view.is_neg()
    assert torch.equal(view, x)
    return view


@both_kinds
def test_tensors_that_are_negated_lazily_count_by_their_values(kind):
    module, tokens = module_of(kind), cells(kind)
    wanted = results(module, tokens)
    out = module(negated(tokens), seed=5)
    for got, value in zip(out, wanted, strict=False):
        torch.testing.assert_close(got.detach(), value)
    module.latents = nn.Parameter(negated(module.latents.detach()))
    assert module.latents.is_neg()
    for got, value in zip(results(module, tokens), wanted, strict=True):
        torch.testing.assert_close(got, value)


def test_a_gradient_that_is_negated_lazily_counts_by_its_values():
    module = module_of("values")
    incoming = rand(3, module.latent_dim)
    got = []
    for gradient in (incoming, negated(incoming)):
        module.zero_grad()
        module(cells("values"), seed=1).context.backward(gradient)
        got.append(module.latents.grad)
    torch.testing.assert_close(got[0], got[1])


@both_kinds
def test_words_as_ints_and_as_tensors_draw_alike(kind):
    module, tokens = module_of(kind), cells(kind)
    for seed, step in ((5, 3), (2**64 - 1, 2**32 - 1), (-7, 0)):
        word = seed if seed < 2**63 else seed - 2**64
        assert_same(
            results(module, tokens, seed=seed, step=step),
            results(module, tokens, seed=torch.tensor(word), step=torch.tensor(step)),
        )


@both_kinds
def test_a_batch_of_gradients_is_transformed(kind):
    module, tokens = module_of(kind), cells(kind)
    incoming = rand(4, 3, module.latent_dim)
    out = module(tokens, seed=1)
    together = torch.autograd.grad(
        out.context, module.latents, incoming, is_grads_batched=True, retain_graph=True
    )[0]
    for gradient, one in zip(incoming, together, strict=True):
        alone = torch.autograd.grad(out.context, module.latents, gradient, retain_graph=True)[0]
        torch.testing.assert_close(one, alone)


@both_kinds
def test_a_tangent_of_an_incoming_gradient_is_refused_and_not_lost(kind):
    module = module_of(kind)
    out = module(cells(kind), seed=1)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.ones_like(out.context), torch.ones_like(out.context))
        with pytest.raises(NotImplementedError, match="forward-mode"):
            torch.autograd.grad(out.context, module.latents, dual)


@both_kinds
def test_a_second_derivative_is_refused(kind):
    module = module_of(kind)
    out = module(cells(kind), seed=1)
    (gradient,) = torch.autograd.grad(out.context.sum(), module.latents, create_graph=True)
    with pytest.raises(RuntimeError, match="there is no second derivative"):
        gradient.sum().backward()


@both_kinds
def test_saved_tensors_may_be_packed(kind):
    module, tokens = module_of(kind), cells(kind)
    wanted, packed = results(module, tokens), []

    def pack(x: Tensor) -> tuple[Tensor, torch.dtype]:
        packed.append(x)
        return x.detach().clone().double() if x.is_floating_point() else x.clone(), x.dtype

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept[0].to(kept[1])):
        assert_same(results(module, tokens), wanted)
    assert packed


@pytest.mark.filterwarnings("ignore:.torch.jit.script")
@both_kinds
def test_a_compiled_backward_pass_takes_the_operation_whole(kind):
    module, tokens = module_of(kind), cells(kind)
    wanted = results(module, tokens)
    compiler = torch.compile(backend="eager", fullgraph=True)
    with torch._dynamo.compiled_autograd._enable(compiler):
        got = results(module, tokens)
    torch._dynamo.reset()
    assert_same(got, wanted)


@both_kinds
def test_a_step_in_inference_mode_gives_the_same(kind):
    module, tokens = module_of(kind), cells(kind)
    wanted = module(tokens, seed=5)
    with torch.inference_mode():
        got = module(tokens.clone(), seed=5)
    assert_same(list(got), [x.detach() for x in wanted])
    assert got.context.is_inference()


@pytest.mark.parametrize("backend", BACKENDS)
def test_parameters_of_float64_train_beside_values_of_float32_with_a_named_backend(backend):
    module = module_of("values", backend=backend)
    tokens = cells("values")
    wanted = results(module, tokens)
    for got, value in zip(results(module.double(), tokens), wanted, strict=True):
        torch.testing.assert_close(got, value.to(got.dtype), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="counts the calls of two backends")
def test_the_backend_of_the_forward_pass_runs_the_backward_pass_too(monkeypatch):
    module, tokens, ran = module_of("values"), cells("values"), []
    optional = value_step.optional

    def noted(op, function, backend):
        ran.append((function, backend))
        return optional(op, function, backend)

    monkeypatch.setattr(value_step, "optional", noted)
    out = module(tokens, seed=5)
    with mam.use_backend("reference"):
        out.context.sum().backward()
        module(tokens, seed=5).context.sum().backward()
    assert ran == [
        *(("step", "cpu"), ("step_backward", "cpu")),
        *(("step", "reference"), ("step_backward", "reference")),
    ]


@pytest.mark.skipif("cpu" not in BACKENDS, reason="looks at the calls of the extension module")
def test_arguments_that_fit_are_not_checked_again_in_python(monkeypatch):
    module, tokens = module_of("values", backend="cpu"), cells("values")
    checked = []
    for name in ("step", "step_backward"):
        check = getattr(value_step.arguments, name)

        def noted(*parts, name=name, check=check):
            checked.append(name)
            return check(*parts)

        monkeypatch.setattr(value_step.arguments, name, noted)
    dispatch.forget()
    try:
        wanted = results(module, tokens)
        assert not checked
        with mam.check_values():
            assert_same(results(module, tokens), wanted)
        assert checked == ["step", "step_backward"]
    finally:
        monkeypatch.undo()
        dispatch.forget()
