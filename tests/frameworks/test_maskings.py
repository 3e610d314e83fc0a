"""Each framework's own masking, imported, and the setting of ours that the page on maskings gives
for it: the same distribution.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from mam_kernels.integrations.examples import bmfm
from mam_kernels.integrations.examples.loading import sources_on_path, submodule
from tests.frameworks.theirs import checkout, functions_of, hollow, module_of
from tests.integrations import maskings

MASK, SPECIAL, VOCABULARY = 1, (0, 1, 2, 3), 104


def test_scgpt_random_mask_value():
    module = module_of("scgpt", "scgpt.tokenizer.gene_tokenizer", "torchtext", "scgpt.logger")
    maskings.scgpt_tutorials(module.random_mask_value)


def test_scgpt_data_collator():
    module = module_of("scgpt", "scgpt.data_collator", "scgpt.preprocess")
    maskings.scgpt_data_collator(module.DataCollator(pad_token_id=0, max_length=100))


def test_bert_data_collator():
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    names = ("<pad>", "<mask>", "<cls>", "<eos>")
    words = [*names, *(f"gene {gene}" for gene in range(VOCABULARY - len(names)))]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, "<pad>")),
        pad_token="<pad>", mask_token="<mask>", cls_token="<cls>", eos_token="<eos>",
    )  # fmt: skip
    assert tokenizer.mask_token_id == MASK
    collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    maskings.bert_collator(collator, SPECIAL, VOCABULARY)


def test_cellplm_mask_builder():
    maskings.cellplm(module_of("cellplm", "CellPLM.utils.mask").MaskBuilder)


def test_cellarium_geneformer():
    module = module_of("cellarium-ml", "cellarium.ml.models.geneformer")
    maskings.cellarium(
        module.Geneformer(
            np.array([f"gene {gene}" for gene in range(100)]), hidden_size=8, num_hidden_layers=1,
            num_attention_heads=1, intermediate_size=8, max_position_embeddings=100,
        )
    )  # fmt: skip


def test_tahoe_data_collator():
    module = module_of("tahoe-x1", "tahoe_x1.data.collator", "composer", "tahoe_x1.utils")
    vocabulary = SimpleNamespace(get_stoi=lambda: {"<pad>": 0, "<cls>": 1, "gene": 3})
    maskings.tahoe(
        module.DataCollator(
            vocabulary, pad_token_id=0, pad_value=-2, mask_value=-1, do_binning=False,
            mlm_probability=[0.25, 0.5, 0.75], max_length=500, sampling=False,
        )
    )  # fmt: skip


def test_scprint_simple_masker():
    without = ("bionty", "scdataloader", "scprint.utils", "scprint.tasks")
    maskings.scprint(module_of("scprint", "scprint.model.utils", *without).simple_masker)


def test_scbert_data_mask():
    script = checkout("scBERT") / "pretrain.py"
    constants = {
        "MASK_PROB": 0.15, "REPLACE_PROB": 0.9, "RANDOM_TOKEN_PROB": 0.0, "MASK_TOKEN_ID": 6,
        "PAD_TOKEN_ID": 6, "MASK_IGNORE_TOKEN_IDS": [0],
    }  # fmt: skip
    names = {"data_mask", "get_mask_subset_with_prob", "mask_with_tokens", "prob_mask_like"}
    maskings.scbert(functions_of(script, names, constants)["data_mask"])


def test_nicheformer_complete_masking():
    with sources_on_path(checkout("nicheformer") / "src"):
        module = submodule("nicheformer.models._utils")
    maskings.nicheformer(module.complete_masking)


def test_bmfm_masker():
    source = checkout("biomed-multi-omic")
    try:
        with hollow("cellxgene_census", "tiledbsoma", "rnanorm", "clearml", "focal_loss"):
            theirs = bmfm.code(source)
    except ImportError as error:
        pytest.skip(f"it needs transformers 4 and more than this environment has: {error}")
    fields = [
        theirs.FieldInfo("genes", vocab_size=105),
        theirs.FieldInfo(
            "expressions",
            is_masked=True,
            tokenization_strategy="continuous_value_encoder",
            decode_modes={"regression": {}},
        ),
    ]
    maskings.bmfm(theirs.Masker, fields, bmfm.Tokenizer)
