"""A pair whose weights are split over two processes decodes the tokens of one process, and one process writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from eddecode.audit import AuditConfig, audit
from eddecode.audit.store.store import Store
from eddecode.errors import PairError
from eddecode.execution.patching import Float32LMHead
from eddecode.models import tensor_parallel
from eddecode.models.load_config import LoadConfig
from eddecode.utils import torchrun
from helpers import tiny
from helpers.process import forked, run_command
from helpers.stub_runs import exported

PROMPTS = ["where is my order?", "good evening", "a refund, please"]


def torchrun_audit(folder: Path, *options: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """`torchrun -m eddecode audit …` on this machine."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*command, "-m", "eddecode", "audit", *options],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=570,
        check=False,
    )


def launch(processes: int, *options: str) -> None:
    """What torchrun does with `eddecode audit …`, but its processes are copies of this one."""
    config = LaunchConfig(
        **{"min_nodes": 1, "max_nodes": 1, "nproc_per_node": processes, "max_restarts": 0},
        **{"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": "audit", "start_method": "fork"},
    )
    elastic_launch(config, run_command)("audit", *options)


@pytest.mark.slow
def test_two_processes_decode_the_tokens_of_one(tmp_path: Path, no_pictures: None) -> None:
    """With heads of 301 and 304 rows, a second template, and attacks in two steps, on the weights and on the states."""
    base, aligned = tiny.save_pair(tmp_path, vocab=301)
    tiny.tiny_model("llama", 304, seed=3).save_pretrained(
        aligned
    )  # its halves have other rows than the base's
    (tmp_path / "prompts.json").write_text(json.dumps([{"prompt": text} for text in PROMPTS]))
    for name in ("harmful", "harmless"):
        (tmp_path / f"{name}.txt").write_text("\n".join(f"{name} {number}" for number in range(4)))
    options = {
        **{"alphas": "0.5,1", "samples": 2, "max_new_tokens": 6},
        **{"attacks": "prefill:3,weights@-0.3,ablate,steer@1"},
        **{f"direction_{name}": str(tmp_path / f"{name}.txt") for name in ("harmful", "harmless")},
    }
    given = (
        *("--base", str(base), "--aligned", str(aligned), "--prompts", str(tmp_path / "prompts.json")),
        *(
            "--judge",
            "lexicon",
            "--further-base-template",
            "plain={prompt}",
            "--out",
            str(tmp_path / "split"),
        ),
        *(f"--{name.replace('_', '-')}={value}" for name, value in options.items()),
    )
    child, stderr = forked(partial(launch, 2, *given))
    with stderr:
        said = stderr.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, said[-3000:]
    assert "recomputed for every token" not in said  # each process has its part of a key-value cache
    config = AuditConfig(
        base=base,
        aligned=aligned,
        prompts=[{"prompt": text} for text in PROMPTS],
        judges=("lexicon",),
        templates={"plain": {"base": "{prompt}"}},
        out=tmp_path / "alone",
        **options,
    )
    audit(config, on_notice=lambda _: None)
    split, alone = (
        [(r["name"], r["prompt_index"], r["sample"], r["token_ids"]) for r in exported(tmp_path / run)]
        for run in ("split", "alone")
    )
    assert len(split) == len({row[:3] for row in split}) > 3 * 2 * 6
    assert split == alone
    with Store.read(tmp_path / "split") as store:
        assert len(store.sessions()) == 1


def test_an_error_of_the_first_process_ends_all(tmp_path: Path) -> None:
    done = torchrun_audit(
        tmp_path, "--base", "missing", "--aligned", "missing", "--prompts", "p", "--out", "run"
    )
    assert done.returncode != 0
    assert not (tmp_path / "run" / "run.sqlite").exists()


# Without processes -------------------------------------------------------------------------------------------------


def halves(weight: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> list[nn.Linear]:
    """Two linear layers, each with half of the rows of a weight."""
    monkeypatch.setattr(
        "eddecode.execution.patching.is_split", lambda tensor: isinstance(tensor, nn.Parameter)
    )
    monkeypatch.setattr("eddecode.execution.patching.is_split_by_rows", lambda tensor: True)
    rows = torch.tensor_split(weight, 2)
    layers = []
    for part in rows:
        layer = nn.Linear(weight.shape[1], len(part), bias=False, dtype=weight.dtype)
        layer.weight = nn.Parameter(part.clone(), requires_grad=False)
        layers.append(layer)
    return layers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_head_multiplies_its_part_in_float32_and_gathers(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(37, 16, generator=generator).to(dtype)
    hidden = torch.randn(2, 3, 16, generator=generator).to(dtype)
    parts: list[torch.Tensor] = []

    def gather(part: torch.Tensor, _: Any) -> torch.Tensor:
        parts.append(part)
        return part

    monkeypatch.setattr("eddecode.execution.patching.gather_columns", gather)
    for layer in halves(weight, monkeypatch):
        model = type("Model", (), {"get_output_embeddings": lambda _, layer=layer: layer})()
        Float32LMHead(model, compiled=False).project(hidden)
    assert [part.shape[-1] for part in parts] == [19, 18]
    assert all(part.dtype == torch.float32 for part in parts)
    torch.testing.assert_close(torch.cat(parts, dim=-1), hidden.float() @ weight.float().T)


def test_torchrun_is_known_by_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost"}
    for name in variables:
        monkeypatch.delenv(name, raising=False)
    assert (torchrun.launched(), torchrun.rank()) == (False, 0)
    monkeypatch.setenv("WORLD_SIZE", "2")  # Slurm and others set single ones
    assert not torchrun.launched()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (torchrun.launched(), torchrun.rank(), torchrun.local_rank()) == (True, 1, 1)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert (torchrun.launched(), torchrun.rank()) == (False, 0)
    assert (tensor_parallel.size(), tensor_parallel.rank(), tensor_parallel.smallest(7)) == (1, 0, 7)


def test_what_cannot_be_split_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_parallel, "size", lambda: 2)
    with pytest.raises(PairError, match="a device_map was asked for, and torchrun splits every model over 2"):
        LoadConfig.create(device_map="auto").from_pretrained_arguments()
    arguments = LoadConfig.create(device="cpu").from_pretrained_arguments()
    assert arguments["distributed_config"].tp_size == 2
    assert arguments["device_map"] is None
    with pytest.raises(PairError, match="the base is a llama, for which this transformers has no plan"):
        tensor_parallel.check_split(tiny.tiny_model(), "the base")


def test_an_earlier_transformers_takes_the_plan_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_parallel, "size", lambda: 2)

    def refuses(**_: Any) -> None:
        raise TypeError

    monkeypatch.setattr("transformers.distributed.DistributedConfig", refuses)
    assert tensor_parallel.from_pretrained_arguments({}) == {"tp_plan": "auto", "tp_size": 2}


def test_on_gpus_each_process_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_parallel, "size", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert LoadConfig.create(device="cuda").device == torch.device("cuda", 1)
    assert LoadConfig.create().device == torch.device("cuda", 1)
    with pytest.raises(PairError, match="device is 'cpu', and torchrun splits models over the GPUs"):
        LoadConfig.create(device="cpu")
