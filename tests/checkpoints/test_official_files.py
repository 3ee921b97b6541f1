from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from star.checkpoints.official import dump_transformer, load_tokenizer, load_transformer, load_transformer_with_report
from star.checkpoints.official_files import read_official
from star.models.transformer import STARTransformer
from star.nn.position import Rotary2D
from star.schedule import ScaleSchedule

SCHEDULE = ScaleSchedule.square(1, 2)


def generator() -> dict[str, Tensor]:
    model = STARTransformer(
        depth=1,
        width=32,
        num_heads=2,
        codebook_size=8,
        code_width=4,
        pooled_width=8,
        context_width=8,
        num_levels=2,
        position=Rotary2D(),
    )
    return dump_transformer(model)


def nested(tensors: dict[str, Tensor], **config: Any) -> dict[str, Any]:
    return {"epoch": 1, "iter": 2, "trainer": {"config": config, "var_wo_ddp": tensors, "var_opt": {"step": 3}}}


def test_every_form_of_a_file_holds_the_same_model(tmp_path: Path) -> None:
    tensors = generator()
    torch.save(tensors, tmp_path / "flat.pth")
    torch.save(nested(tensors), tmp_path / "nested.pth")
    torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(tensors, tmp_path / "flat.safetensors")
    sources = [tensors, nested(tensors), *tmp_path.iterdir(), *map(str, tmp_path.iterdir())]
    assert len(sources) == 10
    for source in sources:
        opened = dump_transformer(load_transformer(source, schedule=SCHEDULE))
        assert all(torch.equal(opened[name], tensor) for name, tensor in tensors.items())


def test_a_training_checkpoint_says_which_maps_it_was_trained_on() -> None:
    source = nested(generator(), patch_nums=(1, 2))
    with pytest.raises(ValueError, match="isn't the beginning of the one"):
        load_transformer(source, schedule=ScaleSchedule.square(1, 3))
    _, report = load_transformer_with_report(source, schedule=ScaleSchedule.square(1))
    assert report.notes == ("the first 1 of 2 scales are used (lvl_embed.weight cut)",)
    with pytest.raises(ValueError, match="no 'vae_local' under 'trainer', only 'config', 'var_wo_ddp', 'var_opt'"):
        load_tokenizer(source, schedule=SCHEDULE)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harm"),))


def test_a_file_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"pos_start": Harmful()}, "harmful.pth")
    Path("harmful.pickle").write_bytes(pickle.dumps(Harmful(), protocol=2))
    Path("short.pth").write_bytes(b"PK")
    Path("short.safetensors").write_bytes(b"12")
    Path("text.pth").write_bytes(b"hello")
    Path("byte.pth").write_bytes(b"\x80")
    for name in ("harmful.pth", "harmful.pickle", "short.pth", "short.safetensors", "text.pth", "byte.pth"):
        with pytest.raises(ValueError, match=f"{name} can't be opened as a file of tensors"):
            load_transformer(name, schedule=SCHEDULE)
    assert not Path("harm").exists()
    with pytest.raises(FileNotFoundError):
        load_transformer("absent.pth", schedule=SCHEDULE)


def test_what_holds_no_tensors_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list"):
        read_official(tmp_path / "list.pth", "var_wo_ddp")
    with pytest.raises(ValueError, match="it holds nothing"):
        read_official({}, "var_wo_ddp")
    with pytest.raises(ValueError, match="holds a Tensor called 'var_wo_ddp'"):
        read_official({"trainer": {"var_wo_ddp": torch.zeros(3)}}, "var_wo_ddp")
    with pytest.raises(ValueError, match="besides tensors it holds 0"):
        read_official({0: torch.zeros(3)}, "var_wo_ddp")  # type: ignore[dict-item]


def test_opened_weights_can_be_trained_and_leave_the_file_alone(tmp_path: Path) -> None:
    torch.save(generator(), tmp_path / "flat.pth")
    before = (tmp_path / "flat.pth").read_bytes()
    model = load_transformer(tmp_path / "flat.pth", schedule=SCHEDULE)
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.requires_grad
            parameter.add_(1)
    assert (tmp_path / "flat.pth").read_bytes() == before


PEAK = """
import sys, torch
from star.checkpoints.official import load_transformer
from star.schedule import ScaleSchedule

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

before = peak()
model = load_transformer(sys.argv[1], schedule=ScaleSchedule.square(1, 2))
total = sum(parameter.detach().numpy().max() for parameter in model.parameters())  # every page was read
sys.stdout.write(str((peak() - before) * 1024))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_opening_takes_little_more_memory_than_the_file(suffix: str, tmp_path: Path) -> None:
    file, tensors = tmp_path / f"big.{suffix}", generator()
    tensors = {name: tensor.half() for name, tensor in tensors.items()}
    tensors["head_logits.weight"], tensors["head_logits.bias"] = (
        torch.zeros(1_000_000, 32).half(),
        torch.zeros(1_000_000).half(),
    )
    if suffix == "pth":
        torch.save(nested(tensors), file)
    else:
        save_file(tensors, file)
    run = subprocess.run([sys.executable, "-c", PEAK, str(file)], check=True, capture_output=True, text=True)
    grown = int(run.stdout)
    assert grown < 1.5 * file.stat().st_size
