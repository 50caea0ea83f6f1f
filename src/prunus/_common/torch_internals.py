"""What torch keeps private or changed between its versions: here alone, each with its reason.

Nothing here asks for a version: it asks for the name or the parameter that it needs. The three
dictionaries of a module (``_parameters``, ``_buffers``, ``_modules``) have not changed since torch
0.1 and are read where they are needed.
"""

from __future__ import annotations

import copy
import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.batchnorm import _NormBase as AnyBatchNorm
from torch.nn.modules.conv import _ConvNd as AnyConv
from torch.nn.modules.conv import _ConvTransposeNd as AnyTransposedConv
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from torch.utils.weak import WeakTensorKeyDictionary

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram

__all__ = [
    "AnyBatchNorm",  # common bases, so that one test covers one, two and three dimensions
    "AnyConv",
    "AnyTransposedConv",
    "FakeTensor",  # a shape that stands for values, where a trace left one
    "FakeTensorMode",  # shapes of values without memory for them
    "OpOverload",  # the type of ATen's operators in a graph
    "StorageWeakRef",  # keeps the address of a storage from being used again, not the storage
    "TorchDispatchMode",  # sees every operator of a pass
    "WeakTensorKeyDictionary",  # by identity: tensors compare element by element
    "pytree",  # torch.export and fx lay out nested values by it; public only as optree's copy
]


def torch_version() -> str:
    """For records of a run; no decision hangs on it."""
    return str(torch.__version__)


def lacking(ability: str) -> str | None:
    """Why this torch cannot do what newer ones can; ``None`` if it can."""
    can, reason = _ABILITIES[ability]
    return None if can() else f"torch {torch_version()}: {reason}"


@functools.cache
def _exports_recurrent() -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "The tensor attributes self._flat_weights[0] ... were
        try:  # assigned during export", an error in torch 2.6
            torch.export.export(nn.GRU(1, 1), (torch.ones(1, 1, 1),), strict=False)
        except ValueError:
            return False
    return True


_ABILITIES: dict[str, tuple[Callable[[], bool], str]] = {
    "export of recurrent modules": (
        _exports_recurrent,
        "torch.export refuses nn.LSTM and nn.GRU; prunus records their forward pass instead",
    ),
    "guards in exported programs": (
        lambda: "check_guards" in inspect.signature(torch.export.ExportedProgram.module).parameters,
        "torch.export adds no guards to a program",
    ),
    "Muon": (lambda: hasattr(torch.optim, "Muon"), "no torch.optim.Muon"),
}


# Operators


def below_autograd() -> AbstractContextManager[None]:
    """Dispatch below autograd, where composite operators arrive whole, as in torch.export."""
    return torch._C._AutoDispatchBelowAutograd()


def schema(target: Any) -> Any:
    """An operator's schema: the names of its arguments, and which it writes to; else ``None``."""
    return getattr(target, "_schema", None)


def is_registered(operator: str) -> bool:
    """Whether ``aten::add.Tensor`` has a kernel; ``torch.ops`` would make it by being asked."""
    return bool(torch._C._dispatch_has_kernel(operator))


# Graphs

ASSERT_SCALAR = torch.ops.aten._assert_scalar.default
"""Raises its second argument, a text, where its first one is false or 0."""

TYPE_CHECK = torch.ops.aten._assert_tensor_metadata.default
"""Raises where a tensor has another type than in the pass that was exported."""


def exported_module(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """The graph of an exported program, without the guards that torch 2.9 began to add."""
    known = inspect.signature(program.module).parameters
    made = program.module(**({"check_guards": False} if "check_guards" in known else {}))
    assert isinstance(made, fx.GraphModule)
    return made


def module_paths(node: fx.Node) -> list[str]:
    """The paths of the modules whose code called an operator, the innermost one last."""
    stack: Mapping[str, Any] = node.meta.get("nn_module_stack") or {}
    return [str(entry[0]) for entry in stack.values()]


def note_modules(node: fx.Node, stack: Iterable[tuple[str, tuple[str, str]]]) -> None:
    """Note them as export does: by a key of its own for each call, path and class."""
    node.meta["nn_module_stack"] = dict(stack)


def origin(node: fx.Node) -> dict[str, Any]:
    """The part of a node's ``meta`` that says which code it comes from."""
    return {k: v for k, v in node.meta.items() if k in ("nn_module_stack", "stack_trace")}


def size_hint(size: int | torch.SymInt) -> int:
    """An open size as it was in the example; one that depends on values counts as 3."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    if size.node.hint is not None:
        return int(size.node.hint)
    expression, env = size.node.expr, size.node.shape_env
    sizes = {s: env.create_symintnode(s, hint=None).node.hint for s in expression.free_symbols}
    return int(expression.subs({s: _SOME if n is None else n for s, n in sizes.items()}))


_SOME = 3
"""A size for what only data tell: no batch size of an example, and none that broadcasts."""


def is_open(size: int | torch.SymInt) -> bool:
    """Whether a size stayed a symbol: one that was settled may still be a ``SymInt``."""
    return isinstance(size, torch.SymInt) and bool(size.node.expr.free_symbols)


def parts_of(size: int | torch.SymInt) -> int:
    """How many numbers and operations an open size is computed from; 0: it is a number."""

    def parts(expression: Any) -> int:
        return 1 + sum(map(parts, expression.args))

    return parts(size.node.expr) if isinstance(size, torch.SymInt) and is_open(size) else 0


def open_sizes(
    tensors: Sequence[Any],
) -> tuple[list[tuple[int | str, ...]], list[str]] | None:
    """Sizes of an exported program's inputs, and what the trace took for granted of open ones.

    Args:
        tensors: the fake ones that stand for its inputs; what is no tensor is passed over.

    Returns:
        Of each tensor that goes in, its sizes: numbers, or Python expressions in the names of
        symbols; and conditions in these names. ``None`` if some condition is about no input.
    """
    sizes = [size for t in tensors if isinstance(t, Tensor) for size in t.shape]
    symbolic: list[Any] = [size for size in sizes if is_open(size)]
    if not symbolic:
        return [tuple(int(n) for n in t.shape) for t in tensors if isinstance(t, Tensor)], []
    from torch.utils._sympy.numbers import int_oo  # with sympy: a second that few processes need

    env = symbolic[0].node.shape_env
    known = {symbol for size in symbolic for symbol in size.node.expr.free_symbols}
    named = {symbol for symbol in known if any(size.node.expr == symbol for size in symbolic)}
    conditions = []
    for guard in env.guards:
        true = env.simplify(guard.expr)
        if true.is_Boolean and not true.free_symbols:
            continue
        if not true.free_symbols <= named:
            return None
        conditions.append(_printed(true))
    for symbol in sorted(named, key=str):
        bounds = env.var_to_range[symbol]
        conditions.append(f"{symbol} >= {int(bounds.lower)}")
        if int_oo != bounds.upper and bounds.upper < sys.maxsize - 1:
            conditions.append(f"{symbol} <= {int(bounds.upper)}")

    def printed(size: Any) -> int | str:
        return _printed(size.node.expr) if is_open(size) else int(size)

    if known != named:
        return None
    found = [tuple(map(printed, t.shape)) for t in tensors if isinstance(t, Tensor)]
    return found, list(dict.fromkeys(conditions))


def _printed(expression: Any) -> str:
    from torch.utils._sympy.printers import PythonPrinter

    return str(PythonPrinter().doprint(expression))


def set_call(graph: fx.Graph, names: list[str], inputs: Any, outputs: Any) -> None:
    """Let a graph take these arguments and return this structure, given as pytree's specs."""
    graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(names, inputs, outputs)))


def call_of(graph: fx.Graph) -> tuple[list[str], Any, Any] | None:
    """Names of arguments, structures of inputs and outputs; ``None``: called leaf by leaf."""
    if type(graph._codegen) is not _PyTreeCodeGen:
        return None
    names, inputs, outputs = graph._codegen.pytree_info
    return names, inputs, outputs


def copy_call(graph: fx.Graph, source: fx.Graph) -> None:
    """Let a graph be called as another one is."""
    graph.set_codegen(source._codegen)


def spec_parts(spec: pytree.TreeSpec) -> tuple[Any, Any, list[Any]]:
    """Type, context and children of a structure; the last two were renamed after torch 2.9."""
    if hasattr(spec, "_children"):
        return spec.type, spec._context, list(spec._children)
    return spec.type, spec.context, list(spec.children_specs)


def leaf_spec() -> pytree.TreeSpec:
    """The structure of a leaf; after torch 2.9 its class is not to be called any more."""
    made: Callable[[], pytree.TreeSpec] = getattr(pytree, "treespec_leaf", pytree.LeafSpec)
    return made()


# Tensors


def storage_key(storage: torch.UntypedStorage) -> int:
    """The same number for all views of a storage, and for empty ones, which have no address."""
    return int(storage._cdata)


no_torch_function: Any = torch._C._disabled_torch_function_impl
"""For the class body of a tensor subclass that is seen by operators alone."""


def wrapper(cls: type[Any], like: Tensor, device: torch.device) -> Any:
    """A tensor of a subclass without memory, with the shape and type of another."""
    return Tensor._make_wrapper_subclass(
        cls, like.shape, strides=like.stride(), dtype=like.dtype, device=device
    )


def version_of(value: Tensor) -> int:
    """How often a tensor was changed in place; 0 in inference mode, where nobody counts."""
    return 0 if value.is_inference() else int(value._version)


def renew_gradient_hooks(weight: Tensor) -> None:
    """Let a parameter's hooks fire again: they are the object's, and torch swaps what is in it."""
    weight._post_accumulate_grad_hooks = weight._post_accumulate_grad_hooks


# Modules


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs",
          "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called", "_backward_hooks",
          "_backward_pre_hooks", "_is_full_backward_hook")  # fmt: skip


def copy_hooks(module: nn.Module, source: nn.Module) -> None:
    """Give a module the hooks of another: the copy of a graph forgets them."""
    for key in _HOOKS:
        vars(module)[key] = copy.copy(vars(source)[key])


def pre_hooks(module: nn.Module) -> list[Any]:
    """What runs before a module's forward."""
    return list(module._forward_pre_hooks.values())


def drop_pre_hooks(module: nn.Module, kind: type) -> None:
    """Take away what runs before a module's forward, of one class."""
    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, kind):
            del module._forward_pre_hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)


def refresh_flat_weights(module: nn.RNNBase) -> None:
    """Let a recurrent module compute with its parameters as they are: it keeps a list of them."""
    names = module._flat_weights_names
    module._flat_weights = [getattr(module, name, None) for name in names]


def without_fast_path(attention: nn.Module) -> None:
    """Keep torch's encoder layers from reading the weights of what stands for an attention."""
    vars(attention)["_qkv_same_embed_dim"] = False


class WithoutFastPath:
    """The same for all attentions of a class, whatever they hold of their own."""

    @property
    def _qkv_same_embed_dim(self) -> bool:
        return False


def load_hooks(module: nn.Module) -> list[Any]:
    """What runs after a module's ``load_state_dict``: registered publicly, shown nowhere."""
    return list(module._load_state_dict_post_hooks.values())


# ONNX and the compiler


def onnx_program(
    program: torch.export.ExportedProgram, opset: int, operators: Mapping[Any, Any]
) -> ONNXProgram | None:
    """What torch's ONNX exporter makes of a program, whose shapes it may settle meanwhile.

    Args:
        program: of ATen's operators and some of ours.
        opset: of ONNX.
        operators: how ours are said in ONNX.
    """
    from torch.onnx._internal.exporter import _building  # needs onnxscript

    table, newer = dict(operators), hasattr(_building, "_determine_output_number")
    if not newer:  # torch 2.6 gives every BatchNormalization the outputs of training
        # A lambda, since the exporter passes over functions whose annotations it does not know, and
        # over those whose arguments are not called as ATen's.
        table[torch.ops.aten._native_batch_norm_legit_no_training.default] = (
            lambda input, weight, bias, running_mean, running_var, momentum, eps: _onnx_batch_norm(
                input, weight, bias, running_mean, running_var, eps
            )
        )
    # and passes LSTMs of an open batch size to a kernel that asks for their size
    with nullcontext() if newer else enable_python_dispatcher():
        return torch.onnx.export(program, dynamo=True, verbose=False, opset_version=opset,
                                 custom_translation_table=table)  # fmt: skip


def _onnx_batch_norm(
    input: Any, weight: Any, bias: Any, mean: Any, variance: Any, eps: float
) -> tuple[Any, Any, Any]:
    """The operator without those outputs; of ATen's three, nothing reads the last two."""
    from onnxscript.onnx_opset import opset18 as op

    weight = op.Add(op.Sub(mean, mean), 1.0) if weight is None else weight
    bias = op.Sub(mean, mean) if bias is None else bias
    made = op.BatchNormalization(input, weight, bias, mean, variance, epsilon=eps)
    return made[0], op.Identity(mean), op.Identity(variance)


def cxx_compiler_problem() -> str | None:
    """Why torch's compiler finds no C++ compiler; the error has a private type."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:  # InvalidCxxCompiler, or what running the compiler raises
        return type(error).__name__
    return None


def aot_compile(program: torch.export.ExportedProgram, path: Path, settings: Any) -> None:
    """Machine code from a program, as a package."""
    torch._inductor.aoti_compile_and_package(
        program, package_path=str(path), inductor_configs=dict(settings)
    )


def aot_load(path: Path) -> Callable[[list[Tensor]], Iterable[Tensor]]:
    """The code of a package as a function of flat tensors; opening runs code from it."""
    loader = torch._inductor.aoti_load_package(str(path)).loader
    run: Callable[[list[Tensor]], Iterable[Tensor]]
    run = loader.boxed_run if hasattr(loader, "boxed_run") else loader.run  # torch 2.6 has no boxed
    return run


def drop_workers(loader: DataLoader[Any]) -> None:
    """Let persistent workers end: nothing public does, and each goes on with what it has drawn."""
    if getattr(loader, "_iterator", None) is not None:
        loader._iterator = None
