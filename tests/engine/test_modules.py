"""The modules: their parameters, their equality with torch's own attention, and what people do with
modules.
"""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import mam_kernels as mam
from mam_kernels._core import dispatch
from mam_kernels.testing.tolerances import misplaced

DZ, N, H, D = 16, 6, 4, 5
KINDS = ["values", "CSR", "embeddings"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse"),  # torch calls its CSR support beta
    pytest.mark.filterwarnings(
        "ignore:.torch.jit.script_method. is deprecated"
    ),  # torch's own, when its compiler is loaded
]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def module_of(kind: str = "values", **options) -> mam.MultinomialAttentionMasking:
    """With parameters that are all different from zero, biases too."""
    torch.manual_seed(1)
    plain = {
        "input_dim": D if kind == "embeddings" else None,
        "latent_dim": DZ,
        "num_latents": N,
        "num_heads": H,
    }
    module = mam.MultinomialAttentionMasking(**(plain | options))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def tokens_of(kind: str, rows: int = 3, positions: int = 20) -> Tensor:
    if kind == "embeddings":
        return rand(rows, positions, D)
    values = 4 * rand(rows, positions) * (rand(rows, positions, seed=1) < 0.4)
    return values.to_sparse_csr() if kind == "CSR" else values


def same(one: mam.MaskingOutput, other: mam.MaskingOutput) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# Parameters


SHAPES = {
    "latents": (128, 256),
    "input_proj.weight": (256, 1),
    "input_proj.bias": (256,),
    "cross_attention.in_proj_weight": (768, 256),
    "cross_attention.in_proj_bias": (768,),
    "cross_attention.out_proj.weight": (256, 256),
    "cross_attention.out_proj.bias": (256,),
}


@pytest.mark.parametrize("input_dim", [None, 512])
def test_state_dict_has_the_published_names_and_shapes(input_dim):
    state = mam.MultinomialAttentionMasking(input_dim).state_dict()
    expected = SHAPES | ({} if input_dim is None else {"input_proj.weight": (256, input_dim)})
    assert {name: tuple(x.shape) for name, x in state.items()} == expected


def test_defaults_are_the_published_ones():
    module = mam.MultinomialAttentionMasking()
    assert (module.latent_dim, module.num_latents, module.num_heads, module.mask_ratio) == (
        256,
        128,
        8,
        0.3,
    )
    assert (module.latent_fraction, module.temperature, module.context_from, module.eps) == (
        0.3,
        1.0,
        "all",
        1e-8,
    )
    assert module.num_drawn_latents == math.floor(128 * 0.3)


@pytest.mark.parametrize("input_dim", [None, D])
def test_weights_of_torchs_own_parts_load_as_they_are(input_dim):
    published = nn.ModuleDict(
        {
            "input_proj": nn.Linear(input_dim or 1, DZ),
            "cross_attention": nn.MultiheadAttention(DZ, H, batch_first=True),
        }
    )
    state = {"latents": torch.randn(N, DZ), **published.state_dict()}
    module = module_of("values" if input_dim is None else "embeddings")
    assert str(module.load_state_dict(state, strict=True)) == "<All keys matched successfully>"
    assert all(torch.equal(module.state_dict()[name], x) for name, x in state.items())


def test_every_parameter_is_trainable_and_finite_after_construction():
    for input_dim in (None, D):
        module = mam.MultinomialAttentionMasking(input_dim)
        assert all(
            parameter.requires_grad and bool(parameter.isfinite().all())
            for parameter in module.parameters()
        )
        assert bool(module.latents.std() > 0.9)
        assert len(list(module.buffers())) == 0


# Equality with torch.nn.MultiheadAttention in float64


def published(
    module: mam.MultinomialAttentionMasking, tokens: Tensor, valid: Tensor | None, chosen: Tensor
) -> tuple[Tensor, ...]:
    """(importance, context, penalty) by torch's own attention, which stores everything."""
    dense = tokens.to_dense() if tokens.layout == torch.sparse_csr else tokens
    projected = module.input_proj(dense[..., None] if module.input_dim is None else dense)
    queries = module.latents.expand(dense.shape[0], -1, -1)
    padding = None if valid is None else ~valid
    output, attention = module.cross_attention(
        queries, projected, projected, key_padding_mask=padding, average_attn_weights=False
    )
    importance = attention[:, :, chosen].sum(dim=(1, 2)).detach()
    return importance, output.mean(dim=1), output.square().sum(dim=(1, 2)).mean()


def gradients(module: nn.Module, context: Tensor, penalty: Tensor, *inputs: Tensor) -> list[Tensor]:
    loss = (
        context * torch.linspace(-1.0, 2.0, context.numel(), dtype=context.dtype).view_as(context)
    ).sum() + 0.1 * penalty
    return list(torch.autograd.grad(loss, [*module.parameters(), *inputs]))


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_torch_multihead_attention_in_float64_with_every_gradient(kind, padded):
    module, tokens = module_of(kind).double(), tokens_of(kind).double()
    valid = (rand(3, 20, seed=2) < 0.7) if padded else None
    if kind == "embeddings":
        tokens.requires_grad_()
    inputs, chosen = ([tokens] if tokens.requires_grad else []), torch.tensor([0, 2, 5])
    out = module(tokens, valid=valid, latents=chosen, seed=1)
    importance, context, penalty = published(module, tokens, valid, chosen)
    torch.testing.assert_close(out.importance, importance, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(out.context, context, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(out.penalty, penalty, rtol=1e-11, atol=1e-12)
    ours, theirs = (
        gradients(module, out.context, out.penalty, *inputs),
        gradients(module, context, penalty, *inputs),
    )
    for mine, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_torch_multihead_attention_in_float32_to_rounding(kind):
    module, tokens, chosen = module_of(kind), tokens_of(kind), torch.tensor([1, 3])
    out = module(tokens, latents=chosen, seed=1)
    importance, context, penalty = published(module, tokens, None, chosen)
    torch.testing.assert_close(out.importance, importance, rtol=2e-5, atol=0)
    torch.testing.assert_close(out.context, context, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.penalty, penalty, rtol=1e-4, atol=1e-5)
    for mine, right in zip(
        gradients(module, *out[2:]), gradients(module, context, penalty), strict=True
    ):
        torch.testing.assert_close(mine, right, rtol=2e-3, atol=1e-4 * float(right.abs().max() + 1))


@pytest.mark.parametrize("kind", ["values", "embeddings"])
def test_gradients_pass_gradcheck_in_float64(kind):
    module, tokens = (
        module_of(kind, latent_dim=4, num_latents=2, num_heads=2).double(),
        tokens_of(kind, 2, 5).double(),
    )
    names = [name for name, _ in module.named_parameters()]

    def outputs(*parameters: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.functional_call(
            module, dict(zip(names, parameters, strict=True)), (tokens,), {"seed": 1}
        )[2:]

    assert torch.autograd.gradcheck(
        outputs, [parameter.detach().requires_grad_() for parameter in module.parameters()]
    )


@pytest.mark.parametrize("kind", ["values", "embeddings"])
def test_an_empty_row_has_the_context_of_an_output_of_zero_before_its_projection(kind):
    module, tokens = module_of(kind), tokens_of(kind)
    valid = torch.ones(3, 20, dtype=torch.bool)
    valid[1] = False
    out = module(tokens, valid=valid, seed=1)
    torch.testing.assert_close(out.context[1], module.cross_attention.out_proj.bias)
    alone = module(tokens[1:2], valid=valid[1:2], seed=1)
    torch.testing.assert_close(
        alone.penalty, N * module.cross_attention.out_proj.bias.square().sum()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_published_penalty_is_the_root_of_ours_times_the_batch(kind):
    # lambda |O|_2 over the whole (B, N, Dz) tensor, not squared.
    module, tokens = module_of(kind).double(), tokens_of(kind).double()
    dense = tokens.to_dense()
    projected = module.input_proj(dense[..., None] if kind != "embeddings" else dense)
    output, _ = module.cross_attention(module.latents.expand(3, -1, -1), projected, projected)
    torch.testing.assert_close(
        (module(tokens, seed=1).penalty * 3).sqrt(), output.norm(), rtol=1e-10, atol=0
    )


@pytest.mark.parametrize("kind", KINDS)
def test_types_and_shapes_of_what_is_returned(kind):
    out = module_of(kind)(tokens_of(kind), seed=1)
    assert [(x.shape, x.dtype) for x in out] == [
        ((3, 20), torch.bool),
        ((3, 20), torch.float32),
        ((3, DZ), torch.float32),
        ((), torch.float32),
    ]
    assert [x.requires_grad for x in out] == [False, False, True, True]
    assert out._fields == ("mask", "importance", "context", "penalty")


# The draw


@pytest.mark.parametrize("temperature", [0.25, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_importance_plus_eps_to_the_power_of_one_over_the_temperature(
    kind, temperature
):
    eps = 0.05
    module, tokens = module_of(kind, temperature=temperature, eps=eps), tokens_of(kind)
    out, counts = module(tokens, num_masked=7, seed=1), torch.full((3,), 7)
    assert (
        misplaced(out.mask, out.importance, counts, seed=1, eps=eps, temperature=temperature) == 0
    )
    by_hand = mam.sample_without_replacement(
        (out.importance.double() + eps) ** (1 / temperature), 7, seed=1
    )
    assert torch.equal(out.mask, by_hand)


@pytest.mark.parametrize("kind", KINDS)
def test_a_low_temperature_hides_the_most_important_and_a_high_one_does_not_care(kind):
    module, tokens = module_of(kind), tokens_of(kind, 4, 40)
    sharp, plain = module_of(kind, temperature=1e-3), module(tokens, num_masked=1, seed=1)
    top = plain.importance.max(dim=1).values
    drawn = sharp(tokens, num_masked=1, seed=1)
    hidden = torch.where(drawn.mask, drawn.importance, 0.0).sum(dim=1)
    assert bool((hidden >= 0.98 * top).all())  # (0.98) ** 1000 is 2e-9
    flat = module_of(kind, temperature=1e6)(tokens, num_masked=9, seed=1).mask
    assert torch.equal(flat, mam.sample_without_replacement(torch.ones(4, 40), 9, seed=1))


@pytest.mark.parametrize("kind", KINDS)
def test_latents_fixes_the_subset_whose_attention_is_the_importance(kind):
    module, tokens = module_of(kind), tokens_of(kind)
    parts = [module(tokens, latents=torch.tensor([n]), seed=1).importance for n in range(N)]
    together = module(tokens, latents=torch.tensor([4, 0, 1]), seed=1).importance
    torch.testing.assert_close(together, parts[0] + parts[1] + parts[4], rtol=1e-5, atol=0)
    every = module(tokens, latents=torch.arange(N), seed=1).importance
    torch.testing.assert_close(every, sum(parts), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("latents", "fraction", "size"),
    [
        (128, 0.3, 38),
        (128, 0.0, 1),
        (3, 0.3, 1),
        (10, 0.29, 2),
        (10, 1.0, 10),
        (100, 0.29, 28),
        (1, 0.5, 1),
    ],
)
def test_the_subset_holds_floor_of_the_fraction_of_the_latents_and_at_least_one(
    latents, fraction, size
):
    module = mam.MultinomialAttentionMasking(None, 8, latents, 2, latent_fraction=fraction)
    assert module.num_drawn_latents == size == max(1, math.floor(latents * fraction))
    received = module(torch.rand(2, 9), seed=1).importance.sum(dim=1)
    torch.testing.assert_close(received, torch.full((2,), 2.0 * size), rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_subset_drawn_is_that_of_seed_and_step(kind):
    module, tokens = module_of(kind, latent_fraction=0.5), tokens_of(kind)
    for step in range(4):
        chosen = mam.reference.draw_latents(
            N, 3, torch.tensor(7), torch.tensor(step), torch.device("cpu")
        )
        assert same(
            module(tokens, seed=7, step=step), module(tokens, seed=7, step=step, latents=chosen)
        )


@pytest.mark.parametrize("kind", KINDS)
def test_num_masked_is_an_int_or_integers_of_each_row(kind):
    module, tokens = module_of(kind), tokens_of(kind)
    assert module(tokens, num_masked=5, seed=1).mask.sum(dim=1).tolist() == [5, 5, 5]
    for dtype in (torch.int64, torch.int32, torch.uint8):
        counts = torch.tensor([0, 20, 7], dtype=dtype)
        assert module(tokens, num_masked=counts, seed=1).mask.sum(dim=1).tolist() == [0, 20, 7]


@pytest.mark.parametrize("ratio", [0.0, 0.15, 0.3, 0.3 * 0.08, 0.999, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_k_is_floor_of_the_ratio_of_the_maskable_positions(kind, ratio):
    valid, maskable = rand(3, 50, seed=3) < 0.8, rand(3, 50, seed=4) < 0.6
    out = module_of(kind, mask_ratio=ratio)(
        tokens_of(kind, 3, 50), valid=valid, maskable=maskable, seed=1
    )
    assert out.mask.sum(dim=1).tolist() == [
        math.floor(ratio * n) for n in (valid & maskable).sum(dim=1).tolist()
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_ratio_of_the_call_stands_in_for_that_of_the_module(kind):
    tokens = tokens_of(kind)
    called = module_of(kind, mask_ratio=0.3, latent_fraction=0.5)(tokens, mask_ratio=0.7, seed=1)
    made = module_of(kind, mask_ratio=0.7, latent_fraction=0.5)(tokens, seed=1)
    assert same(called, made)


@pytest.mark.parametrize("zero_ratio", [0.0, 0.05, 0.5, 1.0])
def test_zeros_drawn_apart_are_floor_of_their_ratio_each_alike(zero_ratio):
    module, values = module_of(mask_ratio=0.5), tokens_of("values", 400, 40)
    values = values * (rand(400, 40, seed=6) < 0.4)
    zero = values == 0
    hidden = module(values, zero_ratio=zero_ratio, seed=1).mask
    for positions, ratio in ((zero, zero_ratio), (~zero, 0.5)):
        counts = (hidden & positions).sum(dim=1).tolist()
        assert counts == [math.floor(ratio * n) for n in positions.sum(dim=1).tolist()]
    rate = (hidden & zero).sum(dim=0) / zero.sum(dim=0)  # of some 240 zeros of each column
    expected = zero.sum(dim=1).mul(zero_ratio).floor().sum() / zero.sum()
    assert (rate - expected).abs().max() < 4.5 * 0.5 / 240**0.5


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_seed_torch_manual_seed_governs_and_each_call_differs(kind):
    module, tokens = module_of(kind, mask_ratio=0.5), tokens_of(kind, 4, 60)
    torch.manual_seed(5)
    first, second = module(tokens), module(tokens)
    torch.manual_seed(5)
    again, afterwards = module(tokens), module(tokens)
    assert same(first, again)
    assert same(second, afterwards)
    assert not torch.equal(first.mask, second.mask)
    torch.manual_seed(6)
    assert not torch.equal(module(tokens).mask, first.mask)


@pytest.mark.parametrize("kind", KINDS)
def test_a_given_seed_leaves_torchs_generator_alone(kind):
    module, tokens = module_of(kind), tokens_of(kind)
    state = torch.get_rng_state()
    module(tokens, seed=3)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", KINDS)
def test_seed_and_step_may_be_tensors(kind):
    module, tokens = module_of(kind), tokens_of(kind)
    plain = module(tokens, seed=2**63 + 9, step=2**32 - 1)
    for seed, step in (
        (torch.tensor(2**63 + 9 - 2**64), torch.tensor(2**32 - 1)),
        (torch.tensor([2**63 + 9 - 2**64]), torch.tensor([[2**32 - 1]])),
    ):
        assert same(module(tokens, seed=seed, step=step), plain)
    small = module(tokens, seed=5, step=6)
    assert same(
        module(
            tokens, seed=torch.tensor(5, dtype=torch.int32), step=torch.tensor(6, dtype=torch.uint8)
        ),
        small,
    )


@pytest.mark.parametrize("context_from", ["all", "visible"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_and_evaluation_modes_compute_the_same(kind, context_from):
    module, tokens = module_of(kind, context_from=context_from), tokens_of(kind)
    trained = module(tokens, seed=1)
    with torch.no_grad():
        assert same(module.eval()(tokens, seed=1), trained)


# Context from the visible alone


@pytest.mark.parametrize("kind", KINDS)
def test_visible_context_hides_alike_and_attends_to_what_is_left(kind):
    chosen = torch.tensor([1, 2])
    everything, visible = (
        module_of(kind, context_from=which, mask_ratio=0.4).double() for which in ("all", "visible")
    )
    tokens = tokens_of(kind).double()
    out, all_of_it = (
        visible(tokens, seed=1, latents=chosen),
        everything(tokens, seed=1, latents=chosen),
    )
    assert torch.equal(out.mask, all_of_it.mask)
    torch.testing.assert_close(out.importance, all_of_it.importance)
    _, context, penalty = published(visible, tokens, ~out.mask, chosen)
    torch.testing.assert_close(out.context, context, rtol=1e-10, atol=1e-12)
    for mine, right in zip(
        gradients(visible, *out[2:]), gradients(visible, context, penalty), strict=True
    ):
        torch.testing.assert_close(mine, right, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", ["values", "embeddings"])
def test_visible_context_of_a_cell_that_is_hidden_whole_is_that_of_an_empty_one(kind):
    module = module_of(kind, context_from="visible")
    out = module(tokens_of(kind), num_masked=20, seed=1)
    torch.testing.assert_close(out.context, module.cross_attention.out_proj.bias.expand(3, -1))


# Injection


@pytest.mark.parametrize(
    ("scheme", "encoder", "decoder", "names"),
    [
        ("encoder", True, False, {"adapter.weight", "adapter.bias"}),
        ("decoder", False, True, {"adapter.weight", "adapter.bias"}),
        ("both", True, True, {"adapter.weight", "adapter.bias"}),
        (
            "separate",
            True,
            True,
            {
                f"{side}_adapter.{part}"
                for side in ("encoder", "decoder")
                for part in ("weight", "bias")
            },
        ),
    ],
)
def test_injection_gives_a_shift_where_the_scheme_adds_one_and_none_elsewhere(
    scheme, encoder, decoder, names
):
    injection, context = mam.ContextInjection(DZ, 7, scheme), rand(3, DZ)
    shifts = injection(context)
    for shift, wanted in zip(shifts, (encoder, decoder), strict=True):
        assert (shift is not None) is wanted
        assert shift is None or shift.shape == (3, 1, 7)
    assert set(injection.state_dict()) == names
    embeddings = torch.zeros(3, 11, 7)
    assert all(
        (embeddings + shift).shape == embeddings.shape for shift in shifts if shift is not None
    )


def test_injection_into_both_is_one_adapter_and_into_separate_is_two():
    context = rand(3, DZ)
    encoder, decoder = mam.ContextInjection(DZ, 7, "both")(context)
    assert torch.equal(encoder, decoder)
    injection = mam.ContextInjection(DZ, 7, "separate")
    encoder, decoder = injection(context)
    assert not torch.equal(encoder, decoder)
    torch.testing.assert_close(
        encoder[:, 0], nn.functional.linear(context, *injection.encoder_adapter.parameters())
    )
    torch.testing.assert_close(
        decoder[:, 0], nn.functional.linear(context, *injection.decoder_adapter.parameters())
    )


def test_injection_is_into_the_decoder_by_default_and_trains_the_latents():
    module, injection = module_of(), mam.ContextInjection(DZ, 7)
    assert injection.scheme == "decoder"
    _, shift = injection(module(tokens_of("values"), seed=1).context)
    shift.square().sum().backward()
    assert all(
        bool(parameter.grad.any()) for parameter in [*module.parameters(), *injection.parameters()]
    )


# What people do with modules


@pytest.mark.parametrize("kind", ["values", "embeddings"])
def test_autocast_to_bfloat16_masks_and_trains(kind):
    module, tokens = module_of(kind), tokens_of(kind)
    plain = module(tokens, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(tokens, seed=1)
    assert out.importance.dtype == torch.float32
    assert out.mask.sum().item() == plain.mask.sum().item()
    torch.testing.assert_close(out.context.float(), plain.context, rtol=0.05, atol=0.05)
    (out.context.float().sum() + out.penalty).backward()
    assert all(
        parameter.grad.dtype == torch.float32 and bool(parameter.grad.isfinite().all())
        for parameter in module.parameters()
    )
    if kind == "values":  # the slopes never leave float32
        assert same(out, plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_narrow_tokens_are_taken_by_float32_parameters(kind, dtype):
    module, tokens = module_of(kind), tokens_of(kind).to(dtype)
    out = module(tokens, seed=1)
    assert out.importance.dtype == torch.float32
    assert bool(out.context.isfinite().all())
    assert out.mask.sum(dim=1).tolist() == [6, 6, 6]


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_activation_checkpointing_recomputes_the_same_mask_and_gradients(kind, use_reentrant):
    module, tokens = module_of(kind, mask_ratio=0.5), tokens_of(kind, 3, 60)
    masks: list[Tensor] = []

    def step(scale: Tensor) -> Tensor:
        out = module(tokens, seed=4, step=2)
        masks.append(out.mask)
        return ((out.context * scale) ** 2).sum() + out.penalty

    scale = torch.ones((), requires_grad=True)
    plain = torch.autograd.grad(step(scale), list(module.parameters()))
    checkpoint(step, scale, use_reentrant=use_reentrant).backward()
    assert len(masks) == 3
    assert torch.equal(masks[1], masks[0])
    assert torch.equal(masks[2], masks[0])
    for mine, right in zip(
        (parameter.grad for parameter in module.parameters()), plain, strict=True
    ):
        torch.testing.assert_close(mine, right)


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))],
    ids=["deepcopy", "pickle"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_copies_compute_the_same_and_share_nothing(kind, duplicate):
    module, tokens = module_of(kind, temperature=0.7, context_from="visible"), tokens_of(kind)
    other = duplicate(module)
    assert same(other(tokens, seed=1), module(tokens, seed=1))
    with torch.no_grad():
        other.latents.zero_()
    assert bool(module.latents.any())
    assert repr(other) == repr(module)


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_survives_a_file_and_a_strict_load(kind):
    module, tokens, file = module_of(kind), tokens_of(kind), io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other = mam.MultinomialAttentionMasking(module.input_dim, DZ, N, H)
    assert not torch.equal(other.latents, module.latents)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert same(other(tokens, seed=1), module(tokens, seed=1))


@pytest.mark.parametrize("kind", KINDS)
def test_double_computes_in_float64(kind):
    out = module_of(kind).double()(tokens_of(kind).double(), seed=1)
    assert (out.context.dtype, out.penalty.dtype, out.importance.dtype) == (torch.float64,) * 3
    assert torch.equal(out.mask, module_of(kind)(tokens_of(kind), seed=1, num_masked=6).mask)


def test_repr_shows_every_option():
    shown = repr(module_of("embeddings", temperature=0.5, backend="reference"))
    options = (
        "input_dim=5",
        "latent_dim=16",
        "num_latents=6",
        "num_heads=4",
        "temperature=0.5",
        "context_from='all'",
    )
    for part in (*options, "backend='reference'"):
        assert part in shown
    assert "scheme='both'" in repr(mam.ContextInjection(3, 4, "both"))


def test_an_optimiser_step_moves_every_parameter():
    for kind in KINDS:
        module = module_of(kind)
        before = copy.deepcopy(module.state_dict())
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
        out = module(tokens_of(kind), seed=1)
        (out.context.square().sum() + out.penalty).backward()
        optimizer.step()
        assert [
            name for name, x in module.state_dict().items() if torch.equal(x, before[name])
        ] == []


# Compilation; training steps and export are in test_systems.py


@pytest.fixture
def _compiled():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_compiled")
def test_compiled_without_a_seed_draws_anew_at_each_call():
    module, tokens = module_of(mask_ratio=0.5), tokens_of("values", 4, 60)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.manual_seed(3)
    first, second = compiled(tokens), compiled(tokens)
    torch.manual_seed(3)
    again = compiled(tokens)
    assert not torch.equal(first.mask, second.mask)
    assert torch.equal(first.mask, again.mask)


@pytest.mark.usefixtures("_compiled")
def test_compiled_functions_honour_the_backend_in_use(monkeypatch):
    tokens = torch.ones(2, 30)
    with mam.use_backend("reference"):
        compiled = torch.compile(
            lambda weights: mam.sample_without_replacement(weights, 9, seed=3),
            fullgraph=True,
            backend="aot_eager",
        )
        assert torch.equal(compiled(tokens), mam.sample_without_replacement(tokens, 9, seed=3))
    # Operations ask when they run: what was compiled before follows too.
    ran = []
    right = dispatch.implementation
    monkeypatch.setattr(
        "mam_kernels.ops.selection.ops.implementation",
        lambda op, backend, data: (
            ran.append(dispatch.chosen(op, backend, data)),
            right(op, backend, data),
        )[1],
    )
    compiled(tokens)
    with mam.use_backend("reference"):
        compiled(tokens)
    assert ran == [mam.explain(mam.sample_without_replacement, tokens).chosen, "reference"]
