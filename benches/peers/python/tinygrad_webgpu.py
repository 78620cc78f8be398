"""tinygrad's scaled_dot_product_attention and softmax on its WEBGPU backend, under TinyJit."""

import os
import platform
from pathlib import Path

from protocol import Peer, Unable, serve


def prepare(job):
    os.environ["DEV"] = "WEBGPU"
    import pydawn

    # tinygrad loads Dawn's library, which this package carries.
    ending = "dylib" if platform.system() == "Darwin" else "so"
    library = Path(pydawn.__path__[0], "lib", f"libwebgpu_dawn_{platform.machine()}.{ending}")
    os.environ.setdefault("WEBGPU_PATH", str(library))

    from importlib.metadata import version

    from tinygrad import Device, Tensor, TinyJit

    tensors = [Tensor(array).realize() for array in job.inputs()]
    if job.softmax:
        axis = job.workload["axis"]
        op = Tensor.log_softmax if job.workload["log"] else Tensor.softmax
        compute = TinyJit(lambda x: op(x, axis).realize())
    else:
        _, q_heads, kv_heads, *_ = job.attention
        causal, grouped = job.causal, q_heads != kv_heads
        compute = TinyJit(
            lambda q, k, v: q.scaled_dot_product_attention(
                k, v, is_causal=causal, enable_gqa=grouped
            ).realize()
        )

    def run():
        result = compute(*tensors)
        Device[Device.DEFAULT].synchronize()
        return result

    if Device.DEFAULT != "WEBGPU":
        raise Unable(f"tinygrad runs on {Device.DEFAULT}, not on WEBGPU")
    return Peer(
        run,
        output=lambda result: result.numpy(),
        version=version("tinygrad"),
        device=adapter_name(),
        note="the caller's tensors stay on the device; TinyJit replays captured kernels",
    )


def adapter_name():
    """The adapter that tinygrad opened, as Dawn calls it."""
    import ctypes

    from tinygrad import Device
    from tinygrad.runtime.autogen import webgpu

    info = webgpu.WGPUAdapterInfo()
    webgpu.wgpuDeviceGetAdapterInfo(Device["WEBGPU"].device_res, ctypes.byref(info))
    return " ".join(text(info.device).split())


def text(view):
    import ctypes

    return ctypes.string_at(view.data, view.length).decode() if view.length else ""


serve(prepare)
