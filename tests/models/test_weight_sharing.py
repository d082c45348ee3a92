"""Tensors that are identical to the bit are held once, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from eddecode import ModelPair
from eddecode.models.weight_sharing import share_identical
from helpers import tiny
from helpers.process import can_read_pages, resident_in

# Held once -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"], ids=["mapped from the file", "converted"])
def test_memory_of_identical_tensors_is_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """The pages of a mapped file are freed with its last tensor; converted tensors are freed one by one."""
    base = tiny.tiny_model(hidden_size=512, intermediate_size=2048, num_hidden_layers=6)
    aligned = tiny.tiny_aligned(base, amount=0.0)
    if dtype != "auto":
        aligned.lm_head.weight.data += 1
    folders = [tiny.save_model(tmp_path / name, m) for name, m in (("base", base), ("aligned", aligned))]
    del base, aligned
    with monkeypatch.context() as patch:
        patch.setattr("eddecode.models.load_group.share_identical", lambda models: 0)
        pair = ModelPair.load(*folders, dtype=dtype)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        before = [model(ids).logits for model in pair.models]  # touches every page
    own = ("lm_head.weight",) if dtype != "auto" else ()
    twins = [p for name, p in pair.aligned.named_parameters() if name not in own]
    storages = [StorageWeakRef(p.untyped_storage()) for p in twins]
    places = [(p.data_ptr(), p.nbytes) for p in twins]
    size = sum(p.nbytes for p in twins)
    assert not any(storage.expired() for storage in storages)
    if dtype == "auto" and can_read_pages():
        assert resident_in(places) > 0.99 * size
    assert share_identical(pair.models) == size > 20e6
    assert all(storage.expired() for storage in storages)
    if dtype == "auto" and can_read_pages():
        assert resident_in(places) < 0.1 * size  # none; malloc may keep what was converted for later
    with torch.no_grad():
        assert all(torch.equal(model(ids).logits, z) for model, z in zip(pair.models, before, strict=True))
    described = pair.describe()
    assert described["memory"]["shared_bytes"] == size
    apart_bytes = sum(described[side]["weights_bytes"] for side in pair.names)
    assert described["memory"]["weights_bytes"] == apart_bytes - size


def test_load_shares_identical_tensors_and_notes_it(tmp_path: Path) -> None:
    base = tiny.tiny_model()
    aligned = tiny.tiny_aligned(base)
    aligned.model.layers[0].load_state_dict(base.model.layers[0].state_dict())
    folders = [tiny.save_model(tmp_path / name, m) for name, m in (("base", base), ("aligned", aligned))]
    pair = ModelPair.load(*folders)
    ours, theirs = (dict(model.named_parameters()) for model in pair.models)
    for name, parameter in ours.items():
        assert (parameter.data_ptr() == theirs[name].data_ptr()) == ("layers.0." in name)
    size = sum(p.nbytes for name, p in ours.items() if "layers.0." in name)
    assert pair.describe()["memory"]["shared_bytes"] == size
    assert any(f"{size / 1024:.1f} KiB of the weights are identical" in str(note) for note in pair.notes)
    identical = pair.describe(tensors=True)["tensors"]["identical"]
    assert set(identical) == {name for name in ours if "layers.0." in name}


def test_models_in_memory_are_not_shared() -> None:
    base = tiny.tiny_model()
    pair = ModelPair.from_models(base, tiny.tiny_aligned(base, amount=0.0))
    assert pair.describe()["memory"]["shared_bytes"] == 0


def test_tensors_are_matched_by_content_and_not_by_name() -> None:
    base, other = tiny.tiny_model(), tiny.tiny_model(seed=9)
    other.model.layers[1].self_attn.q_proj.weight.data.copy_(base.model.layers[0].self_attn.o_proj.weight)
    share_identical([base, other])
    there = other.model.layers[1].self_attn.q_proj.weight.data_ptr()
    assert there == base.model.layers[0].self_attn.o_proj.weight.data_ptr()


def test_some_tensors_are_never_shared() -> None:
    """Trained, differing in one bit, of another dtype, or twice in one model; and a tied head stays tied."""
    base = tiny.tiny_model("gpt2")
    aligned = tiny.tiny_aligned(base, amount=0.0)
    block, twin = base.transformer.h[0], aligned.transformer.h[0]
    twin.attn.c_attn.weight.requires_grad_(True)
    twin.mlp.c_fc.weight.data.view(torch.int32)[3, 5] ^= 1
    twin.mlp.c_proj.weight.data = twin.mlp.c_proj.weight.double()
    twin.ln_1.bias.data.mul_(-1)  # −0.0 equals 0.0, not to the bit
    share_identical([base, aligned])
    for name in ("attn.c_attn.weight", "mlp.c_fc.weight", "mlp.c_proj.weight", "ln_1.bias"):
        assert twin.get_parameter(name).data_ptr() != block.get_parameter(name).data_ptr()
    assert twin.attn.c_proj.weight.data_ptr() == block.attn.c_proj.weight.data_ptr()
    assert block.ln_1.weight.data_ptr() != block.ln_2.weight.data_ptr()
    assert aligned.lm_head.weight is aligned.transformer.wte.weight
    assert aligned.lm_head.weight.data_ptr() == base.lm_head.weight.data_ptr()
    assert share_identical([base, aligned]) == 0  # nothing is left to share
