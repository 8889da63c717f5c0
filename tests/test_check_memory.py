"""The exercises of notebook 03 accept what is right, and explain what is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from svdnb import MemorySettings, check, predict_memory


def expect_miss(words: str, run: Callable[..., None], *answer: Any) -> None:
    with pytest.raises(check.NotYet, match=words):
        run(*answer)


def decode(vae: Any, latents: Any, chunk: int) -> Any:
    parts = (latents / vae.config.scaling_factor).split(chunk)
    return torch.cat([vae.decode(part, num_frames=len(part)).sample for part in parts])


def decoding(
    scale: float = 1,
    join: Callable[[list[Any]], Any] = torch.cat,
    size: int | None = None,
    all_but: int = 0,
) -> Callable[..., Any]:
    """Return a solution that makes a mistake."""

    def wrong(vae: Any, latents: Any, chunk: int) -> Any:
        parts = (scale * latents / vae.config.scaling_factor).split(size or chunk)
        kept = parts[: len(parts) - all_but]
        return join([vae.decode(part, num_frames=len(part)).sample for part in kept])

    return wrong


def full_chunks_only(vae: Any, latents: Any, chunk: int) -> Any:
    starts = range(0, len(latents), chunk)
    return torch.cat([vae.decode(latents[s : s + chunk], num_frames=chunk).sample for s in starts])


def overlapping(vae: Any, latents: Any, chunk: int) -> Any:
    parts = [latents[max(0, s - 1) : s + chunk] for s in range(0, len(latents), chunk)]
    return torch.cat([vae.decode(part, num_frames=len(part)).sample for part in parts])


def one_frame_each(vae: Any, latents: Any, chunk: int) -> Any:
    parts = (latents / vae.config.scaling_factor).split(chunk)
    return torch.cat([vae.decode(part, num_frames=1).sample for part in parts])


def test_decoding_in_chunks(capsys: pytest.CaptureFixture[str]) -> None:
    check.decodes(decode)
    assert "[OK]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (torch.zeros(14, 3, 8, 8), "Expected a function, got Tensor"),
        ("decode", "Expected a function, got str"),
        (lambda vae, latents, chunk: print(chunk), "returns NoneType, not a tensor"),
        (lambda vae, latents, chunk: latents, r"decodes \[\] latents, expected \[2, 2, 1\]"),
        (decoding(join=list), "returns list, not a tensor"),
        (decoding(join=torch.stack), "could not use this answer"),
        (decoding(size=99), r"decodes \[5\] latents"),
        (decoding(size=1), r"decodes \[1, 1, 1, 1, 1\] latents"),
        (decoding(all_but=1), r"decodes \[2, 2\] latents"),
        (overlapping, r"decodes \[2, 3, 2\] latents"),
        (decoding(scale=0.18215), "scaling_factor"),
        (decoding(join=lambda parts: torch.cat(parts[::-1])), "in order"),
        (decoding(join=lambda parts: torch.cat(parts, dim=2)), "could not use|the first dimension"),
        (decoding(join=lambda parts: torch.cat(parts)[None]), "the first dimension"),
        (full_chunks_only, "could not use this answer"),
        (one_frame_each, "num_frames"),
        (lambda latents, chunk: latents, "unexpected keyword argument 'vae'"),
    ],
)
def test_decoding_something_else(answer: Any, words: str) -> None:
    expect_miss(words, check.decodes, answer)


def choose(predictions: Any, gib: float, free: float = 1, unit: int = 2**30) -> str | None:
    fitting = {name: p for name, p in predictions.items() if p.peak <= (gib - free) * unit}
    return min(fitting, key=lambda name: fitting[name].moved(25), default=None)


def smallest(predictions: Any, gib: float) -> str | None:
    name = min(predictions, key=lambda name: predictions[name].peak)
    return name if predictions[name].peak <= (gib - 1) * 2**30 else None


def first(predictions: Any, gib: float) -> str | None:
    return next((n for n, p in predictions.items() if p.peak <= (gib - 1) * 2**30), None)


def without_none(predictions: Any, gib: float) -> str:
    return choose(predictions, gib) or min(predictions, key=lambda name: predictions[name].peak)


def test_choosing_for_a_card(capsys: pytest.CaptureFixture[str]) -> None:
    check.chooses(choose)
    assert "[OK]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("+ offload", "Expected a function, got str"),
        (lambda predictions, gib: predictions.clear(), "what is left|Is nothing below"),
        (lambda predictions, gib: "+ offload", "Expected a key of the dictionary"),
        (lambda predictions, gib: list(predictions), "Expected a key of the dictionary"),
        (lambda predictions, gib: predictions.get(choose(predictions, gib)), "Expected a key"),
        (lambda predictions, gib: choose(predictions, gib, free=0), "1 GiB stays free"),
        (lambda predictions, gib: choose(predictions, gib, unit=1), "2\\*\\*30"),
        (lambda predictions, gib: choose(predictions, gib, unit=10**9), "2\\*\\*30"),
        (without_none, "Is nothing below it"),
        (smallest, "move fewer bytes"),
        (first, "move fewer bytes"),
        (lambda predictions, gib: float("nan"), "Expected a key"),
        (lambda predictions, gib: min(n for n in predictions if gib > 80), "could not use"),
    ],
)
def test_choosing_something_else(answer: Any, words: str) -> None:
    expect_miss(words, check.chooses, answer)


RECIPE = MemorySettings(offload="model", forward_chunking=True, decode_chunk_size=2)


def unet_step(num_frames: int) -> int:
    predicted = predict_memory("svd-xt", num_frames=num_frames, settings=RECIPE)
    return predicted.stages["UNet step"].peak


def test_a_straight_line() -> None:
    few, many = unet_step(14), unet_step(25)
    twenty = few + 6 * (many - few) / 11
    check.grows(twenty, RECIPE, 20)
    expect_miss("too little", check.grows, many * 20 / 25, RECIPE, 20)
    expect_miss("too much", check.grows, many, RECIPE, 20)
    expect_miss("answer is in bytes", check.grows, twenty / 2**30, RECIPE, 20)
    expect_miss("for a single frame", check.grows, (many - few) / 11, RECIPE, 20)


@pytest.mark.parametrize("answer", ["6.6 GiB", None, float("nan"), float("inf"), [7e9], unet_step])
def test_an_answer_that_is_no_number_of_bytes(answer: Any) -> None:
    expect_miss("Expected a number of bytes", check.grows, answer, RECIPE, 20)
