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
    *,
    fresh: bool = False,
    epochs: int | None = None,
    keep_every_s: float | None = None,
) -> None:
    """Trains a workload's model and baselines and writes their weights as safetensors files with a model card each.

    A training that was interrupted goes on by itself, exactly as it would have. Ctrl-C and SIGTERM end it after the
    step that is being made, which is kept.

    Args:
        workload: the table of the workload file; `[train].recipe` names the recipe, `[train.options]` its settings.
        out: folder for weights and cards, with a folder for what is unfinished; created if necessary.
        device: 'cpu', 'cuda' or 'cuda:N'.
        data_dir: folder of a data set that is not part of dynbench.
        resume: keep the networks in `out` that are finished, of an earlier training too.
        progress: show a progress bar.
        folder: base of relative paths of recipes, `path/to/file.py:function`; default: the working folder.
        fresh: an unfinished training in `out` is given up; with `resume`, but for its finished networks.
        epochs: of every stage, in place of the recipe's.
        keep_every_s: at least so often the state of a loop is written; None: every 30 seconds.

    Raises:
        UserError: the workload has no recipe, a setting is not accepted, or what is unfinished in `out` is of another
            training or damaged.
        Stopped: a signal ended the training; the message says what is kept.
    """
    import torch

    from dynbench.errors import UserError
    from dynbench.files import make_folder, remove_leftovers
    from dynbench.paths import load_function
    from dynbench.store.lock import locked
    from dynbench.training.interrupts import Interrupts, Stopped
    from dynbench.training.keeping import FOLDER, KEEP_EVERY_S, Keeping, Record
    from dynbench.training.session import Session

    recipe = workload.get("train", {}).get("recipe")
    if recipe is None:
        raise UserError(f"workload {workload.get('name')!r} cannot be trained: it has no [train] table with a recipe")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device {device!r}: torch finds no CUDA device here; accepted: cpu")
    function = load_function(recipe, folder or Path.cwd())
    make_folder(out)
    with locked(out):
        for place in (out, out / FOLDER):
            remove_leftovers(place, deep=False)
        asked = {**_asked(workload), "epochs": epochs, "device": device}
        record = Record(out / FOLDER, asked, fresh, _source(function))
        interrupts = Interrupts()
        every_s = KEEP_EVERY_S if keep_every_s is None else keep_every_s
        keeping = Keeping(out / FOLDER, torch.device(device), every_s, record.goes_on, interrupts, record)
        session = Session(
            workload, out, torch.device(device), data_dir, resume, progress, epochs=epochs, keeping=keeping
        )
        if record.goes_on:
            session.say(f"going on with the unfinished training in {out} ({keeping.summary()}); --fresh begins anew")
        if record.source_changed:
            session.say(f"the file of the recipe {recipe} has changed since")
        try:
            with interrupts.watching(session.say):
                function(session)
            session.check_epochs()
            record.remove()
        except Stopped as e:
            e.args = (f"{e}; {keeping.summary()}, in {out}; the same command goes on, --fresh begins anew",)
            raise
        finally:
            record.close()


def _asked(workload: dict[str, Any]) -> dict[str, Any]:
    """What of a workload decides its weights."""
    keys = ("name", "model", "model_args", "inputs", "baselines", "train")
    return {key: workload[key] for key in keys if key in workload}


def _source(function: Any) -> str | None:
    """The hash of the recipe's file; None: it has none."""
    import hashlib
    import inspect

    try:
        file = inspect.getsourcefile(inspect.unwrap(function))
        return None if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
    except (OSError, TypeError):
        return None
