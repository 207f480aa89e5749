#!/usr/bin/env python3
"""The rows of `puna bench --kernels --device cuda`, by PyTorch on the same card.

    puna bench --kernels --device cuda -o json > ours.json
    python3 cuda/bench_torch.py ours.json [--repetitions N] > torch.json

Which rows there are, and what a call's work is counted as, comes from that file, so that the two
cannot drift apart: a row's "op" names operation and sizes. An operation that is not known here is
left out, and said on stderr. Inputs are normal numbers and in no cache, as there. Each time is that
of the device between two events; a rate is the work over the median. Attention takes the fastest of
cuDNN's, FlashAttention's and the memory-efficient kernels that run.

Exit status 3: no PyTorch, or no GPU that it can use.
"""
import argparse
import json
import math
import statistics
import sys

WARM_UP_CALLS = 3
WARM_UP_MS = 20.0
FLUSH_BYTES = 256 << 20


def lacking(what):
    print(f"bench_torch.py: {what}", file=sys.stderr)
    sys.exit(3)


def load_torch():
    try:
        import torch
    except ImportError as why:
        lacking(f"python3 has no PyTorch ({why}); its times are left out")
    if not torch.cuda.is_available():
        lacking(f"PyTorch {torch.__version__} finds no CUDA device; its times are left out")
    return torch


class Peer:
    def __init__(self, torch, repetitions):
        self.torch = torch
        self.repetitions = repetitions
        self.flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
        torch.manual_seed(0)

    def normal(self, *shape, dtype=None):
        dtype = dtype or self.torch.bfloat16
        return self.torch.randn(*shape, device="cuda", dtype=dtype)

    def once(self, call):
        start, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def time(self, call):
        """Milliseconds of each repetition."""
        calls, spent = 0, 0.0
        while calls < WARM_UP_CALLS or spent < WARM_UP_MS:
            spent += max(self.once(call), 1e-3)
            calls += 1
        samples = []
        for _ in range(self.repetitions):
            # Not waited for, so that the device is busy until the call is queued behind it.
            self.flush.zero_()
            samples.append(self.once(call))
        return samples

    # Each operation makes its inputs and returns what is timed, by name: the fastest counts.

    def copy(self, n_bytes):
        n = n_bytes // 4
        x = self.normal(n, dtype=self.torch.float32)
        out = self.torch.empty_like(x)
        return {"copy_": lambda: out.copy_(x)}

    def matmul(self, form, m, n, k):
        torch = self.torch
        a = self.normal(k, m).t() if form[0] == "t" else self.normal(m, k)
        b = self.normal(n, k).t() if form[1] == "t" else self.normal(k, n)
        out = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)
        return {"cuBLAS": lambda: torch.mm(a, b, out=out)}

    def lora(self, r, m, n, k):
        x, w, a, b = (self.normal(*s) for s in ((m, k), (n, k), (r, k), (n, r)))

        def call():
            y = x @ w.t()
            y.addmm_(x @ a.t(), b.t(), alpha=0.5)

        return {"three cuBLAS products": call}

    def attention(self, batch, length, heads, width, backward):
        torch = self.torch
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.nn.functional import scaled_dot_product_attention

        # [b, t, h, d] in memory, as ours.
        q, k, v, dout = (
            self.normal(batch, length, heads, width).transpose(1, 2) for _ in range(4)
        )
        for x in (q, k, v):
            x.requires_grad_(backward)
        calls = {}
        for name in ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION"):
            backend = getattr(SDPBackend, name, None)
            if backend is None:
                continue
            try:
                with sdpa_kernel(backend):
                    out = scaled_dot_product_attention(q, k, v, is_causal=True)
                    if backward:
                        torch.autograd.grad(out, (q, k, v), dout, retain_graph=True)
                torch.cuda.synchronize()
            except RuntimeError as why:
                reason = str(why).splitlines()
                print(f"{name} does not run: {reason[0] if reason else why}", file=sys.stderr)
                continue
            if backward:
                def call(out=out):
                    torch.autograd.grad(out, (q, k, v), dout, retain_graph=True)
            else:
                def call(backend=backend):
                    with sdpa_kernel(backend), torch.no_grad():
                        scaled_dot_product_attention(q, k, v, is_causal=True)
            calls[name.split("_")[0].lower()] = call
        return calls

    def attention_forward(self, *sizes):
        return self.attention(*sizes, backward=False)

    def attention_backward(self, *sizes):
        return self.attention(*sizes, backward=True)

    def rms_norm(self, rows, width):
        functional = self.torch.nn.functional
        # Of the rows' type, which is what its fused kernel takes.
        x, w = self.normal(rows, width), self.normal(width)
        return {"rms_norm": lambda: functional.rms_norm(x, (width,), w, 1e-5)}

    def swiglu(self, rows, width):
        silu = self.torch.nn.functional.silu
        gate, up = self.normal(rows, width), self.normal(rows, width)
        return {"silu, product": lambda: silu(gate) * up}

    def cross_entropy(self, rows, vocab):
        torch = self.torch
        logits = self.normal(rows, vocab, dtype=torch.float32).requires_grad_()
        labels = torch.randint(vocab, (rows,), device="cuda")

        def call():
            loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
            torch.autograd.grad(loss, logits)

        return {"cross_entropy, backward": call}

    def adamw(self, n):
        torch = self.torch
        w = torch.nn.Parameter(self.normal(n, dtype=torch.float32))
        w.grad = self.normal(n, dtype=torch.float32)
        optimizer = torch.optim.AdamW([w], lr=1e-3, weight_decay=0.1, fused=True)
        return {"AdamW(fused)": optimizer.step}

    OPERATIONS = (
        "copy matmul lora attention_forward attention_backward rms_norm swiglu cross_entropy adamw"
    ).split()

    def row(self, test, op, amount, unit):
        """The fastest way to compute a row; None for an operation that is not known."""
        name, *sizes = op.split()
        if name not in self.OPERATIONS:
            return None
        sizes = [int(size) if size.isdigit() else size for size in sizes]
        best = None
        for by, call in getattr(self, name)(*sizes).items():
            samples = self.time(call)
            ms = statistics.median(samples)
            if best is None or ms < best["ms"]:
                scale = 1e12 if unit == "TFLOP/s" else 1e9
                best = {
                    "test": test,
                    "op": op,
                    "by": by,
                    "ms": ms,
                    "rate": amount / (ms / 1e3) / scale,
                    "rate_unit": unit,
                    "spread_ms": statistics.pstdev(samples),
                }
        return best


def work(row):
    """Bytes or operations of a call, from what `puna bench` said of it."""
    scale = {"TFLOP/s": 1e12, "GB/s": 1e9}.get(row.get("rate_unit"))
    if scale is None:
        raise ValueError(f"rate_unit {row.get('rate_unit')!r} of {row.get('test')!r}")
    amount = float(row["rate"]) * scale * float(row["ms"]) / 1e3
    if not (math.isfinite(amount) and amount > 0):
        raise ValueError(f"{row['test']!r} has no rate")
    return amount


def read_rows(path):
    try:
        with open(path, encoding="utf-8") as file:
            rows = json.load(file)["results"]
        return [(row["test"], row["op"], work(row), row["rate_unit"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as why:
        print(
            f"bench_torch.py: {path}: {why!r}; wanted what "
            "`puna bench --kernels --device cuda -o json` writes",
            file=sys.stderr,
        )
        sys.exit(2)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", help="what puna bench --kernels --device cuda -o json wrote")
    parser.add_argument("--repetitions", type=int, default=20, metavar="N")
    args = parser.parse_args()
    if args.repetitions < 1:
        parser.error("--repetitions: wanted at least 1")
    wanted = read_rows(args.rows)
    torch = load_torch()
    peer = Peer(torch, args.repetitions)
    rows = []
    for test, op, amount, unit in wanted:
        try:
            row = peer.row(test, op, amount, unit)
        except (RuntimeError, TypeError, AttributeError) as why:
            reason = str(why).splitlines()
            print(f"{test}: {reason[0] if reason else type(why).__name__}", file=sys.stderr)
            continue
        finally:
            # The inputs of the next may be as large.
            torch.cuda.empty_cache()
        if row is None:
            print(f"{test}: PyTorch's way is not known here", file=sys.stderr)
        else:
            rows.append(row)
    versions = {
        "program": f"torch {torch.__version__}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "device": torch.cuda.get_device_name(),
    }
    print(json.dumps({**versions, "results": rows}))


if __name__ == "__main__":
    main()
