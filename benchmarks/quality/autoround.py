"""What AutoRound makes of a language model, as a row for decoder.py.

    python benchmarks/quality/autoround.py FOLDER OUT --texts TEXTS --bits 4 --group 32 [--steps 200]

`auto-round` (SignRound, arXiv 2309.05516) tunes rounding and clipping block by block on as many tokens as
ours, 128 blocks of 512 of the same text, for 200 steps of 8 blocks as its authors have it. OUT gets the
weights that its codes stand for; `decoder.py --folders NAME=OUT` measures them. The embedding, which the head
shares, is stored as other peers' is.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file

from benchmarks.quality.peers import Q8
from benchmarks.quality.storing import BYTES, WEIGHTS
from benchmarks.quality.texts import CALIBRATION
from hybridkit.pretrained import open_pretrained

SAMPLES, LENGTH, BATCH = 128, 512, 8
LONGER = 640  # tokens of a text, so that none is too short when it is tokenised again
SCALE_BYTES = 2


def main() -> None:
    """Round, and write weights and bytes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("folder", type=Path)
    add("out", type=Path)
    add("--texts", type=Path, required=True)
    add("--bits", type=int, required=True)
    add("--group", type=int, required=True)
    add("--steps", type=int, default=200)
    add("--samples", type=int, default=SAMPLES)
    options = parser.parse_args()
    from auto_round import AutoRound

    opened = open_pretrained(str(options.folder))
    network, tokenizer = opened.network(head="causal-lm"), opened.tokenizer()
    ids = tokenizer((options.texts / CALIBRATION).read_text("utf-8"), verbose=False)["input_ids"]
    starts = torch.linspace(0, len(ids) - LONGER, options.samples).long().tolist()
    with TemporaryDirectory() as made:
        file = Path(made) / "texts.jsonl"
        texts = (tokenizer.decode(ids[start : start + LONGER]) for start in starts)
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
        rounder = AutoRound(
            network,
            tokenizer=tokenizer,
            bits=options.bits,
            group_size=options.group,
            sym=False,
            dataset=str(file),
            nsamples=options.samples,
            seqlen=LENGTH,
            batch_size=BATCH,
            iters=options.steps,
            device_map="cpu",
        )
        rounded, _ = rounder.quantize()
    size, weights = 0, {}
    for name, module in rounded.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, torch.nn.Embedding):
            stored, weights[f"{name}.weight"] = Q8(weight.detach().float().clone(), None)
            size += stored
        elif isinstance(module, torch.nn.Linear) and name != "lm_head":
            groups = -(-weight.shape[1] // options.group) * weight.shape[0]
            size += (weight.numel() + groups) * options.bits // 8 + groups * SCALE_BYTES
            weights[f"{name}.weight"] = weight.detach().float().contiguous()
        elif weight is not None and name != "lm_head":
            size += weight.numel() * 4
    options.out.mkdir(parents=True, exist_ok=True)
    save_file(weights, options.out / WEIGHTS)
    (options.out / BYTES).write_text(json.dumps({"bytes": size}), "utf-8")


if __name__ == "__main__":
    main()
