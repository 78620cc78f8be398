"""PyTorch's scaled_dot_product_attention and softmax. Variants: cpu; on CUDA flash, efficient, math."""

import contextlib
import statistics
import time

from protocol import Peer, Unable, serve

FORCED = contextlib.ExitStack()

def prepare(job):
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    torch.set_grad_enabled(False)
    if job.variant.startswith("cpu"):
        torch.set_num_threads(job.threads)
        device, wait = "cpu", lambda: None
        name = f"{job.threads} threads"
    else:
        if not torch.cuda.is_available():
            raise Unable("PyTorch finds no CUDA device here")
        device, wait = "cuda", torch.cuda.synchronize
        name = torch.cuda.get_device_name()
    backend = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "math": SDPBackend.MATH,
    }.get(job.variant)
    if backend:
        # For as long as the process lives, so that switching is not timed.
        FORCED.enter_context(sdpa_kernel(backend))

    tensors = [torch.from_numpy(array).to(device) for array in job.inputs()]
    if job.softmax:
        kind = torch.log_softmax if job.workload["log"] else torch.softmax
        compute = lambda: kind(tensors[0], job.workload["axis"])
    else:
        _, q_heads, kv_heads, *_ = job.attention
        causal, grouped = job.causal, q_heads != kv_heads
        compute = lambda: F.scaled_dot_product_attention(
            *tensors, is_causal=causal, enable_gqa=grouped
        )

    def run():
        result = compute()
        wait()
        return result

    return Peer(
        run,
        output=lambda result: result.float().cpu().numpy(),
        version=torch.__version__,
        device=name,
        copy_gbps=copy_gbps(torch, device, wait) if device == "cuda" else None,
    )


def copy_gbps(torch, device, wait):
    """A copy of 1 GiB on the device: bytes read plus bytes written per second."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(12):
        wait()
        start = time.perf_counter()
        target.copy_(source)
        wait()
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / statistics.median(seconds[2:]) / 1e9


serve(prepare)
