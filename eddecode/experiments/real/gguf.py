"""A checkpoint that eddecode can load, from a GGUF file that transformers can read.

Quantized GGUF files are a common way to pass a small model on. transformers widens them to float32; the result is
copied into a fresh model of the same configuration, without the mark of a quantized one, and saved in bfloat16.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from eddecode.errors import PairError


def checkpoint_from_gguf(file: Path, out: Path) -> Path:
    """Write the model and the tokenizer of a GGUF file as a folder of safetensors in bfloat16; returns the folder.

    Raises:
        PairError: the file is missing, or transformers cannot read it.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not file.is_file():
        raise PairError(f"{file}: no such file; expected a GGUF file of a causal language model")
    folder, name = str(file.resolve().parent), file.name
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
        loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    except (ValueError, OSError, ImportError, KeyError) as error:
        raise PairError(
            f"{file}: transformers cannot read it ({error}); it needs `pip install gguf` and an architecture that "
            "transformers converts"
        ) from error
    config = copy.deepcopy(loaded.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are plain numbers now
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out
