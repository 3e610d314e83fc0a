"""What the masking module reads is what its submodules say: the effective weight of one that was
wrapped, and a refusal by name of what cannot be read.
"""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import mam_kernels as mam
from tests.engine.test_modules import DZ, D, H, module_of, same, tokens_of

KINDS = ["values", "embeddings"]
LINEAR = ["input_proj", "cross_attention.out_proj"]

each_kind = pytest.mark.parametrize("kind", KINDS)
each_linear = pytest.mark.parametrize("name", LINEAR)

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm")  # torch's own advice


class LowRank(nn.Module):
    """A linear layer with LoRA, as peft replaces one."""

    def __init__(self, base: nn.Linear, rank: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.base_layer = base
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        self.lora_dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(self.lora_dropout(x)))


def replaced(module: nn.Module, name: str, wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """A copy of the module with a submodule wrapped."""
    module = copy.deepcopy(module)
    parent, _, last = name.rpartition(".")
    owner = module.get_submodule(parent)
    setattr(owner, last, wrap(getattr(owner, last)))
    return module


def merged(module: nn.Module, name: str) -> nn.Module:
    """A copy whose plain linear layer has the weight that LoRA comes to."""

    def merge(base: nn.Linear) -> nn.Linear:
        wrapped = LowRank(base)
        with torch.no_grad():
            base.weight += wrapped.lora_B.weight @ wrapped.lora_A.weight
        return base

    return replaced(module, name, merge)


def loss_of(out: mam.MaskingOutput) -> Tensor:
    return out.context.square().sum() + out.penalty


@each_linear
@each_kind
def test_lora_changes_the_result_and_gets_its_gradient(kind, name):
    plain, tokens = module_of(kind, mask_ratio=0.5), tokens_of(kind)
    wrapped, expected = replaced(plain, name, LowRank), merged(plain, name)
    out, right = wrapped(tokens, seed=1), expected(tokens, seed=1)
    assert torch.equal(out.mask, right.mask)
    torch.testing.assert_close(out, right, rtol=1e-5, atol=1e-5)
    assert (out.context - plain(tokens, seed=1).context).abs().max() > 1e-3

    adapter = wrapped.get_submodule(name)
    factors = [adapter.lora_A.weight, adapter.lora_B.weight]
    gradients = torch.autograd.grad(
        loss_of(out), [*factors, adapter.base_layer.weight, adapter.base_layer.bias]
    )
    layer = expected.get_submodule(name)
    by_weight, by_bias = torch.autograd.grad(loss_of(right), [layer.weight, layer.bias])
    a, b = factors
    wanted = (b.t() @ by_weight, by_weight @ a.t(), by_weight, by_bias)
    torch.testing.assert_close(gradients, wanted, rtol=1e-4, atol=1e-5)


@each_kind
def test_a_module_with_lora_compiles(kind):
    module, tokens = replaced(module_of(kind), "input_proj", LowRank), tokens_of(kind)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    seed = torch.tensor(1)
    out, expected = compiled(tokens, seed=seed), module(tokens, seed=seed)
    torch.testing.assert_close(out, expected)
    for one, other in zip(
        torch.autograd.grad(loss_of(out), list(module.parameters())),
        torch.autograd.grad(loss_of(expected), list(module.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@each_linear
@each_kind
def test_both_weight_norms_of_torch_are_honoured(kind, name):
    plain, tokens = module_of(kind), tokens_of(kind)
    for norm, scale in (
        (nn.utils.weight_norm, "weight_g"),
        (nn.utils.parametrizations.weight_norm, "parametrizations.weight.original0"),
    ):
        wrapped = replaced(plain, name, norm)
        torch.testing.assert_close(wrapped(tokens, seed=1), plain(tokens, seed=1))
        magnitude = wrapped.get_parameter(f"{name}.{scale}")
        with torch.no_grad():
            magnitude *= 3.0
        expected = copy.deepcopy(plain)
        with torch.no_grad():
            expected.get_submodule(name).weight *= 3.0
        out, right = wrapped(tokens, seed=1), expected(tokens, seed=1)
        torch.testing.assert_close(out, right, rtol=1e-5, atol=1e-5)
        (found,) = torch.autograd.grad(loss_of(out), magnitude)
        assert found.abs().max() > 0


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * x


@each_kind
@pytest.mark.parametrize(
    ("owner", "name"),
    [("input_proj", "weight"), ("cross_attention", "in_proj_weight"), ("", "latents")],
)
def test_parametrized_weights_are_honoured(kind, owner, name):
    module, tokens = module_of(kind), tokens_of(kind)
    expected = copy.deepcopy(module)
    with torch.no_grad():
        expected.get_parameter(f"{owner}.{name}".lstrip(".")).mul_(2.0)
    parametrize.register_parametrization(module.get_submodule(owner), name, Doubled())
    assert same(module(tokens, seed=1), expected(tokens, seed=1))


class Subclass(nn.Linear):
    """Its forward pass is its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1.0


def test_a_subclass_with_a_forward_pass_of_its_own_is_honoured():
    plain, tokens = module_of(), tokens_of("values")

    def shifted(base: nn.Linear) -> nn.Linear:
        other = Subclass(base.in_features, base.out_features)
        other.load_state_dict(base.state_dict())
        return other

    wrapped, expected = replaced(plain, "input_proj", shifted), copy.deepcopy(plain)
    with torch.no_grad():
        expected.input_proj.bias += 1.0
    torch.testing.assert_close(
        wrapped(tokens, seed=1), expected(tokens, seed=1), rtol=1e-5, atol=1e-5
    )


@each_kind
def test_a_wrapped_module_serves_torch_func_autocast_and_other_types(kind):
    plain, tokens = module_of(kind), tokens_of(kind)
    wrapped = replaced(plain, "input_proj", LowRank)
    state = {name: x.detach() for name, x in wrapped.named_parameters()}
    by_name = torch.func.grad(
        lambda state: loss_of(torch.func.functional_call(wrapped, state, (tokens,), {"seed": 1}))
    )(state)
    expected = torch.autograd.grad(loss_of(wrapped(tokens, seed=1)), list(wrapped.parameters()))
    for (name, _), right in zip(wrapped.named_parameters(), expected, strict=True):
        torch.testing.assert_close(by_name[name], right, rtol=1e-4, atol=1e-5)
    if kind == "values":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert same(wrapped(tokens, seed=1), plain_of(wrapped)(tokens, seed=1))
    assert wrapped.double()(tokens.double(), seed=1).context.dtype == torch.float64


def plain_of(module: nn.Module) -> Callable[..., mam.MaskingOutput]:
    """The module outside of autocast."""

    def call(*arguments: object, **options: object) -> mam.MaskingOutput:
        with torch.autocast("cpu", enabled=False):
            return module(*arguments, **options)

    return call


# What is refused, by name


@each_linear
@each_kind
def test_hooks_are_refused_by_name(kind, name):
    for register in (
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
    ):
        module = module_of(kind)
        handle = getattr(module.get_submodule(name), register)(lambda *_: None)
        with pytest.raises(ValueError, match=rf"^{name}: expected a module without hooks"):
            module(tokens_of(kind))
        handle.remove()
        module(tokens_of(kind))


@each_kind
def test_hooks_on_the_attention_are_refused_by_name(kind):
    for register in (
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
    ):
        module = module_of(kind)
        handle = getattr(module.cross_attention, register)(lambda *_: None)
        with pytest.raises(ValueError, match=r"^cross_attention: expected a module without hooks"):
            module(tokens_of(kind))
        handle.remove()
        module(tokens_of(kind))


def test_hooks_on_the_masking_module_itself_run():
    module, seen = module_of(), []
    module.register_forward_hook(lambda *_: seen.append(1))
    module(tokens_of("values"))
    assert seen == [1]


class OwnAttention(nn.MultiheadAttention):
    def forward(self, *arguments: Tensor, **options: object) -> tuple[Tensor, Tensor]:
        return super().forward(*arguments, **options)


@pytest.mark.parametrize(
    "other",
    [
        lambda: nn.Identity(),
        lambda: OwnAttention(DZ, H, batch_first=True),
        lambda: nn.MultiheadAttention(DZ, H // 2, batch_first=True),
        lambda: nn.MultiheadAttention(DZ, H, batch_first=True, bias=False),
        lambda: nn.MultiheadAttention(DZ, H, batch_first=True, add_bias_kv=True),
        lambda: nn.MultiheadAttention(DZ, H, batch_first=True, add_zero_attn=True),
        lambda: nn.MultiheadAttention(DZ, H, batch_first=True, dropout=0.1),
        lambda: nn.MultiheadAttention(DZ, H, batch_first=True, kdim=D),
    ],
)
def test_another_attention_is_refused_by_name(other):
    module = module_of()
    module.cross_attention = other()
    with pytest.raises(ValueError, match=r"^cross_attention: expected") as caught:
        module(tokens_of("values"))
    assert "\n" not in str(caught.value)


@each_linear
@each_kind
def test_a_module_that_is_not_affine_is_refused_by_name(kind, name):
    for wrap in (
        lambda base: nn.Sequential(base, nn.GELU()),
        lambda base: nn.Sequential(base, nn.LayerNorm(base.out_features)),
        lambda base: LowRank(base, rank=64, dropout=0.5),
    ):
        module = replaced(module_of(kind), name, wrap)
        with pytest.raises(ValueError, match=f"^{name}: expected a module that is affine"):
            module(tokens_of(kind))
    # In evaluation dropout does nothing.
    replaced(module_of(kind), name, lambda base: LowRank(base, dropout=0.5)).eval()(tokens_of(kind))


@each_linear
def test_a_linear_layer_without_bias_is_refused_by_name(name):
    module = replaced(
        module_of(), name, lambda base: nn.Linear(base.in_features, base.out_features, bias=False)
    )
    with pytest.raises(ValueError, match=f"^{name}: expected a linear layer with a bias"):
        module(tokens_of("values"))


# Slopes of a fixed norm


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("context_from", ["all", "visible"])
def test_slopes_of_a_fixed_norm_are_those_of_a_rescaled_module(context_from, backend):
    if not mam.backends()[backend]:
        pytest.skip(f"the backend {backend} does not run here")
    plain = module_of(mask_ratio=0.5, context_from=context_from, backend=backend)
    fixed = module_of(mask_ratio=0.5, context_from=context_from, backend=backend, slope_norm=0.7)

    def norm(module: nn.Module) -> float:
        return float(module.slopes().square().mean().sqrt())

    assert norm(fixed) == pytest.approx(0.7, rel=1e-6)
    assert norm(plain) != pytest.approx(0.7, rel=1e-2)
    torch.testing.assert_close(fixed.slopes(), plain.slopes() * (0.7 / norm(plain)))

    rescaled = copy.deepcopy(plain)
    with torch.no_grad():  # a slope is linear in the weight and the bias of its query
        rescaled.cross_attention.in_proj_weight[:DZ] *= 0.7 / norm(plain)
        rescaled.cross_attention.in_proj_bias[:DZ] *= 0.7 / norm(plain)
    tokens = tokens_of("values", 4, 60)
    out, expected = fixed(tokens, seed=1), rescaled(tokens, seed=1)
    assert torch.equal(out.mask, expected.mask)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)


def test_slopes_of_a_fixed_norm_have_the_gradient_of_differences():
    module = module_of(slope_norm=0.7).double()
    tokens = tokens_of("values").double()
    names = [name for name, _ in module.named_parameters()]

    def loss(*parameters: Tensor) -> Tensor:
        state = dict(zip(names, parameters, strict=True))
        return loss_of(torch.func.functional_call(module, state, (tokens,), {"seed": 1}))

    inputs = [x.detach().clone().requires_grad_() for x in module.parameters()]
    assert torch.autograd.gradcheck(loss, inputs)
    # Along the latents' own scale nothing changes but through the bias of the queries.
    with torch.no_grad():
        module.cross_attention.in_proj_bias[:DZ] = 0.0
    (gradient,) = torch.autograd.grad(loss_of(module(tokens, seed=1)), module.latents)
    assert abs(float((gradient * module.latents).detach().sum())) < 1e-9


def test_a_fixed_norm_is_saved_copied_compiled_and_shown():
    module, tokens = module_of(slope_norm=0.7), tokens_of("values")
    assert "slope_norm=0.7" in repr(module)
    assert same(copy.deepcopy(module)(tokens, seed=1), module(tokens, seed=1))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    seed = torch.tensor(1)
    torch.testing.assert_close(compiled(tokens, seed=seed), module(tokens, seed=seed))


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"slope_norm": 0.0}, ValueError, r"slope_norm: expected a number in \(0.0, 1000000.0\]"),
        ({"slope_norm": -1}, ValueError, r"slope_norm: expected a number in \(0.0, 1000000.0\]"),
        ({"slope_norm": "1"}, TypeError, "slope_norm: expected a number"),
        (
            {"slope_norm": 1.0, "input_dim": 4},
            ValueError,
            "slope_norm: expected None with input_dim",
        ),
    ],
)
def test_a_bad_norm_is_an_error_that_says_what_is_wrong(options, error, said):
    with pytest.raises(error, match=f"^{said}"):
        mam.MultinomialAttentionMasking(**options)


def test_slopes_and_queries_belong_to_one_kind_of_token_each():
    with pytest.raises(ValueError, match="input_dim: expected None"):
        module_of("embeddings").slopes()
    with pytest.raises(ValueError, match="input_dim: expected the width"):
        module_of().queries_and_keys(tokens_of("embeddings"))


def test_queries_and_keys_are_those_of_the_attention():
    module, tokens = module_of("embeddings"), tokens_of("embeddings")
    query, key = module.queries_and_keys(tokens)
    scores = torch.einsum("nhd,blhd->bnhl", query, key) * module.head_dim**-0.5
    everything = torch.arange(module.num_latents)
    importance = torch.softmax(scores, dim=-1).sum(dim=(1, 2))
    found = module(tokens, seed=1, latents=everything).importance
    torch.testing.assert_close(found, importance, rtol=1e-5, atol=1e-6)


# The initialisation of the paper


def test_the_published_initialisation():
    torch.manual_seed(0)
    module = mam.MultinomialAttentionMasking(64, latent_dim=128, num_latents=256)
    module.reset_parameters(init="published")
    assert float(module.latents.std()) == pytest.approx(0.02, rel=0.02)
    assert not module.input_proj.bias.any()
    limit = (6 / (64 + 128)) ** 0.5
    assert 0.95 * limit < float(module.input_proj.weight.abs().max()) <= limit
    torch.manual_seed(3)
    module.reset_parameters("published")
    attention = module.cross_attention
    assert not attention.in_proj_bias.any()
    assert not attention.out_proj.bias.any()
    limit = (6 / (128 + 3 * 128)) ** 0.5
    assert 0.95 * limit < float(attention.in_proj_weight.abs().max()) <= limit
    module.reset_parameters()
    assert float(module.latents.std()) == pytest.approx(1.0, rel=0.02)
