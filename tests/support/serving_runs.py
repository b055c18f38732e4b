"""Recorded runs of a serving GPU, made by the twin of one whose coefficients are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from schemas.units import FloatArray
from twin.serving.board import ModelFit, PaceLaw, ServingFit
from twin.serving.engine import Requests, serve
from twin.serving.llm import LLMS
from twin.serving.recorded import CHUNKED, COLUMNS
from twin.serving.sensor import average

LAW = PaceLaw(
    layer_s=8e-5,
    weights_byte_s=6e-13,
    cache_byte_s=6e-13,
    prompt_flop_s=2.5e-15,
    chunk_flop_s=8e-16,
    answer_s=6e-5,
)
"""The pace of a board like the recorded one, in round figures."""

KNOWN = ServingFit(
    sku="H100-SXM5-64GB",
    limit_w=700.0,
    max_mhz=1980.0,
    memory_bytes=60e9,
    idle_w=115.0,
    idle_exponent=0.6,
    noise_ratio=0.005,
    celsius=32.0,
    celsius_per_w=0.05,
    base_w=170.0,
    weights_w_per_tb_s=100.0,
    cache_w_per_tb_s=180.0,
    prompt_w_per_tflop_s=1.0,
    answer_w_per_tflop_s=1.4,
    law=LAW,
    models={
        name: ModelFit(pace=LAW.pace(LLMS[name]), kv_tokens=tokens, answer_w_per_tflop_s=1.4)
        for name, tokens in (("llama-2-7b", 88_000), ("llama-2-13b", 41_000))
    },
    prompt_shape=(1.0,) * 65,
    output_shape=(1.0,) * 65,
)
"""A board whose coefficients a fit has to find again."""


def record_run(
    folder: Path,
    model: str,
    answers: int,
    *,
    fit: ServingFit = KNOWN,
    chunked: bool = False,
    requests: int = 400,
    prompt: int = 250,
    output: int = 131,
    mhz: float = 1980.0,
    idle_w: float = 115.0,
    seed: int = 1,
) -> Path:
    """Write one run as a load generator and nvidia-smi would have; its CSV."""
    llm, ratio = LLMS[model], mhz / fit.max_mhz
    asked = Requests(np.zeros(requests), np.full(requests, float(prompt)), np.full(requests, float(output)))
    limits = fit.limits(llm, answers, chunked=chunked)
    course = serve(asked, limits, fit.at_clock(fit.model(llm).pace, ratio))
    end = course.end_s
    ends_at = float(end[-1])
    lead, quiet = 6, 30
    second = np.arange(1.0, int(ends_at) + quiet)
    rng = np.random.default_rng(seed)
    watts = fit.watts(course, llm, clock_ratio=ratio, idle_w=idle_w)
    power = np.where(second <= ends_at, average(end, watts, np.minimum(second, ends_at)), idle_w)
    power = power * (1.0 + fit.noise_ratio * rng.standard_normal(power.size))
    held = np.minimum(1.0, (course.context_tokens + 8.0 * course.batch) / limits.kv_tokens)
    at = np.minimum(np.searchsorted(end, second), end.size - 1)
    busy = second <= ends_at
    running = np.where(busy, np.maximum(1.0, course.batch[at]), 0.0)
    prompts, answered = np.cumsum(course.prompt_tokens), np.cumsum(course.steps * course.batch)
    name = f"{CHUNKED if chunked else 'background_'}{model}_{answers}"
    columns = {
        "time_s": second + lead,
        "num_requests_running": running,
        "num_requests_waiting": np.where(busy, 1.0, 0.0),
        "gpu_cache_usage_perc": np.where(busy, held[at], 0.0),
        "prompt_tokens_total": prompts[at],
        "generation_tokens_total": answered[at],
        "gpu_power_w": np.round(power),
        "gpu_temp_c": np.round(fit.celsius + fit.celsius_per_w * power),
        "sm_clk_mhz": np.full(second.size, mhz),
    }
    ahead: dict[str, FloatArray] = {key: np.zeros(lead) for key in COLUMNS}
    ahead["time_s"] = 0.5 + np.arange(lead, dtype=np.float64)
    ahead["gpu_power_w"] = np.full(lead, idle_w)
    ahead["sm_clk_mhz"] = np.full(lead, mhz)
    lines = [",".join(COLUMNS)]
    for part in (ahead, columns):
        lines += [
            ",".join(f"{value:g}" for value in row)
            for row in zip(*(part[key] for key in COLUMNS), strict=True)
        ]
    path = folder / f"{name}.csv"
    path.write_text("\n".join(lines) + "\n")
    first, last = end[course.first], end[course.last]
    tpot = (last - first) / (output - 1)
    result = {
        "model_id": f"/models/{model}",
        "duration": ends_at,
        "completed": requests,
        "total_input_tokens": requests * prompt,
        "total_output_tokens": requests * output,
        "request_rate": "inf",
        "mean_ttft_ms": 1000 * float(first.mean()),
        "median_ttft_ms": 1000 * float(np.median(first)),
        "mean_tpot_ms": 1000 * float(tpot.mean()),
        "median_tpot_ms": 1000 * float(np.median(tpot)),
    }
    path.with_name(f"{name}.result.json").write_text(json.dumps(result))
    return path
