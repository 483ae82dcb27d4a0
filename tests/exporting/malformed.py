"""Malformed ONNX files: small real models with something wrong, the same one for the same seed.

A file is damaged in its fields (a number, a name, a type, a missing or a doubled part, anywhere in the
message), in its bytes, or in one of the ways that have a name in SPECIAL.
"""

from __future__ import annotations

import functools
import random

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor as Field
from onnx import TensorProto, helper, numpy_helper
from onnx_models import network, weights

NUMBERS = (0, -1, 1, 2, 3, 7, 255, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, -(2**31), -(2**63))
FLOATS = (0.0, -1.0, 1e38, float("inf"), float("nan"), 1e-45)
TEXTS = (
    "",
    "\x1b[2J\x07",
    "two\nlines",
    "x",
    "y",
    "w",
    "../x",
    "/etc/passwd",
    "ai.onnx",
    "a" * 2000,
    "\u202e\x9b",
)
OPERATORS = (
    "MatMul",
    "Gemm",
    "Conv",
    "Add",
    "Transpose",
    "Cast",
    "Identity",
    "Constant",
    "If",
    "Loop",
    "Gather",
)


def _attribute_model(*nodes, tensors=(), **model):
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "m"])],
        list(tensors),
    )
    return helper.make_model(
        graph, **{"opset_imports": [helper.make_opsetid("", 18)], "ir_version": 8, **model}
    )


def _tensor(*shape, name="w", dtype=np.float32):
    return numpy_helper.from_array(np.random.default_rng(len(shape)).normal(size=shape).astype(dtype), name)


def _branches():
    def branch(name):
        nodes = [
            helper.make_node("Identity", ["w"], [f"{name}.v"]),
            helper.make_node("MatMul", ["x", f"{name}.v"], [f"{name}.y"], name),
        ]
        y = helper.make_tensor_value_info(f"{name}.y", TensorProto.FLOAT, [None, 32])
        return helper.make_graph(nodes, name, [], [y])

    return _attribute_model(
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["positive"], to=TensorProto.BOOL),
        helper.make_node("If", ["positive"], ["y"], then_branch=branch("a"), else_branch=branch("b")),
        tensors=[_tensor(32, 32)],
    )


def _function():
    body = helper.make_function(
        "mine",
        "F",
        ["a", "b"],
        ["c"],
        [helper.make_node("MatMul", ["a", "b"], ["d"]), helper.make_node("Relu", ["d"], ["c"])],
        [helper.make_opsetid("", 18)],
    )
    return _attribute_model(
        helper.make_node("F", ["x", "w"], ["z"], domain="mine"),
        helper.make_node("MatMul", ["z", "w"], ["y"], "last"),
        tensors=[_tensor(32, 32)],
        functions=[body],
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)],
    )


def _derived():
    typed = helper.make_tensor("t", TensorProto.FLOAT, [32], np.linspace(-1, 1, 32).tolist())
    return _attribute_model(
        helper.make_node("Constant", [], ["k"], value=_tensor(32, 48, dtype=np.float16)),
        helper.make_node("Cast", ["k"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["f"], ["t"], perm=[0, 1]),
        helper.make_node("MatMul", ["x", "t"], ["m"], "m"),
        helper.make_node("Gemm", ["m", "w", "b"], ["y"], "g", transB=1, alpha=0.5, beta=2.0),
        tensors=[_tensor(32, 48), helper.make_tensor("b", TensorProto.FLOAT, [32], list(typed.float_data))],
    )


@functools.cache
def _bases():
    small = weights()
    models = [
        network(small),
        network(small, constants=True),
        network(small, opset=13),
        network(weights(np.float16), np.float16),
        _branches(),
        _function(),
        _derived(),
        _in_itself(),
    ]
    return tuple(m.SerializeToString() for m in models)


def malformed(seed):
    """What is wrong, and the bytes of the file."""
    rng = random.Random(seed)
    bases = _bases()
    data = rng.choice(bases)
    way = rng.random()
    if way < 0.08:
        name = rng.choice(sorted(SPECIAL))
        return name, SPECIAL[name]().SerializeToString()
    if way < 0.2:
        return _damage_bytes(rng, data, bases)
    model = onnx.ModelProto.FromString(data)
    done = [_damage_field(rng, model) for _ in range(rng.choice((1, 1, 1, 1, 2, 4)))]
    return "; ".join(done), model.SerializeToString()


def _damage_bytes(rng, data, bases):
    where = rng.randrange(len(data))
    way = rng.choice(("cut", "flip", "insert", "delete", "splice", "noise"))
    if way == "cut":
        data = data[:where]
    elif way == "flip":
        changed = bytearray(data)
        for _ in range(rng.choice((1, 3, 20))):
            changed[rng.choice((rng.randrange(len(data)), rng.randrange(200)))] = rng.randrange(256)
        data = bytes(changed)
    elif way == "insert":
        data = data[:where] + rng.randbytes(rng.randrange(1, 9)) + data[where:]
    elif way == "delete":
        data = data[:where] + data[where + rng.randrange(1, 9) :]
    elif way == "splice":
        data = data[:where] + rng.choice(bases)[rng.randrange(1000) :]
    else:
        data = rng.randbytes(rng.randrange(400))
    return f"bytes: {way}", data


def _messages(message):
    """The message and all messages inside it, one of each kind as likely as its number."""
    yield message
    for field, value in message.ListFields():
        if field.type == Field.TYPE_MESSAGE:
            for part in value if _repeated(field) else [value]:
                yield from _messages(part)


def _repeated(field):
    return bool(field.is_repeated)


def _damage_field(rng, model):
    messages = list(_messages(model))
    kind = rng.choice(sorted({m.DESCRIPTOR.name for m in messages}))
    message = rng.choice([m for m in messages if m.DESCRIPTOR.name == kind])
    present = [f for f, _ in message.ListFields()]
    fields = present if present and rng.random() < 0.8 else list(message.DESCRIPTOR.fields)
    field = rng.choice(fields)
    name = f"{kind}.{field.name}"
    if _repeated(field):
        return f"{name}: {_damage_list(rng, message, field)}"
    if field.type == Field.TYPE_MESSAGE:
        message.ClearField(field.name) if rng.random() < 0.5 else getattr(message, field.name).SetInParent()
        return f"{name}: cleared or empty"
    if rng.random() < 0.15:
        message.ClearField(field.name)
        return f"{name}: cleared"
    setattr(message, field.name, value := _value(rng, field, getattr(message, field.name)))
    return f"{name}: {str(value)[:30]!r}"


def _damage_list(rng, message, field):
    values = getattr(message, field.name)
    way = rng.choice(("delete", "double", "shuffle", "clear", "change", "change", "grow"))
    if way == "clear" or not len(values):
        if len(values):
            message.ClearField(field.name)
        elif field.type == Field.TYPE_MESSAGE:
            values.add()
        else:
            values.extend([_value(rng, field, None) for _ in range(rng.randrange(1, 4))])
        return "cleared or filled"
    at = rng.randrange(len(values))
    if way == "delete":
        del values[at]
    elif field.type == Field.TYPE_MESSAGE:
        if way == "shuffle":
            copies = [type(v).FromString(v.SerializeToString()) for v in values]
            rng.shuffle(copies)
            del values[:]
            values.extend(copies)
        else:
            values.add().CopyFrom(values[at])
    elif way == "double":
        values.append(values[at])
    elif way == "grow":
        values.extend([values[at]] * rng.choice((1, 7, 100)))
    elif way == "shuffle":
        copies = list(values)
        rng.shuffle(copies)
        values[:] = copies
    else:
        values[at] = _value(rng, field, values[at])
    return way


def _value(rng, field, old):
    if field.type == Field.TYPE_ENUM:
        return rng.choice([v.number for v in field.enum_type.values])
    if field.type == Field.TYPE_INT32:
        return rng.randrange(0, 32) if rng.random() < 0.8 else rng.choice((-1, 99, 2**31 - 1))
    if field.type in (Field.TYPE_INT64, Field.TYPE_UINT64):
        value = rng.choice(NUMBERS) if rng.random() < 0.7 else (old or 0) + rng.choice((-1, 1))
        return abs(value) if field.type == Field.TYPE_UINT64 else max(min(value, 2**63 - 1), -(2**63))
    if field.type in (Field.TYPE_FLOAT, Field.TYPE_DOUBLE):
        return rng.choice(FLOATS)
    text = rng.choice(OPERATORS) if field.name == "op_type" and rng.random() < 0.6 else rng.choice(TEXTS)
    if field.type == Field.TYPE_STRING:
        return text
    old = old or b""
    return rng.choice((b"", old[: len(old) // 2], old + b"\0\0", old[1:], rng.randbytes(8), text.encode()))


def _one(tensor, **node):
    return _attribute_model(helper.make_node("MatMul", ["x", "w"], ["y"], **node), tensors=[tensor])


def _declares(*dims, data=b"", data_type=TensorProto.FLOAT):
    return _one(TensorProto(name="w", dims=dims, raw_data=data, data_type=data_type))


def _external(**entries):
    tensor = TensorProto(
        name="w", dims=[32, 32], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL
    )
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return _one(tensor)


def _in_itself():
    """Its own file holds the weight: the notes, which are long enough."""
    model = _external(location="model.onnx", offset="100", length="4096")
    model.graph.doc_string = "note" * 1200
    return model


def _cycle():
    return _attribute_model(
        helper.make_node("Add", ["x", "b"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("Identity", ["b"], ["y"]),
        tensors=[_tensor(32, 32)],
    )


def _recursive(other):
    functions = [
        helper.make_function(
            "mine", name, ["a"], ["c"], [helper.make_node(called, ["a"], ["c"], domain="mine")],
            [helper.make_opsetid("mine", 1)],
        )
        for name, called in (("F", other), ("G", "F"))
    ]  # fmt: skip
    return _attribute_model(
        helper.make_node("F", ["x"], ["z"], domain="mine"),
        helper.make_node("MatMul", ["z", "w"], ["y"]),
        tensors=[_tensor(32, 32)],
        functions=functions,
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)],
    )


def _growing():
    """Ten levels of functions that call ten of the next."""

    def function(level):
        called, domain = (f"F{level - 1}", "mine") if level else ("Relu", "")
        nodes = [helper.make_node(called, ["a"], [f"o{i}" if i else "c"], domain=domain) for i in range(10)]
        imports = [helper.make_opsetid("mine", 1), helper.make_opsetid("", 18)]
        return helper.make_function("mine", f"F{level}", ["a"], ["c"], nodes, imports)

    return _attribute_model(
        helper.make_node("F9", ["x"], ["z"], domain="mine"),
        helper.make_node("MatMul", ["z", "w"], ["y"]),
        tensors=[_tensor(32, 32)],
        functions=[function(level) for level in range(10)],
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)],
    )


def _nested(depth=28):
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y0"])], "g", [],
        [helper.make_tensor_value_info("y0", TensorProto.FLOAT, ["n", "m"])],
    )  # fmt: skip
    for level in range(1, depth):
        node = helper.make_node("If", ["c"], [f"y{level}"], then_branch=graph, else_branch=graph)
        if level > 6:  # twice the graph at every level would be 2^28 graphs
            del node.attribute[1:]
        y = helper.make_tensor_value_info(f"y{level}", TensorProto.FLOAT, ["n", "m"])
        graph = helper.make_graph([node], f"g{level}", [], [y])
    model = _one(_tensor(32, 32))
    model.graph.node.extend(graph.node)
    return model


def _reference():
    model = _one(_tensor(32, 32))
    model.graph.node[0].attribute.add(name="alpha", ref_attr_name="beta", type=onnx.AttributeProto.FLOAT)
    return model


def _identities():
    """Longer than Python's stack is deep."""
    names = [f"i{i}" for i in range(3000)]
    chain = [helper.make_node("Identity", [a], [b]) for a, b in zip(["w", *names], names, strict=False)]
    return _attribute_model(
        *chain, helper.make_node("MatMul", ["x", names[-1]], ["y"]), tensors=[_tensor(32, 32)]
    )


def _sparse():
    model = _one(_tensor(32, 32))
    model.graph.sparse_initializer.add(
        values=TensorProto(name="w", dims=[2**40], data_type=TensorProto.FLOAT),
        indices=TensorProto(name="i", dims=[2**40], data_type=TensorProto.INT64),
        dims=[2**20, 2**20],
    )
    del model.graph.initializer[:]
    return model


def _strings():
    return _one(
        TensorProto(name="w", dims=[32, 32], data_type=TensorProto.STRING, string_data=[b"\x1b[31m"] * 1024)
    )


def _constant_of_shape():
    shape = numpy_helper.from_array(np.array([32, 2**40], np.int64), "shape")
    fill = helper.make_node("ConstantOfShape", ["shape"], ["w"])
    return _attribute_model(fill, helper.make_node("MatMul", ["x", "w"], ["y"]), tensors=[shape])


def _infinite_loop():
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["go"]), helper.make_node("MatMul", ["v", "w"], ["u"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, ["n", 32]),
        ],
        [
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("u", TensorProto.FLOAT, ["n", 32]),
        ],
    )
    trips = numpy_helper.from_array(np.array(2**62, np.int64), "trips")
    yes = numpy_helper.from_array(np.array(True), "yes")
    loop = helper.make_node("Loop", ["trips", "yes", "x"], ["y"], body=body)
    return _attribute_model(loop, tensors=[_tensor(32, 32), trips, yes])


SPECIAL = {
    "2^40 elements": lambda: _declares(2**20, 2**20),
    "2^40 elements in four bytes": lambda: _declares(2**40, data=b"\0" * 4),
    "more elements than a number holds": lambda: _declares(2**62, 2**62, 4),
    "negative dims": lambda: _declares(-32, -32, data=b"\0" * 4096),
    "a dim of zero": lambda: _declares(0, 32),
    "a type that is none": lambda: _declares(32, 32, data=b"\0" * 4096, data_type=0),
    "half of the data": lambda: _declares(32, 32, data=b"\0" * 2048),
    "four bits": lambda: _declares(32, 32, data=b"\0" * 512, data_type=TensorProto.INT4),
    "a name that clears the screen": lambda: _one(_tensor(32, 32), name="\x1b[2J\nname\r"),
    "data nowhere": lambda: _external(location="nowhere.bin"),
    "data above the folder": lambda: _external(location="../secret.bin"),
    "data anywhere": lambda: _external(location="/etc/passwd"),
    "data without a location": lambda: _external(offset="0"),
    "data in a folder": lambda: _external(location="."),
    "data in the model": lambda: _external(location="model.onnx", offset="99999999", length="4096"),
    "an offset that is no number": lambda: _external(location="model.onnx", offset="\x1b[1m"),
    "a cycle": _cycle,
    "a function that calls itself": lambda: _recursive("F"),
    "functions that call each other": lambda: _recursive("G"),
    "functions that grow": _growing,
    "graphs in graphs": _nested,
    "an attribute of a function outside one": _reference,
    "a chain of identities": _identities,
    "a sparse weight": _sparse,
    "strings": _strings,
    "2^40 computed elements": _constant_of_shape,
    "2^62 rounds": _infinite_loop,
    "nothing": onnx.ModelProto,
    "no graph": lambda: onnx.ModelProto(ir_version=8),
}  # fmt: skip
