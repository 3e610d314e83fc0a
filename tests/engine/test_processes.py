"""Two processes, smaller batches and restarts: the same masks, and the same training to rounding
(see training_loop.py).
"""

import pytest
import torch
from torch import Tensor

from tests.engine import training_loop
from tests.engine.test_traps import run_both_ranks
from tests.engine.training_loop import CELLS, EPOCHS, MIDDLE, STEPS, Model, Trained, train

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch was built without torch.distributed"
)

ADAPTER = ["injection.encoder_adapter.weight", "injection.encoder_adapter.bias"]


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> dict[str, list[Trained]]:
    """What each run gave in two processes, by rank."""
    rendezvous = tmp_path_factory.mktemp("processes") / "rendezvous"
    run_both_ranks(training_loop.__file__, rendezvous)
    saved = [
        torch.load(rendezvous.with_name(f"rank{rank}.pt"), weights_only=True)
        for rank in range(training_loop.WORLD)
    ]
    return {name: [Trained(**by_rank[name]) for by_rank in saved] for name in saved[0]}


@pytest.fixture(scope="module")
def alone() -> dict[str, Trained]:
    """The same in one process, with the cells of both."""
    return {kind: train(Model(kind)) for kind in ("values", "embeddings")}


def close(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 2e-6) -> bool:
    return one.keys() == other.keys() and all(
        torch.allclose(one[name], other[name], rtol=0, atol=tolerance) for name in one
    )


def of_both(ranks: list[Trained]) -> dict[tuple[int, int], list[bool]]:
    first, second = (trained.masks for trained in ranks)
    assert not first.keys() & second.keys()
    return first | second


def test_the_loop_hides_genes_of_every_cell_in_every_epoch_and_trains(alone):
    for kind, trained in alone.items():
        assert len(trained.masks) == EPOCHS * CELLS
        # Another epoch, another mask.
        assert len({tuple(mask) for mask in trained.masks.values()}) > CELLS
        assert all(sum(mask) == 12 for mask in trained.masks.values())
        before = Model(kind).state_dict()
        assert not any(torch.equal(trained.parameters[name], x) for name, x in before.items())


@pytest.mark.parametrize("kind", ["values", "embeddings"])
@pytest.mark.parametrize("cells_a_call", [1, 4])
def test_smaller_batches_with_accumulated_gradients_hide_the_same_genes(kind, cells_a_call, alone):
    smaller = train(Model(kind), cells_a_call=cells_a_call)
    assert smaller.masks == alone[kind].masks
    assert close(smaller.parameters, alone[kind].parameters)
    assert smaller.losses == pytest.approx(alone[kind].losses, rel=1e-5)


@pytest.mark.parametrize("kind", ["values", "embeddings"])
def test_a_restart_in_the_middle_of_an_epoch_continues_to_the_bit(kind, alone, tmp_path):
    assert MIDDLE * training_loop.CELLS_A_STEP % CELLS != 0
    stopped = train(Model(kind), stop=MIDDLE, checkpoint=tmp_path / "checkpoint.pt")
    continued = train(Model(kind), checkpoint=tmp_path / "checkpoint.pt")
    assert stopped.masks | continued.masks == alone[kind].masks
    assert stopped.losses + continued.losses == alone[kind].losses
    assert close(continued.parameters, alone[kind].parameters, tolerance=0)


@pytest.mark.parametrize("system", ["DDP", "FSDP"])
@pytest.mark.parametrize("kind", ["values", "embeddings"])
def test_two_processes_hide_the_same_genes_and_train_as_one(kind, system, together, alone):
    ranks = together[f"{system} {kind}"]
    assert of_both(ranks) == alone[kind].masks
    assert close(ranks[0].parameters, alone[kind].parameters)
    losses = [
        sum(of_a_step) / 2 for of_a_step in zip(*(trained.losses for trained in ranks), strict=True)
    ]
    assert losses == pytest.approx(alone[kind].losses, rel=1e-5)
    assert all(trained.without_gradient == [] for trained in ranks)


def test_two_processes_may_be_compiled(together, alone):
    assert of_both(together["compiled"]) == alone["values"].masks
    assert close(together["compiled"][0].parameters, alone["values"].parameters)


def test_two_processes_continue_to_the_bit_after_a_restart_in_the_middle_of_an_epoch(together):
    for stopped, restarted, whole in zip(
        together["stopped"], together["restarted"], together["DDP values"], strict=True
    ):
        assert len(restarted.losses) == STEPS - MIDDLE
        assert stopped.masks | restarted.masks == whole.masks
        assert stopped.losses + restarted.losses == whole.losses
        assert close(restarted.parameters, whole.parameters, tolerance=0)


@pytest.mark.parametrize(("run", "use"), [("one adapter", ("decoder",)), ("mask alone", ())])
def test_sharded_parameters_without_a_gradient_do_not_block(run, use, together):
    expected = train(Model(use=use))
    assert of_both(together[run]) == expected.masks
    assert close(together[run][0].parameters, expected.parameters)
    for trained in together[run]:
        assert trained.without_gradient == expected.without_gradient
    masking = [
        name
        for name, _ in Model().named_parameters()
        if name.startswith(("masking.", "injection."))
    ]
    assert expected.without_gradient == (ADAPTER if use else masking)
    before = Model().state_dict()
    assert all(torch.equal(expected.parameters[name], before[name]) for name in ADAPTER)


def test_a_gathered_state_of_sharded_parameters_loads_into_a_plain_module(together):
    gathered, the_same = (trained.parameters for trained in together["FSDP values"])
    assert close(gathered, the_same, tolerance=0)
    model = Model()
    model.load_state_dict(gathered, strict=True)
    values, ids = training_loop.Cells().values[:3], torch.arange(3)
    loss, mask = model(values, torch.tensor(0), ids)
    assert bool(loss.isfinite())
    assert mask.sum(dim=1).tolist() == [12] * 3


def test_sharded_parameters_may_compute_in_bfloat16(together, alone):
    ranks = together["narrow"]
    assert all(sum(mask) == 12 for mask in of_both(ranks).values())
    assert {x.dtype for x in ranks[0].parameters.values()} == {torch.float32}
    losses = [
        sum(of_a_step) / 2 for of_a_step in zip(*(trained.losses for trained in ranks), strict=True)
    ]
    assert losses == pytest.approx(alone["values"].losses, rel=0.05)
    assert ranks[0].losses != alone["values"].losses
