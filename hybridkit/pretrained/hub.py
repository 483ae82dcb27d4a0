"""A hub's networks in the local cache."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from hybridkit.errors import FileError
from hybridkit.pretrained.quiet import quiet

# What a network in PyTorch does not need; a pickle is never read.
_NOT_WANTED: Final = [
    *("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.ot", "*.gguf", "*.onnx", "*.onnx_data"),
    *("onnx/*", "openvino/*", "coreml/*", "original/*"),
]
_REASONS: Final = {
    "GatedRepoError": "it is gated: ask for access on its page, then log in with `hf auth login` or HF_TOKEN",
    "RepositoryNotFoundError": "there is no such repository, or it is private and you are not logged in",
    "RevisionNotFoundError": "it has no such revision",
    "LocalEntryNotFoundError": "it is not in the cache, and the hub is out of reach or HF_HUB_OFFLINE set",
    "OfflineModeIsEnabled": "it is not in the cache, and HF_HUB_OFFLINE is set",
    "HFValidationError": "the hub has no such names",
}


def fetched(name: str) -> tuple[Path, str]:
    """The local snapshot of OWNER/NAME[@REVISION], and its commit. Raises FileError if it cannot be had."""
    from huggingface_hub import snapshot_download

    owner_and_name, _, revision = name.partition("@")
    try:
        with quiet():
            folder = snapshot_download(owner_and_name, revision=revision or None, ignore_patterns=_NOT_WANTED)
    except Exception as error:  # the client has an error for each reason, and its connection others
        known = (_REASONS[c.__name__] for c in type(error).__mro__ if c.__name__ in _REASONS)
        reason = next(known, None) or " ".join(str(error).split()) or type(error).__name__
        raise FileError(f"{name} cannot be had from the hub: {reason}") from None
    return Path(folder), Path(folder).name
