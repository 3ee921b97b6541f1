"""Every notebook runs from its first cell to its last, and none is committed with what it said."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# traitlets and zmq, inside the client, are not ours to mend
THIRD_PARTY = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def test_there_are_five() -> None:
    assert [path.stem[:2] for path in NOTEBOOKS] == ["00", "01", "02", "03", "04"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path: Path) -> None:
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            assert not cell.outputs, f"{path.name} has outputs: clear them before committing"
            assert cell.execution_count is None


@THIRD_PARTY
@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In notebooks/ of a project in which the demo has run."""
    from nbclient import NotebookClient

    for name, value in {"OMP_NUM_THREADS": "1", "STAR_NOTEBOOK_STEPS": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel's own shows figures
    notebook = nbformat.read(path, as_version=4)
    folder = str(project / "notebooks")
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in shown)
