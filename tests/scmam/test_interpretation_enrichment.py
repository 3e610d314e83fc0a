"""Over-representation of gene sets: the numbers against scipy, no network, and what is said about
files that cannot be used.
"""

import socket

import numpy as np
import pytest

pytest.importorskip("pandas", reason="the single-cell layer is not installed")
pytest.importorskip("pydantic", reason="the single-cell layer is not installed")
pytest.importorskip("scipy", reason="the single-cell layer is not installed")

from scipy.stats import false_discovery_control, hypergeom
from scmam.errors import ScmamError
from scmam.interpretation.enrichment import (
    GeneSetError,
    over_representation,
    read_gene_sets,
    sets_among,
)

GENES = tuple(f"GENE{index}" for index in range(200))
TOP = GENES[:20]
SETS = {
    "planted": (*GENES[:10], *GENES[100:105]),
    "spread": GENES[::10],
    "elsewhere": GENES[150:170],
}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def expected_p(members, tested=TOP, genes=GENES):
    overlap = len(set(members) & set(tested))
    return hypergeom.sf(overlap - 1, len(genes), len(members), len(tested))


def test_p_values_are_hypergeometric():
    table = over_representation(TOP, SETS, GENES).set_index("term")
    assert list(table.columns) == [
        "overlap",
        "set_size",
        "p_value",
        "adjusted_p_value",
        "odds_ratio",
        "combined_score",
        "genes",
    ]
    assert table.index.tolist() == ["planted", "spread", "elsewhere"]
    for name, members in SETS.items():
        assert table.loc[name, "p_value"] == pytest.approx(expected_p(members), rel=1e-9)
        assert table.loc[name, "set_size"] == len(members)
        assert table.loc[name, "overlap"] == len(set(members) & set(TOP))
    assert table["adjusted_p_value"].to_numpy() == pytest.approx(
        false_discovery_control(table["p_value"].to_numpy())
    )
    assert table.loc["planted", "genes"] == ";".join(sorted(GENES[:10]))
    assert table.loc["planted", "p_value"] < 1e-6
    odds = 10.5 * (200 - 15 - 20 + 10 + 0.5) / (5.5 * 10.5)
    assert table.loc["planted", "odds_ratio"] == pytest.approx(odds)
    score = -odds * np.log(table.loc["planted", "p_value"])
    assert table.loc["planted", "combined_score"] == pytest.approx(score)
    assert table.loc["elsewhere", "p_value"] == 1.0
    assert np.isnan(table.loc["elsewhere", "odds_ratio"])


@pytest.mark.parametrize(
    "names",
    [
        [str(index) for index in range(200)],  # Entrez identifiers
        [f"Gene{index}" for index in range(200)],  # mouse
        [
            f"GENE{index}" if index % 50 else f"C{index}orf1" for index in range(200)
        ],  # human, a few with lower case
    ],
)
def test_names_of_every_kind(names):
    of = dict(zip(GENES, names, strict=True))
    sets = {name: tuple(of[gene] for gene in members) for name, members in SETS.items()}
    table = over_representation([of[gene] for gene in TOP], sets, names).set_index("term")
    for name, members in SETS.items():
        assert table.loc[name, "p_value"] == pytest.approx(expected_p(members), rel=1e-9)
    assert set(table.loc["planted", "genes"].split(";")) == {of[gene] for gene in GENES[:10]}


def test_no_overlap_at_all():
    table = over_representation(GENES[180:], {"elsewhere": SETS["elsewhere"]}, GENES)
    assert table["p_value"].tolist() == table["adjusted_p_value"].tolist() == [1.0]
    assert table["overlap"].tolist() == [0]


def test_reads_a_gmt_file(tmp_path):
    path = tmp_path / "sets.gmt"
    path.write_text("first\thttp://somewhere\tA\tB\tA\t\n\nsecond set\t\tC\n", encoding="utf-8-sig")
    assert read_gene_sets(path) == {"first": ("A", "B"), "second set": ("C",)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"sets\.gmt: no such file; give a GMT file of gene sets"),
        (b"", r"sets\.gmt: holds no gene set; give a GMT file with a set a line"),
        (b"\n \n", r"holds no gene set"),
        (
            b"\x1f\x8b\x08\x00\xff\xfe",
            r"sets\.gmt: not a text file; give a GMT file, unpacked where it was compressed",
        ),
        (
            b"a\tb\tC\nname only\n",
            r"sets\.gmt: line 2: expected name, description and genes, separated by tabs; got"
            r" 'name only'",
        ),
        (b"a\tdescription\n", r"line 1: expected name, description and genes"),
        (
            b"a,b,C\n",
            r"line 1: expected name, description and genes, separated by tabs; got 'a,b,C'",
        ),
        (b"\tdescription\tC\n", r"line 1: expected name"),
        (b"a\tb\tC\na\tb\tD\n", r"line 2: the set 'a' is there twice; rename one of them"),
    ],
)
def test_refuses_files_that_are_none(tmp_path, content, message):
    path = tmp_path / "sets.gmt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(GeneSetError, match=message) as caught:
        read_gene_sets(path)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ScmamError)


def test_keeps_the_genes_of_the_run():
    assert sets_among({"a": ("X", "Y"), "b": ("Z",)}, ("Y", "W"), "sets.gmt") == {"a": ("Y",)}


def test_says_when_only_the_case_differs():
    with pytest.raises(GeneSetError) as caught:
        sets_among({"a": ("CD3D", "CD3E", "ONLY")}, ("Cd3d", "Cd3e", "Lyz2"), "human.gmt")
    assert str(caught.value) == (
        "human.gmt: shares no gene with the 3 of the run, but 2 when upper and lower case are not"
        " told apart (CD3D, CD3E, ONLY there,"
        " Cd3d, Cd3e, Lyz2 here), as with symbols of human and mouse; give gene sets of the right"
        " species"
    )


def test_says_when_nothing_is_shared():
    with pytest.raises(
        GeneSetError,
        match=r"ids\.gmt: shares no gene with the 1 of the run \(ENSG01 there, CD3D here\); give"
        r" gene sets with",
    ):
        sets_among({"a": ("ENSG01",)}, ("CD3D",), "ids.gmt")
