"""PyTorch's scaled_dot_product_attention and softmax, and linear attention in chunks.

Variants: cpu; on CUDA flash, efficient, math. Of linear attention: cpu-C and cuda-C, for chunks of C tokens.
"""

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
    if job.linear_attention:
        compute = chunked(torch, job, tensors)
    elif job.softmax:
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


def chunked(torch, job, tensors):
    """Causal linear attention with a decay per head, in chunks: the weights of the pairs inside a chunk, a state before
    each chunk for what came earlier, all chunks in batched products. What depends on the decays alone is made once.
    """
    batch, heads, kv_heads, seq, key_dim, value_dim = job.linear_attention
    if heads != kv_heads or job.dtype != "float32":
        raise Unable("linear attention is written for f32 and as many KV heads as query heads")
    length = int(job.variant.rpartition("-")[2])
    if seq % length:
        raise Unable(f"{seq} tokens are not a whole number of chunks of {length}")
    chunks, scale = seq // length, key_dim**-0.5
    q, k, v, *decay = tensors
    g = decay[0].double() if decay else torch.zeros(heads, dtype=torch.float64, device=q.device)
    at = torch.arange(length, dtype=torch.float64, device=q.device)
    ahead = at[:, None] - at
    inside = torch.where(ahead >= 0, torch.exp(g[:, None, None] * ahead.clamp(min=0)), 0.0)
    inside = (scale * inside).float()[None, :, None]
    since = (scale * torch.exp(g[:, None] * (at + 1))).float()[None, :, None, :, None]
    until = torch.exp(g[:, None] * (length - 1 - at)).float()[None, :, None, :, None]
    whole = torch.exp(g * length).float()[None, :, None, None]
    state = torch.empty(batch, heads, chunks, key_dim, value_dim, device=q.device)
    q, k = (x.view(batch, heads, chunks, length, key_dim) for x in (q, k))
    v = v.view(batch, heads, chunks, length, value_dim)

    def compute():
        o = (q @ k.transpose(-1, -2)).mul_(inside) @ v
        added = (k * until).transpose(-1, -2) @ v
        state[:, :, 0] = 0
        for chunk in range(1, chunks):
            torch.addcmul(added[:, :, chunk - 1], state[:, :, chunk - 1], whole, out=state[:, :, chunk])
        o += (q * since) @ state
        return o.view(batch, heads, seq, value_dim)

    return compute


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
