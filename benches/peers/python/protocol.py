"""A worker's side of the protocol; see ../README.md.

A worker calls `serve(prepare)`. `prepare(job)` uploads the inputs and returns a `Peer`, or raises
`Unable` with the reason why it cannot run this job.
"""

import json
import os
import sys
import time
from dataclasses import dataclass
from typing import Callable

import numpy as np


class Unable(Exception):
    """The peer cannot run this job; the text says why."""


@dataclass
class Peer:
    """A peer with the job's tensors on its device."""

    # Runs once and waits until the result is there; returns what `output` takes.
    run: Callable[[], object]
    # The result as a numpy array, in the shape that the op defines.
    output: Callable[[object], np.ndarray]
    version: str
    device: str
    note: str = ""
    # What a copy on the device reaches, bytes read plus written, where it was measured.
    copy_gbps: float | None = None


class Job:
    """What to run."""

    def __init__(self, line):
        job = json.loads(line)
        self.workload = job["workload"]
        self.variant = job["variant"]
        self.threads = job["threads"]
        self.dtype = np.dtype({"f32": "float32", "f16": "float16"}[self.workload["dtype"]])
        self._inputs = job["inputs"]
        self.output_path = job["output"]

    @property
    def softmax(self):
        return self.workload["op"] == "softmax"

    @property
    def attention(self):
        """Sizes of an attention: batch, query heads, KV heads, queries, keys, dims, value dims."""
        w = self.workload
        value_dim = w["value_dim"] or w["head_dim"]
        sizes = ("batch", "q_heads", "kv_heads", "q_len", "kv_len", "head_dim")
        return *(w[size] for size in sizes), value_dim

    @property
    def causal(self):
        """Whether keys are hidden by causality, in a way on which all definitions agree."""
        w = self.workload
        if w["causal"] == "none":
            return False
        if w["q_len"] != w["kv_len"]:
            raise Unable("causal with q_len other than kv_len is not written for this peer")
        return True

    @property
    def linear_attention(self):
        """Sizes of a linear attention: batch, query heads, KV heads, tokens, dims, value dims; None of another op."""
        w = self.workload
        if w["op"] != "linear_attention":
            return None
        sizes = (w[size] for size in ("batch", "heads", "seq", "key_dim"))
        batch, heads, seq, key_dim = sizes
        return batch, heads, w["kv_heads"] or heads, seq, key_dim, w["value_dim"] or key_dim

    def inputs(self):
        """The inputs: q, k, v as [batch, heads, len, dim], with the decays [heads] of a linear attention that has
        them, or the one of softmax."""
        if self.softmax:
            shapes = [self.workload["shape"]]
        elif self.linear_attention:
            w = self.workload
            if (w["decay"], w["rule"], w["reach"]) not in (
                ("none", "linear", "causal"),
                ("head", "linear", "causal"),
            ) or w["normalised"] or w["state"]:
                raise Unable("only causal linear attention with at most a decay per head is written for this peer")
            batch, heads, kv_heads, seq, key_dim, value_dim = self.linear_attention
            shapes = [(batch, heads, seq, key_dim), (batch, kv_heads, seq, key_dim), (batch, kv_heads, seq, value_dim)]
            shapes += [(kv_heads,)] if w["decay"] == "head" else []
        else:
            batch, q_heads, kv_heads, q_len, kv_len, head_dim, value_dim = self.attention
            shapes = [
                (batch, q_heads, q_len, head_dim),
                (batch, kv_heads, kv_len, head_dim),
                (batch, kv_heads, kv_len, value_dim),
            ]
        return [
            np.fromfile(path, dtype="<f4").reshape(shape).astype(self.dtype)
            for path, shape in zip(self._inputs, shapes, strict=True)
        ]


WARM_UPS = 4


def serve(prepare):
    """Reads the job, warms up, leaves the result in the job's file, then runs on demand."""
    # Libraries print; the protocol has standard output to itself.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**fields):
        print(json.dumps(fields), file=answers, flush=True)

    try:
        job = Job(sys.stdin.readline())
        peer = prepare(job)
        for _ in range(WARM_UPS):
            result = peer.run()
        # Of the last run: the first may go another way than those that are timed.
        output = np.asarray(peer.output(result), dtype="<f4")
        np.ascontiguousarray(output).tofile(job.output_path)
        answer(
            ready=True,
            version=peer.version,
            device=peer.device,
            note=peer.note,
            copy_gbps=peer.copy_gbps,
        )
        while line := sys.stdin.readline():
            if line.strip() == "run":
                start = time.perf_counter()
                peer.run()
                answer(ms=(time.perf_counter() - start) * 1e3)
    except Unable as reason:
        answer(failed=str(reason))
    except ImportError as error:
        answer(failed=f"{error}; run benches/peers/setup.sh", missing=True)
    except Exception as error:  # whatever a library throws is a row of the table
        words = " ".join(str(error).split())
        answer(failed=f"{type(error).__name__}: {words[:500]}")
    # Not sys.exit: a library's threads may hang on the way out.
    os._exit(0)
