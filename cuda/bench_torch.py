#!/usr/bin/env python3
"""PyTorch's speed at what `puna bench --kernels --device cuda -o json` measured, row by row.

    bench_torch.py KERNELS.json

Each row of that file names its operation and sizes ("op"); the same is done here with PyTorch's best
back-end on the first GPU, timed by the device's events: a warm-up, then 20 calls on inputs that no cache
holds, the median. Prints one JSON object with a row for each. Needs torch and a GPU.
"""

import json
import statistics
import sys

REPETITIONS = 20
WARM_UP = 5
FLUSH_BYTES = 256 << 20


def fail(message):
    print(f"bench_torch.py: {message}", file=sys.stderr)
    sys.exit(2)


def timed(torch, flush, call):
    """Median milliseconds of a call."""
    for _ in range(WARM_UP):
        call()
    samples = []
    for _ in range(REPETITIONS):
        flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        samples.append(begin.elapsed_time(end))
    return statistics.median(samples)


def numbers(torch, *shape, dtype=None, grad=False):
    x = torch.randn(*shape, device="cuda", dtype=torch.float32).mul_(0.1)
    return x.to(dtype or torch.bfloat16).requires_grad_(grad)


def attention(torch, what, batch, length, heads, head_dim):
    """Calls of each back-end that takes the shape; the fastest counts."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention as sdpa

    grad = what == "backward"
    q, k, v = (numbers(torch, batch, heads, length, head_dim, grad=grad) for _ in range(3))
    calls = []
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
        def forward(backend=backend):
            with sdpa_kernel(backend):
                return sdpa(q, k, v, is_causal=True)

        try:
            out = forward()
        except RuntimeError:
            continue
        if not grad:
            calls.append(forward)
            continue
        dout = torch.randn_like(out)
        calls.append(lambda out=out, dout=dout: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True))
    return calls


def calls_of(torch, op):
    """What does the operation, as a list of ways."""
    name, *rest = op.split()
    functional = torch.nn.functional
    if name == "matmul":
        form, (m, n, k) = rest[0], map(int, rest[1:])
        a = numbers(torch, *((k, m) if form[0] == "t" else (m, k)))
        b = numbers(torch, *((n, k) if form[1] == "t" else (k, n)))
        a = a.t() if form[0] == "t" else a
        b = b.t() if form[1] == "t" else b
        out = numbers(torch, m, n)
        return [lambda: torch.matmul(a, b, out=out)]
    sizes = [int(x) for x in rest]
    if name == "copy":
        a = torch.empty(sizes[0], device="cuda", dtype=torch.uint8)
        b = torch.empty_like(a)
        return [lambda: b.copy_(a)]
    if name == "lora":
        r, m, n, k = sizes
        x, w, a, b = numbers(torch, m, k), numbers(torch, n, k), numbers(torch, r, k), numbers(torch, n, r)
        return [lambda: torch.addmm(x @ w.t(), x @ a.t(), b.t(), alpha=2.0)]
    if name == "rms_norm":
        x, w = numbers(torch, *sizes), numbers(torch, sizes[1])
        return [lambda: functional.rms_norm(x, (sizes[1],), w, 1e-5)]
    if name == "swiglu":
        gate, up = numbers(torch, *sizes), numbers(torch, *sizes)
        plain = lambda: functional.silu(gate) * up
        compiled = torch.compile(plain)
        return [plain, compiled]
    if name == "cross_entropy":
        logits = numbers(torch, *sizes, dtype=torch.float32, grad=True)
        labels = torch.randint(sizes[1], (sizes[0],), device="cuda")
        return [lambda: torch.autograd.grad(functional.cross_entropy(logits, labels), logits)]
    if name == "adamw":
        x = numbers(torch, sizes[0], dtype=torch.float32, grad=True)
        x.grad = torch.randn_like(x)
        optimizer = torch.optim.AdamW([x], lr=1e-3, fused=True)
        return [optimizer.step]
    if name in ("attention_forward", "attention_backward"):
        return attention(torch, name.removeprefix("attention_"), *sizes)
    return []


def main():
    if len(sys.argv) != 2:
        fail("wanted one file, the JSON of puna bench --kernels --device cuda")
    try:
        with open(sys.argv[1]) as file:
            rows = json.load(file)["results"]
    except (OSError, ValueError, KeyError) as error:
        fail(f"{sys.argv[1]}: {error!r}, wanted the JSON of puna bench --kernels")
    try:
        import torch
    except ImportError:
        fail("python3 has no torch")
    if not torch.cuda.is_available():
        fail("torch finds no GPU")
    flush = torch.empty(FLUSH_BYTES, device="cuda", dtype=torch.uint8)
    results = []
    for row in rows:
        try:
            ways = calls_of(torch, row["op"])
            ms = min((timed(torch, flush, call) for call in ways), default=None)
            results.append({"test": row["test"], "op": row["op"], "ms": ms})
        except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
            results.append({"test": row["test"], "op": row["op"], "ms": None, "why": str(error)[:200]})
        torch.cuda.empty_cache()
    device = torch.cuda.get_device_name()
    print(json.dumps({"program": f"torch {torch.__version__}", "device": device, "results": results}))


main()
