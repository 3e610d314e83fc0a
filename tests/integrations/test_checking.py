"""The checker of a first batch."""

import pytest
import torch
import torch.nn.functional as F

from mam_kernels.integrations import PaddingCollator, ScGptMasking, check_first_batch
from mam_kernels.integrations.formats import FRAMEWORKS
from tests.real_cells import CLS, MASK, PAD, SPECIAL, counts, rank_encoded, sequences, small_masker

VOCABULARY = len(SPECIAL) + counts().shape[1]


@pytest.fixture
def tokens() -> dict:
    batch = PaddingCollator(PAD)([{"input_ids": ids} for ids in rank_encoded()[:16]])
    facts = {
        "special_ids": SPECIAL,
        "mask_value": MASK,
        "vocab_size": VOCABULARY,
        "true_means": "token",
    }
    return {"ids": batch["input_ids"], "padding_mask": batch["attention_mask"], **facts}


@pytest.fixture
def pairs() -> dict:
    gene_ids, values = sequences(1, 0, -2)
    facts = {
        "special_ids": (0, 1, 2),
        "mask_value": -1,
        "pad_value": -2,
        "true_means": "padding",
        "vocab_size": VOCABULARY,
    }
    return {"ids": gene_ids, "values": values, "padding_mask": gene_ids == 0, **facts}


def wrong(**arguments) -> str:
    return "\n".join(map(str, check_first_batch(**arguments).wrong))


def test_good_batches_are_right(tokens, pairs):
    for arguments in (
        tokens,
        {**tokens, "pad_id": PAD},
        pairs,
        {"values": torch.log1p(counts()), "mask_value": -1.0},
    ):
        found = check_first_batch(**arguments)
        assert found.right, found
        assert not found.wrong
        assert all(line.startswith("ok ") for line in str(found).splitlines())
        assert len(str(found).splitlines()) == len(found.findings) >= 2


@pytest.mark.parametrize("known", [True, False])
def test_inverted_padding_is_seen(tokens, pairs, known):
    marks = {"pad_id": PAD} if known else {}
    assert "WRONG padding: looks inverted" in wrong(**{**tokens, "true_means": "padding"}, **marks)
    assert "WRONG padding: looks inverted" in wrong(
        **{**tokens, "padding_mask": 1 - tokens["padding_mask"]}, **marks
    )
    assert "is token what True stands for?" in wrong(
        **{**pairs, "true_means": "token", "pad_value": -2 if known else None}
    )


def test_what_is_wrong_with_padding_is_said(tokens):
    mask, ids = tokens["padding_mask"], tokens["ids"]
    empty = mask.clone()
    empty[3] = 0
    assert "WRONG padding: 1 of 16 rows are padding alone" in wrong(
        **{**tokens, "padding_mask": empty}
    )
    assert "WRONG padding: the mask holds values from 0 to 2, not 0 and 1" in wrong(
        **{**tokens, "padding_mask": mask * 2}
    )
    padded = int((mask == 0).sum())
    assert f"WRONG padding: no padding mask, and {padded} positions hold" in wrong(
        **{**tokens, "padding_mask": None, "pad_id": PAD}
    )
    late = mask.clone()
    late[0, 2] = 0
    assert f"WRONG padding: 1 of {padded + 1} padded positions hold something else" in wrong(
        **{**tokens, "padding_mask": late, "pad_id": PAD}
    )
    early = mask.clone()
    early[(mask == 0).any(dim=1).nonzero()[0, 0], -1] = 1
    assert (
        "WRONG padding: 1 positions hold the padding's value, and the mask calls them tokens"
        in wrong(**{**tokens, "padding_mask": early, "pad_id": PAD})
    )
    assert (ids[0] == CLS).any()


def test_what_is_wrong_with_special_tokens_is_said(tokens):
    assert "every row begins with id 2, which is not among them" in wrong(
        **{**tokens, "special_ids": (PAD, MASK, 3)}
    )
    assert "WRONG special tokens: 104 is not an id of the vocabulary" in wrong(
        **{**tokens, "special_ids": (*SPECIAL, 104)}
    )
    alone = tokens["ids"].clone()
    alone[5] = CLS
    assert "WRONG special tokens: 1 of 16 rows have no token that may be hidden" in wrong(
        **{**tokens, "ids": alone}
    )


def test_what_is_wrong_with_the_mask_value_is_said(tokens, pairs):
    assert "WRONG mask value: there is no mask token" in wrong(**{**tokens, "mask_value": None})
    assert "WRONG vocabulary: the mask token 200 is missing: there are 104 ids" in wrong(
        **{**tokens, "mask_value": 200}
    )
    taken = int(tokens["ids"][0, 1])
    assert f"genes hold the mask token {taken} already" in wrong(**{**tokens, "mask_value": taken})
    masked = pairs["values"].clone()
    masked[:, 3] = -1
    assert "genes hold the mask value -1 already: masked before, or a real value?" in wrong(
        **{**pairs, "values": masked}
    )
    assert "genes hold the mask value 0 already" in wrong(
        values=torch.log1p(counts()), mask_value=0
    )


def test_what_is_wrong_with_ids_and_values_is_said(tokens, pairs):
    assert "WRONG vocabulary: ids from 10 to" in wrong(**{**tokens, "ids": tokens["ids"] + 10})
    assert "where none may be negative" in wrong(ids=tokens["ids"] - 1, mask_value=MASK)
    values = pairs["values"].clone()
    values[0, 1] = torch.nan
    assert "WRONG values: 1 of" in (text := wrong(**{**pairs, "values": values}))
    assert "genes are NaN or infinite" in text
    assert "and expression is not negative" in wrong(
        **{**pairs, "values": pairs["values"].clamp(max=0) - 5, "pad_value": None}
    )


def test_another_device_is_said(tokens):
    found = check_first_batch(**tokens, module=small_masker().to("meta"))
    assert [str(finding) for finding in found.wrong] == [
        "WRONG device: the module is on meta, and ids on cpu, padding_mask on cpu"
    ]
    with pytest.raises(
        ValueError, match="ids, values: expected at least one of them; got None and None"
    ):
        check_first_batch()
    with pytest.raises(ValueError, match="true_means: expected token or padding; got 'keep'"):
        check_first_batch(**{**tokens, "true_means": "keep"})
    with pytest.raises(
        ValueError, match=r"ids: expected shape \(B, L\) with at least one position; got"
    ):
        check_first_batch(ids=tokens["ids"][:, :0])
    with pytest.raises(ValueError, match=r"padding_mask: expected shape \(B, L\) = \(16, "):
        check_first_batch(**{**tokens, "padding_mask": tokens["padding_mask"][:, 1:]})


def test_an_adapter_checks_with_its_own_facts(pairs):
    masking = ScGptMasking(small_masker(), 32, special_ids=(0, 1, 2))
    batch = pairs["ids"], pairs["values"], pairs["padding_mask"]
    assert masking.check(*batch, vocab_size=VOCABULARY).right
    assert "looks inverted" in str(masking.check(batch[0], batch[1], ~batch[2]))


# The frameworks: a right batch of each raises no alarm, and each mistake is seen in each


def _right() -> dict[str, dict]:
    gene_ids, values = sequences(1, 0, -2)
    log, fixed = torch.log1p(counts()), torch.arange(3, 103).expand(len(counts()), -1)
    ranked = PaddingCollator(PAD)([{"input_ids": ids} for ids in rank_encoded()[:16]])
    bmfm_ids, bmfm_values = sequences(1, 0, -1)
    bmfm_values[:, 0] = -2
    zeros = torch.cat([torch.zeros(len(log), 1), log, torch.zeros(len(log), 20)], dim=1)
    zero_ids = torch.cat([torch.ones(len(log), 1), fixed, torch.zeros(len(log), 20)], dim=1).long()
    bare = PaddingCollator(PAD)([{"input_ids": ids[1:-1]} for ids in rank_encoded()[:16]])
    order = log.argsort(dim=1, descending=True)[:, :40]
    state = F.pad(order + 3, (1, 0), value=1)  # a sentence of one length, <cls> first
    state_values = F.pad(log.gather(1, order), (1, 0))
    dev_values = values.clone()
    dev_values[:, 0] = -2
    scgpt = {"special_ids": (0, 1, 2), "mask_value": -1, "true_means": "padding"}
    return {
        "scGPT, tutorials": {
            **scgpt, "ids": gene_ids, "values": values, "padding_mask": gene_ids == 0,
            "pad_value": -2, "vocab_size": VOCABULARY,
        },
        "scGPT, DataCollator, zero genes kept": {
            **scgpt, "ids": zero_ids, "values": zeros, "padding_mask": zero_ids == 0,
            "pad_value": 0,
        },
        "scGPT, dev": {
            **scgpt, "ids": gene_ids, "values": dev_values, "padding_mask": gene_ids == 0,
            "pad_value": -2,
        },
        "Geneformer": {
            "ids": ranked["input_ids"], "padding_mask": ranked["attention_mask"],
            "special_ids": SPECIAL, "mask_value": MASK, "vocab_size": VOCABULARY,
        },
        "BMFM-RNA, without ids": {
            "values": bmfm_values, "padding_mask": (bmfm_ids != 0).long(), "mask_value": -5,
        },
        "scFoundation": {"values": log, "mask_value": 102.0, "pad_value": 103.0},
        "scBERT": {"values": log.round(), "mask_value": 6.0},
        "BMFM-RNA": {
            "ids": bmfm_ids, "values": bmfm_values, "padding_mask": (bmfm_ids != 0).long(),
            "special_ids": (0, 1, 2), "mask_value": -5, "vocab_size": VOCABULARY,
        },
        "cellarium-ml": {
            "ids": bare["input_ids"], "padding_mask": bare["attention_mask"].bool(),
            "special_ids": (0, 1), "pad_id": PAD, "mask_value": MASK, "vocab_size": VOCABULARY,
        },
        "scvi-tools": {"values": counts(), "mask_value": -1.0},
        "CellPLM": {"values": counts(), "mask_value": -1.0},
        "UCE": {
            "ids": gene_ids, "values": values.clamp(min=0), "padding_mask": (gene_ids != 0).long(),
            "special_ids": (0, 1), "pad_id": 0, "vocab_size": VOCABULARY, "mask_value": -1.0,
        },
        "Tahoe-x1": {
            "ids": gene_ids, "values": values, "padding_mask": gene_ids != 0,
            "special_ids": (0, 1), "mask_value": -1, "pad_value": -2, "vocab_size": VOCABULARY,
        },
        "scPRINT": {"ids": fixed, "values": counts(), "mask_value": -1.0},
        "State": {
            "ids": state, "values": state_values, "special_ids": (1,), "vocab_size": VOCABULARY,
            "mask_value": -1.0,
        },
        "Nicheformer": {
            "ids": torch.where(gene_ids == 1, 5, gene_ids), "padding_mask": gene_ids == 0,
            "true_means": "padding", "special": gene_ids < 3, "mask_value": 999,
        },
    }  # fmt: skip


RIGHT = _right()


@pytest.mark.parametrize("framework", RIGHT)
def test_a_right_batch_raises_no_alarm(framework):
    found = check_first_batch(**RIGHT[framework])
    assert found.right, found


PADDED = [name for name, facts in RIGHT.items() if "padding_mask" in facts]


@pytest.mark.parametrize("framework", PADDED)
@pytest.mark.parametrize("left", [False, True])
def test_inverted_polarity_is_seen_in_each(framework, left):
    facts = dict(RIGHT[framework])
    if left:
        facts |= {name: x.flip(1) for name, x in facts.items() if isinstance(x, torch.Tensor)}
    mask = facts["padding_mask"]
    facts["padding_mask"] = ~mask if mask.dtype == torch.bool else 1 - mask
    assert "WRONG padding" in wrong(**facts)


@pytest.mark.parametrize("framework", PADDED)
@pytest.mark.parametrize("told", [True, False])
def test_left_padding_is_seen_in_each(framework, told):
    facts = dict(RIGHT[framework])
    facts |= {name: x.flip(1) for name, x in facts.items() if isinstance(x, torch.Tensor)}
    if not told:
        told_by = ("pad_id", "pad_value", "special_ids")
        facts = {name: x for name, x in facts.items() if name not in told_by}
    assert "begin with padding; pad at the right" in wrong(**facts)


WITH_SPECIAL = {  # not where all cells have the same genes in one order: the first may be a gene
    "scGPT, tutorials": 1, "scGPT, dev": 1, "Geneformer": CLS, "BMFM-RNA": 1, "UCE": 1,
    "Tahoe-x1": 1, "State": 1,
}  # fmt: skip


@pytest.mark.parametrize("framework", WITH_SPECIAL)
def test_a_forgotten_special_token_is_seen_in_each(framework):
    facts, first = RIGHT[framework], WITH_SPECIAL[framework]
    others = tuple(i for i in facts["special_ids"] if i != first)
    # a special token of a field of values is known by its value too
    plain = facts.get("values")
    if plain is not None:
        plain = plain.clone()
        plain[:, 0] = plain[:, 0].clamp(min=0)
    assert f"every row begins with id {first}, which is not among them" in wrong(
        **{**facts, "special_ids": others, "values": plain}
    )


def test_every_framework_is_in_the_table():
    words = {name: framework.title for name, framework in FRAMEWORKS.items()}
    words |= {"hugging-face": "Geneformer"}
    del words["lightning"]  # whose batches are those of the module
    for title in words.values():
        assert any(name.startswith(title) for name in RIGHT), title


def test_forgotten_special_tokens_are_seen(tokens, pairs):
    assert "every row ends with id 3, which is not among them" in wrong(
        **{**tokens, "special_ids": (PAD, MASK, CLS)}
    )
    assert "every row begins with id 1, which is not among them" in wrong(
        **{**pairs, "special_ids": (0, 2)}
    )
    three = {name: x[:3] if isinstance(x, torch.Tensor) else x for name, x in tokens.items()}
    assert check_first_batch(**{**three, "special_ids": (PAD, MASK, CLS)}).right  # by chance, too


@pytest.mark.parametrize("framework", RIGHT)
def test_values_that_were_masked_before_are_seen_in_each(framework):
    facts = dict(RIGHT[framework])
    name = "values" if "values" in facts else "ids"
    masked = facts[name].clone()
    masked[:, 4] = facts["mask_value"]
    assert "already: masked before, or a real value?" in wrong(**{**facts, name: masked})
