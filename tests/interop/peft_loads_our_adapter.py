#!/usr/bin/env python3
"""PEFT loads an adapter that Puna trained, and computes what Puna computes.

    python3 tests/interop/peft_loads_our_adapter.py --puna target/release/puna --model DIR --adapter DIR

DIR are a Hugging Face directory and an adapter tuned on it. The same tokens are scored by PEFT in
f32 and by `puna eval nll --exact`: every token's negative log-likelihood has to agree within 1e-3
nats and their mean within 1e-5, and the adapter has to matter. Without torch, transformers and peft
it says SKIPPED and exits with 0.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

TOKEN_BOUND, MEAN_BOUND = 1e-3, 1e-5
LENGTH = 256


def puna_nll(puna, model, adapter, ids):
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "ids.json", Path(folder) / "nll.json"
        file.write_text(json.dumps(ids))
        command = [puna, "eval", "nll", model, "--tokens", f"@{file}", "--per-token", str(out)]
        command += ["--exact", "--window", str(LENGTH), "--stride", str(LENGTH), "--quiet"]
        if adapter:
            command += ["--adapter", adapter]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads(out.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--puna", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapter", required=True)
    args = parser.parse_args()
    try:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        print(f"SKIPPED: {error}")
        return 0
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    source = torch.Generator().manual_seed(1)
    vocabulary = model.config.vocab_size
    ids = torch.randint(0, vocabulary, (LENGTH,), generator=source).tolist()

    def nll(model):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1].double()
        picked = torch.tensor(ids[1:]).unsqueeze(1)
        return (-torch.log_softmax(logits, -1).gather(1, picked)).squeeze(1).tolist()

    base = nll(model)
    tuned = nll(PeftModel.from_pretrained(model, args.adapter).eval())
    failed = False
    for name, theirs, adapter in [("base", base, None), ("with adapter", tuned, args.adapter)]:
        ours = puna_nll(args.puna, args.model, adapter, ids)
        worst = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
        mean = abs(sum(ours) - sum(theirs)) / len(ours)
        print(f"{name}: {len(ours)} tokens, differ by {worst:.2e} at most, means by {mean:.2e}")
        failed |= worst > TOKEN_BOUND or mean > MEAN_BOUND
    moved = max(abs(a - b) for a, b in zip(base, tuned))
    print(f"the adapter moves a token by {moved:.2e} at most")
    failed |= moved < 10 * TOKEN_BOUND
    print("FAILED" if failed else "passed")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
