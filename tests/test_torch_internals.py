"""The names of torch that are private or differ between its versions: one place, one test each.

Compiled packages (``aot_compile``, ``aot_load``) are in test_runtimes: a compiler takes its time.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus._common import torch_internals as internals
from prunus._common.torch_internals import pytree
from prunus.graph.exporting import export

aten = torch.ops.aten

ROOT = Path(prunus.__file__).parent
HOME = ROOT / "_common" / "torch_internals.py"
TORCH = {"torch", "nn", "fx", "F", "dist"}
"""Names that stand for torch and its modules."""
PRIVATE = {
    "_backward_hooks", "_backward_pre_hooks", "_cdata", "_children", "_codegen", "_context",
    "_disabled_torch_function_impl", "_flat_weights", "_flat_weights_names", "_forward_hooks",
    "_forward_hooks_always_called", "_forward_hooks_with_kwargs", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_make_wrapper_subclass", "_post_accumulate_grad_hooks",
    "_qkv_same_embed_dim", "_schema", "children_specs",
}  # fmt: skip
"""Attributes of torch's objects, whatever name the object has."""
KEYS = {*PRIVATE, "nn_module_stack"}
"""The same as text, for ``getattr``, ``vars`` and ``meta``."""


def private(path: Path) -> set[str]:
    """What a file takes from torch that torch does not promise."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {name for node in ast.walk(tree) for name in _private(node)}


def _private(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [a.name for a in node.names if _hidden(a.name)]
    if isinstance(node, ast.ImportFrom):
        whole = [f"{node.module}.{a.name}" for a in node.names]
        return [name for name in whole if _hidden(name)]
    if isinstance(node, ast.keyword):
        return [node.arg] if node.arg == "check_guards" else []
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) and node.value in KEYS else []
    if not isinstance(node, ast.Attribute):
        return []
    path = ast.unparse(node)
    if path == f"self.{node.attr}":  # an object's own
        return []
    return [path] if node.attr in PRIVATE or path.endswith("node.hint") or _hidden(path) else []


def _hidden(path: str) -> bool:
    first, *rest = path.split(".")
    return first in TORCH and any(re.match("_", part) for part in rest)


def test_hooks_of_a_parameter_whose_inside_was_swapped_fire_again() -> None:
    weight, seen = nn.Parameter(torch.ones(2)), []
    weight.register_post_accumulate_grad_hook(lambda w: seen.append(w.dtype))
    torch.utils.swap_tensors(weight, nn.Parameter(torch.ones(2, dtype=torch.float64)))
    weight.sum().backward()
    assert seen == []
    internals.renew_gradient_hooks(weight)
    weight.sum().backward()
    assert seen == [torch.float64]


def test_one_file_alone_takes_what_torch_does_not_promise() -> None:
    found = {
        str(path.relative_to(ROOT)): names
        for path in sorted(ROOT.rglob("*.py"))
        if path != HOME and (names := private(path))
    }
    assert found == {}


class Scaled(nn.Module):
    """A dictionary in, a tuple out, and one module within."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 3))

    def forward(self, x: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return self.inner(x["a"]), x["a"] * 2


EXAMPLE = ({"a": torch.ones(4, 2)},)


@pytest.fixture(scope="module")
def program() -> torch.export.ExportedProgram:
    return torch.export.export(Scaled(), EXAMPLE, strict=False)


def test_an_exported_graph_has_no_guards_and_answers_to_other_sizes() -> None:
    sizes = ({0: torch.export.Dim.AUTO},)
    program = torch.export.export(nn.Linear(2, 3), (torch.ones(4, 2),), dynamic_shapes=sizes)
    module = internals.exported_module(program)
    assert module(torch.ones(5, 2)).shape == (5, 3)
    assert [n for n in module.graph.nodes if "guard" in n.name] == []


def test_the_modules_around_an_operator_are_read_and_written(program: Any) -> None:
    nodes = {str(n.target): n for n in internals.exported_module(program).graph.nodes}
    linear, multiply = nodes["aten.linear.default"], nodes["aten.mul.Tensor"]
    assert internals.module_paths(linear) == ["", "inner", "inner.0"]
    assert internals.module_paths(multiply) == [""]
    assert "nn_module_stack" in internals.origin(linear)
    internals.note_modules(multiply, [("key", ("own.path", "a.Class"))])
    assert internals.module_paths(multiply) == ["own.path"]


def test_open_sizes_have_the_number_of_the_example() -> None:
    sizes = ({0: torch.export.Dim.AUTO},)
    program = torch.export.export(nn.Linear(2, 3), (torch.ones(4, 2),), dynamic_shapes=sizes)
    value = next(n for n in program.graph.nodes if n.name == "input").meta["val"]
    assert [internals.size_hint(n) for n in value.shape] == [4, 2]
    assert [internals.is_open(n) for n in value.shape] == [True, False]


def test_a_graph_is_called_as_another_one_is(program: Any) -> None:
    module = internals.exported_module(program)
    names, inputs, outputs = internals.call_of(module.graph) or ([], None, None)
    assert names == ["x"]
    assert (inputs.num_leaves, outputs.num_leaves) == (1, 2)
    graph = torch.fx.Graph()
    graph.output(tuple(graph.graph_copy(module.graph, {})))
    assert internals.call_of(graph) is None
    internals.copy_call(graph, module.graph)
    assert internals.call_of(graph) == (names, inputs, outputs)
    internals.set_call(graph, ["y"], inputs, outputs)
    again = torch.fx.GraphModule(module, graph)
    assert all(map(torch.equal, again(y=EXAMPLE[0]), module(*EXAMPLE)))


def test_a_structure_is_taken_apart_and_made_again() -> None:
    value = OrderedDict(a=[1, (2,)], b=3)
    spec = pytree.tree_structure(value)
    kind, keys, children = internals.spec_parts(spec)
    assert (kind, list(keys), len(children)) == (OrderedDict, ["a", "b"], 2)
    assert internals.spec_parts(children[1]) == internals.spec_parts(internals.leaf_spec())
    made = pytree.TreeSpec(kind, keys, [children[0], internals.leaf_spec()])
    assert made == spec
    assert pytree.tree_unflatten([1, 2, 3], made) == value


def test_operators_have_schemas_and_are_known_by_name() -> None:
    assert internals.schema(aten.add_.Tensor).is_mutable
    assert internals.schema(len) is None
    assert isinstance(aten.add.Tensor, internals.OpOverload)
    assert internals.is_registered("aten::add.Tensor")
    assert not internals.is_registered("aten::add.Nothing")


class Seen(internals.TorchDispatchMode):
    """The operators of a pass."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_below_autograd_a_composite_operator_is_whole() -> None:
    model, x = nn.Linear(2, 3), torch.ones(1, 2)
    with torch.no_grad(), internals.below_autograd(), Seen() as seen:
        model(x)
    assert seen.names == ["aten.linear.default"]


class Wrapped(Tensor):
    """A tensor of a subclass without memory."""

    __torch_function__ = internals.no_torch_function

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert isinstance(args[0], Wrapped)
        return torch.full((2,), len(str(func)))


def test_a_wrapper_has_shape_and_type_and_is_seen_by_operators_alone() -> None:
    like = torch.empty(3, 2, dtype=torch.float64).T
    made = internals.wrapper(Wrapped, like, torch.device("cpu"))
    assert (made.shape, made.stride(), made.dtype) == (like.shape, like.stride(), like.dtype)
    assert made.cos().tolist() == [len("aten.cos.default")] * 2


def test_views_share_a_storage_and_a_reference_to_it_expires() -> None:
    tensor = torch.ones(4)
    keys = {
        internals.storage_key(t.untyped_storage()) for t in (tensor, tensor[1:], tensor.clone())
    }
    reference = internals.StorageWeakRef(tensor.untyped_storage())
    assert len(keys) == 2
    assert not reference.expired()
    del tensor
    assert reference.expired()


def test_tensors_are_keys_by_identity_and_fakes_have_shapes() -> None:
    one, other = torch.ones(2), torch.ones(2)
    known = internals.WeakTensorKeyDictionary()
    known[one] = "one"
    assert one in known
    assert other not in known
    with internals.FakeTensorMode():
        assert torch.empty(10**12).shape == (10**12,)


def test_every_hook_of_a_module_is_copied() -> None:
    source, module = nn.Linear(1, 1), nn.Linear(1, 1)
    calls: list[str] = []
    source.register_forward_pre_hook(lambda *_: calls.append("pre"))
    source.register_forward_pre_hook(lambda *_: calls.append("pre kwargs"), with_kwargs=True)
    source.register_forward_hook(lambda *_: calls.append("post"))
    source.register_forward_hook(lambda *_: calls.append("post kwargs"), with_kwargs=True)
    source.register_forward_hook(lambda *_: calls.append("always"), always_call=True)
    source.register_full_backward_pre_hook(lambda *_: calls.append("back pre"))
    source.register_full_backward_hook(lambda *_: calls.append("back"))
    internals.copy_hooks(module, source)
    module(torch.ones(1, 1, requires_grad=True)).sum().backward()
    expected = ["pre", "pre kwargs", "post", "post kwargs", "always", "back pre", "back"]
    assert calls == expected
    assert len(internals.pre_hooks(module)) == 2
    keys = {k for k in vars(source) if k.endswith("hooks") and vars(source)[k]}
    assert keys <= {k for k in vars(module) if vars(module)[k]}


def test_a_recurrent_module_computes_with_its_new_parameters() -> None:
    module = nn.GRU(2, 3)
    module._parameters["weight_ih_l0"] = nn.Parameter(torch.zeros(9, 2))
    internals.refresh_flat_weights(module)
    assert module._flat_weights[0] is module.weight_ih_l0


class OwnAttention(nn.Module):
    """What an encoder layer asks of its attention."""

    batch_first, in_proj_bias, num_heads = True, torch.ones(1), 2

    def forward(self, query: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        return query, None


def test_an_encoder_layer_does_not_read_the_weights_of_a_replaced_attention() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()
    own = OwnAttention()
    internals.without_fast_path(own)
    layer.self_attn = own
    with torch.no_grad():
        assert layer(torch.ones(1, 3, 4)).shape == (1, 3, 4)


def test_common_bases_cover_all_dimensions() -> None:
    assert isinstance(nn.Conv3d(1, 1, 1), internals.AnyConv)
    assert isinstance(nn.ConvTranspose1d(1, 1, 1), internals.AnyTransposedConv)
    assert not isinstance(nn.Conv1d(1, 1, 1), internals.AnyTransposedConv)
    assert isinstance(nn.BatchNorm2d(1), internals.AnyBatchNorm)


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder

    def missing() -> str:
        raise OSError

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    assert internals.cxx_compiler_problem() == "OSError"


def test_what_a_torch_cannot_do_is_said_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    assert internals.lacking("Muon") == f"torch {torch.__version__}: no torch.optim.Muon"


@pytest.mark.filterwarnings("ignore:The tensor attributes self._flat_weights")
def test_a_recurrent_module_that_export_refuses_has_a_reason() -> None:
    found = export(nn.GRU(1, 1), (torch.ones(1, 1, 1),), {})
    refused = internals.lacking("export of recurrent modules") is not None
    assert isinstance(found, ValueError if refused else torch.export.ExportedProgram)
    assert ("_flat_weights" in str(found)) == refused


def test_the_version_is_torchs_own() -> None:
    assert internals.torch_version() == torch.__version__


def test_a_process_that_exports_nothing_loads_no_sympy() -> None:
    code = "import sys, prunus; prunus.prune; sys.exit('sympy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
