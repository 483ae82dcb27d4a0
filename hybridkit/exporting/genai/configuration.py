"""genai_config.json, which tells onnxruntime-genai what a folder holds.

https://onnxruntime.ai/docs/genai/reference/config.html
"""

from __future__ import annotations

import json
from typing import Any, Final

from hybridkit.exporting.genai.decoder import IDS, LOGITS, MASK, PARTS, PAST, PRESENT, Shape
from hybridkit.pretrained.assets import Assets

NAME: Final = "genai_config.json"
LONGEST: Final = 2048  # tokens, where the network does not say


def configuration(shape: Shape, config: Any, assets: Assets | None, model: str) -> dict[str, Any]:
    """The file's content for the network of a transformers configuration, whose ONNX file is `model`.

    Sampling is what the assets' generation_config.json says; the token that ends an answer, too.
    """
    text = config.get_text_config()
    said = _generation(assets)
    context = getattr(text, "max_position_embeddings", None) or LONGEST
    end = said.get("eos_token_id", text.eos_token_id)
    names = {
        f"{kind}_{part}_names": pattern.format("%d", part)
        for kind, pattern in (("past", PAST), ("present", PRESENT))
        for part in PARTS
    }
    return {
        "model": {
            "type": "decoder",
            "vocab_size": text.vocab_size,
            "context_length": context,
            "bos_token_id": said.get("bos_token_id", text.bos_token_id),
            "eos_token_id": end,
            "pad_token_id": _pad(said.get("pad_token_id", text.pad_token_id), end),
            "decoder": {
                "filename": model,
                "head_size": shape.head_size,
                "hidden_size": text.hidden_size,
                "num_attention_heads": shape.heads,
                "num_hidden_layers": shape.layers,
                "num_key_value_heads": shape.kv_heads,
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "inputs": {
                    "input_ids": IDS,
                    "attention_mask": MASK,
                    **{k: v for k, v in names.items() if k.startswith("past")},
                },
                "outputs": {
                    "logits": LOGITS,
                    **{k: v for k, v in names.items() if k.startswith("present")},
                },
            },
        },
        "search": {
            "do_sample": bool(said.get("do_sample", False)),
            "max_length": context,
            "temperature": said.get("temperature") or 1.0,
            "top_k": said.get("top_k") or 50,
            "top_p": said.get("top_p") or 1.0,
            "repetition_penalty": said.get("repetition_penalty") or 1.0,
            "past_present_share_buffer": True,
        },
    }


def _pad(pad: int | None, end: int | list[int] | None) -> int | None:
    if pad is not None:
        return pad
    return end[0] if isinstance(end, list) else end


def _generation(assets: Assets | None) -> dict[str, Any]:
    content = assets.read("generation_config.json") if assets else None
    found: dict[str, Any] = json.loads(content) if content else {}
    return found
