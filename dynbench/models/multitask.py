"""Multi-task by routing: one trunk, and for each task adapters and a head that run only if the task is requested.

Our own model, following: hard parameter sharing, Caruana, "Multitask Learning", Machine Learning 1997 (one trunk, a
head per task); and residual adapters, Rebuffi, Bilen, Vedaldi, "Learning multiple visual domains with residual
adapters", NeurIPS 2017 (eq. 2: y + A(BN(y)) with a task-specific 1x1 convolution A, between shared layers).

The first groups of blocks have no adapters: they run once per image. From there on an item is (image, task): a
requested task runs the other blocks, which all tasks share, each followed by the task's adapter, and the task's head.
The earlier adapters begin, the more of the network is specific to a task, and the more each further task costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Each, Route, Shared, Skip, current
from dynbench.models.accounting import static_macs
from dynbench.models.resnet import BlockKind, ResNet, architecture, block_names, resnet
from dynbench.models.sharing import shared_once
from dynbench.models.typed import module_list

PAPER = "Rebuffi, Bilen, Vedaldi, Learning multiple visual domains with residual adapters, NeurIPS 2017; Caruana 1997"
PROVENANCE = "own model on the pattern of both papers; sharing the first groups between tasks and the routing are ours"


class Request(NamedTuple):
    """m pairs of an image and a task.

    Attributes:
        answer: [m, K], zero until the pair is processed.
        asked: [m], above one half where the task is requested for the image.
        image: [m] long, row of the image in the batch.
        task: [m] long.
        features: [n, C, H, W] of the images, shared.
    """

    answer: Tensor
    asked: Tensor
    image: Tensor
    task: Tensor
    features: Shared


ForTask = tuple[Tensor, Tensor]  # features [m, ...] and the task [m]


class IsAsked(nn.Module):
    """The gate: tasks are requested in the input."""

    def forward(self, r: Request, carry: None) -> tuple[Tensor, None]:
        """-> (score [m], None)."""
        return r.asked - 0.5, None


class TaskId(nn.Module):
    """The router: to the expert of the task.

    Args:
        tasks: number of tasks.
    """

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.tasks = tasks

    def forward(self, x: ForTask) -> Tensor:
        """-> scores [m, tasks], 1 for the task and 0 for the others."""
        y, task = x
        return F.one_hot(task, self.tasks).to(y.dtype)


class InTurn(nn.Module):
    """Every task of every image, in order, each by its own expert: the static twin of a Route by task.

    Args:
        experts: one per task.
    """

    def __init__(self, experts: nn.ModuleList) -> None:
        super().__init__()
        self.experts = experts

    def forward(self, x: ForTask) -> Tensor:
        """y [n * T, ...] -> [n * T, ...]."""
        y, task = (part.unflatten(0, (-1, len(self.experts))) for part in x)  # [n, T, ...]
        done = [expert((y[:, t], task[:, t])) for t, expert in enumerate(self.experts)]
        return torch.stack(done, 1).flatten(0, 1)


class Adapter(nn.Module):
    """y + A(BN(y)), A a 1x1 convolution with initial weights 0 (Rebuffi et al. 2017, eq. 2).

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        nn.init.zeros_(self.conv.weight)

    def forward(self, x: ForTask) -> Tensor:
        """y [m, C, H, W] -> [m, C, H, W]."""
        y, _ = x
        return y + self.conv(self.bn(y))


class Head(nn.Module):
    """The task's own classifier.

    Args:
        channels: C.
        classes: number of answers of the task.
        most: K, the largest number of answers of any task.
    """

    def __init__(self, channels: int, classes: int, most: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, classes)
        self.missing = most - classes

    def logits(self, pooled: Tensor) -> Tensor:
        """[m, C] -> [m, classes]."""
        z: Tensor = self.fc(pooled)
        return z

    def forward(self, x: ForTask) -> Tensor:
        """Pooled features [m, C] -> probabilities [m, K], padded with 0."""
        return F.pad(self.logits(x[0]).softmax(-1), (0, self.missing))


class Answer(nn.Module):
    """The branch of a request: the rest of the trunk with the task's adapters, and the task's head.

    Args:
        blocks: of the trunk, shared by all tasks.
        adapters: a Route by task after each block.
        head: a Route by task.
    """

    def __init__(self, blocks: Sequence[nn.Module], adapters: Sequence[Route], head: Route) -> None:
        super().__init__()
        self.blocks, self.adapters, self.head = nn.ModuleList(blocks), nn.ModuleList(adapters), head

    def forward(self, r: Request) -> Request:
        """The requests with their answers."""
        y = r.features.value.index_select(0, r.image)  # [m, C, H, W]
        for block, adapter in zip(self.blocks, self.adapters, strict=True):
            y = adapter((block(y), r.task))
        return r._replace(answer=self.head((y.mean((2, 3)), r.task)))


class MultiTaskResNet(ResNet):
    """A ResNet with adapters and heads for T tasks.

    Args:
        block: BasicBlock or Bottleneck.
        layers: blocks per group.
        classes: number of answers of each task.
        shared: number of groups of blocks without adapters.
        dataset: 'cifar' or 'imagenet'.
    """

    def __init__(
        self,
        block: BlockKind,
        layers: tuple[int, ...],
        classes: Sequence[int],
        shared: int,
        dataset: str,
    ) -> None:
        super().__init__(block, layers, classes[0], dataset)
        channels = self.fc.in_features
        self.fc = nn.Identity()  # type: ignore[assignment]
        self.classes, self.most = tuple(classes), max(classes)
        split = sum(layers[:shared])
        self.shared_blocks = block_names(layers)[:split]
        own = list(zip(block_names(layers), self.blocks(), strict=True))[split:]
        adapters = [self._by_task(f"{name}_adapter", [Adapter(b.outputs) for _ in classes]) for name, b in own]
        head = self._by_task("head", [Head(channels, c, self.most) for c in classes])
        answer = Answer([b for _, b in own], adapters, head)
        self.requests = Each(Skip("asked", IsAsked(), answer, consumes=True))
        shared_once(self)

    def _by_task(self, name: str, experts: Sequence[nn.Module]) -> Route:
        modules = nn.ModuleList(experts)
        self.add_module(f"{name}s", modules)
        return Route(name, TaskId(len(modules)), modules, static=InTurn(modules))

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input: [3 + 1, H, W]."""
        planes, *size = super().input_shape(default)
        return (planes + 1, *size)

    def features(self, images: Tensor) -> Tensor:
        """The part shared by all tasks: [n, 3, H, W] -> [n, C, H', W']."""
        x = self.stem(images)
        for name in self.shared_blocks:
            x = self.get_submodule(name)(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Images and requested tasks.

        Args:
            x: [n, 3 + 1, H, W]; the first T values of the last plane, row by row, are 1 for a requested task, else 0.

        Returns:
            [n, T * K]: the probabilities of the answers for each requested task, zeros for the others, also outside any
            execution, where every task is computed.

        Raises:
            ValueError: the plane is smaller than the number of tasks.
        """
        n, tasks = x.shape[0], len(self.classes)
        asked = asked_of(x, tasks)  # [n, T]
        request = Request(
            answer=x.new_zeros(n, tasks, self.most),
            asked=asked.clone(),  # a strategy may write into a request
            image=torch.arange(n, device=x.device).unsqueeze(1).repeat(1, tasks),
            task=torch.arange(tasks, device=x.device).repeat(n, 1),
            features=Shared(self.features(x[:, :-1])),
        )
        answered: tuple[Request, Any] = self.requests(request)
        answer = answered[0].answer
        if current() is None:
            answer = torch.where(asked.unsqueeze(2) > 0.5, answer, 0)
        return answer.flatten(1)


def asked_of(x: Tensor, tasks: int) -> Tensor:
    """The requests in inputs x [n, 3 + 1, H, W]: [n, tasks].

    Raises:
        ValueError: the plane is smaller than the number of tasks.
    """
    asked = x[:, -1].flatten(1)[:, :tasks]
    if asked.shape[1] < tasks:
        raise ValueError(f"images of {x.shape[2]} x {x.shape[3]} pixels cannot hold requests for {tasks} tasks")
    return asked


class Separate(nn.Module):
    """A separate network for each task, each computed for every image.

    Args:
        nets: each with as many outputs as its task has answers.
    """

    def __init__(self, nets: Sequence[ResNet]) -> None:
        super().__init__()
        self.nets = module_list(nets)
        self.most = max(net.fc.out_features for net in nets)

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input: [3 + 1, H, W]."""
        planes, *size = self.nets[0].input_shape(default)
        return (planes + 1, *size)

    def forward(self, x: Tensor) -> Tensor:
        """x [n, 3 + 1, H, W] -> [n, T * K], probabilities for requested tasks, zeros for the others."""
        p = [net(x[:, :-1]).softmax(-1) for net in self.nets]
        answer = torch.stack([F.pad(q, (0, self.most - q.shape[1])) for q in p], 1)  # [n, T, K]
        return torch.where(asked_of(x, len(self.nets)).unsqueeze(2) > 0.5, answer, 0).flatten(1)


def multitask(
    tasks: int | Sequence[int] = 4, depth: int = 20, shared: int = 2, num_classes: int = 10, dataset: str = "cifar"
) -> MultiTaskResNet:
    """A ResNet for several tasks.

    Args:
        tasks: number of tasks, with `num_classes` answers each; or the number of answers of each.
        depth: 6n+2 for 'cifar'; 18, 34, 50, 101 or 152 for 'imagenet'.
        shared: number of groups of blocks that run once per image, without adapters: 0 to all (3 for 'cifar', 4 for
            'imagenet'); with all, a task has only its head.
        num_classes: answers of a task, if `tasks` is a number.
        dataset: 'cifar' (inputs [n, 3 + 1, 32, 32], larger ones work) or 'imagenet' ([n, 3 + 1, 224, 224]).

    Raises:
        ValueError: no task, a task with fewer than 2 answers, too many groups, or no such network.
    """
    block, layers = architecture(depth, dataset)
    if not 0 <= shared <= len(layers):
        raise ValueError(f"shared={shared}: 0 to {len(layers)} groups of blocks run once per image")
    return MultiTaskResNet(block, layers, _classes(tasks, num_classes), shared, dataset)


def separate(
    tasks: int | Sequence[int] = 4, depth: int = 20, num_classes: int = 10, dataset: str = "cifar"
) -> Separate:
    """A separate network for each task; arguments as for `multitask`."""
    return Separate([resnet(depth, c, dataset) for c in _classes(tasks, num_classes)])


def _classes(tasks: int | Sequence[int], num_classes: int) -> list[int]:
    classes = [num_classes] * tasks if isinstance(tasks, int) else list(tasks)
    if not classes or min(classes) < 2:
        raise ValueError(f"tasks={tasks!r}, num_classes={num_classes}: 1 task or more, of 2 answers or more each")
    return classes


def cost_by_tasks(counts: Sequence[int], shape: tuple[int, ...] = (4, 32, 32), **args: Any) -> list[dict[str, int]]:
    """The computed cost of tasks, together and with a network each.

    Args:
        counts: numbers of tasks.
        shape: of one input.
        **args: of `multitask`, without `tasks`.

    Returns:
        For each count `tasks`; `params` and `separate_params`; `macs_one_asked`, `macs_all_asked` and
        `separate_macs`, of all networks, per image.
    """
    rows = []
    alone = static_macs(multitask(1, **args), shape)
    shared = {k: v for k, v in args.items() if k != "shared"}
    for count in counts:
        net, apart = multitask(count, **args), separate(count, **shared)
        rows.append(
            {
                "tasks": count,
                "params": sum(p.numel() for p in net.parameters()),
                "separate_params": sum(p.numel() for p in apart.parameters()),
                "macs_one_asked": alone,
                "macs_all_asked": static_macs(net, shape),
                "separate_macs": static_macs(apart, shape),
            }
        )
    return rows
