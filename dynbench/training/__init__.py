"""Training of the models' weights: recipes named by workloads in `[train]`, each `recipe(session) -> None`."""

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
    """Trains a workload's model and baselines and writes their weights as safetensors files with a model card each.

    Args:
        workload: the table of the workload file; `[train].recipe` names the recipe, `[train.options]` its settings.
        out: folder for weights, cards, and checkpoints until a network is finished; created if necessary.
        device: 'cpu', 'cuda' or 'cuda:N'.
        data_dir: folder of a data set that is not part of dynbench.
        resume: continue from the checkpoints in `out`, and keep finished networks.
        progress: show a progress bar.
        folder: base of relative paths of recipes, `path/to/file.py:function`; default: the working folder.

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
