"""The loader: its order, its place in an epoch, its shards and its workers; and the splits of the
cells.
"""

from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch

anndata = pytest.importorskip("anndata", reason="the single-cell layer is not installed")
pytest.importorskip("pydantic", reason="the single-cell layer is not installed")
scipy_sparse = pytest.importorskip("scipy.sparse")

from scmam.data import (  # noqa: E402
    CellLoader,
    development_split,
    folds,
    from_anndata,
    holdout,
    open_cells,
    stratified,
)
from scmam.errors import CellsError  # noqa: E402
from scmam.settings import Data  # noqa: E402

COUNTS = scipy_sparse.csr_matrix(
    np.random.default_rng(0).poisson(0.7, (53, 30)).astype(np.float32)
    + np.eye(53, 30, dtype=np.float32)
)
LABELS = np.array(["B", "T", "NK"])[np.arange(53) % 3]
DONORS = np.array([f"D{i}" for i in np.arange(53) // 8])


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    data = anndata.AnnData(COUNTS)
    data.obs["cell_type"], data.obs["donor"] = LABELS, DONORS
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    data.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def cells(file):
    return open_cells(Data(path=file, donor="donor"))


@pytest.fixture
def backed(file):
    return open_cells(Data(path=file, backed="always"))


def ids(batches):
    return [batch.cell_ids.tolist() for batch in batches]


def test_an_epoch_is_every_cell_once_in_an_order_of_its_own(cells):
    loader = CellLoader(cells, 8, seed=3)
    first, second = ids(loader), ids(loader)
    assert len(first) == len(loader) == 7
    assert [len(batch) for batch in first] == [8] * 6 + [5]
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(53))
    assert first != second
    assert ids(CellLoader(cells, 8, seed=3)) == first
    assert ids(CellLoader(cells, 8, seed=4)) != first
    again = CellLoader(cells, 8, seed=3)
    again.set_epoch(1)
    assert ids(again) == second
    assert ids(CellLoader(cells, 20, shuffle=False)) == [
        list(range(20)),
        list(range(20, 40)),
        list(range(40, 53)),
    ]
    assert len(ids(CellLoader(cells, 8, drop_last=True))) == 6


def test_counts_go_with_their_cells(cells):
    for batch in CellLoader(cells, 16):
        np.testing.assert_array_equal(batch.counts, COUNTS[batch.cell_ids.numpy()].toarray())
        assert batch.labels.tolist() == cells.codes[batch.cell_ids.numpy()].tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_neither_file_nor_workers_change_anything(cells, backed, workers):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    loader = CellLoader(backed, 8, seed=1, workers=workers)
    for _ in range(2):
        expected = CellLoader(cells, 8, seed=1)
        expected.set_epoch(loader.epoch)
        pairs = list(zip(loader, expected, strict=True))
        assert len(pairs) == 7
        assert all(
            torch.equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True)
        )
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("done", [1, 5, 7, 10])
def test_goes_on_where_it_was(backed, workers, done):
    whole = CellLoader(backed, 8, seed=2)
    expected = ids(whole) + ids(whole) + ids(whole)
    interrupted, seen = CellLoader(backed, 8, seed=2, workers=workers), []
    while len(seen) < done:
        for batch in interrupted:
            seen.append(batch.cell_ids.tolist())
            if len(seen) == done:
                break
    state = interrupted.state_dict()
    assert (state["epoch"], state["position"]) == divmod(done, 7)
    resumed = CellLoader(backed, 8, seed=2, workers=workers)
    resumed.load_state_dict(state)
    resumed.set_epoch(state["epoch"])  # as a trainer does; the place stays
    following = ids(resumed) + ids(resumed)
    assert seen + following == expected[: done + len(following)]
    assert len(following) == 14 - state["position"]


def test_a_pass_that_is_given_up_starts_again(cells):
    loader = CellLoader(cells, 8, seed=2)
    first = next(iter(loader)).cell_ids.tolist()
    assert ids(loader)[0] == first


def test_another_order_cannot_be_gone_on_with(cells):
    state = CellLoader(cells, 8, seed=2).state_dict()
    with pytest.raises(
        CellsError, match=r"checkpoint: .*another order \(batch_size 8, now 4\); start a new run"
    ):
        CellLoader(cells, 4, seed=2).load_state_dict(state)


@pytest.mark.parametrize("drop_last", [True, False])
def test_shards_share_the_steps_of_one_process(cells, drop_last):
    shards = [
        ids(CellLoader(cells, 4, seed=5, rank=rank, world_size=3, drop_last=drop_last))
        for rank in range(3)
    ]
    assert len({len(shard) for shard in shards}) == 1
    assert len({tuple(map(len, shard)) for shard in shards}) == 1
    together = [sorted(chain(*parts)) for parts in zip(*shards, strict=True)]
    single = [sorted(batch) for batch in ids(CellLoader(cells, 12, seed=5, drop_last=drop_last))]
    assert together[:4] == single[:4]
    everything = [cell for step in together for cell in step]
    assert len(everything) == (48 if drop_last else 54)
    assert len(set(everything)) == (48 if drop_last else 53)


def test_blocks_keep_neighbours_within_what_is_read_at_once(file, monkeypatch):
    monkeypatch.setattr("scmam.data.loader.READ_AHEAD", 16)
    loader = CellLoader(open_cells(Data(path=file, shuffle_block=4)), 16, seed=0)
    batches = ids(loader)
    assert sorted(chain(*batches)) == list(range(53))
    assert batches != ids(loader)
    assert batches[0] != sorted(batches[0])
    for batch in batches[:2]:  # the short last block may fall into any of them
        assert len({cell // 4 for cell in batch}) <= 5


def test_what_cannot_be_loaded(cells):
    with pytest.raises(
        CellsError,
        match=r"training.batch_size: 20 cells on each of 3 .* the 53 there are; set at most 17",
    ):
        CellLoader(cells, 20, world_size=3, drop_last=True)
    with pytest.raises(CellsError, match="no cells to read"):
        CellLoader(cells.subset(np.array([], dtype=np.int64)), 4)
    with pytest.raises(ValueError, match="rank: expected 0 <= rank < world_size = 2; got 2"):
        CellLoader(cells, 4, rank=2, world_size=2)
    with pytest.raises(ValueError, match="batch_size: expected at least 1; got 0"):
        CellLoader(cells, 0)


# Splits


def ungrouped():
    return from_anndata(_annotated(LABELS))


def _annotated(labels):
    data = anndata.AnnData(COUNTS)
    data.obs["cell_type"], data.obs["donor"] = labels, DONORS
    return data


def test_folds_are_stratified_and_leave_out_the_unlabelled():
    pytest.importorskip("sklearn", reason="scikit-learn makes the folds")
    cells = from_anndata(_annotated(np.where(np.arange(53) < 4, None, LABELS)))
    splits = folds(cells, 5, seed=0)
    tested = np.concatenate([test for _, test in splits])
    assert sorted(tested.tolist()) == list(range(4, 53))
    for train, test in splits:
        assert not set(train.tolist()) & set(test.tolist())
        assert len(train) + len(test) == 49
        assert set(cells.codes[test].tolist()) == {0, 1, 2}
        assert np.ptp(np.bincount(cells.codes[test])) <= 2
    same, other = folds(cells, 5, seed=0), folds(cells, 5, seed=1)
    assert all(
        np.array_equal(a, b)
        for one, two in zip(splits, same, strict=True)
        for a, b in zip(one, two, strict=True)
    )
    assert any(not np.array_equal(one[1], two[1]) for one, two in zip(splits, other, strict=True))


def test_folds_keep_donors_together(cells):
    pytest.importorskip("sklearn", reason="scikit-learn makes the folds")
    for train, test in folds(cells, 3, seed=0):
        assert not set(cells.donors[train]) & set(cells.donors[test])
    with pytest.raises(
        CellsError,
        match=r"obs\['donor'\] has 7 donors, fewer than the 8 folds; set evaluation.folds lower",
    ):
        folds(cells, 8, seed=0)


def test_development_cells_are_of_every_class_in_proportion():
    labels = np.where(np.arange(53) < 4, None, LABELS)
    cells = replace(from_anndata(_annotated(labels)), donors=None)
    rest, development = development_split(cells, 0.3, seed=0)
    assert sorted([*rest, *development]) == list(range(4, 53))
    assert len(development) == 15
    sizes = np.bincount(cells.codes[4:])
    assert (np.abs(np.bincount(cells.codes[development]) - 0.3 * sizes) < 1).all()
    assert np.array_equal(development, development_split(cells, 0.3, seed=0)[1])
    assert not np.array_equal(development, development_split(cells, 0.3, seed=1)[1])
    assert [len(part) for part in development_split(cells, 0.0, seed=0)] == [49, 0]


def test_development_cells_are_whole_donors_where_donors_are_known(cells):
    pytest.importorskip("sklearn", reason="scikit-learn makes the folds")
    rest, development = development_split(cells, 0.3, seed=0)
    assert sorted([*rest, *development]) == list(range(53))
    assert not set(cells.donors[rest]) & set(cells.donors[development])
    assert 0.1 < len(development) / 53 < 0.5
    with pytest.raises(
        CellsError,
        match=r"obs\['donor'\] has 7 donors, too few to set 0.1 of the cells aside; set",
    ):
        development_split(cells, 0.1, seed=0)


def test_a_stratified_draw_has_every_class():
    codes = np.repeat([0, 1, 2], [90, 9, 1])
    for count in (3, 10, 40, 99):
        drawn = stratified(codes, count, seed=0)
        sizes = np.bincount(codes[drawn], minlength=3)
        assert len(set(drawn.tolist())) == count
        assert sizes.min() >= 1
        assert (np.abs(sizes - count * np.array([0.9, 0.09, 0.01])) <= 2).all()
    assert np.array_equal(stratified(codes, 200, seed=0), np.arange(100))
    draws = {tuple(stratified(codes, 10, seed)) for seed in range(20)}
    assert len(draws) == 20


def test_classes_too_small_for_the_folds_are_named():
    labels = np.where(np.arange(53) < 3, "rare", LABELS)
    with pytest.raises(
        CellsError,
        match=r"1 of the 4 classes .* than the 5 folds: rare \(3\); set .* to 5 .* or"
        r" evaluation.folds to 3",
    ):
        folds(from_anndata(_annotated(labels)), 5, seed=0)
    with pytest.raises(CellsError, match=r"set data.label to a column with at least two classes"):
        folds(from_anndata(anndata.AnnData(COUNTS)), 5, seed=0)


def test_holdout_is_the_share_and_keeps_donors_together(cells):
    alone = ungrouped()
    train, validation = holdout(alone, 0.2, seed=0)
    assert (len(train), len(validation)) == (42, 11)
    assert sorted([*train, *validation]) == list(range(53))
    assert not np.array_equal(validation, holdout(alone, 0.2, seed=1)[1])
    assert np.array_equal(validation, holdout(alone, 0.2, seed=0)[1])
    train, validation = holdout(cells, 0.3, seed=0)  # 2 of 7 donors
    assert len(set(cells.donors[validation])) == 2
    assert not set(cells.donors[train]) & set(cells.donors[validation])
    assert len(holdout(cells, 0.01, seed=0)[1]) == 1  # too little for a donor
    assert [len(part) for part in holdout(alone, 0.0, seed=0)] == [53, 0]
    with pytest.raises(CellsError, match=r"1 cells cannot be split; set training.validation to 0"):
        holdout(alone.subset(np.array([3])), 0.5, seed=0)
