"""Language models that read from left to right (transformers)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from zoo.entry import STREAM, Entry, seeded, tokens

WORDS = 99


def words() -> dict[str, Tensor]:
    return {"input_ids": tokens(WORDS, 2, 7)}


def gpt2_config() -> Any:
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=WORDS,
        n_positions=41,
        n_embd=36,
        n_layer=3,
        n_head=4,
        n_inner=50,
        bos_token_id=1,
        eos_token_id=2,
        use_cache=False,
    )


def gpt2() -> nn.Module:
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel(gpt2_config())


def _gpt2_units() -> dict[str, int]:
    c = gpt2_config()
    return {"heads": c.n_layer * c.n_head, "ffn neurons": c.n_layer * c.n_inner}


def opt_config() -> Any:
    from transformers import OPTConfig

    return OPTConfig(
        vocab_size=WORDS,
        hidden_size=36,
        num_hidden_layers=2,
        ffn_dim=50,
        num_attention_heads=4,
        max_position_embeddings=41,
        word_embed_proj_dim=20,
        use_cache=False,
    )


def opt() -> nn.Module:
    from transformers import OPTForCausalLM

    return OPTForCausalLM(opt_config())


def _opt_units() -> dict[str, int]:
    """Words have a width of their own, the output's too, and no norm runs over it."""
    c = opt_config()
    return {
        "heads": c.num_hidden_layers * c.num_attention_heads,
        "ffn neurons": c.num_hidden_layers * c.ffn_dim,
        "width of the words": c.word_embed_proj_dim,
    }


def _like_llama(kind: str, *, heads: int, shared: int, **changes: Any) -> Any:
    """A configuration of LLaMA's family: ``shared`` heads of keys and values."""
    import transformers

    return getattr(transformers, f"{kind}Config")(
        **{
            "vocab_size": WORDS,
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "intermediate_size": 50,
            "num_attention_heads": heads,
            "num_key_value_heads": shared,
            "max_position_embeddings": 41,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "use_cache": False,
            **changes,
        }
    )


LLAMA: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"heads": 6, "shared": 6}),
    "llama, grouped queries": ("Llama", {"heads": 6, "shared": 3, "attention_bias": True}),
    "mistral, sliding window": ("Mistral", {"heads": 6, "shared": 3, "sliding_window": 4}),
    "qwen2": ("Qwen2", {"heads": 6, "shared": 3, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"heads": 6, "shared": 3, "head_dim": 10}),
    "gemma": ("Gemma", {"heads": 4, "shared": 2, "head_dim": 14}),
    "gemma, one key-value head": ("Gemma", {"heads": 4, "shared": 1, "head_dim": 14}),
    "phi3": ("Phi3", {"heads": 6, "shared": 3}),
}


def _build(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        kind, settings = LLAMA[name]
        return getattr(transformers, f"{kind}ForCausalLM")(_like_llama(kind, **settings))

    return build


def _units(name: str) -> Callable[[], dict[str, int]]:
    def units() -> dict[str, int]:
        """A head of keys goes with its queries; a single one stays and its queries go alone."""
        kind, settings = LLAMA[name]
        c = _like_llama(kind, **settings)
        shared = c.num_key_value_heads if c.num_key_value_heads > 1 else c.num_attention_heads
        return {
            "heads": c.num_hidden_layers * shared,
            "ffn neurons": c.num_hidden_layers * c.intermediate_size,
        }

    return units


def mixtral_config(how: str) -> Any:
    return _like_llama(
        "Mixtral",
        heads=6,
        shared=3,
        intermediate_size=52,
        num_local_experts=5,
        num_experts_per_tok=2,
        experts_implementation=how,
    )


def mixtral(how: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from transformers import MixtralForCausalLM

        return MixtralForCausalLM(mixtral_config(how))

    return build


def _mixtral_units() -> dict[str, int]:
    """The experts' weights are one tensor: a neuron goes from all of them."""
    c = mixtral_config("batched_mm")
    return {
        "heads": c.num_hidden_layers * c.num_key_value_heads,
        "neurons of all experts": c.num_hidden_layers * c.intermediate_size,
    }


def mamba_config() -> Any:
    from transformers import MambaConfig

    return MambaConfig(
        vocab_size=WORDS,
        hidden_size=24,
        state_size=5,
        expand=2,
        conv_kernel=4,
        time_step_rank=3,
        num_hidden_layers=1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        use_cache=False,
    )


def mamba() -> nn.Module:
    from transformers import MambaForCausalLM

    return MambaForCausalLM(mamba_config())


def _mamba_units() -> dict[str, int]:
    """Beside the channels, the state and the rank of the time step have widths of their own."""
    c = mamba_config()
    each = {
        "channels": c.expand * c.hidden_size,
        "states": c.state_size,
        "ranks of the time step": c.time_step_rank,
    }
    return {label: c.num_hidden_layers * count for label, count in each.items()}


WORD = {"*.embed_tokens.weight:[01]": "a row per word; " + STREAM}
NORMS = {
    "*_layernorm.weight:0": STREAM,
    "*.norm.weight:0": STREAM,
}
ATTENTION = {
    "*.[qkv]_proj.weight:1": STREAM,
    "*.o_proj.*:0": STREAM,
}
FFN = {
    "*.gate_proj.weight:1": STREAM,
    "*.up_proj.weight:1": STREAM,
    "*.down_proj.weight:0": STREAM,
}
LAST = {"lm_head.weight:[01]": "a row per word; " + STREAM}
PINNED = WORD | NORMS | ATTENTION | FFN | LAST
SELF_NORM = {"*.[qk]_norm.weight:0": "a norm runs over the width of a head"}
FUSED = {
    "*.qkv_proj.weight:1": STREAM,
    "*.o_proj.*:0": STREAM,
    "*.gate_up_proj.weight:1": STREAM,
    "*.down_proj.weight:0": STREAM,
}
EXPERTS = {
    "*.gate.weight:[01]": "a row per expert; " + STREAM,
    "*.experts.gate_up_proj:[02]": "one per expert; " + STREAM,
    "*.experts.down_proj:[01]": "one per expert; " + STREAM,
}
MIXTRAL = WORD | NORMS | ATTENTION | EXPERTS | LAST

OWN_PINS = {
    "qwen2": WORD | NORMS | ATTENTION | FFN,
    "qwen3": PINNED | SELF_NORM,
    "gemma": WORD | NORMS | ATTENTION | FFN,
    "gemma, one key-value head": WORD
    | NORMS
    | ATTENTION
    | FFN
    | {"*.[kv]_proj.weight:0": "all queries read the one head of keys and values"},
    "phi3": WORD | NORMS | FUSED | LAST,
}


def _entry(name: str, build: Any, units: Any, pinned: dict[str, str], **more: Any) -> Entry:
    return Entry(name, seeded(build), words, units, pinned, needs="transformers", **more)


ENTRIES = [
    _entry(
        "gpt2",
        gpt2,
        _gpt2_units,
        {
            "*.wte.weight:[01]": "a row per word; " + STREAM,
            "*.wpe.weight:[01]": "a row per position; " + STREAM,
            "*.ln_*:0": STREAM,
            "*.c_attn.weight:0": STREAM,
            "*.c_fc.weight:0": STREAM,
            "*.c_proj.weight:1": STREAM,
            "*.c_proj.bias:0": STREAM,
        },
        core=True,
    ),
    _entry(
        "opt",
        opt,
        _opt_units,
        {
            "*.embed_tokens.weight:0": "a row per word",
            "*.embed_positions.weight:[01]": "a row per position; " + STREAM,
            "*.project_in.weight:0": STREAM,
            "*.project_out.weight:1": STREAM,
            "*layer_norm.*:0": STREAM,
            "*.[qkv]_proj.weight:1": STREAM,
            "*.out_proj.*:0": STREAM,
            "*.fc1.weight:1": STREAM,
            "*.fc2.*:0": STREAM,
        },
    ),
    *(
        _entry(
            name,
            _build(name),
            _units(name),
            OWN_PINS.get(name, PINNED),
            core=name == "llama, grouped queries",
        )
        for name in LLAMA
    ),
    _entry("mixtral, batched experts", mixtral("batched_mm"), _mixtral_units, MIXTRAL),
    _entry(
        "mixtral, grouped experts",
        mixtral("grouped_mm"),
        _mixtral_units,
        MIXTRAL,
        note="torch._grouped_mm wants rows of whole 16 bytes: four neurons in float32, two in 64",
    ),
    _entry(
        "mixtral, looped experts",
        mixtral("eager"),
        _mixtral_units,
        MIXTRAL,
        export=False,
        note="a loop over the experts that some token chose, and nonzero inside it",
    ),
    _entry(
        "mamba",
        mamba,
        _mamba_units,
        {
            "*.embeddings.weight:[01]": "a row per word; " + STREAM,
            "*norm*.weight:0": STREAM,
            "*.in_proj.weight:1": STREAM,
            "*.out_proj.weight:0": STREAM,
            "*.conv1d.weight:2": "a position in a kernel",
        },
        core=True,
    ),
]
