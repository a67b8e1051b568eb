"""The part shared by all recipes: output files, progress, the training loop, model cards."""

from __future__ import annotations

import itertools
import json
import math
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from dynbench.data import Dataset, load_inputs
from dynbench.errors import UserError
from dynbench.files import make_own_folder, write_bytes
from dynbench.training.checkpoint import Stateful
from dynbench.training.keeping import FOLDER, Keeping, Loop, Steps, random_numbers_untouched

# inputs that are generated anew for every epoch
FRESH = ("attribute_objects", "cluttered_digits", "digit_scenes", "shapes", "text")
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass
class Settings:
    """How a network is trained.

    Attributes:
        epochs: passes over the training part.
        items: training items per epoch; None: all.
        batch_size: items per step.
        lr: the highest learning rate; it rises during `warm_up` of the steps and then falls along a cosine.
        warm_up: share of the steps.
        weight_decay: of all parameters but one-dimensional ones (norms, biases).
        optimizer: 'sgd' (Nesterov, momentum 0.9) or 'adamw'.
        precision: 'bfloat16' (autocast) or 'float32'.
        crop: images are shifted by up to this many pixels.
        flip: half of the images are mirrored, at random.
        seed: of all random numbers.
    """

    passes: ClassVar[bool] = True  # False: `epochs` are steps of a rule, which `--epochs` leaves alone
    epochs: int
    items: int | None = None
    batch_size: int = 128
    lr: float = 0.2
    warm_up: float = 0.25
    weight_decay: float = 5e-4
    optimizer: str = "sgd"
    precision: str = "bfloat16"
    crop: int = 0
    flip: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, accepted in (("optimizer", ("sgd", "adamw")), ("precision", ("bfloat16", "float32"))):
            self.check_choice(name, accepted)
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"training: {name} = {getattr(self, name)}; it is 1 or more")

    def check_choice(self, name: str, accepted: Sequence[str]) -> None:
        """Checks a setting that is one of several words.

        Raises:
            UserError: it is none of them.
        """
        if (value := getattr(self, name)) not in accepted:
            *others, last = accepted
            raise UserError(f"training: {name} = {value!r}; accepted: {', '.join(others)} or {last}")


S = TypeVar("S", bound=Settings)


@dataclass
class Session:
    """One call of a recipe.

    Attributes:
        workload: the table of a workload file.
        out: folder for weights and cards; a folder in it has checkpoints until the training is finished.
        device: to train on.
        data_dir: folder of a data set that is not part of dynbench.
        resume: continue from checkpoints, and keep finished networks.
        progress: show a progress bar.
        epochs: of every stage, in place of the recipe's; None: the recipe's.
        keeping: of the training; None: one of its own.
    """

    workload: dict[str, Any]
    out: Path
    device: torch.device
    data_dir: Path | None = None
    resume: bool = False
    progress: bool = True
    console: Console = field(default_factory=Console)
    epochs: int | None = None
    keeping: Keeping = None  # type: ignore[assignment]  # never None once made

    def __post_init__(self) -> None:
        if self.keeping is None:
            self.keeping = Keeping(self.out / FOLDER, self.device, restore=self.resume)

    @property
    def suffix(self) -> str:
        """The suffix of the weights' names: the last word of the workload's name, by convention its inputs."""
        return str(self.workload["name"]).rpartition("_")[2]

    def settings(self, kind: type[S], stage: str, **defaults: Any) -> S:
        """The settings of a stage: `[train.options.STAGE]`, else `[train.options]`, else `defaults`.

        Raises:
            UserError: an unknown key, or a value that is not accepted.
        """
        table = dict(self.workload.get("train", {}).get("options", {}))
        everywhere = {k: v for k, v in table.items() if not isinstance(v, dict)}
        known = {f.name for f in fields(kind)}
        for key in (*everywhere, *table.get(stage, {})):
            if key not in known:
                raise UserError(f"train.options: unknown key {key!r} for {stage}; accepted: {', '.join(sorted(known))}")
        asked = {}
        if self.epochs is not None and kind.passes:
            self.keeping.epochs_count = True
            asked = {"epochs": self.epochs}
        return kind(**{**defaults, **everywhere, **table.get(stage, {}), **asked})

    def check_epochs(self) -> None:
        """Checks that `epochs` had an effect, if there are any.

        Raises:
            UserError: the recipe has no settings with epochs.
        """
        if self.epochs is not None and not self.keeping.epochs_count:
            recipe = self.workload.get("train", {}).get("recipe")
            raise UserError(f"--epochs {self.epochs}: the recipe {recipe} has no epochs")

    def inputs(self, split: Any, seed: int = 0, limit: int | None = None) -> Dataset:
        """The workload's inputs."""
        table = self.workload["inputs"]
        return load_inputs(
            table["name"], split, data_dir=self.data_dir, limit=limit, seed=seed, **table.get("options", {})
        )

    def tensors(self, data: Dataset) -> tuple[Tensor, Tensor]:
        """Inputs and labels on the device.

        Raises:
            UserError: there are no labels, or the model takes several inputs.
        """
        if data.labels is None:
            raise UserError(f"nothing to learn from: no labels in {data.description}")
        if any(isinstance(part, (tuple, dict)) for part in (data.inputs, data.labels)):
            raise UserError(f"training recipes take one array of inputs and one of labels: {data.description}")
        return torch.from_numpy(data.inputs).to(self.device), torch.from_numpy(data.labels).to(self.device)

    def finished(self, name: str) -> bool:
        """Whether this network's weights and card exist and are to be kept."""
        record = self.keeping.record
        kept = self.resume or (record is not None and name in record.finished)
        return kept and (self.out / f"{name}.json").is_file() and self.weights(name).is_file()

    def weights(self, name: str) -> Path:
        """The file of a network's weights."""
        return self.out / f"{name}.safetensors"

    def load(self, model: nn.Module, name: str) -> None:
        """Loads finished weights into a model; tensors that the file lacks stay unchanged.

        Raises:
            UserError: the file is damaged, or of another model.
        """
        try:
            model.load_state_dict(load_file(self.weights(name)), strict=False)
        except (SafetensorError, OSError, RuntimeError) as e:
            raise UserError(f"{self.weights(name)} is damaged or of another network; --fresh begins anew") from e
        _lay_out(model)  # as training leaves it, so that what is made of it has the same bits

    def save(
        self, name: str, model: nn.Module, card: dict[str, Any], dtype: torch.dtype | None = torch.float32
    ) -> None:
        """Writes weights, in one dtype (None: each in its own), and card; removes the checkpoints."""
        state = {k: _stored(v, dtype) for k, v in model.state_dict().items()}
        write_bytes(self.weights(name), save(state))
        self.write_card(name, card)
        if self.keeping.record is not None:
            self.keeping.record.finish(name)
        self.forget(name)

    def write_card(self, name: str, card: dict[str, Any]) -> None:
        """Writes a model card."""
        write_bytes(self.out / f"{name}.json", (json.dumps(card, indent=2) + "\n").encode())

    def note(self, name: str, facts: dict[str, Any]) -> None:
        """Keeps plain data until the training is finished."""
        make_own_folder(self.keeping.folder)
        write_bytes(self._note(name), (json.dumps(facts, indent=2) + "\n").encode())

    def noted(self, name: str) -> dict[str, Any] | None:
        """What `note` kept; None: nothing, or the training begins anew.

        Raises:
            UserError: it is damaged.
        """
        file = self._note(name)
        if not self.keeping.restore or not file.is_file():
            return None
        try:
            return dict(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as e:
            raise UserError(f"{file} is damaged; --fresh begins anew") from e

    def _note(self, name: str) -> Path:
        return self.keeping.folder / f"{name}.note.json"

    def forget(self, name: str) -> None:
        """Removes checkpoints and notes that are no longer needed."""
        self.keeping.forget(name)
        self._note(name).unlink(missing_ok=True)

    def steps(self, name: str, settings: Settings) -> Steps:
        """For the loops of a recipe that are not `fit`: their steps, kept and restored as those of `fit`.

        `steps(300, policy=policy, optimizer=optimizer)` gives the steps of a loop that are still to be made. Loops are
        numbered: a recipe comes to them in the same order every time.

        Args:
            name: of the network; `save` removes the loops' checkpoints.
            settings: that must not change between sittings.
        """
        number = itertools.count()

        def steps(total: int, **parts: Any) -> Loop:
            self.check_epochs()
            return Loop(self.keeping, f"{name}@{next(number)}", {"settings": vars(settings)}, total, parts)

        return steps

    def fit(self, name: str, model: nn.Module, loss: Loss, settings: Settings) -> dict[str, Any]:
        """Trains a model on the workload's training part; what is interrupted goes on exactly.

        Args:
            name: of the checkpoint.
            model: trained in place.
            loss: `(model, x, y) -> scalar`; if it has a `state_dict`, that is kept too.
            settings: of the training.

        Returns:
            For the card: epochs, seconds, and a description of the training data.
        """
        self.check_epochs()
        s, fresh = settings, self.workload["inputs"]["name"] in FRESH
        model.to(self.device)
        _lay_out(model)
        data = self.inputs("train", seed=1000 * s.seed, limit=s.items)
        x, y = self.tensors(data)
        steps = max(len(x) // s.batch_size, 1)
        if x.dim() != 4 and (s.crop or s.flip):
            raise UserError("training: crop and flip are for images")
        optimizer = _optimizer(model, s)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(one_cycle, s.epochs * steps, s.warm_up))
        parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "schedule": schedule}
        if isinstance(loss, Stateful):
            parts["loss"] = loss
        about = {"settings": vars(s), "data": data.content_hash}
        loop, order = Loop(self.keeping, name, about, s.epochs * steps, parts), None
        with self._bar(s.epochs * steps) as advance:
            for step in loop:
                epoch, within = divmod(step, steps)
                if order is None or not within:
                    with random_numbers_untouched(within > 0):  # going on inside an epoch: they are further on
                        if epoch and fresh:
                            x, y = self.tensors(self.inputs("train", seed=1000 * s.seed + epoch, limit=s.items))
                        torch.manual_seed(1_000_003 * s.seed + epoch)
                        order = torch.randperm(len(x)).to(self.device)
                    model.train()
                if not within:
                    loop.values["loss"] = 0.0
                rows = order[within * s.batch_size : (within + 1) * s.batch_size]
                optimizer.zero_grad(set_to_none=True)
                with torch.autocast(self.device.type, torch.bfloat16, enabled=s.precision == "bfloat16"):
                    value = loss(model, augment(x[rows], s.crop, s.flip), y[rows])
                value.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
                schedule.step()
                loop.values["loss"] += value.item()
                advance(f"{name} epoch {epoch + 1}/{s.epochs}", step + 1, value.item())
                if within == steps - 1:
                    mean = loop.values["loss"] / steps
                    self.say(f"{name}: epoch {epoch + 1} of {s.epochs}, loss {mean:.3f}, {loop.seconds:.0f} s")
        model.eval()
        return {
            "epochs": s.epochs,
            "items_per_epoch": steps * s.batch_size,
            "seconds": round(loop.seconds),
            "settings": vars(s),
            "training_data": {
                "description": data.description + ("; other ones in every epoch" if fresh else ""),
                "content_hash": data.content_hash,
            },
        }

    def say(self, line: str) -> None:
        """Prints a line of progress."""
        self.console.print(line, highlight=False, soft_wrap=True)

    @contextmanager
    def _bar(self, steps: int) -> Iterator[Callable[[str, int, float], None]]:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("loss {task.fields[loss]:.3f}"))
        with Progress(
            *columns, TimeRemainingColumn(), console=self.console, transient=True, disable=not self.progress
        ) as bar:
            task = bar.add_task("", total=steps, loss=float("nan"))
            yield lambda title, done, loss: bar.update(task, description=title, completed=done, loss=loss)

    def card(self, model: str, **facts: Any) -> dict[str, Any]:
        """A model card: `facts` and the entries common to all networks."""
        test = self.inputs("test")
        name = self.workload["name"]
        cautions = []
        if "JPEG" in test.description:
            cautions.append(
                "The images had been re-encoded lossily as JPEG by their source, so accuracies may differ from those "
                "on the original by some tenths of a percent."
            )
        return {
            "model": model,
            **facts,
            "test_data": {"description": test.description, "content_hash": test.content_hash},
            "cautions": cautions,
            "machine": _machine(self.device),
            "recipe": f"dynbench train {name}"
            + (" --data FOLDER" if self.data_dir else "")
            + (f" --epochs {self.epochs}" if self.epochs is not None else ""),
        }


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy: logits [n, K] and labels [n], or [n, T, K] and [n, T]."""
    return F.cross_entropy(model(x).float().flatten(0, -2), y.flatten())


def augment(x: Tensor, crop: int, flip: bool) -> Tensor:
    """Images [n, C, H, W], each randomly shifted by up to `crop` pixels, padded with zeros, and mirrored if `flip`."""
    if x.dim() != 4:
        return x
    n, _, height, width = x.shape
    if crop:
        padded = F.pad(x, (crop,) * 4).permute(0, 2, 3, 1)  # [n, H + 2 crop, W + 2 crop, C]
        top, left = torch.randint(0, 2 * crop + 1, (2, n, 1)).to(x.device)
        rows = top + torch.arange(height, device=x.device)  # [n, H]
        columns = left + torch.arange(width, device=x.device)
        image = torch.arange(n, device=x.device)[:, None, None]
        x = padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if flip:
        x = torch.where((torch.rand(n) < 0.5).to(x.device)[:, None, None, None], x.flip(3), x)
    return x.contiguous(memory_format=torch.channels_last)


def one_cycle(total: int, warm_up: float, step: int) -> float:
    """The factor on the highest learning rate: from 0.1 to 1, then to 0.001, along cosines (Smith and Topin, 2018)."""
    rise = warm_up * total
    low, at = (0.1, step / rise) if step < rise else (0.001, 1 - (step - rise) / max(total - rise, 1))
    return low + (1 - low) * (1 - math.cos(math.pi * at)) / 2


def _lay_out(model: nn.Module) -> None:
    """Puts convolutions into channels_last, which is twice as fast on a CPU."""
    for p in model.parameters():
        if p.dim() == 4:
            p.data = p.data.contiguous(memory_format=torch.channels_last)


def _optimizer(model: nn.Module, s: Settings) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": s.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if s.optimizer == "adamw":
        return torch.optim.AdamW(groups, s.lr, betas=(0.9, 0.95))
    return torch.optim.SGD(groups, s.lr, momentum=0.9, nesterov=True)


def _stored(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    value = value.detach().cpu().contiguous()
    return value.to(dtype) if dtype is not None and value.is_floating_point() else value


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s), torch {torch.__version__}"
