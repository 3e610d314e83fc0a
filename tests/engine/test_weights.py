"""Weights from the published code and in files: what is read computes the same, and what is no such
file is refused in one line.
"""

import json
import math
import os
import pickle
import struct
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import mam_kernels as mam
from mam_kernels.weights import (
    WeightsError,
    from_published,
    injection_from_published,
    load,
    save,
)

DZ, N, H, L = 16, 6, 4, 12
needs_safetensors = pytest.mark.skipif(
    find_spec("safetensors") is None, reason="safetensors is not installed"
)


class Published(nn.Module):
    """The published masking step in public torch parts: latents attend to projected tokens, with a
    weight for every head.
    """

    def __init__(self, input_dim: int = 1) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(N, DZ))
        self.input_proj = nn.Linear(input_dim, DZ)
        self.cross_attention = nn.MultiheadAttention(DZ, H, batch_first=True)
        for parameter in self.parameters():  # biases that are 0 would hide that they are not read
            nn.init.normal_(parameter, std=0.7)

    def forward(self, tokens: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Importance (B, L) over the chosen latents, and context (B, Dz)."""
        projected = self.input_proj(tokens if tokens.dim() == 3 else tokens[..., None])
        queries = self.latents.expand(len(tokens), -1, -1)
        output, weights = self.cross_attention(
            queries, projected, projected, average_attn_weights=False
        )
        return weights[:, :, latents].sum(dim=(1, 2)), output.mean(dim=1)


class Model(nn.Module):
    """A model with the masking step somewhere inside."""

    def __init__(self, masking: Published) -> None:
        super().__init__()
        self.mam = masking
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16)


@pytest.fixture
def published() -> Published:
    torch.manual_seed(0)
    return Published()


@pytest.fixture
def masker(published) -> mam.MultinomialAttentionMasking:
    return from_published(
        published.state_dict(),
        num_heads=H,
        mask_ratio=0.25,
        latent_fraction=0.5,
        temperature=0.5,
        context_from="visible",
    )


@pytest.fixture
def values() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(5, L, generator=generator).mul(6).sub(3).relu()


def assert_same(
    module: mam.MultinomialAttentionMasking, published: Published, tokens: Tensor, tolerance: float
) -> None:
    chosen = torch.tensor([1, 4, 5])
    importance, context = published(tokens, chosen)
    out = module(tokens, latents=chosen)
    torch.testing.assert_close(out.importance, importance, rtol=tolerance, atol=0)
    torch.testing.assert_close(out.context, context, rtol=tolerance, atol=tolerance)


def checkpoint(published: Published) -> dict:
    """As Lightning writes one."""
    state = {f"model.{name}": tensor for name, tensor in Model(published).state_dict().items()}
    return {
        "epoch": 3,
        "state_dict": state,
        "hyper_parameters": {"lr": 1e-4},
        "optimizer_states": [{"state": {}}],
    }


def apart(state: dict[str, Tensor], modules: bool) -> dict[str, Tensor]:
    """The state with the projections of query, key and value apart."""
    state = dict(state)
    weight, bias = (
        state.pop("cross_attention.in_proj_weight"),
        state.pop("cross_attention.in_proj_bias"),
    )
    for name, part in zip("qkv", weight.chunk(3), strict=True):
        state[
            f"cross_attention.{name}_proj.weight"
            if modules
            else f"cross_attention.{name}_proj_weight"
        ] = part
    if not modules:
        return state | {"cross_attention.in_proj_bias": bias}
    return state | {
        f"cross_attention.{name}_proj.bias": part
        for name, part in zip("qkv", bias.chunk(3), strict=True)
    }


# The published code


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5)],
    ids=["float64", "float32"],
)
@pytest.mark.parametrize("input_dim", [1, 5], ids=["values", "embeddings"])
def test_importance_and_context_are_those_of_the_published_module(
    values, input_dim, dtype, tolerance
):
    torch.manual_seed(0)
    published = Published(input_dim).to(dtype)
    tokens = values.to(dtype) if input_dim == 1 else torch.randn(5, L, input_dim, dtype=dtype)
    module = from_published(published.state_dict(), num_heads=H)
    assert module.latents.dtype == dtype
    assert (module.input_dim, module.latent_dim, module.num_latents) == (
        None if input_dim == 1 else input_dim,
        DZ,
        N,
    )
    assert_same(module, published, tokens, tolerance)


def test_masks_have_the_published_distribution(published, masker, values):
    rows, chosen = 40_000, torch.tensor([0, 3])
    importance, _ = published(values[:1], chosen)
    expected = (importance[0] + 1e-8) / (importance[0] + 1e-8).sum()
    module = from_published(published.state_dict(), num_heads=H)
    hidden = module(
        values[:1].expand(rows, -1).contiguous(), num_masked=1, latents=chosen, seed=0
    ).mask
    error = hidden.float().mean(dim=0) - expected
    assert (error.abs() < 5 * (expected * (1 - expected) / rows).sqrt()).all()
    assert expected.max() > 2 * expected.min()  # so that uniform masks would not pass


def test_every_form_of_a_checkpoint(published, values, tmp_path):
    state = published.state_dict()
    torch.save(state, tmp_path / "state.pt")
    torch.save(state, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    torch.save(checkpoint(published), tmp_path / "epoch=3.ckpt")
    compiled = {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}
    nested = {"model_state_dict": compiled, "step": 7}
    embedded = {name.replace("latents", "latents.weight"): tensor for name, tensor in state.items()}
    batched = state | {"latents": state["latents"][None]}
    files = [tmp_path / "state.pt", str(tmp_path / "old.bin"), tmp_path / "epoch=3.ckpt"]
    for source in (
        *files,
        checkpoint(published),
        nested,
        embedded,
        batched,
        apart(state, modules=True),
        apart(state, modules=False),
    ):
        assert_same(from_published(source, num_heads=H), published, values, 1e-5)


@needs_safetensors
def test_a_safetensors_file_of_others(published, values, tmp_path):
    from safetensors.torch import save_file

    save_file(
        {f"masker.{name}": tensor for name, tensor in published.state_dict().items()},
        tmp_path / "m.safetensors",
    )
    assert_same(from_published(tmp_path / "m.safetensors", num_heads=H), published, values, 1e-5)


def test_biases_that_are_not_there_are_zero(published, values):
    for name, parameter in published.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    state = {
        name: tensor for name, tensor in published.state_dict().items() if not name.endswith("bias")
    }
    assert_same(from_published(state, num_heads=H), published, values, 1e-5)
    assert_same(
        from_published(apart(published.state_dict(), modules=False), num_heads=H),
        published,
        values,
        1e-5,
    )


def test_other_names_and_what_is_no_part(published, values):
    names = {"cross_attention": "attn", "latents": "queries", "input_proj": "value_proj"}
    state = {
        f"mask.{names[name.partition('.')[0]]}{name[len(name.partition('.')[0]) :]}": t
        for name, t in published.state_dict().items()
    }
    state["mask.adapter.weight"] = torch.ones(3, DZ)
    assert_same(
        from_published(state, num_heads=H, names=names, ignore=("adapter.*",)),
        published,
        values,
        1e-5,
    )
    with pytest.raises(
        WeightsError,
        match=r"^source under mask\.: expected .* alone; got adapter\.weight too; .* named"
        r" in ignore$",
    ):
        from_published(state, num_heads=H, names=names)
    with pytest.raises(
        ValueError,
        match=r"^names: expected names of latents, input_proj, cross_attention; got one of values$",
    ):
        from_published(state, num_heads=H, names={"values": "value_proj"})


DE = 24  # the width of the encoder, for which the adapters are


def whole(published: Published, adapters: tuple[str, ...] = ("output_proj",)) -> dict[str, Tensor]:
    """The checkpoint of a whole published model, by its names: embeddings, encoder and decoder of
    two blocks, adapters and masking on one level.
    """
    torch.manual_seed(1)
    block = nn.TransformerEncoderLayer(DE, 2, 32)
    model = nn.ModuleDict(
        {
            "token_emb": nn.ModuleDict(
                {
                    "mlp": nn.Linear(1, 5),
                    "mlp2": nn.Linear(5, 5),
                    "emb": nn.Embedding(5, DE),
                    "emb_mask": nn.Embedding(1, DE),
                    "emb_pad": nn.Embedding(1, DE),
                }
            ),
            "pos_emb": nn.Embedding(L + 1, DE),
            "encoder": nn.ModuleDict(
                {"transformer_encoder": nn.ModuleList([block, block]), "norm": nn.LayerNorm(DE)}
            ),
            "decoder": nn.ModuleDict({"net": nn.ModuleList([block]), "norm": nn.LayerNorm(DE)}),
            "decoder_embed": nn.Linear(DE, 8),
            "norm": nn.LayerNorm(8),
            "to_final": nn.Linear(8, 1),
            **{name: nn.Linear(DZ, DE) for name in adapters},
        }
    )
    return model.state_dict() | published.state_dict()


@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod."])
def test_a_whole_published_checkpoint(published, values, tmp_path, prefix):
    state = {f"{prefix}{name}": tensor for name, tensor in whole(published).items()}
    assert len(state) - len(published.state_dict()) > 44
    torch.save(state, tmp_path / "model.ckpt")
    assert_same(from_published(tmp_path / "model.ckpt", num_heads=H), published, values, 1e-5)
    injection = injection_from_published(tmp_path / "model.ckpt", scheme="both")
    context = torch.randn(3, DZ)
    weight, bias = (state[f"{prefix}output_proj.{kind}"] for kind in ("weight", "bias"))
    for shift in injection(context):
        torch.testing.assert_close(shift[:, 0], context @ weight.T + bias)
    assert injection_from_published(state, scheme="decoder")(context)[0] is None


def test_the_checkpoint_of_a_published_classifier(published, values):
    state = {
        name: tensor
        for name, tensor in whole(published).items()
        if not name.startswith(("decoder", "to_final", "norm"))
    }
    with pytest.raises(
        WeightsError, match=r"alone; got token_emb\.mlp\.weight, .* too; what is no"
    ):
        from_published(state, num_heads=H)  # a model that is not the published one
    head = nn.ModuleDict({"fc1": nn.Sequential(nn.Linear(DE, 4)), "norm": nn.BatchNorm1d(DE)})
    assert_same(from_published(state | head.state_dict(), num_heads=H), published, values, 1e-5)


def test_two_adapters_are_separate(published):
    state = whole(published, ("output_proj_enc", "output_proj_dec"))
    from_published(state, num_heads=H)
    injection = injection_from_published(state)
    assert injection.scheme == "separate"
    context = torch.randn(3, DZ)
    for shift, part in zip(injection(context), ("enc", "dec"), strict=True):
        weight, bias = (state[f"output_proj_{part}.{kind}"] for kind in ("weight", "bias"))
        torch.testing.assert_close(shift[:, 0], context @ weight.T + bias)
    before = state["output_proj_enc.weight"].clone()
    nn.init.zeros_(injection.encoder_adapter.weight)
    assert torch.equal(state["output_proj_enc.weight"], before)


def test_what_is_unknown_in_a_whole_checkpoint_is_refused_by_name(published):
    state = whole(published)
    for name in ("gate.weight", "norm2.weight", "input_proj.2.weight"):
        with pytest.raises(WeightsError, match=rf"^source: expected .* alone; got {name} too; "):
            from_published(state | {name: torch.ones(3)}, num_heads=H)
    # beside the masking alone, a norm could be part of it
    with pytest.raises(WeightsError, match=r"alone; got norm\.weight too; "):
        from_published(published.state_dict() | {"norm.weight": torch.ones(3)}, num_heads=H)


@pytest.mark.parametrize(
    ("adapters", "options", "message"),
    [
        ((), {"scheme": "both"}, "expected adapters, such as output_proj.weight; got token_emb"),
        (("output_proj",), {}, "expected a scheme, which one adapter does not tell; give encoder"),
        (
            ("output_proj",),
            {"scheme": "separate"},
            "expected the adapters of scheme 'separate'; got output_proj",
        ),
        (
            ("output_proj_enc", "output_proj_dec"),
            {"scheme": "both"},
            "expected the adapters of scheme 'both'; got output_proj_enc, output_proj_dec",
        ),
        (
            ("output_proj", "output_proj_dec"),
            {},
            "expected output_proj, or output_proj_enc and output_proj_dec; got output_proj, ",
        ),
    ],
)
def test_adapters_that_do_not_fit_are_refused(published, adapters, options, message):
    with pytest.raises(WeightsError) as caught:
        injection_from_published(whole(published, adapters), **options)
    assert str(caught.value).startswith(f"source: {message}")


def test_damaged_adapters_are_refused(published):
    state = whole(published)
    for changes, message in (
        (
            {"output_proj.weight": torch.ones(3)},
            r"expected adapters of shape \(De, Dz\); got torch",
        ),
        ({"output_proj.bias": torch.ones(3)}, r"got adapter\.bias, .* instead of shape \(24,\)"),
        ({"other.output_proj.weight": torch.ones(3, 3)}, r"one of these as prefix: '', 'other\.'"),
    ):
        with pytest.raises(WeightsError, match=message):
            injection_from_published(state | changes, scheme="both")
    with pytest.raises(ValueError, match="scheme: expected one of encoder, decoder, both"):
        injection_from_published(state, scheme="all")


def test_of_two_modules_one_is_named(published, values):
    torch.manual_seed(5)
    other = Published()
    both = {
        f"{prefix}.{n}": t
        for prefix, module in (("first", other), ("second", published))
        for n, t in module.state_dict().items()
    }
    with pytest.raises(
        WeightsError,
        match=r"^source: expected one masking module; got 2; give one of these as prefix:"
        r" 'first\.', 'second\.'$",
    ):
        from_published(both, num_heads=H)
    assert_same(from_published(both, num_heads=H, prefix="second."), published, values, 1e-5)
    # Has no latents beside it.
    decoder = {
        f"decoder.cross_attention.{n}": t for n, t in published.cross_attention.state_dict().items()
    }
    first = {name: tensor for name, tensor in both.items() if name.startswith("first")}
    assert_same(from_published(first | decoder, num_heads=H), other, values, 1e-5)


def test_the_module_is_its_own_and_can_be_trained(published, values):
    state = torch.get_rng_state()
    module = from_published(published.state_dict(), num_heads=H, mask_ratio=0.5)
    assert torch.equal(torch.get_rng_state(), state)
    before = published.latents.detach().clone()
    module(values).context.sum().backward()
    torch.optim.SGD(module.parameters(), 1.0).step()
    assert torch.equal(published.latents, before)
    assert not torch.equal(module.latents, before)
    assert module(values).mask.sum(dim=1).tolist() == [L // 2] * 5


def changed(state: dict[str, Tensor], **changes: Tensor | None) -> dict[str, Tensor]:
    state = dict(state)
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        state.pop(name, None)
        if tensor is not None:
            state[name] = tensor
    return state


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents": None}, "expected latents; got input_proj.weight, input_proj.bias, "),
        (
            {"latents": torch.ones(2, N, DZ)},
            "expected floating-point latents of shape (N, Dz) or (1, N, Dz); got torch.float32 of"
            " shape (2, ",
        ),
        (
            {"latents": torch.ones(N, 8)},
            "expected the tensors of MultinomialAttentionMasking; got ",
        ),
        (
            {"input_proj__weight": None},
            "expected input_proj.weight; got latents, input_proj.bias, ",
        ),
        (
            {"input_proj__weight": torch.ones(DZ)},
            "expected input_proj.weight of shape (Dz, D); got torch.float32 of shape (16,) on cpu",
        ),
        (
            {"cross_attention__in_proj_weight": None},
            "expected tensors of cross_attention, such as cross_attention.in_proj_weight; got"
            " latents, ",
        ),
        (
            {"cross_attention__out_proj__weight": None},
            "expected cross_attention.out_proj.weight; got latents, ",
        ),
        (
            {"cross_attention__bias_k": torch.ones(1, 1, DZ)},
            "expected latents, input_proj and cross_attention alone; got cross_attention.bias_k"
            " too",
        ),
        (
            {"input_proj__2__weight": torch.ones(DZ, DZ)},
            "expected latents, input_proj and cross_attention alone; got input_proj.2.weight too",
        ),
        (
            {"cross_attention__in_proj_bias": torch.ones(DZ)},
            "expected the tensors of MultinomialAttentionMasking; got"
            " cross_attention.in_proj_bias, torch.float32 of shape (16,) on cpu,"
            " instead of shape (48,)",
        ),
    ],
)
def test_other_tensors_are_refused(published, changes, message):
    with pytest.raises(WeightsError) as caught:
        from_published(changed(published.state_dict(), **changes), num_heads=H)
    assert str(caught.value).startswith(f"source: {message}")
    assert "\n" not in str(caught.value)


def test_projections_of_keys_of_another_width_are_refused(published):
    state = apart(published.state_dict(), modules=False) | {
        "cross_attention.k_proj_weight": torch.ones(DZ, 5)
    }
    with pytest.raises(
        WeightsError,
        match=r"expected projections of shape \(16, 16\); got \(16, 16\), \(16, 5\), \(16,"
        r" 16\) for query, key",
    ):
        from_published(state, num_heads=H)


def test_other_sizes_than_given_are_refused(published):
    state = published.state_dict()
    with pytest.raises(
        ValueError, match=r"^num_heads: expected a divisor of latent_dim = 16; got 5$"
    ):
        from_published(state, num_heads=5)
    with pytest.raises(
        WeightsError, match=r"^source: expected latent_dim = 256, as given; got latent_dim = 16$"
    ):
        from_published(state, num_heads=H, latent_dim=256)
    with pytest.raises(
        WeightsError, match=r"^source: expected input_dim = 5, as given; got input_dim = None$"
    ):
        from_published(state, num_heads=H, input_dim=5)
    with pytest.raises(TypeError, match="num_heads"):
        from_published(state)


@pytest.mark.parametrize("source", [{}, {"epoch": 3, "lr": 0.1}, {"state_dict": {}}, 7, [1]])
def test_what_is_no_state_dict_is_refused(source):
    with pytest.raises(
        (WeightsError, TypeError),
        match=r"^source: expected (a path or a state dict|tensors by name); got",
    ):
        from_published(source, num_heads=H)


class Trap:
    """An object whose reading would run code."""

    def __reduce__(self) -> tuple:
        return (os.mkdir, ("ran",))


def written(path: Path, kind: str, published: Published) -> None:
    torch.save(checkpoint(published), path)
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[content.index(published.latents.detach().numpy().tobytes())] ^= 0xFF
    other = {
        "truncated": content[: len(content) // 2],
        "changed": bytes(flipped),
        "empty": b"",
        "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:1234\n",
        "an .h5ad": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "a pickle": pickle.dumps({"a": [1, 2]}),
        "bytes": bytes(range(256)),
    }
    if kind in other:
        path.write_bytes(other[kind])
    elif kind == "an object":
        torch.save({"state_dict": published.state_dict(), "extra": Trap()}, path)
    elif kind == "a module":
        torch.save(Model(published), path)
    elif kind == "a tensor":
        torch.save(torch.ones(3), path)
    else:
        torch.save(nn.LSTM(3, 4).state_dict(), path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "truncated",
            "expected a checkpoint that torch.save wrote; got a zip archive, such as torch.save"
            " writes, cut short",
        ),
        ("changed", "expected a whole checkpoint; got one with a wrong checksum (epoch/data/"),
        ("empty", "expected a checkpoint that torch.save wrote; got an empty file"),
        (
            "text",
            "expected a checkpoint that torch.save wrote; got a text file that begins with"
            " 'version https://git-lfs.github.com/spec/",
        ),
        (
            "an .h5ad",
            "expected a checkpoint that torch.save wrote; got an HDF5 file, such as .h5ad",
        ),
        ("a pickle", "expected a checkpoint that torch.save wrote; got a pickle"),
        (
            "bytes",
            "expected a checkpoint that torch.save wrote; got 256 bytes of neither safetensors nor"
            " torch.save",
        ),
        (
            "an object",
            "expected tensors and plain values; got objects, which could run code (posix.mkdir)",
        ),
        ("a module", "expected tensors and plain values; got objects, which could run code ("),
        (
            "a tensor",
            "expected a state dict or a checkpoint that holds one; got torch.float32 of shape (3,)"
            " on cpu",
        ),
        (
            "another module",
            "expected tensors of cross_attention, such as cross_attention.in_proj_weight; got"
            " weight_ih_l0, weight_hh_l0, ",
        ),
    ],
)
def test_a_file_that_is_no_such_checkpoint_is_refused_by_what_it_is(
    published, tmp_path, monkeypatch, kind, message
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "epoch.ckpt"
    written(path, kind, published)
    with pytest.raises(WeightsError) as caught:
        from_published(path, num_heads=H)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(WeightsError, match=r"none\.ckpt: no such file$"):
        from_published(tmp_path / "none.ckpt", num_heads=H)
    with pytest.raises(WeightsError, match=r"expected a file; got a folder$"):
        from_published(tmp_path, num_heads=H)


# Files of our own


@pytest.fixture
def file(masker, tmp_path) -> Path:
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    save(masker, tmp_path / "masker.safetensors")
    return tmp_path / "masker.safetensors"


def header_of(content: bytes) -> dict:
    return json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])


def with_description(content: bytes, **changes) -> bytes:
    """The file with another description in its header, which is otherwise right."""
    length, header = struct.unpack("<Q", content[:8])[0], header_of(content)
    description = json.loads(header["__metadata__"]["mam_kernels"])
    header["__metadata__"]["mam_kernels"] = json.dumps(description | changes)
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + content[8 + length :]


def test_a_masking_module_comes_back_as_it_was(masker, file, values):
    state = torch.get_rng_state()
    module = load(file)
    assert torch.equal(torch.get_rng_state(), state)
    assert module.extra_repr() == masker.extra_repr()
    assert (module.num_drawn_latents, module.temperature, module.context_from) == (
        3,
        0.5,
        "visible",
    )
    for one, other in zip(
        module(values, seed=4, step=2), masker(values, seed=4, step=2), strict=True
    ):
        assert torch.equal(one, other)
    module(values).context.sum().backward()
    assert module.latents.grad is not None
    assert list(file.parent.iterdir()) == [file]


@needs_safetensors
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_type_is_kept(published, tmp_path, dtype):
    module = from_published(published.to(dtype).state_dict(), num_heads=H)
    save(module, tmp_path / "new folder" / "m.safetensors")
    found = load(tmp_path / "new folder" / "m.safetensors")
    assert {name: tensor.dtype for name, tensor in found.state_dict().items()} == dict.fromkeys(
        module.state_dict(), dtype
    )
    assert all(
        torch.equal(found.state_dict()[name], tensor)
        for name, tensor in module.state_dict().items()
    )


@needs_safetensors
@pytest.mark.parametrize("scheme", ["encoder", "decoder", "both", "separate"])
def test_an_injection_comes_back_as_it_was(tmp_path, scheme):
    injection = mam.ContextInjection(DZ, 7, scheme)
    save(injection, tmp_path / "injection.safetensors")
    found, context = load(tmp_path / "injection.safetensors"), torch.randn(3, DZ)
    for one, other in zip(found(context), injection(context), strict=True):
        assert one is other is None or torch.equal(one, other)
    assert found.scheme == scheme


def test_what_is_read_does_not_hang_on_the_file(masker, file):
    module = load(file)
    file.write_bytes(b"")
    assert torch.equal(module.latents, masker.latents)


def test_a_file_says_what_it_holds(file):
    header = header_of(file.read_bytes())
    description = json.loads(header["__metadata__"]["mam_kernels"])
    assert description["format"] == 1
    assert description["kind"] == "MultinomialAttentionMasking"
    assert description["version"] == mam.__version__
    assert description["arguments"] == {
        "input_dim": None, "latent_dim": DZ, "num_latents": N, "num_heads": H,
        "mask_ratio": 0.25, "latent_fraction": 0.5,
        "temperature": 0.5, "context_from": "visible", "eps": 1e-8,
    }  # fmt: skip
    assert header["latents"] == {
        "dtype": "F32",
        "shape": [N, DZ],
        "data_offsets": header["latents"]["data_offsets"],
    }


def test_into_a_module_that_is_there(masker, file, values):
    module = mam.MultinomialAttentionMasking(None, DZ, N, H, mask_ratio=0.5).double()
    assert load(file, into=module) is module
    assert module.latents.dtype == torch.float64
    assert torch.equal(module.latents, masker.latents.double())
    assert module(values.double()).mask.sum(dim=1).tolist() == [L // 2] * 5


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            mam.MultinomialAttentionMasking(None, 32, N, H),
            "expected latent_dim = 32, as the module has; got latent_dim = 16",
        ),
        (
            mam.MultinomialAttentionMasking(None, DZ, N, 8),
            "expected num_heads = 8, as the module has; got num_heads = 4",
        ),
        (
            mam.MultinomialAttentionMasking(3, DZ, N, H),
            "expected input_dim = 3, as the module has; got input_dim = None",
        ),
        (
            mam.ContextInjection(DZ, 8),
            "expected a ContextInjection, as the module is; got a MultinomialAttentionMasking",
        ),
    ],
    ids=["width", "heads", "tokens", "kind"],
)
def test_a_file_of_other_sizes_is_refused_and_the_module_left_alone(file, module, message):
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load(file, into=module)
    assert str(caught.value) == f"{file}: {message}"
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_truncated_anywhere_it_is_refused_with_its_length(file):
    content = file.read_bytes()
    whole = f"{len(content):,}"
    for size, found in [
        (0, "an empty file"),
        (5, "5 bytes of neither safetensors nor torch.save"),
        (100, "a safetensors file cut short in its header: 100 bytes of "),
        (
            len(content) // 2,
            f"a safetensors file cut short: {len(content) // 2:,} bytes of {whole}",
        ),
        (len(content) - 1, f"a safetensors file cut short: {len(content) - 1:,} bytes of {whole}"),
    ]:
        file.write_bytes(content[:size])
        with pytest.raises(WeightsError) as caught:
            load(file)
        assert str(caught.value).startswith(f"{file}: expected a safetensors file; got {found}")
        with pytest.raises(WeightsError, match=r"expected a (safetensors file|checkpoint)"):
            from_published(file, num_heads=H)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"# notes\nnothing to see", "a text file that begins with '# notes\\nnothing to see'"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file, such as .h5ad"),
        (b"PK\x03\x04" + bytes(100), "a zip archive, such as torch.save writes, cut short"),
        (b"\x08\x00\x00\x00\x00\x00\x00\x00{ rest }", "a damaged safetensors file ("),
    ],
)
def test_another_file_is_refused_by_what_it_is(file, content, found):
    file.write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        load(file)
    assert str(caught.value).startswith(f"{file}: expected a safetensors file; got {found}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2, "version": "9.0"}, "expected format 1, which mam_kernels "),
        (
            {"kind": "Cell"},
            "expected a MultinomialAttentionMasking or ContextInjection; got a Cell",
        ),
        ({"arguments": [1]}, "expected arguments by name in its header; got list"),
        (
            {"arguments": {"depth": 3}},
            "expected the arguments of MultinomialAttentionMasking in its header; got ",
        ),
        (
            {"arguments": {"latent_dim": DZ, "num_heads": 5}},
            "expected the arguments of MultinomialAttentionMasking in its header; got num_h",
        ),
        (
            {"arguments": {"latent_dim": DZ, "num_latents": 7, "num_heads": H}},
            "expected the tensors of MultinomialAttentionMasking; got latents, torch.float32 of"
            " shape (6, 16) on cpu, instead of ",
        ),
    ],
    ids=["format", "kind", "no arguments", "unknown argument", "wrong argument", "shape"],
)
def test_a_header_that_does_not_fit_is_refused(file, changes, message):
    file.write_bytes(with_description(file.read_bytes(), **changes))
    with pytest.raises(WeightsError) as caught:
        load(file)
    assert str(caught.value).startswith(f"{file}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, 2**power) for name in ("latent_dim", "num_latents") for power in (40, 62, 70)],
        ("num_heads", 2**70),
        ("num_latents", 10**400),
        ("input_dim", 2**62),
        ("latent_dim", -4),
        ("latent_dim", 1e308),
        ("latent_dim", [1]),
        ("mask_ratio", math.inf),
        ("latent_fraction", math.nan),
    ],
)
def test_absurd_sizes_in_a_header_are_refused_in_one_line(file, name, value):
    content = file.read_bytes()
    arguments = json.loads(header_of(content)["__metadata__"]["mam_kernels"])["arguments"]
    file.write_bytes(with_description(content, arguments={**arguments, name: value}))
    with pytest.raises(WeightsError) as caught:
        load(file)
    assert str(caught.value).startswith(f"{file}: expected the ")
    assert "\n" not in str(caught.value)


def test_names_with_line_feeds_do_not_break_the_line(file):
    from safetensors.torch import save_file

    save_file({"a\nb\u2028c": torch.ones(2)}, file)
    with pytest.raises(WeightsError, match=r"of others \(a\\nb\\u2028c\)$"):
        load(file)


def test_a_checkpoint_is_read_whatever_its_name_ends_in(published, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    torch.save({"state_dict": published.state_dict()}, path)
    masker = from_published(path, num_heads=H)
    assert torch.equal(masker.latents, from_published(published.state_dict(), num_heads=H).latents)


DEEP = "[" * 200_000 + "]" * 200_000


@pytest.mark.parametrize("where", ["the header", "the description", "an argument"])
def test_a_header_that_is_too_deep_is_refused_in_one_line(file, where):
    header = header_of(file.read_bytes())
    description = header["__metadata__"]["mam_kernels"]
    if where == "the description":
        header["__metadata__"]["mam_kernels"] = DEEP
    if where == "an argument":
        header["__metadata__"]["mam_kernels"] = f'{{"deep": {DEEP}, {description[1:]}'
    text = json.dumps(header)
    if where == "the header":
        text = f'{{"deep": {DEEP}, {text[1:]}'
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    encoded = text.encode()
    file.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + length :])
    with pytest.raises(WeightsError) as caught:
        load(file)
    assert str(caught.value).startswith(f"{file}: expected ")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("shape", [[2**62, 0], [2**62, 2**62, 0], [2**64, 0], [-1], [1] * 100])
def test_absurd_shapes_are_refused_in_one_line(file, shape):
    header = {"__metadata__": header_of(file.read_bytes())["__metadata__"]}
    size = 0 if 0 in shape else 4
    header["latents"] = {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}
    encoded = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(encoded)) + encoded + bytes(size))
    with pytest.raises(WeightsError) as caught:
        load(file)
    assert str(caught.value).startswith(f"{file}: expected ")
    assert len(str(caught.value).splitlines()) == 1


def test_safetensors_of_something_else_and_tensors_that_lack_or_are_too_many(masker, file):
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(2)}, file)
    with pytest.raises(
        WeightsError,
        match=r"expected weights that mam_kernels saved; got a safetensors file of others"
        r" \(weight\)$",
    ):
        load(file)
    save_file({"weight": torch.ones(2)}, file, metadata={"mam_kernels": "yes"})
    with pytest.raises(
        WeightsError, match=r"expected format, kind and arguments in its header; got 'yes'$"
    ):
        load(file)
    save(masker, file)
    metadata = header_of(file.read_bytes())["__metadata__"]
    state = {name: tensor for name, tensor in masker.state_dict().items() if name != "latents"} | {
        "scale": torch.ones(1)
    }
    save_file(state, file, metadata=metadata)
    with pytest.raises(
        WeightsError,
        match=r"expected the tensors of Multi\w+; got no latents; scale, which it has not$",
    ):
        load(file)
    save_file(
        masker.state_dict() | {"latents": torch.ones(N, DZ, dtype=torch.int32)},
        file,
        metadata=metadata,
    )
    with pytest.raises(
        WeightsError,
        match=r"got latents, torch.int32 of shape \(6, 16\) on cpu, instead of shape \(6, 16\)",
    ):
        load(file)


class Derived(mam.MultinomialAttentionMasking):
    """Computes something else."""


@pytest.mark.parametrize(
    ("module", "name"), [(nn.Linear(2, 2), "Linear"), (Derived(None, DZ, N, H), "Derived")]
)
def test_other_modules_are_not_saved(tmp_path, module, name):
    with pytest.raises(
        TypeError,
        match=rf"^module: expected MultinomialAttentionMasking or ContextInjection; got {name}$",
    ):
        save(module, tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_file_is_replaced_whole_or_not_at_all(masker, file, monkeypatch):
    import safetensors.torch

    before = file.read_bytes()

    def breaks(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise safetensors.SafetensorError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", breaks)
    with pytest.raises(
        OSError, match=r"masker\.safetensors: cannot be written \(No space left on device\)"
    ):
        save(masker, file)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_without_safetensors_it_is_said_what_to_install(masker, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(
        ModuleNotFoundError,
        match="needs the package safetensors; install it: pip install safetensors",
    ):
        save(masker, tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())
