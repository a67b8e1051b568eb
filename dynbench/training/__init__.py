"""How the models' weights are made: recipes a workload names in `[train]`, each `recipe(session) -> None`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["train_workload"]


def train_workload(
    workload: dict[str, Any],
    out: Path,
    device: str = "cpu",
    data_dir: Path | None = None,
    resume: bool = False,
    progress: bool = True,
    folder: Path | None = None,
) -> None:
    """Trains what a workload needs: its model and its baselines, into safetensors files with a model card each.

    Args:
        workload: the table of the workload file; `[train].recipe` names the recipe, `[train.options]` its settings.
        out: folder for weights, cards, and checkpoints until a network is finished; made if need be.
        device: 'cpu', 'cuda' or 'cuda:N'.
        data_dir: folder of a data set that is not part of dynbench.
        resume: go on from the checkpoints in `out`, and leave finished networks as they are.
        progress: show a bar.
        folder: where a recipe of the user's own, `path/to/file.py:function`, is looked up; default: the working folder.

    Raises:
        UserError: the workload has no recipe, or a setting is not accepted.
    """
    import torch

    from dynbench.errors import UserError
    from dynbench.paths import load_function
    from dynbench.training.session import Session

    recipe = workload.get("train", {}).get("recipe")
    if recipe is None:
        raise UserError(f"workload {workload.get('name')!r} cannot be trained: it has no [train] table with a recipe")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device {device!r}: torch finds no CUDA device here; accepted: cpu")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"output folder {out} cannot be made: {e.strerror}") from e
    session = Session(workload, out, torch.device(device), data_dir, resume, progress)
    load_function(recipe, folder or Path.cwd())(session)
