"""Models larger than a GPU: each of several processes holds a part of every large weight (tensor parallelism).

transformers splits the weights by the plan of the model's class (`DistributedConfig`): the parts are DTensors. All
processes run the same passes, whose sums are exchanged between layers. What is special here is the head: its part gives
a part of the logits, which are gathered in float32, so that every process has all logits with the same bits and samples
the same tokens.

Nothing is split unless `start` was called, in every process that torchrun started.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from eddecode.errors import PairError
from eddecode.utils.torchrun import local_rank

# A process waits while another one judges or writes; the failure of one is seen by torchrun, which ends the others.
_PATIENCE = timedelta(days=30)


class _Messages:
    """The group of messages between the processes, on their hosts; None: nothing is split."""

    group: Any = None


def start() -> None:
    """Split the weights of all models that are loaded from now on over the processes that torchrun started.

    Raises:
        PairError: this torch has no `torch.distributed`, or the processes do not find each other.
    """
    if _Messages.group is not None:
        return
    from torch import distributed

    if not distributed.is_available():
        raise PairError("this torch has no torch.distributed; install a release of torch that has it")
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(local_rank())
    try:
        if not distributed.is_initialized():
            distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_PATIENCE)
        _Messages.group = distributed.new_group(backend="gloo", timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise PairError(f"the processes of torchrun do not find each other: {error}") from error


def size() -> int:
    """Over how many processes weights are split; 1 without `start`."""
    return 1 if _Messages.group is None else torch.distributed.get_world_size()


def rank() -> int:
    """The number of this process, from 0."""
    return 0 if _Messages.group is None else torch.distributed.get_rank()


def stop() -> None:
    """Part from the other processes: all of them must ask. Models that were split cannot be used any more."""
    torch.distributed.barrier(group=_Messages.group)
    torch.distributed.destroy_process_group()
    _Messages.group = None


def from_pretrained_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of transformers' `from_pretrained` by which a model is split.

    Args:
        options: those that were asked for beside; `device_map` and `quantization_config` cannot be.

    Raises:
        PairError: a package is missing, or an option cannot be had together with a split.
    """
    if find_spec("accelerate") is None:
        raise PairError("models over several processes need the package accelerate (pip install accelerate)")
    for name, meant in (("device_map", "a device_map"), ("quantization_config", "quantization")):
        if options.get(name) is not None:
            raise PairError(
                f"{meant} was asked for, and torchrun splits every model over {size()} processes; give one of the two"
            )
    try:
        from transformers.distributed import DistributedConfig

        return {"distributed_config": DistributedConfig(tp_size=size())}
    except (ImportError, TypeError):  # an earlier release of transformers
        return {"tp_plan": "auto", "tp_size": size()}


def check_split(model: Any, where: str) -> None:
    """Refuse a model of which no weight was split: every process would hold all of it.

    Raises:
        PairError: transformers has no plan for this kind of model.
    """
    if size() > 1 and not any(is_split(parameter) for parameter in model.parameters()):
        raise PairError(
            f"{where} is a {model.config.model_type}, for which this transformers has no plan of tensor parallelism; "
            "start one process and spread the layers instead (--device-map auto)"
        )


# Tensors ---------------------------------------------------------------------------------------------------------


def is_split(tensor: Any) -> bool:
    """Whether a tensor is a DTensor: this process may hold only a part of it."""
    return hasattr(tensor, "to_local") and hasattr(tensor, "placements")


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor, gathered from all processes; all of them must ask. One that is not split is returned."""
    return tensor.full_tensor() if is_split(tensor) else tensor  # type: ignore[attr-defined]


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds; one that is not split is returned."""
    return tensor.to_local() if is_split(tensor) else tensor  # type: ignore[attr-defined]


def split_like(tensor: Tensor, split: Any) -> Tensor:
    """A tensor, the same in all processes, split as another one is; all of them must ask."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, split.device_mesh, split.placements)


def is_split_by_rows(weight: Any) -> bool:
    """Whether the processes hold consecutive rows of a matrix each."""
    from torch.distributed.tensor import Shard

    return is_split(weight) and tuple(weight.placements) == (Shard(0),)


def gather_columns(part: Tensor, weight: Any) -> Tensor:
    """All columns of a product with a weight that is split by its rows.

    Args:
        part: (…, rows of this process), the product with its part of the weight.
        weight: (rows, columns) DTensor.

    Returns:
        (…, rows), the same bits in every process.
    """
    from torch.distributed.tensor import DTensor, Shard

    shape = torch.Size((*part.shape[:-1], weight.shape[0]))
    stride = torch.empty(shape, device="meta").stride()
    placements = [Shard(part.dim() - 1)]
    found: Tensor = DTensor.from_local(
        part.contiguous(), weight.device_mesh, placements, run_check=False, shape=shape, stride=stride
    ).full_tensor()
    return found


# Messages --------------------------------------------------------------------------------------------------------


def smallest(value: int) -> int:
    """The smallest of the values of all processes, which must all ask; the value itself where nothing is split."""
    if size() == 1:
        return value
    agreed = torch.tensor([value])
    torch.distributed.all_reduce(agreed, torch.distributed.ReduceOp.MIN, group=_Messages.group)
    return int(agreed)


def broadcast(message: Any = None) -> Any:
    """What process 0 gives, in every process. It must come from this program: it is unpickled."""
    box = [message]
    torch.distributed.broadcast_object_list(box, src=0, group=_Messages.group)
    return box[0]
