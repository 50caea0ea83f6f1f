"""Language models that read in both directions (transformers)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoo.entry import OUTPUT, STREAM, Entry, seeded, tokens

WORDS = 99


def sentence() -> dict[str, Tensor]:
    """Two sentences, of which the second is padded."""
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 5:] = 0
    return {"input_ids": tokens(WORDS, 2, 7), "attention_mask": mask}


def _bert_like(**changes: Any) -> dict[str, Any]:
    return {
        "vocab_size": WORDS,
        "hidden_size": 36,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "intermediate_size": 50,
        "max_position_embeddings": 41,
        "num_labels": 5,
        **changes,
    }


def _bert_units(c: Any) -> dict[str, int]:
    """The classifier reads one neuron per hidden unit, from the pooler or a layer like it."""
    return {
        "heads": c.num_hidden_layers * c.num_attention_heads,
        "ffn neurons": c.num_hidden_layers * c.intermediate_size,
        "pooled": c.hidden_size,
    }


def bert_config(**changes: Any) -> Any:
    from transformers import BertConfig

    return BertConfig(**_bert_like(**changes))


def bert() -> nn.Module:
    from transformers import BertForSequenceClassification

    return BertForSequenceClassification(bert_config())


def bert_eager() -> nn.Module:
    from transformers import BertForMaskedLM

    return BertForMaskedLM(bert_config(attn_implementation="eager"))


def _eager_units() -> dict[str, int]:
    units = _bert_units(bert_config())
    del units["pooled"]
    return units


def roberta_config() -> Any:
    from transformers import RobertaConfig

    return RobertaConfig(**_bert_like(hidden_size=32, intermediate_size=47))


def roberta() -> nn.Module:
    from transformers import RobertaForSequenceClassification

    return RobertaForSequenceClassification(roberta_config())


def electra_config() -> Any:
    from transformers import ElectraConfig

    return ElectraConfig(**_bert_like(embedding_size=20))


def electra() -> nn.Module:
    from transformers import ElectraForSequenceClassification

    return ElectraForSequenceClassification(electra_config())


def albert_config() -> Any:
    from transformers import AlbertConfig

    return AlbertConfig(**_bert_like(embedding_size=20, num_hidden_groups=1, inner_group_num=2))


def albert() -> nn.Module:
    from transformers import AlbertForSequenceClassification

    return AlbertForSequenceClassification(albert_config())


def _albert_units() -> dict[str, int]:
    """The layers are the same ones again and again: they count once."""
    c = albert_config()
    own = c.num_hidden_groups * c.inner_group_num
    return {
        "heads": own * c.num_attention_heads,
        "ffn neurons": own * c.intermediate_size,
        "pooled": c.hidden_size,
    }


def distilbert_config() -> Any:
    from transformers import DistilBertConfig

    return DistilBertConfig(
        vocab_size=WORDS,
        dim=36,
        n_heads=4,
        n_layers=2,
        hidden_dim=50,
        max_position_embeddings=41,
        num_labels=5,
    )


def distilbert() -> nn.Module:
    from transformers import DistilBertForSequenceClassification

    return DistilBertForSequenceClassification(distilbert_config())


def _distilbert_units() -> dict[str, int]:
    c = distilbert_config()
    return {
        "heads": c.n_layers * c.n_heads,
        "ffn neurons": c.n_layers * c.hidden_dim,
        "pooled": c.dim,
    }


def deberta_config() -> Any:
    from transformers import DebertaConfig

    return DebertaConfig(
        **_bert_like(
            num_hidden_layers=2,
            relative_attention=True,
            pos_att_type=["c2p", "p2c"],
            max_relative_positions=11,
            position_biased_input=False,
            type_vocab_size=0,
        )
    )


def deberta() -> nn.Module:
    from transformers import DebertaForSequenceClassification

    return DebertaForSequenceClassification(deberta_config())


def _deberta_units() -> dict[str, int]:
    """The table of relative positions has a width of its own, for no norm runs over it."""
    c = deberta_config()
    return _bert_units(c) | {"width of the relative positions": c.hidden_size}


def deberta_v2_config() -> Any:
    from transformers import DebertaV2Config

    return DebertaV2Config(
        **_bert_like(
            num_hidden_layers=2,
            relative_attention=True,
            pos_att_type=["c2p", "p2c"],
            position_buckets=6,
            max_relative_positions=11,
            share_att_key=True,
            norm_rel_ebd="layer_norm",
            position_biased_input=False,
            type_vocab_size=0,
        )
    )


def deberta_v2() -> nn.Module:
    from transformers import DebertaV2ForSequenceClassification

    return DebertaV2ForSequenceClassification(deberta_v2_config())


def _entry(name: str, build: Any, units: Any, pinned: dict[str, str], **more: Any) -> Entry:
    return Entry(name, seeded(build), sentence, units, pinned, needs="transformers", **more)


ROWS = "looked up by word, position or kind; the width is the stream"
BERT = {
    "*embeddings.*embeddings.weight:[01]": ROWS,
    "*LayerNorm.*:0": STREAM,
    "*.self.*.weight:1": STREAM,
    "*.output.dense.*:0": STREAM,
    "*.intermediate.dense.weight:1": STREAM,
}

POOLED = {"bert.pooler.dense.weight:1": STREAM, "classifier.*:0": OUTPUT}
HEAD = {"classifier.dense.weight:1": STREAM, "classifier.out_proj.*:0": OUTPUT}
DISTILBERT = {
    "*embeddings.*embeddings.weight:[01]": ROWS,
    "*.embeddings.LayerNorm.*:0": STREAM,
    "*_layer_norm.*:0": STREAM,
    "*.attention.[qkv]_lin.weight:1": STREAM,
    "*.attention.out_lin.*:0": STREAM,
    "*.ffn.lin1.weight:1": STREAM,
    "*.ffn.lin2.*:0": STREAM,
    "pre_classifier.weight:1": STREAM,
    "classifier.*:0": OUTPUT,
}
ALBERT = {
    "*embeddings.*embeddings.weight:[01]": ROWS,
    "*.embedding_hidden_mapping_in.*:[01]": STREAM,
    "*.embeddings.LayerNorm.*:0": STREAM,
    "*.attention.LayerNorm.*:0": STREAM,
    "*.full_layer_layer_norm.*:0": STREAM,
    "*.attention.[kqv]*.weight:1": STREAM,
    "*.attention.dense.*:0": STREAM,
    "*.ffn.weight:1": STREAM,
    "*.ffn_output.*:0": STREAM,
    "albert.pooler.weight:1": STREAM,
    "classifier.*:0": OUTPUT,
}
DEBERTA = {
    "*.word_embeddings.weight:[01]": ROWS,
    "*LayerNorm.*:0": STREAM,
    "*.output.dense.*:0": STREAM,
    "*.intermediate.dense.weight:1": STREAM,
    "pooler.dense.weight:1": STREAM,
    "classifier.*:0": OUTPUT,
}

ENTRIES = [
    _entry("bert", bert, lambda: _bert_units(bert_config()), BERT | POOLED, core=True),
    _entry(
        "bert for masked words, eager attention",
        bert_eager,
        _eager_units,
        BERT | {"cls.predictions.bias:0": OUTPUT, "cls.predictions.transform.dense.*:[01]": STREAM},
    ),
    _entry("roberta", roberta, lambda: _bert_units(roberta_config()), BERT | HEAD),
    _entry(
        "electra",
        electra,
        lambda: _bert_units(electra_config()),
        BERT | HEAD | {"electra.embeddings_project.*:[01]": STREAM},
    ),
    _entry("albert", albert, _albert_units, ALBERT),
    _entry("distilbert", distilbert, _distilbert_units, DISTILBERT),
    _entry(
        "deberta",
        deberta,
        _deberta_units,
        DEBERTA
        | {
            "*.in_proj.weight:1": STREAM,
            "*.rel_embeddings.weight:0": "a row per relative position",
        },
    ),
    _entry(
        "deberta v2",
        deberta_v2,
        lambda: _bert_units(deberta_v2_config()),
        DEBERTA
        | {
            "*.self.*_proj.weight:1": STREAM,
            "*.rel_embeddings.weight:[01]": "a row per relative position; a norm runs over it",
        },
    ),
]
