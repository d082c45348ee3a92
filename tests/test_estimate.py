"""Memory: reckoned before loading, refused with a way out, held once where it is the same, spread over places."""

from __future__ import annotations

import ctypes
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import decoding
import pytest
import tiny
import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, LlamaConfig

from eddecode import ModelPair, Sampler, SamplingParams, decoder, engine
from eddecode import estimate as room
from eddecode.compare import share_identical
from eddecode.errors import PairError
from eddecode.estimate import check_fits, estimate
from eddecode.mixture import Ensemble
from eddecode.placement import Placement, quantization_config

GIB = 1 << 30


# What is needed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", tiny.ARCHITECTURES)
@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
def test_weights_are_those_of_the_loaded_models(tmp_path: Path, arch: str, dtype: str) -> None:
    folders = tiny.save_pair(tmp_path, arch, dtype=torch.float16, shard="20KB" if dtype == "auto" else None)
    found = estimate(*folders, dtype=dtype)
    pair = ModelPair.load(*folders, dtype=dtype)
    for cost, model in zip(found.models, pair.models, strict=True):
        assert cost.weights == sum(parameter.nbytes for parameter in model.parameters())
        assert cost.parameters == model.num_parameters()


@pytest.mark.parametrize("arch", tiny.ARCHITECTURES)
def test_a_tokens_cache_is_what_the_slots_keep(tmp_path: Path, arch: str) -> None:
    """Sliding windows in full, since the slots keep every position."""
    folders = tiny.save_pair(tmp_path, arch)
    runner = Sampler(ModelPair.load(*folders)).runner
    for model, cost in enumerate(estimate(*folders).models):
        prefix = runner.prefill(model, [tuple(range(20, 20 + 3 * tiny.WINDOW))])[0]
        assert cost.cache_per_token == prefix.nbytes / prefix.length


def test_latent_attention_is_asked_what_it_stores() -> None:
    config = DeepseekV3Config(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=12, qk_nope_head_dim=8, qk_rope_head_dim=4,
        v_head_dim=6, first_k_dense_replace=2,
    )  # fmt: skip
    model = DeepseekV3ForCausalLM(config).eval()
    with torch.no_grad():
        cache = model(torch.tensor([[1, 2, 3, 4]]), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert room.cache_bytes_per_token(config, torch.float32) == held / 4


def test_an_adapter_counts_as_a_merged_copy(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base, _ = tiny.save_pair(tmp_path)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(tiny.tiny_model(), config)
    adapted.save_pretrained(tmp_path / "adapter")
    ours, theirs = estimate(base, tmp_path / "adapter").models
    assert theirs.weights - ours.weights == sum(
        p.nbytes for name, p in adapted.named_parameters() if "lora_" in name
    )


def llama_7b(folder: Path, layers: int = 32) -> Path:
    """A checkpoint of Llama-2-7B's shape in bfloat16 whose bytes are a hole in the disk: all headers, no weights."""
    config = LlamaConfig(num_hidden_layers=layers, dtype="bfloat16")  # the defaults are this model's
    folder.mkdir()
    config.save_pretrained(folder)
    with torch.device("meta"):
        names = {
            name: list(p.shape)
            for name, p in tiny.AutoModelForCausalLM.from_config(config).named_parameters()
        }
    header, at = {}, 0
    for name, shape in names.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + 2 * math.prod(shape)]}
        at += 2 * math.prod(shape)
    raw = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + at)
    return folder


def test_a_7b_pair_by_hand_without_its_weights(tmp_path: Path) -> None:
    folder = llama_7b(tmp_path / "7b")
    found = estimate(folder, folder, slots=8, length=1000)
    assert found.models[0].parameters == 6_738_415_616  # the number that its authors give, 6.7B
    assert found.weights == 2 * 2 * 6_738_415_616
    assert found.models[0].cache_per_token == 2 * 32 * 4096 * 2  # keys and values, layers, width, bytes
    assert found.cache == 8 * 1024 * 2 * 524_288  # positions in steps of 64, both models
    assert found.total == found.weights + found.cache + found.activations
    assert 0.1 * GIB < found.activations < 16 * GIB
    assert estimate(folder, folder, dtype="float32").weights == 2 * found.weights
    linear = 6_738_415_616 - 2 * 32_000 * 4096 - 65 * 4096  # without embeddings, head and norms
    rest = 2 * (6_738_415_616 - linear)
    assert estimate(folder, quantization="4bit").weights == linear * 9 / 16 + rest
    assert estimate(folder, quantization="8bit").weights == pytest.approx(linear + rest, rel=1e-3)
    assert json.loads(json.dumps(found.describe()))["total"] == found.total


def test_more_of_anything_needs_more(tmp_path: Path) -> None:
    folders = tiny.save_pair(tmp_path)
    sizes = [
        estimate(*folders, slots=slots, length=length).total for slots, length in ((1, 64), (8, 64), (8, 256))
    ]
    assert sizes == sorted(set(sizes))
    assert estimate(*folders, slots=8, length=256).weights == estimate(*folders).weights


def test_the_engine_reads_what_the_estimate_takes_it_to_read() -> None:
    assert engine.PREFILL_TOKENS == room.PREFILL_TOKENS
    assert decoder.PREFILL_CHUNK == room.PREFILL_CHUNK


# What there is ---------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = llama_7b(tmp_path / "7b")
    monkeypatch.setattr(room, "free_bytes", lambda device: 20 * GIB)
    monkeypatch.setattr("eddecode.group.place_model", pytest.fail)
    with pytest.raises(PairError) as caught:
        ModelPair.load(folder, folder)
    message = str(caught.value)
    assert "base and aligned would need 2" in message
    assert "GiB on cpu (25.1 GiB of weights, 2.0 GiB of keys and values for 1 × 2048 tokens" in message
    assert "and 20.0 GiB are free there" in message
    assert "device_map='auto' with offload_folder=" in message
    assert "bfloat16" not in message  # it is that already
    assert message.endswith("check_memory=False loads it all the same")


def fits(monkeypatch: pytest.MonkeyPatch, folder: Path, free: int, **placement: Any) -> Callable[..., None]:
    """check_fits of a pair on a CUDA device with that much memory, beside a CPU with the same."""
    devices = (torch.device("cuda", 0), torch.device("cpu"))
    monkeypatch.setattr(room, "free_bytes", lambda device: free)
    monkeypatch.setattr(room, "all_devices", lambda: devices)
    checkpoint = room.open_checkpoint(folder, "base")
    placements = [Placement(**{"device": devices[0], **placement})] * 2

    def check(slots: int = 1, length: int = 2048) -> None:
        check_fits([checkpoint] * 2, [None] * 2, placements, slots, length)

    return check


def test_the_ways_out_are_those_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = llama_7b(tmp_path / "7b")
    needs = lambda **form: estimate(folder, folder, **form).total  # noqa: E731
    with pytest.raises(PairError, match=r"dtype='bfloat16' \(\d\d\.\d GiB\); quantization='8bit'") as caught:
        fits(monkeypatch, folder, needs(), dtype=torch.float32)()
    assert "4bit" in str(caught.value)
    with pytest.raises(PairError, match=r"What would fit: .*quantization='8bit'.*'4bit'") as caught:
        fits(monkeypatch, folder, needs() - 1)()
    assert "device_map='auto' (" in str(caught.value)
    with pytest.raises(PairError, match=r"quantization='4bit'") as caught:
        fits(monkeypatch, folder, needs(quantization="8bit") - 1)()
    assert "8bit" not in str(caught.value)
    fits(monkeypatch, folder, needs())()  # exactly enough
    fits(monkeypatch, folder, needs() // 2 + 1, device_map="auto")()  # both devices together
    fits(monkeypatch, folder, 1, device_map={"": "disk"})()
    fits(monkeypatch, folder, 1, device_map="auto", offload_folder=tmp_path)()


def test_as_many_slots_are_proposed_as_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = llama_7b(tmp_path / "7b", layers=2)
    free = estimate(folder, folder, slots=13, length=512).total
    with pytest.raises(
        PairError, match=r"at most 13 completions at a time \(slots=13, Sampler\(max_slots=13\)\)"
    ):
        fits(monkeypatch, folder, free)(slots=64, length=512)
    free = estimate(folder, folder, slots=1, length=700).total
    with pytest.raises(PairError, match=r"texts of at most 512 tokens"):
        fits(monkeypatch, folder, free)(slots=1, length=2048)


def test_each_device_is_asked_for_what_goes_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = tiny.save_pair(tmp_path)
    checkpoints = [
        room.open_checkpoint(folder, side) for folder, side in zip(folders, ("base", "aligned"), strict=True)
    ]
    placements = [Placement(device_map="cuda:0"), Placement(device_map={"": 1})]
    monkeypatch.setattr(room, "free_bytes", lambda device: GIB if device.index == 0 else 100_000)
    with pytest.raises(PairError, match=r"^aligned would need .* on cuda:1 "):
        check_fits(checkpoints, [None, None], placements, 1, 64)


def test_the_check_can_be_turned_off_and_lets_pass_what_fits(
    pair_folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = estimate(*pair_folders, dtype="float32", slots=4, length=100)
    monkeypatch.setattr(room, "free_bytes", lambda device: needed.total)
    ModelPair.load(*pair_folders, dtype="float32", slots=4, length=100)
    monkeypatch.setattr(room, "free_bytes", lambda device: needed.total - 1)
    with pytest.raises(PairError, match=r"for 4 × 100 tokens"):
        ModelPair.load(*pair_folders, dtype="float32", slots=4, length=100)
    ModelPair.load(*pair_folders, dtype="float32", slots=4, length=100, check_memory=False)
    with pytest.raises(PairError, match=r"slots is 0; expected at least 1"):
        ModelPair.load(*pair_folders, slots=0)


def test_all_models_of_a_group_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, aligned = tiny.save_pair(tmp_path)
    monkeypatch.setattr(room, "free_bytes", lambda device: estimate(base, aligned, length=256).total)
    ModelPair.load(base, aligned)
    with pytest.raises(PairError, match=r"base and aligned 1 and aligned 2 would need"):
        Ensemble.load(base, [aligned, aligned])


# Held once -------------------------------------------------------------------------------------------------------


@pytest.fixture
def blocks_of_their_own() -> Iterator[None]:
    """Let malloc map every block from 128 KiB on by itself, so that what is freed shows at once.

    It does so with a real model's tensors, and with these small ones unless earlier tests taught it otherwise.
    """
    set_option, threshold = getattr(ctypes.CDLL(None), "mallopt", None), -3  # M_MMAP_THRESHOLD of glibc
    if set_option is None:
        pytest.skip("this C library has no mallopt")
    set_option(threshold, 1 << 17)
    yield
    set_option(threshold, 1 << 25)


def resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads resident memory from Linux's /proc")
@pytest.mark.usefixtures("blocks_of_their_own")
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"], ids=["mapped from the file", "converted"])
def test_identical_tensors_give_their_memory_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """Of weights that are mapped, a file's pages go with the last of its tensors; of converted ones, each by itself."""
    base = tiny.tiny_model(hidden_size=512, intermediate_size=2048, num_hidden_layers=6)
    aligned = tiny.tiny_aligned(base, amount=0.0)
    if dtype != "auto":
        aligned.lm_head.weight.data += 1
    folders = [tiny.save_model(tmp_path / name, m) for name, m in (("base", base), ("aligned", aligned))]
    del base, aligned
    with monkeypatch.context() as patch:
        patch.setattr("eddecode.group.share_identical", lambda models: 0)
        pair = ModelPair.load(*folders, dtype=dtype)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        before = [model(ids).logits for model in pair.models]  # touches every page
    apart = resident()
    freed = share_identical(pair.models)
    own = ("lm_head.weight",) if dtype != "auto" else ()
    assert freed == sum(p.nbytes for name, p in pair.aligned.named_parameters() if name not in own)
    assert apart - resident() > 0.8 * freed > 20e6
    with torch.no_grad():
        assert all(torch.equal(model(ids).logits, z) for model, z in zip(pair.models, before, strict=True))
    described = pair.describe()
    assert described["memory"]["shared_bytes"] == freed
    apart_bytes = sum(described[side]["weights_bytes"] for side in pair.names)
    assert described["memory"]["weights_bytes"] == apart_bytes - freed


def test_load_shares_and_says_so(tmp_path: Path) -> None:
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


def test_models_in_memory_are_left_as_they_are() -> None:
    base = tiny.tiny_model()
    pair = ModelPair.from_models(base, tiny.tiny_aligned(base, amount=0.0))
    assert pair.describe()["memory"]["shared_bytes"] == 0


def test_content_counts_and_not_the_name() -> None:
    base, other = tiny.tiny_model(), tiny.tiny_model(seed=9)
    other.model.layers[1].self_attn.q_proj.weight.data.copy_(base.model.layers[0].self_attn.o_proj.weight)
    share_identical([base, other])
    there = other.model.layers[1].self_attn.q_proj.weight.data_ptr()
    assert there == base.model.layers[0].self_attn.o_proj.weight.data_ptr()


def test_what_must_not_be_shared_is_not() -> None:
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


# Spread over places ----------------------------------------------------------------------------------------------

PARTS = (
    "model.embed_tokens",
    "model.layers.0",
    "model.layers.1",
    "model.norm",
    "model.rotary_emb",
    "lm_head",
)
MAPS: dict[str, Any] = {
    "auto": "auto",
    "all on disk": {"": "disk"},
    "a layer on disk": dict.fromkeys(PARTS, "cpu") | {"model.layers.1": "disk"},
    "embedding and head on disk": dict.fromkeys(PARTS, "cpu")
    | {"model.embed_tokens": "disk", "lm_head": "disk"},
    "one model each": {"base": "cpu", "aligned": {"": "disk"}},
}


@pytest.mark.parametrize(
    ("arch", "device_map"),
    [
        *(("llama", device_map) for device_map in MAPS.values()),
        ("gemma2", {"": "disk"}),
        ("qwen2_moe", {"": "disk"}),
    ],
    ids=[*MAPS, "gemma2", "qwen2_moe"],
)
def test_a_spread_pair_decodes_as_a_plain_one(tmp_path: Path, arch: str, device_map: Any) -> None:
    pytest.importorskip("accelerate")
    folders = tiny.save_pair(tmp_path, arch)
    spread = ModelPair.load(*folders, device_map=device_map, offload_folder=tmp_path / "offload")
    params, prompts = SamplingParams(alpha=0.7, max_new_tokens=6), decoding.mixed_prompts(4)
    plain = Sampler(ModelPair.load(*folders)).generate(prompts, params)
    assert decoding.tokens(Sampler(spread).generate(prompts, params)) == decoding.tokens(plain)
    offloaded = device_map != "auto"
    assert ("meta" in spread.describe()["aligned"]["devices"]) == offloaded
    assert spread.digests() == ModelPair.load(*folders).digests()


def test_models_offloaded_by_accelerate_decode_as_before(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    params, prompts = SamplingParams(alpha=0.7, max_new_tokens=6), decoding.mixed_prompts(4)
    plain = decoding.tokens(decoding.sampler().generate(prompts, params))
    base, aligned = tiny.tiny_pair_models()
    cpu = torch.device("cpu")
    pair = ModelPair.from_models(
        accelerate.cpu_offload(base, execution_device=cpu),
        accelerate.disk_offload(aligned, tmp_path, execution_device=cpu),
    )
    assert decoding.tokens(Sampler(pair).generate(prompts, params)) == plain
    assert pair.device == cpu
    assert pair.describe()["memory"]["shared_bytes"] == 0
    with pytest.raises(PairError, match=r"has weights that are offloaded, so that its content cannot be"):
        pair.digests()


def test_a_device_map_for_one_model_alone_is_refused(pair_folders: tuple[Path, Path]) -> None:
    pytest.importorskip("accelerate")
    with pytest.raises(PairError, match=r"device_map has the keys \['base'\]; .* every one of base, aligned"):
        ModelPair.load(*pair_folders, device_map={"base": "cpu"})


# Fewer bits ------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the library were installed."""
    # Not importlib's own: other packages would take it for installed too, and remember.
    monkeypatch.setattr("eddecode.placement.has_package", lambda name: True)


def test_quantization_names_the_missing_library(
    pair_folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eddecode.placement.has_package", lambda name: name != "bitsandbytes")
    with pytest.raises(
        PairError, match=r"'4bit' needs the package bitsandbytes \(pip install bitsandbytes\); or"
    ):
        ModelPair.load(*pair_folders, quantization="4bit")
    with pytest.raises(PairError, match=r"quantization is '3bit'; expected '8bit', '4bit', or None"):
        ModelPair.load(*pair_folders, quantization="3bit")


def test_what_bitsandbytes_is_asked_for() -> None:
    four, eight = quantization_config("4bit", "auto"), quantization_config("8bit", torch.float16)
    assert (four.load_in_4bit, four.load_in_8bit, four.bnb_4bit_quant_type) == (True, False, "nf4")
    assert four.bnb_4bit_compute_dtype == torch.bfloat16
    assert quantization_config("4bit", torch.float16).bnb_4bit_compute_dtype == torch.float16
    assert (eight.load_in_4bit, eight.load_in_8bit) == (False, True)


@pytest.mark.usefixtures("with_bitsandbytes")
def test_the_loader_is_given_the_quantization(
    pair_folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def loader(path: Path, **arguments: Any) -> Any:
        asked.append(arguments)
        return tiny.tiny_model(), {}

    monkeypatch.setattr("eddecode.loading.AutoModelForCausalLM.from_pretrained", loader)
    pair = ModelPair.load(*pair_folders, quantization="4bit", device="cpu")
    assert [arguments["quantization_config"].load_in_4bit for arguments in asked] == [True, True]
    assert asked[0]["device_map"] == {"": torch.device("cpu")}
    assert any("rounded to 4 bits" in note.what and "1 + 2α" in note.action for note in pair.notes)


@pytest.mark.usefixtures("with_bitsandbytes")
def test_an_adapter_is_not_merged_into_few_bits(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base, _ = tiny.save_pair(tmp_path)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(tiny.tiny_model(), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(
        PairError, match=r"cannot be merged into weights of 8bit: the sum would be rounded once more"
    ):
        ModelPair.load(base, tmp_path / "adapter", quantization="8bit")
