"""onnxruntime's WebGPU provider, one operator per variant: mha, gqa, attention23, attention24, softmax.

Tensors stay on the device. A slice of one element of the output comes back after each run: reading
it waits for the device. An operator that would fall back to the CPU is an error.
"""

import os
from dataclasses import dataclass
from typing import Callable

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from protocol import Peer, Unable, serve

ELEMENT = {
    np.dtype("float32"): TensorProto.FLOAT,
    np.dtype("float16"): TensorProto.FLOAT16,
    np.dtype("int32"): TensorProto.INT32,
}
PROVIDERS = ["WebGpuExecutionProvider"]
# Shapes of arguments that the operators want on the CPU.
HOST = np.dtype("int32")


@dataclass
class Model:
    """A model of one operator, and its arguments."""

    node: onnx.NodeProto
    arguments: dict[str, np.ndarray]
    output_shapes: dict[str, tuple]
    # From the first output to [batch, heads, len, dim].
    unpack: Callable[[np.ndarray], np.ndarray] = lambda o: o
    opset: int = 21
    note: str = ""


def packed(x):
    """[batch, heads, len, dim] to [batch, len, heads * dim]"""
    batch, heads, length, dim = x.shape
    return np.ascontiguousarray(x.transpose(0, 2, 1, 3).reshape(batch, length, heads * dim))


def unpacked(heads):
    def unpack(o):
        batch, length, _ = o.shape
        return o.reshape(batch, length, heads, -1).transpose(0, 2, 1, 3)

    return unpack


def softmax(job):
    (x,) = job.inputs()
    if job.workload["log"]:
        operator = "LogSoftmax"
    else:
        operator = "Softmax"
    node = helper.make_node(operator, ["x"], ["o"], axis=job.workload["axis"])
    return Model(node, {"x": x}, {"o": x.shape})


def multi_head(job):
    """com.microsoft MultiHeadAttention."""
    batch, q_heads, kv_heads, q_len, _, _, value_dim = job.attention
    q, k, v = job.inputs()
    group = q_heads // kv_heads
    k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
    node = helper.make_node(
        "MultiHeadAttention",
        ["q", "k", "v"],
        ["o"],
        domain="com.microsoft",
        num_heads=q_heads,
        unidirectional=int(job.causal),
    )
    return Model(
        node,
        {"q": packed(q), "k": packed(k), "v": packed(v)},
        {"o": (batch, q_len, q_heads * value_dim)},
        unpacked(q_heads),
        note="K and V heads repeated beforehand: the operator knows no groups" if group > 1 else "",
    )


def grouped_query(job):
    """com.microsoft GroupQueryAttention: causal over a prompt, or one new key after a past."""
    batch, q_heads, kv_heads, q_len, kv_len, head_dim, value_dim = job.attention
    if head_dim != value_dim:
        raise Unable("GroupQueryAttention wants value_dim equal to head_dim")
    q, k, v = job.inputs()
    if job.causal:
        past, note = 0, ""
    elif q_len == 1 and kv_len > 1:
        past, note = kv_len - 1, "the operator copies the past into the present on every run"
    else:
        raise Unable("GroupQueryAttention is causal only")
    arguments = {
        "q": packed(q),
        "k": packed(k[:, :, past:]),
        "v": packed(v[:, :, past:]),
        "past_k": np.ascontiguousarray(k[:, :, :past]),
        "past_v": np.ascontiguousarray(v[:, :, :past]),
        "last": np.full(batch, kv_len - 1, np.int32),
        "total": np.array([kv_len], np.int32),
    }
    if not past:
        del arguments["past_k"], arguments["past_v"]
    names = ["q", "k", "v", "past_k", "past_v", "last", "total"]
    present = (batch, kv_heads, kv_len, head_dim)
    node = helper.make_node(
        "GroupQueryAttention",
        [name if name in arguments else "" for name in names],
        ["o", "present_k", "present_v"],
        domain="com.microsoft",
        num_heads=q_heads,
        kv_num_heads=kv_heads,
    )
    return Model(
        node,
        arguments,
        {
            "o": (batch, q_len, q_heads * head_dim),
            "present_k": present,
            "present_v": present,
        },
        unpacked(q_heads),
        note=note,
    )


def standard(opset):
    """The ONNX standard's own Attention."""

    def model(job):
        q, k, v = job.inputs()
        node = helper.make_node("Attention", ["q", "k", "v"], ["o"], is_causal=int(job.causal))
        shape = (*q.shape[:3], v.shape[3])
        return Model(node, {"q": q, "k": k, "v": v}, {"o": shape}, opset=opset)

    return model


VARIANTS = {
    "mha": multi_head,
    "gqa": grouped_query,
    "attention23": standard(23),
    "attention24": standard(24),
    "softmax": softmax,
}


def session(nodes, inputs, outputs, opset, initializers=(), plain=False):
    """A session; inputs and outputs are {name: (element type, shape)}."""
    described = [
        [helper.make_tensor_value_info(name, *info) for name, info in infos.items()]
        for infos in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "peer", *described, list(initializers))
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 10
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Its pool of CPU threads has nothing to do, and would take cores from a software device.
    options.intra_op_num_threads = 1
    if plain:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    else:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        made = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=PROVIDERS)
    except Exception as error:
        if "fallback to CPU EP has been explicitly disabled" in str(error):
            raise Unable("the WebGPU provider has no kernel for this operator") from error
        raise
    if made.get_providers()[0] != PROVIDERS[0]:
        raise Unable("the WebGPU provider found no device, and onnxruntime fell back to the CPU")
    return made


def upload(arrays):
    """The arrays on the device, as outputs of a model that does nothing; and what keeps them."""
    described = {name: (ELEMENT[x.dtype], x.shape) for name, x in arrays.items()}
    on_device = {f"device_{name}": info for name, info in described.items()}
    nodes = [helper.make_node("Identity", [name], [f"device_{name}"]) for name in arrays]
    made = session(nodes, described, on_device, 21, plain=True)
    binding = made.io_binding()
    for name, x in arrays.items():
        binding.bind_cpu_input(name, x)
    for name in on_device:
        binding.bind_output(name, "webgpu", 0)
    made.run_with_iobinding(binding)
    binding.synchronize_outputs()
    return dict(zip(arrays, binding.get_outputs(), strict=True)), (made, binding)


def probe(output, rank):
    """A slice of one element of the output, for reading back."""
    limits = {"starts": [0] * rank, "ends": [1] * rank, "axes": list(range(rank))}
    constants = [numpy_helper.from_array(np.array(x, np.int64), n) for n, x in limits.items()]
    return helper.make_node("Slice", [output, *limits], ["probe"]), constants


def prepare(job):
    model = VARIANTS[job.variant](job)
    element = ELEMENT[job.dtype]
    rank = len(model.output_shapes["o"])
    slice_node, constants = probe("o", rank)
    outputs = {name: (element, shape) for name, shape in model.output_shapes.items()}
    made = session(
        [model.node, slice_node],
        {name: (ELEMENT[x.dtype], x.shape) for name, x in model.arguments.items()},
        {**outputs, "probe": (element, (1,) * rank)},
        model.opset,
        constants,
    )

    binding = made.io_binding()
    on_host = {name: x for name, x in model.arguments.items() if x.dtype == HOST}
    on_device, keep = upload({n: x for n, x in model.arguments.items() if n not in on_host})
    for name, x in on_host.items():
        binding.bind_cpu_input(name, x)
    for name, value in on_device.items():
        binding.bind_ortvalue_input(name, value)
    for name in model.output_shapes:
        binding.bind_output(name, "webgpu", 0)
    binding.bind_output("probe", "cpu", 0)

    def run():
        made.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return keep

    hidden = "FOVEATE_PEERS_HIDE_SUBGROUPS" in os.environ
    notes = [f"operator {model.node.op_type}", "subgroups hidden" if hidden else "", model.note]
    return Peer(
        run,
        output=lambda _: model.unpack(binding.copy_outputs_to_cpu()[0].astype(np.float32)),
        version=onnxruntime.__version__,
        device="WebGPU provider (Dawn), its default adapter",
        note="; ".join(note for note in notes if note),
    )


serve(prepare)
