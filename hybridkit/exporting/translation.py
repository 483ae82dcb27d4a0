"""A torch module with packed layers -> an ONNX graph with one `hybridkit` node per packed layer.

Every torch operator of hybridkit/runtime/ops.py becomes a node of the same name (`ternary_matmul_int8` is
TernaryMatMulInt8) with its tensors as inputs and its numbers as attributes, codes in layout 0. Lowering then
turns the nodes that are no operators of a file (embeddings, n-bit layers) into some that are.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from hybridkit.calls import Inputs, call, without_caches
from hybridkit.errors import HybridkitError, UsageError
from hybridkit.exporting.functions import DOMAIN, DOMAIN_VERSION, MIN_OPSET
from hybridkit.exporting.quiet import quiet
from hybridkit.runtime.modules import row_major
from hybridkit.trees import named_outputs, tensors

if TYPE_CHECKING:
    import onnx_ir

_STEMS: Final = {
    "matmul_int8": "MatMulInt8",
    "matmul_float": "MatMulFloat",
    "conv_int8": "ConvInt8",
    "conv_float": "ConvFloat",
    "embedding": "Embedding",
}
_PREFIXES: Final = {"ternary": "Ternary", "binary": "Binary", "nbit": "NBit"}
_TENSOR_TYPES: Final = [f"tensor({t})" for t in ("float", "float16", "bfloat16", "uint8", "int32", "int64")]
_OPTIONS: Final = {"Tensor": "Single", "Optional[Tensor]": "Optional"}  # of inputs, by torch's type
_HINTS: Final = {"int": int, "float": float, "List[int]": Sequence[int]}
MAX_OPSET: Final = 23  # the newest that the exporter of torch 2.9 to 2.13 writes

DynamicAxes = Sequence[Mapping[int, str]]


class _Flat(nn.Module):
    """A network whose inputs and outputs are tensors alone, in order."""

    PREFIX: Final = "network."  # of the names of its weights

    def __init__(self, network: nn.Module, inputs: Inputs, tell: Callable[[list[str]], None]) -> None:
        """`tell` is given the names of the outputs: torch undoes what tracing writes to a module."""
        super().__init__()
        self.network = network
        self.names = list(inputs) if isinstance(inputs, Mapping) else None
        self.tell = tell

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        inputs = tensors if self.names is None else dict(zip(self.names, tensors, strict=True))
        found = named_outputs(call(self.network, inputs))
        if not found:
            raise HybridkitError("it gives no tensor")
        self.tell(list(found))
        return tuple(found.values())


def translate(
    module: nn.Module,
    example_inputs: Inputs,
    input_names: Sequence[str],
    dynamic_axes: DynamicAxes,
    opset: int,
    operators: Mapping[Callable[..., Any], Callable[..., Any]] = MappingProxyType({}),
) -> onnx_ir.Model:
    """The graph of `module`, which is in evaluation mode; `dynamic_axes` names each input's free dimensions.

    `operators`: of torch, beside ours, and what writes a node for each.
    Outputs are called as `named_outputs` says; one that has the name of an input gets `_output` behind it.

    Raises UsageError for an opset outside 18 to 23 or inputs that do not fit together, HybridkitError where
    torch cannot export the module or it fixes a dimension that is to stay free.
    """
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise UsageError(f"opset {opset} cannot be written; choose one from {MIN_OPSET} to {MAX_OPSET}")
    if not len(example_inputs) == len(input_names) == len(dynamic_axes):
        raise UsageError(
            f"{len(example_inputs)} example inputs, {len(input_names)} input names and {len(dynamic_axes)} "
            "mappings of dynamic axes do not fit together"
        )
    examples = [_widened(x, axes) for x, axes in zip(tensors(example_inputs), dynamic_axes, strict=True)]
    traced: list[list[str]] = []
    flat = _Flat(module, example_inputs, traced.append).eval()
    with _silence(), row_major(module), without_caches(module), _without_slow_rules(), torch.no_grad():
        try:
            program = torch.onnx.export(
                flat,
                tuple(examples),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=list(input_names),
                dynamic_shapes=(tuple(dict(axes) for axes in dynamic_axes),),
                custom_translation_table=_table() | dict(operators),
            )
        except Exception as error:  # whatever a stranger's module makes torch raise
            raise HybridkitError(f"torch cannot export the module: {_reason(error)}") from error
    assert program is not None
    model: onnx_ir.Model = program.model
    _check(model, dynamic_axes, opset)
    _name(model, traced[-1], input_names)
    return model


def _name(model: onnx_ir.Model, output_names: Sequence[str], input_names: Sequence[str]) -> None:
    """Weights as in the network, and outputs as `named_outputs` says."""
    for value in list(model.graph.initializers.values()):
        assert value.name is not None
        value.name = value.name.removeprefix(_Flat.PREFIX)
    for name, value in zip(output_names, model.graph.outputs, strict=True):
        if not value.is_graph_input():
            value.name = f"{name}_output" if name in input_names else name


@contextlib.contextmanager
def _without_slow_rules() -> Iterator[None]:
    """Set aside onnxscript's rule for two slices in one, which lists the whole graph at every node.

    That takes most of the time of a deep network's export, as it grows by the square of the depth. The rule
    is for slices without steps, and torch's have some.
    """
    from onnxscript import rewriter

    rules = rewriter._DEFAULT_REWRITE_RULES
    rewriter._DEFAULT_REWRITE_RULES = tuple(rule for rule in rules if rule.name != "SlicesSplit")
    try:
        yield
    finally:
        rewriter._DEFAULT_REWRITE_RULES = rules


def _table() -> dict[Callable[..., Any], Callable[..., Any]]:
    table: dict[Callable[..., Any], Callable[..., Any]] = {}
    for kind, prefix in _PREFIXES.items():
        for stem, operator in _STEMS.items():
            overload = getattr(torch.ops.hybridkit, f"{kind}_{stem}").default
            table[overload] = node_for(overload, prefix + operator, DOMAIN, DOMAIN_VERSION)
    return table


def node_for(overload: Any, name: str, domain: str, version: int) -> Callable[..., Any]:
    """What writes a node for `overload`: its tensor arguments come first, then the attributes."""
    from onnx.defs import OpSchema
    from onnxscript.values import Op, Opset

    arguments = overload._schema.arguments
    tensors = {a.name: _OPTIONS[str(a.type)] for a in arguments if str(a.type) in _OPTIONS}
    numbers: dict[str, Any] = {a.name: _HINTS[str(a.type)] for a in arguments[len(tensors) :]}
    defaults = {a.name: a.default_value for a in arguments if a.has_default_value()}
    kinds = {
        int: OpSchema.AttrType.INT,
        float: OpSchema.AttrType.FLOAT,
        Sequence[int]: OpSchema.AttrType.INTS,
    }
    outputs = [f"y{number or ''}" for number in range(len(overload._schema.returns))]
    types = {n: f"T_{n}" for n in [*tensors, *outputs]}
    schema = OpSchema(
        name,
        domain,
        version,
        inputs=[
            OpSchema.FormalParameter(
                n, types[n], param_option=getattr(OpSchema.FormalParameterOption, option)
            )
            for n, option in tensors.items()
        ],
        outputs=[OpSchema.FormalParameter(n, types[n]) for n in outputs],
        type_constraints=[(t, _TENSOR_TYPES, "") for t in types.values()],
        attributes=[OpSchema.Attribute(n, kinds[hint], required=True) for n, hint in numbers.items()],
    )
    operator = Op(Opset(domain, version), name, schema)

    def node(*values: Any, **named: Any) -> Any:
        given = dict(zip(numbers, values[len(tensors) :], strict=False)) | named
        return operator(*values[: len(tensors)], **(defaults | given))

    # torch's exporter reads from the signature what is an input and what an attribute
    keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [
        inspect.Parameter(a.name, keyword, default=defaults.get(a.name, inspect.Parameter.empty))
        for a in arguments
    ]
    node.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    node.__annotations__ = dict(numbers)
    node.__name__ = name
    return node


def _widened(x: Tensor, axes: Mapping[int, str]) -> Tensor:
    """`x` with at least two entries along its free axes: torch takes a size of one for a constant."""
    for axis in axes:
        if not -x.dim() <= axis < x.dim():
            raise UsageError(f"an input of shape {list(x.shape)} has no axis {axis} to be dynamic")
        if x.shape[axis] == 1:
            x = x.repeat_interleave(2, dim=axis)
    return x


def _check(model: onnx_ir.Model, dynamic_axes: DynamicAxes, opset: int) -> None:
    written = model.graph.opset_imports[""]
    if written != opset:
        raise HybridkitError(
            f"the model needs operators of opset {written}, it cannot be written with opset {opset}; "
            f"say --opset {written}"
        )
    for value, axes in zip(model.graph.inputs, dynamic_axes, strict=True):
        assert value.shape is not None
        for axis, name in axes.items():
            if isinstance(value.shape[axis], int):
                raise HybridkitError(
                    f"the model fixes {name!r}, axis {axis} of input {value.name!r}, to {value.shape[axis]}; "
                    "leave that axis out of the dynamic axes"
                )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporter's progress lines, warnings and log away from the user."""
    loggers = "torch.onnx", "torch.export", "onnxscript", "onnx_ir"
    with quiet(*loggers), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _reason(error: BaseException) -> str:
    """The first line of the innermost cause, which is what went wrong."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
