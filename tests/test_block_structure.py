"""Units and blocks taken out one block at a time: what goes, what makes it good, what is left."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import helpers
import prunus
from prunus.blocks.folder import SCRATCH, Folder
from prunus.blocks.routed import Routed
from prunus.blocks.surgeon import costs, damped, refit
from prunus.blocks.units import Kind, kept_of, taken
from prunus.cli.main import cli
from prunus.errors import InputError, RunError

pytestmark = pytest.mark.usefixtures("no_costs")

SIZE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4}  # fmt: skip
GROUPED = {**SIZE, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 1,
           "pad_token_id": 2}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaConfig", {**GROUPED, "tie_word_embeddings": True}),
    "Qwen2": ("Qwen2Config", GROUPED),
    "Gemma3": ("Gemma3TextConfig", {**GROUPED, "head_dim": 12, "sliding_window": 4,
                                    "layer_types": ["sliding_attention", "full_attention"]}),
    "Phi3": ("Phi3Config", GROUPED),
    "Mixtral": ("MixtralConfig", {**GROUPED, "num_local_experts": 4}),
    "DeepseekV3": ("DeepseekV3Config", {
        **GROUPED, "num_key_value_heads": 4, "moe_intermediate_size": 16, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
        "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
        "v_head_dim": 8}),
    "OPT": ("OPTConfig", {"vocab_size": 64, "hidden_size": 32, "ffn_dim": 48, "bos_token_id": 0,
                          "num_hidden_layers": 2, "num_attention_heads": 4, "eos_token_id": 1,
                          "word_embed_proj_dim": 32}),
    "GPT2": ("GPT2Config", {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4,
                            "bos_token_id": 0, "eos_token_id": 1}),
    "GPTNeoX": ("GPTNeoXConfig", {**SIZE, "bos_token_id": 0, "eos_token_id": 1}),
    "Falcon": ("FalconConfig", {**SIZE, "ffn_hidden_size": 48, "bos_token_id": 0,
                                "eos_token_id": 1}),
    "Mamba2": ("Mamba2Config", {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2,
                                "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1}),
}  # fmt: skip


def model_of(family: str) -> Any:
    """A tiny model of transformers, biases and norms drawn at random."""
    library = helpers.transformers()
    config, settings = FAMILIES[family]
    suffix = {"GPT2": "LMHeadModel"}.get(family, "ForCausalLM")
    torch.manual_seed(0)
    model = getattr(library, family + suffix)(getattr(library, config)(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def batches(count: int, seed: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(3, 64, (4, 12), generator=generator)} for _ in range(count)]


# What goes, and what the rest becomes: beside references in float64


def problem(rows: int, columns: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    x = torch.randn(5 * columns, columns, generator=generator, dtype=torch.float64) @ mixed
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64), x


@pytest.mark.parametrize("units", [torch.tensor([0, 1, 2, 3, 4, 5]),
                                   torch.tensor([0, 0, 1, 1, -1, 2])])  # fmt: skip
def test_a_unit_costs_what_least_squares_without_it_loses(units: Tensor) -> None:
    weight, x = problem(3, 6, 0)
    hessian = damped(x.T @ x / len(x))
    found = costs(weight, hessian, units, int(units.max()) + 1)
    for unit in range(len(found)):
        kept = [i for i in range(6) if units[i] != unit]
        # min over M of tr (W − M) H (W − M)ᵀ with M zero outside of what stays: normal equations
        best = torch.zeros_like(weight)
        best[:, kept] = torch.linalg.solve(hessian[kept][:, kept], (weight @ hessian)[:, kept].T).T
        lost = ((weight - best) @ hessian * (weight - best)).sum()
        assert float(found[unit]) == pytest.approx(float(lost), rel=1e-8)
        made = refit(weight, hessian, units != unit)
        assert torch.allclose(made, best, rtol=1e-8, atol=1e-10)


def test_inputs_that_are_always_zero_cost_nothing() -> None:
    weight, x = problem(3, 6, 1)
    x[:, 2] = 0
    found = costs(weight, damped(x.T @ x / len(x)), torch.arange(6), 6)
    assert int(found.argmin()) == 2
    assert bool(found.isfinite().all())


def test_neurons_that_go_are_those_of_the_lowest_cost_and_the_matrix_is_fitted() -> None:
    model, data = model_of("Llama"), batches(3, 0)
    dense, read = copy.deepcopy(model), []
    down = dense.model.layers[0].mlp.down_proj
    down.register_forward_hook(lambda module, args, out: read.append(args[0]))
    with torch.no_grad():
        for batch in data:
            dense(**batch)
    x = torch.cat([r.reshape(-1, 48) for r in read]).double()
    weight = down.weight.detach().double()
    h = x.T @ x / len(x)
    h = h + 0.01 * h.diagonal().mean() * torch.eye(48, dtype=torch.float64)
    order = ((weight**2).sum(0) / torch.linalg.inv(h).diagonal()).argsort()
    kept = sorted(order[12:].tolist())
    expected = (weight @ h)[:, kept] @ torch.linalg.inv(h[kept][:, kept])
    small: Any = prunus.prune_blocks(model, {"structure": {"neuron": 0.25}}, data).model
    mlp, before = small.model.layers[0].mlp, dense.model.layers[0].mlp
    assert torch.equal(mlp.gate_proj.weight, before.gate_proj.weight[kept])
    assert torch.equal(mlp.up_proj.weight, before.up_proj.weight[kept])
    assert torch.allclose(mlp.down_proj.weight.double(), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(small(**data[0]).logits, model(**data[0]).logits, atol=1e-5)


def test_units_that_share_a_dimension_are_taken_from_it_together() -> None:
    one = Kind("head", 2, (("w", 0, torch.tensor([0, 0, 1, 1, -1, -1])),))
    other = Kind("neuron", 2, (("w", 0, torch.tensor([-1, -1, -1, -1, 0, 1])),
                               ("v", 1, torch.tensor([0, 1]))))  # fmt: skip
    kept = kept_of([(one, torch.tensor([1])), (other, torch.tensor([0]))])
    assert taken(torch.arange(6), kept["w"]).tolist() == [0, 1, 5]
    assert taken(torch.arange(4).view(2, 2), kept["v"]).tolist() == [[1], [3]]


# In memory and as folders


@pytest.mark.parametrize(("family", "structure", "said"), [
    ("Llama", {"neuron": 0.25, "head": 0.5},
     {"intermediate_size": 36, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}),
    ("Qwen2", {"neuron": 0.25, "head": 0.5}, {"intermediate_size": 36, "head_dim": 8}),
    ("Gemma3", {"neuron": 0.5, "head": 0.5}, {"intermediate_size": 24, "head_dim": 12}),
    ("Phi3", {"neuron": 0.25, "head": 0.5}, {"num_key_value_heads": 1, "head_dim": 8}),
    ("Mixtral", {"neuron": 0.25, "head": 0.5}, {"intermediate_size": 36}),
    ("DeepseekV3", {"neuron": 0.25}, {"intermediate_size": 36, "moe_intermediate_size": 12}),
    ("OPT", {"neuron": 0.25}, {"ffn_dim": 36}),
    ("GPT2", {"neuron": 0.25}, {"n_inner": 96}),
    ("GPTNeoX", {"neuron": 0.25}, {"intermediate_size": 36}),
    ("Falcon", {"neuron": 0.25}, {"ffn_hidden_size": 36}),
])  # fmt: skip
def test_a_smaller_folder_opens_and_answers_as_the_masked_model(
    family: str, structure: dict[str, float], said: dict[str, int], tmp_path: Path
) -> None:
    model = model_of(family)
    if family in ("Llama", "Mixtral"):
        model.save_pretrained(tmp_path / "dense")
    data, held = batches(2, 0), batches(1, 1)
    inside = prunus.prune_blocks(model, {"structure": structure}, data, held=held)
    assert inside.gate is not None
    assert inside.gate < 1e-10
    small: Any = inside.model
    if (tmp_path / "dense").exists():
        found = prunus.prune_blocks(tmp_path / "dense", {"structure": structure}, data, held=held,
                                    out=tmp_path / "small")  # fmt: skip
        assert (found.errors, found.sparsity) == (inside.errors, inside.sparsity)
        assert not (tmp_path / "small" / SCRATCH).exists()
    else:
        small.save_pretrained(tmp_path / "small")
    opened, loaded = type(model).from_pretrained(tmp_path / "small", output_loading_info=True)
    assert not any(loaded.values())
    config = json.loads((tmp_path / "small" / "config.json").read_text(encoding="utf-8"))
    assert {key: config.get(key) for key in said} == said
    for name, tensor in small.state_dict().items():
        assert torch.equal(opened.state_dict()[name], tensor), name
    wide = family not in ("Mixtral", "DeepseekV3")  # whose products are not made in float64
    with torch.no_grad():
        wanted, got = ((m.double() if wide else m)(**held[0]).logits for m in (model, opened))
    assert torch.allclose(wanted, got, rtol=0, atol=1e-12 if wide else 1e-5)


MORE = {
    "Mistral": ("MistralConfig", {**GROUPED, "sliding_window": 4}),
    "Qwen3": ("Qwen3Config", GROUPED), "Olmo2": ("Olmo2Config", GROUPED),
    "Qwen3Moe": ("Qwen3MoeConfig", {**GROUPED, "moe_intermediate_size": 16, "num_experts": 4,
                                    "num_experts_per_tok": 2}),
}  # fmt: skip


@pytest.mark.parametrize("structure", ["weight", "2:4"])
@pytest.mark.parametrize("family", [*FAMILIES, *MORE])
def test_zeros_of_every_family(
    family: str, structure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, one in MORE.items():
        monkeypatch.setitem(FAMILIES, name, one)
    model, data = model_of(family), batches(2, 0)
    head = model.get_output_embeddings().weight
    before = head.detach().clone()
    found = prunus.prune_blocks(model, {"structure": structure, "solver": "wanda"}, data)
    assert found.sparsity == pytest.approx(0.5, abs=0.01)
    assert torch.equal(head, before)  # tied or not, what is in no block stays
    zeros = 0
    for name, mask in found.masks.items():
        weight = model.get_parameter(name)
        assert bool((weight[~mask] == 0).all()), name
        zeros += int((~mask).sum())
    assert zeros == round(found.sparsity * sum(m.numel() for m in found.masks.values()))


@pytest.mark.parametrize("family", ["GPTNeoX", "Falcon", "GPT2", "OPT", "Mamba2"])
@pytest.mark.parametrize("part", ["head", "hidden"])
def test_what_no_configuration_of_a_family_says_is_refused_before_a_folder_is_written(
    family: str, part: str, tmp_path: Path
) -> None:
    model_of(family).save_pretrained(tmp_path / "dense")
    with pytest.raises(InputError):
        prunus.prune_blocks(tmp_path / "dense", {"structure": {part: 0.5}}, batches(1, 0),
                            out=tmp_path / "small")  # fmt: skip
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize("family", ["GPTNeoX", "Falcon", "Mamba2", "GPT2", "OPT"])
def test_one_of_three_blocks_goes_in_families_of_other_names(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, sizes = FAMILIES[family]
    count = "n_layer" if family == "GPT2" else "num_hidden_layers"
    monkeypatch.setitem(FAMILIES, family, (config, {**sizes, count: 3}))
    model, data = model_of(family), batches(2, 0)
    model.save_pretrained(tmp_path / "dense")
    inside: Any = prunus.prune_blocks(model, {"structure": {"block": 0.34}}, data).model
    prunus.prune_blocks(tmp_path / "dense", {"structure": {"block": 0.34}}, data,
                        out=tmp_path / "small")  # fmt: skip
    opened, loaded = type(model).from_pretrained(tmp_path / "small", output_loading_info=True)
    assert not any(loaded.values())
    assert getattr(opened.config, count) == 2
    for name, tensor in inside.state_dict().items():
        assert torch.equal(opened.state_dict()[name], tensor), name


def passed_over(model: Any, number: int) -> Any:
    """A copy one of whose blocks gives what it reads."""
    made = copy.deepcopy(model)
    made.model.layers[number].forward = lambda hidden_states, **_: hidden_states
    return made


def test_the_block_goes_that_is_missed_least_and_the_others_keep_their_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    types = ["sliding_attention", "full_attention"] * 2
    deep = {**FAMILIES["Gemma3"][1], "num_hidden_layers": 4, "layer_types": types}
    monkeypatch.setitem(FAMILIES, "Gemma3", ("Gemma3TextConfig", deep))
    model = model_of("Gemma3")
    model.save_pretrained(tmp_path / "dense")
    data, held = batches(2, 0), batches(1, 1)
    with torch.no_grad():
        losses = [
            sum(float(passed_over(model, i)(**b, labels=b["input_ids"]).loss) for b in data)
            for i in range(4)
        ]
    least = min(range(4), key=losses.__getitem__)
    recipe = {"structure": {"block": 0.25, "neuron": 0.5}}
    found = prunus.prune_blocks(model, recipe, data, held=held)
    small: Any = found.model
    assert found.rates[f"model.layers.{least}"] == 1
    assert found.errors[f"model.layers.{least}"] > 0
    assert small.config.layer_types == types[:least] + types[least + 1 :]
    assert small.config.intermediate_size == 24
    masked = passed_over(model, least)
    with torch.no_grad():
        wanted, got = masked.double()(**held[0]).logits, copy.deepcopy(small).double()(**held[0])
    assert torch.allclose(wanted, got.logits, rtol=0, atol=1e-12)
    written = prunus.prune_blocks(tmp_path / "dense", recipe, data, held=held,
                                  out=tmp_path / "small")  # fmt: skip
    assert (written.errors, written.loss) == (found.errors, found.loss)
    opened, loaded = type(model).from_pretrained(tmp_path / "small", output_loading_info=True)
    assert not any(loaded.values())
    for name, tensor in small.state_dict().items():
        assert torch.equal(opened.state_dict()[name], tensor), name


def reap_of(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Gate × ‖output‖ of the first block's experts, by hand in float64."""
    layer = model.model.layers[0]
    read: list[Tensor] = []
    handle = layer.mlp.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    with torch.no_grad():
        model(**batch)
    handle.remove()
    x = read[0].reshape(-1, 32).double()
    gates, chosen = (x @ layer.mlp.gate.weight.double().T).softmax(-1).topk(2, dim=-1)
    gates = gates / gates.sum(-1, keepdim=True)
    found = torch.zeros(4, dtype=torch.float64)
    for e in range(4):
        tokens, slot = torch.where(chosen == e)
        up = x[tokens] @ layer.mlp.experts.gate_up_proj[e].double().T
        inner = nn.functional.silu(up[:, :48]) * up[:, 48:]
        out = inner @ layer.mlp.experts.down_proj[e].double().T
        found[e] = (gates[tokens, slot] * out.norm(dim=-1)).mean()
    return found


@pytest.mark.parametrize("family", ["Mixtral", "DeepseekV3"])
def test_experts_that_give_least_go_with_their_rows_of_the_router(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = model_of(family), batches(1, 0)
    before, held = copy.deepcopy(model), batches(1, 1)[0]
    with torch.no_grad():
        found = prunus.prune_blocks(model, {"structure": {"expert": 0.5}}, data)
    small: Any = found.model
    assert found.gate is not None
    assert found.gate < 1e-10
    name = {"Mixtral": "num_local_experts", "DeepseekV3": "n_routed_experts"}[family]
    assert getattr(small.config, name) == 2
    assert small.config.num_experts_per_tok == 2
    routers = {}  # of the dense model: the rows that went
    for old, new in zip(before.model.layers, small.model.layers, strict=True):
        if hasattr(old.mlp, "gate"):
            same = (old.mlp.gate.weight[:, None] == new.mlp.gate.weight[None]).all(-1).any(-1)
            routers[old.mlp.gate.weight.data_ptr()] = ~same
            if hasattr(old.mlp.gate, "e_score_correction_bias"):
                old.mlp.gate.e_score_correction_bias.data.masked_fill_(~same, -torch.inf)
    if family == "Mixtral":
        gone = reap_of(model, data[0]).argsort()[:2]
        first = routers[before.model.layers[0].mlp.gate.weight.data_ptr()]
        assert first.nonzero()[:, 0].tolist() == sorted(gone.tolist())
    small.save_pretrained(tmp_path / "small")
    opened, loaded = type(model).from_pretrained(tmp_path / "small", output_loading_info=True)
    assert not any(loaded.values())
    linear = nn.functional.linear

    def never(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        made = linear(x, weight, bias)
        rows = routers.get(weight.data_ptr())
        return made if rows is None else made.masked_fill(rows, -torch.inf)

    monkeypatch.setattr(nn.functional, "linear", never)
    with torch.no_grad():
        assert torch.allclose(before(**held).logits, opened(**held).logits, atol=1e-5)


def loss_without(model: Any, data: list[dict[str, Tensor]], gone: tuple[int, ...]) -> float:
    """The loss of the next token of a model whose blocks are left out, by its own forward pass."""
    twin = copy.deepcopy(model)
    left = [layer for i, layer in enumerate(twin.model.layers) if i not in gone]
    twin.model.layers, twin.config.num_hidden_layers = nn.ModuleList(left), len(left)
    total = 0.0
    with torch.no_grad():
        for batch in data:
            logits = twin(**batch, use_cache=False).logits[:, :-1].double()
            wanted = batch["input_ids"][:, 1:].flatten()
            total += float(nn.functional.cross_entropy(logits.flatten(0, 1), wanted))
    return total / len(data)


def test_blocks_go_one_by_one_or_as_the_span_that_is_missed_least(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = {**FAMILIES["Qwen2"][1], "num_hidden_layers": 6}
    monkeypatch.setitem(FAMILIES, "Qwen2", ("Qwen2Config", deep))
    dense, data = model_of("Qwen2"), batches(2, 0)
    spans = {i: loss_without(dense, data, (i, i + 1)) for i in range(5)}
    first = min(spans, key=spans.__getitem__)
    alone = min(range(6), key=lambda i: loss_without(dense, data, (i,)))
    others = [i for i in range(6) if i != alone]
    pairs = {i: loss_without(dense, data, (alone, i)) for i in others}
    second = min(pairs, key=pairs.__getitem__)
    wanted = {"single": {alone, second}, "span": {first, first + 1}}
    wanted["best"] = wanted["span"] if spans[first] < pairs[second] else wanted["single"]
    for depth, gone in wanted.items():
        recipe = {"structure": {"block": 0.34}, "depth": depth}
        small: Any = prunus.prune_blocks(copy.deepcopy(dense), recipe, data).model
        left = [i for i in range(6) if i not in gone]
        for layer, i in zip(small.model.layers, left, strict=True):
            assert torch.equal(layer.mlp.up_proj.weight, dense.model.layers[i].mlp.up_proj.weight)
    dense.save_pretrained(tmp_path / "dense")
    prunus.prune_blocks(tmp_path / "dense", {"structure": {"block": 0.34}, "depth": "span"}, data,
                        out=tmp_path / "small")  # fmt: skip
    opened: Any = type(dense).from_pretrained(tmp_path / "small")
    assert len(opened.model.layers) == 4


def test_experts_are_heard_whether_they_are_called_by_name_or_by_place() -> None:
    experts = model_of("Mixtral").model.layers[0].mlp.experts
    gates, chosen = torch.randn(5, 4).softmax(-1).topk(2)
    tokens = torch.randn(5, 32)
    ways = [
        ((tokens, chosen, gates), {}),
        ((tokens,), {"top_k_weights": gates, "top_k_index": chosen}),
    ]
    sums = []
    for way in ways:
        routed = Routed(4)
        with torch.no_grad():
            routed.add(experts, way)
        sums.append(routed.sums)
    assert torch.equal(*sums)
    assert bool(sums[0].any())


def test_as_many_experts_stay_as_a_token_goes_to() -> None:
    small: Any = prunus.prune_blocks(
        model_of("Mixtral"), {"structure": {"expert": 0.9}}, batches(1, 0)
    ).model
    assert small.config.num_local_experts == 2


def test_a_block_that_has_something_excluded_does_not_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "Llama", ("LlamaConfig", {**GROUPED, "num_hidden_layers": 4}))
    data = batches(1, 0)
    for depth in ("single", "span", "best"):
        recipe = {"structure": {"block": 0.5}, "depth": depth}
        gone = {n for n, r in prunus.prune_blocks(model_of("Llama"), recipe, data).rates.items()
                if r == 1}  # fmt: skip
        kept = min(gone)
        for pattern in (kept, f"{kept}.mlp.up_proj.weight"):
            found = prunus.prune_blocks(model_of("Llama"), {**recipe, "exclude": [pattern]}, data)
            assert found.rates[kept] < 1
            assert sum(rate == 1 for rate in found.rates.values()) == 2
    for every in (["*.self_attn.*"], ["model.layers.1.*", "model.layers.2.*"]):
        recipe = {"structure": {"block": 0.5}, "depth": "span", "exclude": every}
        with pytest.raises(InputError, match="exclude"):
            prunus.prune_blocks(model_of("Llama"), recipe, data)


def test_fewer_blocks_of_one_list_are_refused_where_the_configuration_means_another() -> None:
    library = helpers.transformers()
    config = library.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=3,
                              num_heads=4, decoder_start_token_id=0)  # fmt: skip
    model = library.T5ForConditionalGeneration(config).eval()
    data = [{**batches(1, 0)[0], "decoder_input_ids": batches(1, 1)[0]["input_ids"]}]
    for recipe, says in (({}, "several lists of blocks"),
                         ({"blocks": "decoder.block"}, "the configuration makes")):  # fmt: skip
        with pytest.raises(InputError, match=says):
            prunus.prune_blocks(model, {"structure": {"block": 0.3}, **recipe}, data)


def test_sizes_that_no_configuration_says_are_told_before(tmp_path: Path) -> None:
    model = model_of("OPT")
    model.save_pretrained(tmp_path / "dense")
    recipe, data = {"structure": {"head": 0.5}}, batches(1, 0)
    with pytest.raises(InputError, match="num_attention_heads divides the width"):
        prunus.prune_blocks(tmp_path / "dense", recipe, data, out=tmp_path / "small")
    assert not (tmp_path / "small").exists()
    with pytest.warns(UserWarning, match=r"prunus.hf.save and prunus.hf.load alone"):
        small = prunus.prune_blocks(model, recipe, data).model
    assert small is not None
    prunus.hf.save(small, tmp_path / "ours")
    opened = prunus.load(tmp_path / "ours")
    with torch.no_grad():
        assert torch.equal(opened(**data[0]).logits, small(**data[0]).logits)
        assert torch.allclose(opened(**data[0]).logits, model(**data[0]).logits, atol=1e-5)


def test_a_killed_walk_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = {**FAMILIES["Llama"][1], "num_hidden_layers": 3}
    monkeypatch.setitem(FAMILIES, "Llama", ("LlamaConfig", deep))
    model_of("Llama").save_pretrained(tmp_path / "dense")
    recipe = {"structure": {"neuron": 0.25, "block": 0.3}, "repair": {"steps": 2}}
    data, held = batches(2, 0), batches(1, 1)
    whole = prunus.prune_blocks(tmp_path / "dense", recipe, data, held=held, out=tmp_path / "whole")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prunus.prune_blocks(tmp_path / "dense", recipe, data, held=held, out=tmp_path / "killed",
                            on_block=stop)  # fmt: skip
    monkeypatch.setattr(Folder, "finish", stop)
    with pytest.raises(KeyboardInterrupt):
        prunus.prune_blocks(tmp_path / "dense", recipe, data, held=held, out=tmp_path / "killed")
    monkeypatch.undo()
    found = prunus.prune_blocks(
        tmp_path / "dense", recipe, data, held=held, out=tmp_path / "killed"
    )
    assert (found.errors, found.loss, found.gate) == (whole.errors, whole.loss, whole.gate)
    for path in sorted((tmp_path / "whole").iterdir()):
        if path.name != "pruned.json":
            assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes(), path.name


def test_a_smaller_block_that_answers_otherwise_leaves_the_model_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of("Llama")
    before = copy.deepcopy(model.state_dict())

    def otherwise(*_: Any) -> float:
        raise RunError("the smaller block does not answer as the masked one")

    monkeypatch.setattr("prunus.blocks.sizes._untrue", lambda *_: "")
    monkeypatch.setattr("prunus.blocks.structuring.checked", otherwise)
    with pytest.raises(RunError, match="does not answer"):
        prunus.prune_blocks(model, {"structure": "neuron"}, batches(1, 0))
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_the_gate_sees_wrong_indices(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(tensor: Tensor, indices: Any) -> Tensor:
        for dim, index in enumerate(indices):
            if index is not None and tensor.dim() > 1 and dim == 0:
                tensor = tensor.index_select(0, index.flip(0))
            elif index is not None:
                tensor = tensor.index_select(dim, index)
        return tensor

    monkeypatch.setattr("prunus.blocks.sizes._untrue", lambda *_: "")
    monkeypatch.setattr("prunus.blocks.gate.taken", shifted)
    with pytest.raises(RunError, match="they differ by"):
        prunus.prune_blocks(model_of("Llama"), {"structure": {"head": 0.5}}, batches(1, 0))


def test_neurons_that_stay_are_a_multiple(tmp_path: Path) -> None:
    recipe = {"structure": "neuron", "target": 0.3, "multiple_of": 16}
    small: Any = prunus.prune_blocks(model_of("Llama"), recipe, batches(1, 0)).model
    assert small.config.intermediate_size == 32


@pytest.mark.parametrize(("family", "recipe", "says"), [
    ("Llama", {"structure": {"block": 0.5}}, "1 of 2 would go at 0.5"),
    ("Llama", {"structure": "expert"}, "have none that can go"),
    ("Llama", {"structure": "expert", "repair": {}}, "repair: not with"),
    ("Llama", {"structure": {"head": 0.1}}, "none of at most 2 in a block goes at 0.1"),
    ("Mamba2", {"structure": "neuron"}, "have none that can go"),
    ("Llama", {"structure": {"neurons": 0.1}}, "rates are for neuron, head"),
    ("Llama", {"structure": {"neuron": 1.5}}, "no part between 0 and 1"),
    ("Llama", {"structure": "neuron", "solver": "wanda"}, "solver: it is for zeros"),
    ("Llama", {"structure": "hidden", "rates": "owl"}, "rates: it changes"),
    ("Llama", {"structure": "hidden", "guard": {"max_error": 0.1}}, "guard: it judges by data"),
    ("Llama", {"multiple_of": 8}, "multiple_of: it is for"),
    ("Llama", {"structure": "neuron", "depth": "span"}, "depth: it is for structure: block"),
    ("Llama", {"structure": "block", "depth": "deep"}, "depth"),
    ("Llama", {"structure": "neuron", "exclude": ["*mlp.down_proj.weight"]}, "have none that can"),
])  # fmt: skip
def test_what_cannot_be_is_refused(family: str, recipe: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        prunus.prune_blocks(model_of(family), recipe, batches(1, 0))


def test_the_command_says_what_became_smaller(tmp_path: Path) -> None:
    model_of("Llama").save_pretrained(tmp_path / "dense")
    ids = torch.randint(3, 64, (400,), generator=torch.Generator().manual_seed(0)).tolist()
    (tmp_path / "ids.jsonl").write_text(json.dumps({"input_ids": ids}), encoding="utf-8")
    call = ["llm", str(tmp_path / "dense"), "--text", str(tmp_path / "ids.jsonl"), "--out",
            str(tmp_path / "small"), "structure={neuron: 0.25}", "text.windows=4",
            "text.length=16", "text.held=2"]  # fmt: skip
    ran = CliRunner().invoke(cli, call)
    assert ran.exit_code == 0, ran.output
    assert "in float64" in ran.output
    assert "no gain" not in ran.output
