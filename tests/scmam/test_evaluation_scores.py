"""Scores of folds: the numbers, the file, and what is said about files that are something else."""

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the single-cell layer is not installed")
pytest.importorskip("pydantic", reason="the single-cell layer is not installed")

from scmam.errors import RunError
from scmam.evaluation.scores import Evaluation, score

TRUTH = np.array([0, 0, 0, 1, 1, 2])
PREDICTED = np.array([0, 0, 1, 1, 1, 0])


def evaluation():
    folds = tuple(
        score(fold, TRUTH, np.roll(PREDICTED, fold), 4, train_cells=24, seconds=0.1 + fold)
        for fold in range(2)
    )
    return Evaluation(
        "linear-probe",
        ("B", "T", "NK", "rare"),
        folds,
        {"folds": 2, "lr": 0.001, "max_tokens": None, "donor": None},
    )


def test_scores_by_hand():
    found = score(3, TRUTH, PREDICTED, 3, train_cells=24, seconds=1.5)
    # B: precision 2/3, recall 2/3; T: precision 2/3, recall 1; NK: never predicted
    assert found.per_class_f1 == pytest.approx((2 / 3, 4 / 5, 0.0))
    assert found.macro_f1 == pytest.approx((2 / 3 + 4 / 5) / 3)
    assert found.accuracy == pytest.approx(4 / 6)
    assert found.micro_f1 == pytest.approx(4 / 6)
    assert found.confusion == ((2, 1, 0), (0, 2, 0), (1, 0, 0))
    assert (found.fold, found.train_cells, found.test_cells, found.seconds) == (3, 24, 6, 1.5)


def test_a_class_that_is_absent_from_a_fold_keeps_its_place():
    found = score(0, TRUTH, PREDICTED, 4, train_cells=24, seconds=1.0)
    assert found.per_class_f1 == pytest.approx((2 / 3, 4 / 5, 0.0, 0.0))
    assert found.macro_f1 == pytest.approx((2 / 3 + 4 / 5) / 4)
    assert found.confusion == ((2, 1, 0, 0), (0, 2, 0, 0), (1, 0, 0, 0), (0, 0, 0, 0))


def test_over_folds():
    found = evaluation()
    assert found.mean("accuracy") == pytest.approx(np.mean([fold.accuracy for fold in found.folds]))
    assert found.values("macro_f1").shape == (2,)
    assert found.confusion().sum() == 12
    np.testing.assert_array_equal(found.confusion().sum(axis=1), [6, 4, 2, 0])
    with pytest.raises(
        ValueError, match="metric: expected one of accuracy, macro_f1, micro_f1; got 'f1'"
    ):
        found.values("f1")


def test_the_file_gives_the_same_again(tmp_path):
    path = tmp_path / "deep" / "linear-probe.json"
    evaluation().save(path)
    assert Evaluation.load(path) == evaluation()
    assert Evaluation.from_json(evaluation().to_json()) == evaluation()
    assert [file.name for file in path.parent.iterdir()] == ["linear-probe.json"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"method": "linear-probe"', "not the scores of an evaluation"),
        ("[]", "not the scores of an evaluation"),
        (
            '{"method": "linear-probe", "classes": [], "settings": {}}',
            "not the scores of an evaluation (folds: field required)",
        ),
        (
            '{"method": "linear-probe", "classes": [], "settings": {}, "folds": [{"fold": 0}]}',
            "not the scores of an evaluation (folds.0.accuracy: field required)",
        ),
    ],
)
def test_other_files_are_refused_in_a_line(tmp_path, text, reason):
    path = tmp_path / "scores.json"
    path.write_text(text)
    with pytest.raises(RunError) as raised:
        Evaluation.load(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: {reason}")
    assert message.endswith("; delete it and evaluate again")
    assert "\n" not in message


def test_a_missing_file(tmp_path):
    with pytest.raises(RunError, match=r"none.json: no such file; `scmam evaluate` writes it"):
        Evaluation.load(tmp_path / "none.json")
