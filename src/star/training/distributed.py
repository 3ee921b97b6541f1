"""Training that spreads one model over processes: FSDP2, plain or hybrid."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from star.checkpoints.report import compare
from star.checkpoints.sharded import META, is_sharded, named, numbered, read_meta
from star.checkpoints.sharded_reader import SafeReader, load_parts, weight_shapes
from star.utils.files import flush, put_in_place, remove


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2: every process holds a part of each weight, gradient and optimiser state, and gathers a block to use it.

    The module's `configure_model` calls `shard`. NCCL connects GPUs, gloo connects CPUs.

    Args:
        replicas: 1 spreads one model over all processes; more is hybrid sharding: as many groups of processes, usually
            one per node, each hold a whole model, spread within the group, and average their gradients.
        save_sharded: checkpoints are folders to which every process writes its part
            (`python -m star.checkpoints.consolidate` makes one file of them); otherwise one process gathers and writes
            a file.

    Raises:
        ValueError: when the processes can't be divided into `replicas` equal groups.

    """

    def __init__(self, *, replicas: int = 1, save_sharded: bool = True) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=save_sharded)
        self.replicas = replicas
        self.save_sharded = save_sharded
        self._sharding_mesh: DeviceMesh | None = None

    @property
    def mesh(self) -> DeviceMesh:
        """How processes share a model: one dimension, or with replicas two."""
        assert self._sharding_mesh is not None, "there is no mesh before the processes are connected"
        return self._sharding_mesh

    @property
    def gather_dtype(self) -> torch.dtype | None:
        """What the weights of blocks are gathered in: as autocast will narrow them; None is fp32."""
        return {"bf16-mixed": torch.bfloat16}.get(str(self.precision_plugin.precision))

    def setup_environment(self) -> None:
        """Connect the processes."""
        world = self.num_nodes * self.num_processes
        if self.replicas < 1 or world % self.replicas:
            raise ValueError(
                f"{world} processes (trainer.devices x trainer.num_nodes) can't be divided into "
                f"trainer.strategy.replicas={self.replicas} equal groups"
            )
        self._data_parallel_size = world
        super().setup_environment()
        shape, names = (world,), ("shard",)
        if self.replicas > 1:
            shape, names = (self.replicas, world // self.replicas), ("replicate", "shard")  # type: ignore[assignment]
        self._sharding_mesh = init_device_mesh(self.root_device.type, shape, mesh_dim_names=names)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state, sharded and by name, or gathered and by number on process 0."""
        optimizer = getattr(optimizer, "_optimizer", optimizer)
        options = StateDictOptions(full_state_dict=not self.save_sharded, cpu_offload=True)
        state = get_optimizer_state_dict(self._network, optimizer, options=options)
        return numbered(state) if state and not self.save_sharded else state

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; every process must call this."""
        del storage_options
        path = Path(self.broadcast(filepath))
        averaged = checkpoint.get("averaged")
        if not self.save_sharded:
            if averaged is not None:
                weights = {name: whole(value) for name, value in averaged["weights"].items()}
                checkpoint["averaged"] = {**averaged, "weights": weights}
            if self.is_global_zero:
                self.checkpoint_io.save_checkpoint(checkpoint, path)
            return
        state = {"state_dict": checkpoint.pop("state_dict")}
        state |= {f"optimizer_{i}": each for i, each in enumerate(checkpoint.pop("optimizer_states", []))}
        if averaged is not None:
            state["averaged"] = averaged["weights"]
            checkpoint["averaged"] = {name: value for name, value in averaged.items() if name != "weights"}
        self._write_parts(state, checkpoint, path)

    def _write_parts(self, state: dict[str, Any], meta: dict[str, Any], path: Path) -> None:
        partial = path.with_name(f".{path.name}.partial")
        if self.is_global_zero:
            remove(partial)
            partial.mkdir(parents=True)
        self.barrier()
        dcp.save(state, storage_writer=dcp.FileSystemWriter(partial, single_file_per_rank=True))
        if self.is_global_zero:
            torch.save(meta, partial / META)
            flush(partial / META)
            put_in_place(partial, path)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Restore weights and optimisers from a folder or a file, whatever number of processes wrote it.

        Returns:
            Everything else, and the averaged weights: in parts like the model's when the checkpoint is sharded.

        """
        del weights_only  # nothing else is ever read
        path = Path(self.broadcast(checkpoint_path))
        if is_sharded(path):
            return self._read_parts(path)
        checkpoint = self.checkpoint_io.load_checkpoint(path)
        whole_state = StateDictOptions(full_state_dict=True, strict=True)
        set_model_state_dict(self._network, checkpoint.pop("state_dict"), options=whole_state)
        for optimizer, state in zip(self.optimizers, checkpoint.get("optimizer_states", []), strict=False):
            by_name = named(state, self._parameter_names(optimizer))
            set_optimizer_state_dict(self._network, optimizer, by_name, options=whole_state)
        return checkpoint

    def _read_parts(self, path: Path) -> dict[str, Any]:
        reader, checkpoint = SafeReader(path), read_meta(path)
        contents = reader.read_metadata()
        own = {name: tuple(value.shape) for name, value in self._network.state_dict().items()}
        compare(own, weight_shapes(contents), source=f"resume_from={path}")
        model: dict[str, Any] = {"state_dict": get_model_state_dict(self._network)}
        load_parts(model, reader)
        set_model_state_dict(self._network, model["state_dict"])
        for i, optimizer in enumerate(self.optimizers):
            held: dict[str, Any] = {f"optimizer_{i}": get_optimizer_state_dict(self._network, optimizer)}
            load_parts(held, reader)
            set_optimizer_state_dict(self._network, optimizer, held[f"optimizer_{i}"])
        if "averaged" in checkpoint:
            parameters, table = self._network.named_parameters(), contents.state_dict_metadata
            averaged = {name: torch.empty_like(p.detach()) for name, p in parameters if f"averaged.{name}" in table}
            load_parts({"averaged": averaged}, reader)
            checkpoint["averaged"]["weights"] = averaged
        return checkpoint

    @property
    def _network(self) -> nn.Module:
        assert self.model is not None
        return self.model

    def _parameter_names(self, optimizer: Optimizer) -> list[str]:
        names = {id(parameter): name for name, parameter in self._network.named_parameters()}
        return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def is_sharding(strategy: object) -> bool:
    """Whether a model is spread over processes, so that all of them must take part whenever it computes."""
    return isinstance(strategy, ModelParallelStrategy)


def shard(module: LightningModule) -> None:
    """Spread the trained parts of a module over the processes, block by block; without sharding, nothing happens.

    A part's `head` is gathered in fp32 by itself, since samplers call it outside of `forward`, as they do `step`.
    """
    strategy = module.trainer.strategy
    if not isinstance(strategy, ShardedStrategy):
        return
    mesh = strategy.mesh
    for part in trained_parts(module):
        for block in blocks_of(part):
            # Weights of norms are used in fp32. Autocast narrows what flows through a block; the residual stream stays.
            narrow = None if has_weighted_norms(block) else strategy.gather_dtype
            policy = MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=torch.float32, cast_forward_inputs=False)
            fully_shard(block, mesh=mesh, mp_policy=policy)
        if isinstance(head := getattr(part, "head", None), nn.Module):
            fully_shard(head, mesh=mesh)
        # Resharded after each pass, so that whoever looks at the weights between steps sees all of them sharded.
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
        if hasattr(part, "step"):
            register_fsdp_forward_method(part, "step")


def trained_parts(module: nn.Module) -> Iterator[nn.Module]:
    """The children of a module that are trained and not sharded yet."""
    for part in module.children():
        if not isinstance(part, FSDPModule) and any(parameter.requires_grad for parameter in part.parameters()):
            yield part


def blocks_of(part: nn.Module) -> list[nn.Module]:
    """The blocks of a transformer, in order; none for other networks."""
    blocks = getattr(part, "blocks", None)
    return list(blocks) if isinstance(blocks, nn.ModuleList) else []


def has_weighted_norms(block: nn.Module) -> bool:
    """Whether a block normalises with gains of its own; ours does without."""
    return any(isinstance(inner, nn.LayerNorm) and inner.elementwise_affine for inner in block.modules())


def whole(value: Tensor) -> Tensor:
    """A tensor with all of its parts, on the CPU; of a sharded one every process must ask."""
    gathered = value.full_tensor() if isinstance(value, DTensor) else value
    return gathered.detach().cpu()


def placed_like(value: Tensor, other: Tensor) -> Tensor:
    """A tensor on the device of another, and in parts like it."""
    if not isinstance(other, DTensor) or isinstance(value, DTensor):
        return value.to(other.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(other.device), other.device_mesh, other.placements)
