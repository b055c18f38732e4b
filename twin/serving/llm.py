"""Language models as a board sees them: weights to read, cache to keep, arithmetic per token.

Shapes are those of the models' published configurations; weights and cache are 16 bit.
"""

from __future__ import annotations

import re

import msgspec

_BYTES = 2


class UnknownModel(ValueError):
    """A model whose shape is not known; the text is for the operator."""


class Llm(msgspec.Struct, frozen=True, kw_only=True):
    """A dense decoder. `cache_width` is the width of a token's keys in one layer (its values are as wide):
    below `width` where attention heads share them. `longest` is the most tokens of prompt and answer."""

    name: str
    parameters: float
    layers: int
    width: int
    cache_width: int
    longest: int

    @property
    def weight_bytes(self) -> float:
        """Read once per step, however many tokens the step works on."""
        return _BYTES * self.parameters

    @property
    def cache_bytes(self) -> float:
        """KV cache per token of context: read once per token generated."""
        return 2.0 * _BYTES * self.layers * self.cache_width

    @property
    def token_flops(self) -> float:
        """Floating-point operations per token, attention apart: two per parameter."""
        return 2.0 * self.parameters


def _llm(name: str, billions: float, layers: int, width: int, longest: int, shared: int = 1) -> Llm:
    return Llm(
        name=name,
        parameters=billions * 1e9,
        layers=layers,
        width=width,
        cache_width=width // shared,
        longest=longest,
    )


LLMS: dict[str, Llm] = {
    llm.name: llm
    for llm in (
        _llm("opt-125m", 0.125, 12, 768, 2048),
        _llm("opt-350m", 0.331, 24, 1024, 2048),
        _llm("opt-1.3b", 1.316, 24, 2048, 2048),
        _llm("opt-2.7b", 2.652, 32, 2560, 2048),
        _llm("opt-6.7b", 6.658, 32, 4096, 2048),
        _llm("opt-13b", 12.853, 40, 5120, 2048),
        _llm("opt-30b", 29.974, 48, 7168, 2048),
        _llm("llama-2-7b", 6.738, 32, 4096, 4096),
        _llm("llama-2-13b", 13.016, 40, 5120, 4096),
        _llm("llama-2-70b", 68.977, 80, 8192, 4096, shared=8),
        _llm("llama-3-8b", 8.030, 32, 4096, 8192, shared=4),
        _llm("llama-3-70b", 70.554, 80, 8192, 8192, shared=8),
        _llm("mistral-7b", 7.242, 32, 4096, 32768, shared=4),
        _llm("gpt-j-6b", 6.051, 28, 4096, 2048),
        _llm("bloom-176b", 176.247, 70, 14336, 2048),
    )
}
"""Models by the name that recordings use, lower case."""

_TUNED = re.compile(r"(-(hf|chat|instruct|v0\.\d))+$")


def llm_named(name: str) -> Llm:
    """The model of that name; upper case, a folder before it, its maker and how it was tuned disregarded.
    Raises UnknownModel."""
    short = name.rstrip("/").rpartition("/")[2].lower().removeprefix("meta-")
    if known := LLMS.get(_TUNED.sub("", short)):
        return known
    raise UnknownModel(f"model {name!r}: its shape is not known; known are {', '.join(LLMS)}")
