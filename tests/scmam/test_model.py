"""The encoder-decoder: what each part may and may not see, sizes, and bounds on what is read."""

import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from scmam.model import SIZES, CellModel, SoftBins, build_model
from scmam.model.cell_model import HIDDEN, VISIBLE, ZERO
from scmam.sequences import CellBatch, expression

from mam_kernels.sequences import gather

GENES = 40


def small(**changes) -> CellModel:
    torch.manual_seed(0)
    options = {
        "width": 16,
        "heads": 2,
        "encoder_layers": 2,
        "decoder_layers": 1,
        "bins": 5,
        "mlp_ratio": 2,
        **changes,
    }
    return CellModel(GENES, **options).eval()


@pytest.fixture
def values() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.rand(5, GENES, generator=generator)
        * 4
        * (torch.rand(5, GENES, generator=generator) < 0.4)
    )


DEPTH = torch.tensor([900.0, 1200.0, 3000.0, 500.0, 1.0])


def test_gather_puts_genes_side_by_side_in_order():
    values = torch.tensor([[0.0, 3.0, 0.0, 5.0], [0.0, 0.0, 0.0, 0.0], [1.0, 2.0, 3.0, 4.0]])
    there = gather(values, values != 0)
    assert there.gene_ids.tolist() == [[1, 3, 0, 0], [0, 0, 0, 0], [0, 1, 2, 3]]
    assert there.values.tolist() == [[3, 5, 0, 0], [0, 0, 0, 0], [1, 2, 3, 4]]
    assert there.valid.tolist() == [[True, True, False, False], [False] * 4, [True] * 4]
    empty = gather(values[1:2], values[1:2] != 0)
    assert empty.valid.tolist() == [[False]]
    assert gather(values[:0], values[:0] != 0).values.shape == (0, 1)


def test_transforms_are_what_they_say():
    counts, depth = torch.tensor([[0.0, 1.0, 9.0]]), torch.tensor([100.0])
    torch.testing.assert_close(
        expression(counts, depth, "log1p_counts"), torch.log(torch.tensor([[1.0, 2.0, 10.0]]))
    )
    torch.testing.assert_close(
        expression(counts, depth, "log1p_cp10k"), torch.log(torch.tensor([[1.0, 101.0, 901.0]]))
    )
    assert torch.isfinite(expression(counts * 0, depth * 0, "log1p_cp10k")).all()
    with pytest.raises(
        ValueError, match="transform: expected one of log1p_counts, log1p_cp10k; got 'zscore'"
    ):
        expression(counts, depth, "zscore")


def test_a_batch_moves_as_one():
    batch = CellBatch(
        torch.ones(2, 3), torch.ones(2), torch.arange(2), torch.zeros(2, dtype=torch.int64)
    )
    assert all(x.device.type == "meta" for x in batch.to("meta"))


def test_soft_bins_are_a_mixture_and_smooth():
    torch.manual_seed(0)
    bins = SoftBins(7, 4)
    x = torch.linspace(0, 5, 2001)
    embedded = bins(x)
    assert embedded.shape == (2001, 4)
    assert (embedded[1:] - embedded[:-1]).abs().max() < 0.02
    low, high = bins.bins.min(dim=0).values, bins.bins.max(dim=0).values
    assert ((embedded >= low - 1e-6) & (embedded <= high + 1e-6)).all()


def test_features_do_not_depend_on_the_batch_or_its_padding(values):
    model = small()
    together = model.features(values, DEPTH)
    assert together.shape == (5, model.feature_dim)
    for cell in range(5):
        torch.testing.assert_close(
            together[cell],
            model.features(values[cell : cell + 1], DEPTH[cell : cell + 1])[0],
            rtol=1e-4,
            atol=1e-5,
        )


def test_an_empty_cell_has_finite_features_and_gradients(values):
    model = small()
    values[2] = 0
    features = model.features(values, DEPTH)
    features.square().sum().backward()
    assert torch.isfinite(features).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_depth_enters_by_its_token_alone(values):
    assert not torch.allclose(small().features(values, DEPTH), small().features(values, DEPTH * 3))
    without = small(depth="none")
    assert torch.equal(without.features(values, DEPTH), without.features(values, DEPTH * 3))
    with pytest.raises(ValueError, match="depth: expected token or none; got 'input'"):
        small(depth="input")


def test_hidden_values_reach_no_prediction(values):
    """Whatever stands behind a mask token, and whichever of zero and non-zero it was, both heads
    predict the same.
    """
    model = small()
    hidden = torch.zeros_like(values, dtype=torch.bool)
    hidden[:, ::3] = True
    outputs = []
    for secret in (0.0, 1.0, 7.5):
        changed = torch.where(hidden, torch.full_like(values, secret), values)
        outputs.append(model.reconstruct(changed, (changed != 0) & ~hidden, hidden, DEPTH))
    for other in outputs[1:]:
        assert torch.equal(outputs[0].genes, other.genes)
        assert torch.equal(outputs[0].cell, other.cell)


def test_a_sample_of_genes_is_predicted_in_their_places(values):
    """The decoder attends over the genes that it reads; with the same genes in another order it
    predicts the same.
    """
    model = small()
    hidden = torch.zeros_like(values, dtype=torch.bool)
    hidden[:, ::3] = True
    visible = (values != 0) & ~hidden
    every = model.reconstruct(values, visible, hidden, DEPTH)
    order = torch.randperm(GENES, generator=torch.Generator().manual_seed(1)).expand(5, -1)
    shuffled = model.reconstruct(values, visible, hidden, DEPTH, gene_ids=order)
    torch.testing.assert_close(
        shuffled.genes, every.genes.gather(1, order[..., None]), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(shuffled.cell, every.cell)


def test_the_decoder_is_told_visible_zero_and_hidden_apart(values):
    model = small()
    captured = {}
    model.decoder.register_forward_pre_hook(
        lambda module, args: captured.update(visible=args[1], state=args[3])
    )
    hidden = torch.zeros_like(values, dtype=torch.bool)
    hidden[:, 1::3] = True
    visible = (values != 0) & ~hidden
    model.reconstruct(values, visible, hidden, DEPTH)
    expected = torch.where(hidden, HIDDEN, torch.where(visible, VISIBLE, ZERO))
    assert torch.equal(captured["state"], expected)
    encoded = model.encode(gather(values, visible), DEPTH)
    for cell in range(5):
        torch.testing.assert_close(
            captured["visible"][cell, visible[cell]], encoded.tokens[cell, encoded.valid[cell]]
        )
        assert not captured["visible"][cell, ~visible[cell]].any()


def test_a_value_that_the_encoder_did_not_read_reaches_the_decoder_alone(values):
    model = small()
    captured = {}
    model.decoder.register_forward_pre_hook(
        lambda module, args: captured.update(visible=args[1], state=args[3])
    )
    values = values.clone()
    values[:, 2] = 1.5
    aside = torch.zeros_like(values, dtype=torch.bool)
    aside[:, 2] = True
    visible, nothing = (values != 0) & ~aside, torch.zeros_like(aside)
    genes = torch.tensor([4, 2, 0]).expand(5, -1)
    out = model.reconstruct(values, visible, nothing, DEPTH, gene_ids=genes)
    assert (captured["state"][:, 1] == VISIBLE).all()
    expected = model.embedding(genes[:, 1], values[:, 2])
    torch.testing.assert_close(captured["visible"][:, 1], expected)
    changed = torch.where(aside, 0.5, values)
    other = model.reconstruct(changed, visible, nothing, DEPTH, gene_ids=genes)
    assert torch.equal(out.cell, other.cell)
    assert not torch.allclose(out.genes, other.genes)


def test_shifts_are_added_where_they_are_said_to(values):
    model = small()
    hidden = torch.zeros_like(values, dtype=torch.bool)
    hidden[:, ::2] = True
    visible = (values != 0) & ~hidden
    shift = torch.randn(5, 1, 16, generator=torch.Generator().manual_seed(3))
    plain = model.reconstruct(values, visible, hidden, DEPTH)
    decoder = model.reconstruct(values, visible, hidden, DEPTH, decoder_shift=shift)
    encoder = model.reconstruct(values, visible, hidden, DEPTH, encoder_shift=shift)
    assert not torch.allclose(plain.genes, decoder.genes)
    assert torch.equal(plain.cell, decoder.cell)  # the cell head stands before the decoder
    assert not torch.allclose(plain.cell, encoder.cell)


def test_sampled_genes_take_the_hidden_first():
    model = small(decoder_genes=10)
    hidden = torch.zeros(3, GENES, dtype=torch.bool)
    hidden[0, :4] = True
    hidden[1, :25] = True
    ids = torch.arange(3)
    genes = model.sample_genes(hidden, ids, seed=0, step=0)
    assert genes.shape == (3, 10)
    assert all(len(set(row)) == 10 for row in genes.tolist())
    assert hidden.gather(1, genes).sum(1).tolist() == [4, 10, 0]
    assert torch.equal(genes, model.sample_genes(hidden, ids, seed=0, step=0))
    assert not torch.equal(genes, model.sample_genes(hidden, ids, seed=0, step=1))
    assert small().sample_genes(hidden, ids, seed=0, step=0) is None
    assert small(decoder_genes=GENES).sample_genes(hidden, ids, seed=0, step=0) is None


def test_features_read_the_largest_values_where_there_is_a_bound(values):
    bounded, free = small(max_encoder_tokens=4), small()
    kept = torch.zeros_like(values).scatter(1, values.topk(4).indices, 1.0)
    torch.testing.assert_close(bounded.features(values, DEPTH), free.features(values * kept, DEPTH))


def section(**changes) -> SimpleNamespace:
    names = (
        "width",
        "heads",
        "encoder_layers",
        "decoder_layers",
        "bins",
        "max_encoder_tokens",
        "decoder_genes",
        "recompute",
    )
    return SimpleNamespace(
        **{**dict.fromkeys(names), "size": "tiny", "depth": "token", "dropout": 0.0, **changes}
    )


@pytest.mark.parametrize("size", SIZES)
def test_every_size_is_built_as_stated(size):
    with torch.device("meta"):
        model = build_model(section(size=size), 1000)
    preset = SIZES[size]
    assert model.width == preset["width"]
    assert len(model.encoder.blocks) == preset["encoder_layers"]
    assert len(model.decoder.blocks) == preset["decoder_layers"]
    assert model.decoder_width == preset.get("decoder_width", preset["width"])
    assert model.decoder_genes == preset.get("decoder_genes")


def test_single_settings_override_the_size():
    model = build_model(
        section(
            size="paper", width=32, heads=4, encoder_layers=1, decoder_layers=1, decoder_genes=7
        ),
        50,
        loss="nb",
    )
    assert (model.width, model.decoder_width, model.decoder_genes, model.outputs) == (32, 32, 7, 2)
    with pytest.raises(ValueError, match="heads: expected a divisor of width = 33; got 2"):
        build_model(section(width=33), 50)


def test_recomputed_activations_give_the_same_gradients(values):
    gradients = []
    for recompute in (False, True):
        model = small(recompute=recompute, dropout=0.1).train()
        torch.manual_seed(4)
        model.features(values, DEPTH).square().sum().backward()
        gradients.append(
            {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        )
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


BOUNDED = """
import resource, torch
from types import SimpleNamespace
from mam_kernels.strategies import Uniform
from scmam.config import load_config
from scmam.model import build_model
from scmam.objective import Pretraining
from scmam.sequences import CellBatch

torch.set_num_threads(1)
names = ("width", "heads", "encoder_layers", "decoder_layers", "bins", "max_encoder_tokens",
         "decoder_genes", "recompute")
size = SimpleNamespace(**dict.fromkeys(names), size="tiny", depth="token", dropout=0.0)
config = load_config(overrides=["masking.corruption=80/10/10"])
objective = Pretraining(build_model(size, 20000), Uniform(0.3, 0.03), config)
counts = torch.poisson(torch.full((8, 20000), 0.1))
batch = CellBatch(counts, counts.sum(1), torch.arange(8), torch.zeros(8, dtype=torch.int64))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
losses = objective(batch, seed=0, step=0)
losses.total.backward()
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(grown, float(losses.total.detach()))
"""


def test_twenty_thousand_genes_take_bounded_memory():
    """Eight cells, of which one (B, G, width) tensor would take 39 MiB and the attention over all
    genes 48 GiB.
    """
    run = subprocess.run(
        [sys.executable, "-c", BOUNDED], capture_output=True, text=True, check=True, timeout=300
    )
    mebibytes, loss = map(float, run.stdout.split())
    assert math.isfinite(loss)
    assert mebibytes < 400
