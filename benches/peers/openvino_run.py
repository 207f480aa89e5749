#!/usr/bin/env python3
"""One measurement of OpenVINO GenAI, run by `engines.py` with the Python that has its packages.

    PYTHON benches/peers/openvino_run.py MODEL_DIR --prompt 512 --gen 0 --threads 2

MODEL_DIR is what `optimum-cli export openvino` writes. Prints one JSON object: tokens per second
of a prompt (until its first token), or of the tokens after the first, and the version. Every
repetition has ids of its own, so that no cache of prefixes answers.
"""

import argparse
import json
import random
import sys

import numpy
import openvino
import openvino_genai


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--prompt", type=int, default=0)
    parser.add_argument("--gen", type=int, default=0)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    pipeline = openvino_genai.LLMPipeline(args.model, "CPU", INFERENCE_NUM_THREADS=args.threads)
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = args.gen + 1
    config.ignore_eos = True
    config.do_sample = False

    def once(n_prompt):
        ids = numpy.array([[random.randrange(10, 30000) for _ in range(n_prompt)]], dtype=numpy.int64)
        mask = numpy.ones_like(ids)
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(mask))
        return pipeline.generate(inputs, config).perf_metrics

    n_prompt = args.prompt or 16
    once(n_prompt)
    metrics = once(n_prompt)
    if args.gen:
        speed = 1000.0 / metrics.get_tpot().mean
    else:
        speed = args.prompt * 1000.0 / metrics.get_ttft().mean
    version = f"OpenVINO GenAI {openvino_genai.__version__}"
    json.dump({"samples_ts": [speed], "version": version}, sys.stdout)


if __name__ == "__main__":
    main()
