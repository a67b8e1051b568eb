"""FiShNet: filters shared individually between tasks; each task runs its own selection, of constant size.

Dai, Kong, Guo, He, "FiShNet: Fine-Grained Filter Sharing for Resource-Efficient Multi-Task Learning", CIKM 2021. No
layer table, code or figure of it is known to us; its author's thesis (WPI) says that sharing is learned directly from
data, is as accurate as soft sharing, and keeps computation and memory per task constant. All else here is our
reconstruction and not the authors' design:

Each convolution has a bank of F filters. Task t selects K of them in each layer, K the width of a network for one
task: those with the K highest of its F learned scores (straight-through: the forward pass uses exactly the selection,
the gradient is that of sigmoid(score)). Its layers are gathered from the bank: output channels by the task's selection,
input channels by its selection in the layer before. So a task costs as much as a network of width K, for any number of
tasks. Each task has its own batch norm, as the input of a filter depends on the selection below, and its own head.

A selection belongs to a task, not to an input: `fold` extracts a task's network ahead of time, as an ordinary one. At
run time only the switching between tasks remains, the gathering of weights. Outside any execution and under masking,
all filters are computed for every input, and those of its task are selected.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.dynamic import Trace, Weights, current, straight_through
from dynbench.models.accounting import static_macs
from dynbench.models.sharing import shared_once
from dynbench.models.typed import module_list

PAPER = "Dai et al., FiShNet: Fine-Grained Filter Sharing for Resource-Efficient Multi-Task Learning, CIKM 2021"
PROVENANCE = "reconstruction: of the paper only the idea is known to us; layers, selection and training are ours"

EPS = 1e-5  # of batch norm


class Gathered(NamedTuple):
    """The gathered weights of a task's network.

    Attributes:
        weights: of each convolution, [K, K before, 3, 3].
        norms: of each batch norm: mean, variance, weight and bias, [K] each.
        head: [classes, K], classes the largest number of answers of any task.
        bias: [classes].
    """

    weights: list[Tensor]
    norms: list[list[Tensor]]
    head: Tensor
    bias: Tensor


class Bank(nn.Module):
    """A bank of filters that tasks choose from.

    Args:
        below: number of filters in the bank of the layer before.
        filters: F.
        chosen: K.
        stride: of the convolution.
        tasks: T.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, below: int, filters: int, chosen: int, stride: int, tasks: int) -> None:
        super().__init__()
        self.chosen, self.stride = chosen, stride
        self.conv = nn.Conv2d(below, filters, 3, stride=stride, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        self.scores = nn.Parameter(0.01 * torch.randn(tasks, filters))
        self.weight = nn.Parameter(torch.ones(tasks, filters))  # of batch norm
        self.bias = nn.Parameter(torch.zeros(tasks, filters))
        self.register_buffer("mean", torch.zeros(tasks, filters))
        self.register_buffer("variance", torch.ones(tasks, filters))

    def selection(self, task: Tensor) -> Tensor:
        """The filters selected by tasks [m] long: [m, K], ascending."""
        return self.scores[task].topk(self.chosen, dim=1).indices.sort(1).values

    def mask(self, task: int) -> Tensor:
        """1 for the filters of a task and 0 for the others [F], with the gradient of sigmoid(scores)."""
        scores = self.scores[task]
        keep = torch.zeros_like(scores, dtype=torch.bool)
        keep[scores.topk(self.chosen).indices] = True
        return straight_through(keep, scores)

    def norms(self, task: Tensor) -> list[Tensor]:
        """Mean, variance, weight and bias of the batch norms of tasks [m] long: [m, F] each; for one task [F]."""
        return [t[task] for t in (self.mean, self.variance, self.weight, self.bias)]

    def learn(self, x: Tensor, task: int) -> Tensor:
        """In training: a batch of one task -> [n, F, H, W], all filters computed, those not selected set to zero."""
        mean, variance, weight, bias = (t[task] for t in (self.mean, self.variance, self.weight, self.bias))
        y = F.batch_norm(self.conv(x), mean, variance, weight, bias, self.training, 0.1, EPS)
        return F.relu(y) * self.mask(task)[:, None, None]


class Select(nn.Module):
    """From the number of a task to its selection.

    Args:
        banks: one per layer.
    """

    def __init__(self, banks: list[Bank]) -> None:
        super().__init__()
        self.banks = banks

    def forward(self, task: Tensor) -> tuple[Any, ...]:
        """task [m] long -> the task, and its filters in each layer [m, K], ascending."""
        return task, *(bank.selection(task) for bank in self.banks)


class Network(nn.Module):
    """The layers whose filters tasks share, and the heads.

    Args:
        banks: one per layer.
        heads: [T, classes, F of the last layer].
        biases: [T, classes].
    """

    def __init__(self, banks: list[Bank], heads: nn.Parameter, biases: nn.Parameter) -> None:
        super().__init__()
        self.banks, self.heads, self.biases = banks, heads, biases

    def forward(self, x: Tensor, params: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """All filters for all images, those not selected by an image's task set to zero.

        Args:
            x: [n, 3, H, W].
            params: the task of each image [n] and its filters in each layer, [n, K].

        Returns:
            Logits [n, classes], and the task [n].
        """
        task, *chosen = params
        for bank, selected in zip(self.banks, chosen, strict=True):
            mean, variance, weight, bias = (t[:, :, None, None] for t in bank.norms(task))  # [n, F, 1, 1]
            scale = weight * (variance + EPS).rsqrt()
            y = torch.addcmul(bias - mean * scale, bank.conv(x), scale).relu_()
            keep = torch.zeros_like(y[:, :, 0, 0], dtype=torch.bool).scatter(1, selected, True)
            x = torch.where(keep[:, :, None, None], y, 0)  # not a product: 0 * inf is not 0
        z = self.heads[task] @ x.mean((2, 3)).unsqueeze(2)  # [n, classes, 1]
        return z.squeeze(2) + self.biases[task], task

    def gathered(self, params: tuple[Tensor, ...]) -> Gathered:
        """A copy of the weights of one task's network, from its number [] and filters [K] of each layer."""
        task, *chosen = params
        weights, norms, below = [], [], None
        for bank, selected in zip(self.banks, chosen, strict=True):
            w = bank.conv.weight.index_select(0, selected)
            weights.append(w if below is None else w.index_select(1, below))
            norms.append([t.index_select(0, selected) for t in bank.norms(task)])
            below = selected
        assert below is not None
        return Gathered(weights, norms, self.heads[task].index_select(1, below), self.biases[task])

    def special(self, params: tuple[Tensor, ...]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """One task's network as a function of images: an ordinary network of width K."""
        own = self.gathered(params)
        strides = [bank.stride for bank in self.banks]

        def run(x: Tensor) -> tuple[Tensor, Tensor]:
            for w, (mean, variance, weight, bias), stride in zip(own.weights, own.norms, strides, strict=True):
                x = F.relu(F.batch_norm(F.conv2d(x, w, None, stride, 1), mean, variance, weight, bias, eps=EPS))
            return F.linear(x.mean((2, 3)), own.head, own.bias), params[0].expand(x.shape[0])

        return run


class Task(nn.Module):
    """Reads the task from the input.

    Args:
        tasks: T.
    """

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.tasks = tasks

    def forward(self, plane: Tensor) -> Tensor:
        """[n, H * W], the first T values 1 for the task and 0 for the others -> [n] long."""
        return plane[:, : self.tasks].argmax(1)


class FiShNet(nn.Module):
    """Convolutions of T tasks that share filters.

    Args:
        widths: K of each layer.
        strides: of each layer.
        filters: F of each layer.
        classes: answers of each task.
    """

    missing: Tensor

    def __init__(
        self, widths: Sequence[int], strides: Sequence[int], filters: Sequence[int], classes: Sequence[int]
    ) -> None:
        super().__init__()
        self.widths, self.strides, self.classes = tuple(widths), tuple(strides), tuple(classes)
        tasks, last, most = len(classes), filters[-1], max(classes)
        self.banks = module_list(
            Bank(below, f, k, stride, tasks)
            for below, f, k, stride in zip((3, *filters), filters, widths, strides, strict=False)
        )
        self.heads = nn.Parameter(torch.empty(tasks, most, last).uniform_(-(last**-0.5), last**-0.5))
        self.biases = nn.Parameter(torch.zeros(tasks, most))
        self.register_buffer("missing", _missing(classes), False)
        select, network = Select(self.banks), Network(self.banks, self.heads, self.biases)
        self.point = Weights("task", Task(tasks), select, network, codes=tasks)
        shared_once(self)

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input: [3 + 1, H, W]."""
        return (4, *default[1:])

    def forward(self, x: Tensor) -> Tensor:
        """Images and the task of each.

        Args:
            x: [n, 3 + 1, H, W]; the first T values of the last plane, row by row, are 1 for the task and 0 for others.

        Returns:
            [n, T * classes]: the probabilities of the answers for an image's task, zeros for the others.

        Raises:
            ValueError: the plane is smaller than the number of tasks.
        """
        plane, network = x[:, -1].flatten(1), self.point
        if plane.shape[1] < len(self.classes):
            raise ValueError(
                f"images of {x.shape[2]} x {x.shape[3]} pixels cannot name one of {len(self.classes)} tasks"
            )
        if current() is None:  # all filters for all images
            logits, task = network.layer(x[:, :-1], network.generate(network.choose(plane)))
        else:
            logits, task = network(x[:, :-1], plane)
        return placed(logits, task, self.missing)

    def learn(self, x: Tensor, task: int) -> Tensor:
        """In training: logits [n, answers of the task] of images [n, 3, H, W], with gradients for the selection."""
        for bank in self.banks:
            x = bank.learn(x, task)
        z = F.linear(x.mean((2, 3)), self.heads[task], self.biases[task])
        return z[:, : self.classes[task]]

    @torch.no_grad()
    def fold(self, task: int) -> Plain:
        """Extracts the network of one task as an ordinary one, without banks.

        Raises:
            ValueError: there is no such task.
        """
        if not 0 <= task < len(self.classes):
            raise ValueError(f"task {task}: there are 0 to {len(self.classes) - 1}")
        network = cast(Network, self.point.layer)
        own = network.gathered(tuple(t[0] for t in self.point.generate(torch.tensor([task]))))
        plain = Plain(self.widths, self.strides, self.classes[task])
        state = {"fc.weight": own.head[: self.classes[task]], "fc.bias": own.bias[: self.classes[task]]}
        for k, (weight, norm) in enumerate(zip(own.weights, own.norms, strict=True)):
            state[f"convs.{k}.weight"] = weight
            for name, value in zip(("running_mean", "running_var", "weight", "bias"), norm, strict=True):
                state[f"norms.{k}.{name}"] = value
        plain.load_state_dict(state, strict=False)
        return plain.to(self.heads.device, self.heads.dtype).train(self.training)


def placed(logits: Tensor, task: Tensor, missing: Tensor) -> Tensor:
    """The answer of a network of T tasks.

    Args:
        logits: [n, K] of each image's task.
        task: [n] long.
        missing: [T, K] bool, answers that a task does not have.

    Returns:
        Probabilities [n, T * K], 0 for other tasks.
    """
    p = torch.where(missing[task], float("-inf"), logits).softmax(1)
    asked = F.one_hot(task, len(missing)).to(p.dtype)
    return (asked.unsqueeze(2) * p.unsqueeze(1)).flatten(1)


class Plain(nn.Module):
    """An ordinary network for one task: convolutions with batch norm, mean, linear.

    Args:
        widths: of each layer.
        strides: of each layer.
        classes: answers.
    """

    def __init__(self, widths: Sequence[int], strides: Sequence[int], classes: int) -> None:
        super().__init__()
        self.convs = module_list(
            nn.Conv2d(below, k, 3, stride=stride, padding=1, bias=False)
            for below, k, stride in zip((3, *widths), widths, strides, strict=False)
        )
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        self.norms = nn.ModuleList(nn.BatchNorm2d(k, eps=EPS) for k in widths)
        self.fc = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """[n, 3, H, W] -> logits [n, classes]."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class Apart(nn.Module):
    """An ordinary network for each task; images are grouped by task, and each runs the network of its task.

    Args:
        widths: of each layer.
        strides: of each layer.
        classes: answers of each task.
    """

    missing: Tensor

    def __init__(self, widths: Sequence[int], strides: Sequence[int], classes: Sequence[int]) -> None:
        super().__init__()
        self.nets = module_list(Plain(widths, strides, c) for c in classes)
        self.most, self.task = max(classes), Task(len(classes))
        self.register_buffer("missing", _missing(classes), False)

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input: [3 + 1, H, W]."""
        return (4, *default[1:])

    def forward(self, x: Tensor) -> Tensor:
        """As `FiShNet`."""
        task = self.task(x[:, -1].flatten(1))
        logits = x.new_zeros(len(x), self.most)
        for t in task.unique().tolist():
            net, rows = self.nets[t], (task == t).nonzero().squeeze(1)
            part: Tensor = net(x[:, :-1] if len(rows) == len(x) else x[:, :-1].index_select(0, rows))
            logits.index_copy_(0, rows, F.pad(part, (0, self.most - part.shape[1])))
        return placed(logits, task, self.missing)


class OneTrunk(nn.Module):
    """All filters shared: one network of width K with a head per task.

    Args:
        widths: of each layer.
        strides: of each layer.
        classes: answers of each task.
    """

    missing: Tensor

    def __init__(self, widths: Sequence[int], strides: Sequence[int], classes: Sequence[int]) -> None:
        super().__init__()
        self.classes, self.task = tuple(classes), Task(len(classes))
        self.net = Plain(widths, strides, len(classes) * max(classes))
        self.register_buffer("missing", _missing(classes), False)

    def input_shape(self, default: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one input: [3 + 1, H, W]."""
        return (4, *default[1:])

    def learn(self, x: Tensor) -> list[Tensor]:
        """Images [n, 3, H, W] -> the logits of each task [n, answers]."""
        logits = self.net(x).unflatten(1, (len(self.classes), -1))
        return [logits[:, t, :c] for t, c in enumerate(self.classes)]

    def forward(self, x: Tensor) -> Tensor:
        """As `FiShNet`."""
        task = self.task(x[:, -1].flatten(1))
        logits = self.net(x[:, :-1]).unflatten(1, (len(self.classes), -1))
        own = logits.gather(1, task[:, None, None].expand(-1, 1, logits.shape[2])).squeeze(1)
        return placed(own, task, self.missing)


def _missing(classes: Sequence[int]) -> Tensor:
    return torch.arange(max(classes)) >= torch.tensor(list(classes))[:, None]


def accounted_macs(model: FiShNet, trace: Trace, shape: tuple[int, ...]) -> tuple[float, str]:
    """As the paper counts, in our reading of its abstract: the network of one task."""
    channels, *size = shape
    macs = static_macs(model.fold(0), (channels - 1, *size))
    return float(macs), "the selected filters of the one task that is asked, its head included"


def fishnet(
    tasks: int | Sequence[int] = 3,
    widths: Sequence[int] = (16, 32, 32, 64, 64),
    strides: Sequence[int] = (1, 2, 1, 2, 1),
    bank: float = 2.0,
    num_classes: int = 10,
) -> FiShNet:
    """A network whose tasks share filters.

    Args:
        tasks: number of tasks, with `num_classes` answers each; or the number of answers of each.
        widths: K, number of filters that a task selects in each layer.
        strides: of each layer.
        bank: F / K, size of a layer's bank relative to a selection; 1: all tasks use all filters.
        num_classes: answers of a task, if `tasks` is a number.

    Raises:
        ValueError: no task, a task with fewer than 2 answers, not one stride per layer, or a bank smaller than a
            selection.
    """
    classes = _checked(tasks, widths, strides, num_classes)
    if not bank >= 1:
        raise ValueError(f"bank={bank}: a bank has 1 or more filters for each that a task selects")
    return FiShNet(widths, strides, [round(bank * k) for k in widths], classes)


def fishnet_apart(
    tasks: int | Sequence[int] = 3,
    widths: Sequence[int] = (16, 32, 32, 64, 64),
    strides: Sequence[int] = (1, 2, 1, 2, 1),
    num_classes: int = 10,
) -> Apart:
    """A network of width K for each task, trained separately or folded from a FiShNet; arguments as for `fishnet`."""
    return Apart(widths, strides, _checked(tasks, widths, strides, num_classes))


def fishnet_one_trunk(
    tasks: int | Sequence[int] = 3,
    widths: Sequence[int] = (16, 32, 32, 64, 64),
    strides: Sequence[int] = (1, 2, 1, 2, 1),
    num_classes: int = 10,
) -> OneTrunk:
    """One network of width K, a head per task; arguments as for `fishnet`."""
    return OneTrunk(widths, strides, _checked(tasks, widths, strides, num_classes))


def _checked(tasks: int | Sequence[int], widths: Sequence[int], strides: Sequence[int], num_classes: int) -> list[int]:
    """The answers of each task."""
    classes = [num_classes] * tasks if isinstance(tasks, int) else list(tasks)
    if not classes or min(classes) < 2:
        raise ValueError(f"tasks={tasks!r}, num_classes={num_classes}: 1 task or more, of 2 answers or more each")
    if not widths or len(strides) != len(widths) or min(*widths, *strides) < 1:
        raise ValueError(f"widths={list(widths)}, strides={list(strides)}: one of each per layer, 1 or more")
    return classes


def folded(net: FiShNet) -> Apart:
    """All tasks of a FiShNet, each extracted as an ordinary network."""
    apart = Apart(net.widths, net.strides, net.classes)
    apart.nets = module_list(net.fold(t) for t in range(len(net.classes)))
    return apart.train(net.training)


def cost_by_tasks(counts: Sequence[int], shape: tuple[int, ...] = (4, 32, 32), **args: Any) -> list[dict[str, int]]:
    """The computed cost of tasks, with filters shared and with a network each.

    Args:
        counts: numbers of tasks.
        shape: of one input.
        **args: of `fishnet`, without `tasks`.

    Returns:
        For each count: `tasks`; `macs` of an image, for its task; `params`, of which `shared_params` are in the bank;
        `apart_params`, of a network for each task.
    """
    rows = []
    apart_args = {k: v for k, v in args.items() if k != "bank"}
    for count in counts:
        net = fishnet(count, **args)
        bank = sum(p.numel() for name, p in net.named_parameters() if name.endswith("conv.weight"))
        rows.append(
            {
                "tasks": count,
                "macs": round(accounted_macs(net, Trace(), shape)[0]),
                "params": sum(p.numel() for p in net.parameters()),
                "shared_params": bank,
                "apart_params": sum(p.numel() for p in fishnet_apart(count, **apart_args).parameters()),
            }
        )
    return rows
