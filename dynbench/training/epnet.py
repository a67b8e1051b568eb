"""EPNet: a trained backbone, branches on its frozen features, then policies on the outputs of the branches.

Dai et al., CIKM 2020; the Markov decision process and its solution are our reconstruction (see the model). With
backbone and branches fixed, the inputs of a policy are a table: the output of every exit for every input. Policies are
learned from it in two ways: by backward induction, from the last exit to the first, with a decision function fitted to
the optimal stopping targets of every exit; and by the gradient of the expected reward, which needs no sampling, as an
input has few paths. Thresholds on the largest probability, learned for the same rewards, are given for comparison.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynbench.models.accounting import static_macs
from dynbench.models.epnet import EPNet, MDPPolicy, Policy, State, ThresholdPolicy, epnet, part_macs
from dynbench.training.keeping import Batches, Steps, unkept
from dynbench.training.session import Session, Settings, one_cycle
from dynbench.training.supervised import train_resnet

ROUNDS = 2  # of backward induction: from the second on, fitted to the inputs that reach an exit under the rules so far


@dataclass
class PolicySettings(Settings):
    """Settings of policies, learned by AdamW; `epochs` are steps on all data, `items` the validation inputs.

    Attributes:
        prices: the lambdas of the sweep: the cost of running the whole network, in right answers.
        give_up: accuracy that the saved policy may lose against the last exit.
        held_back: share of the validation inputs not used for fitting: the saved policy is chosen on them.
        sharpness: factor on decision functions before the policy gradient, so that few of the decisions in its
            expectation differ from those of backward induction.
    """

    passes: ClassVar[bool] = False
    prices: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
    give_up: float = 0.005
    held_back: float = 0.25
    sharpness: float = 5.0


@dataclass(frozen=True)
class Seen:
    """The outputs of N exits for n inputs.

    Attributes:
        p: the softmax of each exit, [n, K].
        pooled: the pooled features of each exit, [n, F].
        right: [n, N], 1 where an exit is right, else 0.
    """

    p: list[Tensor]
    pooled: list[Tensor]
    right: Tensor

    def __getitem__(self, rows: slice) -> Seen:
        """The same for some of the inputs."""
        return Seen([p[rows] for p in self.p], [z[rows] for z in self.pooled], self.right[rows])


@dataclass(frozen=True)
class Learned:
    """A policy, the method by which it was learned, and its lambda."""

    method: str
    price: float
    policy: Policy


def train(session: Session) -> None:
    """ResNet, `resnet{depth}_{suffix}`, and EPNet, named as the workload.

    `[train.options.resnet]`, `[train.options.branches]` and `[train.options.policy]` hold the stages' settings.
    """
    args: dict[str, Any] = session.workload.get("model_args", {})
    depth, name = args.get("depth", 38), str(session.workload["name"])
    static = train_resnet(session, depth)
    if session.finished(name):
        return
    first = session.settings(Settings, "branches", epochs=10, lr=0.01, weight_decay=1e-3)
    second = session.settings(PolicySettings, "policy", epochs=100, lr=0.02, weight_decay=0.3)
    began = time.monotonic()
    torch.manual_seed(first.seed)
    net = epnet(**args)
    net.load_state_dict(static.state_dict(), strict=False)
    net.to(session.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    data = session.inputs("train", seed=1000 * first.seed, limit=first.items)
    x, y = session.tensors(data)
    learn_branches(net, look(net, x, y).pooled, y, first, session.steps(f"{name}_branches", first))
    session.say(f"{name}: branches trained")

    held_out, (x, y) = session.inputs("validation", limit=second.items), session.tensors(session.inputs("test"))
    costs = torch.tensor(part_macs(net, tuple(x.shape[1:])).upto(), dtype=torch.float64, device=session.device)
    shares, relative = costs / costs[-1], costs / static_macs(net, tuple(x.shape[1:]))
    net.policy.set_budget(shares[:-1])
    seen = look(net, *session.tensors(held_out))
    fitted = round(len(held_out) * (1 - second.held_back))
    steps = session.steps(name, second)
    found = [p for price in second.prices for p in learn(net, seen[:fitted], shares, price, second, steps)]
    suitable = [p for p in found if type(p.policy) is type(net.policy)]
    best = choose(suitable, seen[fitted:], costs, second.give_up)
    net.policy.load_state_dict(best.policy.state_dict())

    seen = look(net, x, y)
    facts = evaluate(best.policy, seen, relative)
    session.say(f"{name}: test accuracy {facts['accuracy']:.4f} with {facts['computation']:.3f} of the ResNet's MACs")
    card = session.card(
        "dynbench.models.epnet:epnet",
        args=args,
        reconstruction="backbone, branches, state and reward are ours; the paper's are not known",
        **facts,
        computation_rule="stem, blocks, branches and decisions up to the exit taken; relative to the ResNet alone",
        policy={"learned_by": best.method, "lambda": best.price, "give_up": second.give_up},
        static_twin={"name": f"resnet{depth}_{session.suffix}", "accuracy": round(float(seen.right[:, -1].mean()), 5)},
        exits={
            "accuracy": [round(float(share), 4) for share in seen.right.mean(0)],
            "computation": [round(float(cost), 4) for cost in relative],
        },
        sweep=table(found, seen, relative),
        held_out_data={"description": held_out.description, "content_hash": held_out.content_hash},
        seconds=round(time.monotonic() - began),
        settings={"branches": vars(first), "policy": vars(second)},
        training_data={"description": data.description, "content_hash": data.content_hash},
    )
    session.save(name, net, card)
    session.forget(f"{name}_branches")


def learn_branches(net: EPNet, pooled: list[Tensor], y: Tensor, settings: Settings, steps: Steps = unkept) -> None:
    """Trains every branch on the pooled features of its exit; the backbone is fixed.

    Args:
        net: its branches are trained in place.
        pooled: of each exit, [n, F].
        y: [n] labels.
        settings: of the training, always by AdamW.
        steps: of the training.
    """
    torch.manual_seed(settings.seed)
    for branch, features in zip(net.branches, pooled, strict=False):
        first = next(m for m in branch.modules() if isinstance(m, nn.Linear))
        in_units_of_spread(first, features)
        batches = Batches(len(y), settings.batch_size)
        total = settings.epochs * batches.per_pass
        optimizer = torch.optim.AdamW(branch.parameters(), settings.lr, weight_decay=settings.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(one_cycle, total, settings.warm_up))
        parts = {"branch": branch, "optimizer": optimizer, "schedule": schedule, "batches": batches}
        for step in steps(total, **parts):
            rows = batches(step).to(y.device)
            optimizer.zero_grad()
            F.cross_entropy(branch.classify(features[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def in_units_of_spread(layer: nn.Linear, features: Tensor) -> None:
    """Reinitialises a layer as if its features [n, F] had mean 0 and standard deviation 1."""
    layer.reset_parameters()
    layer.weight.div_(features.std(0) + 1e-3)
    layer.bias.sub_(layer.weight @ features.mean(0))


@torch.no_grad()
def look(net: EPNet, x: Tensor, y: Tensor, batch_size: int = 250) -> Seen:
    """The outputs of every exit for x [n, 3, H, W] with labels y [n]."""
    p: list[Tensor] = []
    pooled: list[Tensor] = []
    for start in range(0, len(x), batch_size):
        rows = slice(start, start + batch_size)
        state: State = (net.stem(x[rows].contiguous(memory_format=torch.channels_last)), None)
        for k, (stage, head) in enumerate(zip(net.exits.stages, net.exits.heads, strict=True)):
            state = stage(state)
            probabilities, features = head(state).softmax(-1), state[1]
            assert features is not None
            if start == 0:
                p.append(probabilities.new_empty(len(x), probabilities.shape[1]))
                pooled.append(features.new_empty(len(x), features.shape[1]))
            p[k][rows], pooled[k][rows] = probabilities, features
    return Seen(p, pooled, torch.stack([(q.argmax(-1) == y).double() for q in p], 1))


def rewards(seen: Seen, shares: Tensor, price: float) -> Tensor:
    """1[exit t is right] - lambda cost(t) / cost(N): [n, N].

    Args:
        seen: the outputs of the exits.
        shares: [N] cost(t) / cost(N).
        price: lambda.
    """
    return seen.right - price * shares


def backward_induction(rewards: Tensor, fit: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Optimal stopping, from the last exit to the first.

    Exact if `fit` finds the best decision for every state: leave where the mean advantage of the inputs in that state
    is positive.

    Args:
        rewards: [n, N] of leaving at each exit.
        fit: `(k, advantage [n]) -> leave [n] bool`: fits the decision function of exit k to the advantage of leaving
            there over going on with the functions found so far, and returns its decisions.

    Returns:
        [n]: the reward of each input, from the first exit on.
    """
    value = rewards[:, -1]
    for k in reversed(range(rewards.shape[1] - 1)):
        leave = fit(k, rewards[:, k] - value)
        value = torch.where(leave, rewards[:, k], value)
    return value


def learn(
    net: EPNet, seen: Seen, shares: Tensor, price: float, settings: PolicySettings, steps: Steps = unkept
) -> list[Learned]:
    """Every kind of policy for one lambda.

    Args:
        net: its policy gives the form of MDP policies, if it is one; not changed.
        seen: the data for fitting.
        shares: [N] cost(t) / cost(N).
        price: lambda.
        settings: of the fitting.
        steps: of the fitting.
    """
    gain = rewards(seen, shares, price)
    thresholds = ThresholdPolicy(len(seen.p) - 1).to(gain.device)
    induce(thresholds, seen, gain, lambda k, of, advantage: fit_threshold(thresholds, k, of, advantage))
    found = [Learned("thresholds", price, thresholds)]
    if isinstance(net.policy, MDPPolicy):
        policy = fresh(net.policy, seen, settings.seed)
        if len(policy.decide) == len(policy.project):  # a shared function cannot be fitted for each exit in turn
            induce(policy, seen, gain, lambda k, of, advantage: fit_decision(policy, k, of, advantage, settings, steps))
            found.append(Learned("backward induction", price, policy))
            policy = copy.deepcopy(policy)  # the policy gradient starts from the result of induction
            sharpen(policy, settings.sharpness)
        climb(policy, seen, gain, settings, steps)
        found.append(Learned("policy gradient", price, policy))
    return found


@torch.no_grad()
def sharpen(policy: MDPPolicy, factor: float) -> None:
    """Scales every decision function: the decisions are the same, with higher confidence."""
    for function in policy.decide:
        last = [m for m in function.modules() if isinstance(m, nn.Linear)][-1]
        for p in last.parameters():
            p.mul_(factor)


def fresh(like: MDPPolicy, seen: Seen, seed: int) -> MDPPolicy:
    """An untrained policy of the same form, with pooled features in units of their standard deviation."""
    torch.manual_seed(seed)
    policy = copy.deepcopy(like)
    with torch.no_grad():
        for layer in policy.decide.modules():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        for projection, z in zip(policy.project, seen.pooled, strict=False):
            in_units_of_spread(projection, z)
    return policy.requires_grad_(True)


def induce(
    policy: Policy, seen: Seen, gain: Tensor, fit: Callable[[int, Seen, Tensor], None], rounds: int = ROUNDS
) -> None:
    """Backward induction, first on all inputs at every exit, then on those that reach it, as rules are not universal.

    Args:
        policy: changed by `fit`.
        seen: the outputs of the exits.
        gain: [n, N] rewards.
        fit: `(k, the inputs that reach exit k, their advantage) -> None`.
        rounds: number of passes.
    """
    there = torch.ones_like(gain, dtype=torch.bool)
    for _ in range(rounds):

        def at_exit(k: int, advantage: Tensor, there: Tensor = there) -> Tensor:
            rows = there[:, k]
            if rows.any():
                here = Seen([p[rows] for p in seen.p], [z[rows] for z in seen.pooled], seen.right[rows])
                fit(k, here, advantage[rows])
            return leaves(policy, seen, k)

        backward_induction(gain, at_exit)
        there = torch.arange(gain.shape[1], device=gain.device) <= exits_taken(policy, seen).unsqueeze(1)


def fit_threshold(policy: ThresholdPolicy, k: int, seen: Seen, advantage: Tensor) -> None:
    """The best threshold of exit k, among those between any two inputs."""
    confidence, order = seen.p[k].amax(-1).sort(descending=True)
    gained = advantage[order].cumsum(0)  # if the i + 1 most confident inputs leave
    below = torch.cat([confidence[1:], confidence[-1:] - 1])  # the threshold at which they leave
    gained = torch.where(confidence > below, gained, -torch.inf)  # equal confidences cannot be separated
    best = int(gained.argmax())
    policy.thresholds[k] = below[best] if gained[best] > 0 else confidence[0]


def fit_decision(
    policy: MDPPolicy, k: int, seen: Seen, advantage: Tensor, settings: PolicySettings, steps: Steps = unkept
) -> None:
    """The decision function of exit k, by logistic regression on which inputs should leave, weighted by advantage."""
    parameters = [*policy.project[k].parameters(), *policy.decide[k].parameters()]
    optimizer = torch.optim.AdamW(parameters, settings.lr, weight_decay=settings.weight_decay)
    better, weight = (advantage > 0).float(), advantage.abs().float()
    weight = weight / weight.mean()
    for _ in steps(settings.epochs, policy=policy, optimizer=optimizer):
        optimizer.zero_grad()
        a = policy.advantage(seen.p[k], seen.pooled[k], k)
        F.binary_cross_entropy_with_logits(a, better, weight).backward()
        optimizer.step()


def expected_reward(policy: Policy, seen: Seen, gain: Tensor) -> Tensor:
    """E[reward] if each exit is taken with probability sigmoid(a_t): a scalar with the gradient of the policy.

    Args:
        policy: pi(leave | s_t) = sigmoid(a_t(s_t)).
        seen: the outputs of the exits.
        gain: [n, N] rewards.
    """
    there, total = torch.ones_like(gain[:, 0]), torch.zeros_like(gain[:, 0])  # [n]: probability of reaching the exit
    for k in range(gain.shape[1] - 1):
        leave = torch.sigmoid(policy.advantage(seen.p[k], seen.pooled[k], k))
        total = total + there * leave * gain[:, k]
        there = there * (1 - leave)
    return (total + there * gain[:, -1]).mean()


def climb(policy: MDPPolicy, seen: Seen, gain: Tensor, settings: PolicySettings, steps: Steps = unkept) -> None:
    """Policy gradient, each step on all data."""
    optimizer = torch.optim.AdamW(policy.parameters(), settings.lr, weight_decay=settings.weight_decay)
    for _ in steps(settings.epochs, policy=policy, optimizer=optimizer):
        optimizer.zero_grad()
        (-expected_reward(policy, seen, gain)).backward()
        optimizer.step()


@torch.no_grad()
def leaves(policy: Policy, seen: Seen, k: int) -> Tensor:
    """Whether each input would leave at exit k: [n] bool."""
    return policy.advantage(seen.p[k], seen.pooled[k], k) > 0


def exits_taken(policy: Policy, seen: Seen) -> Tensor:
    """The exit taken by each input: [n] long."""
    exits = len(seen.p)
    left = [leaves(policy, seen, k) for k in range(exits - 1)]
    return torch.stack([*left, torch.ones_like(left[0])], 1).long().argmax(1)  # the first True


def evaluate(policy: Policy, seen: Seen, costs: Tensor) -> dict[str, Any]:
    """The results of a policy: accuracy, mean computation, and the share of inputs at each exit.

    Args:
        policy: makes the decisions.
        seen: the outputs of the exits.
        costs: [N] of leaving at each exit, in any unit.
    """
    taken = exits_taken(policy, seen)
    return {
        "accuracy": round(float(seen.right.gather(1, taken.unsqueeze(1)).mean()), 5),
        "computation": round(float(costs[taken].mean()), 5),
        "exit_rates": [round(float(rate), 4) for rate in taken.bincount(minlength=len(seen.p)) / len(taken)],
    }


def choose(found: list[Learned], seen: Seen, costs: Tensor, give_up: float) -> Learned:
    """The cheapest policy that loses at most `give_up` of the last exit's accuracy; if there is none, the best one."""
    done = [(evaluate(p.policy, seen, costs), p) for p in found]
    least = float(seen.right[:, -1].mean()) - give_up
    enough = [pair for pair in done if pair[0]["accuracy"] >= least - 1e-9]
    if enough:
        return min(enough, key=lambda pair: pair[0]["computation"])[1]
    return max(done, key=lambda pair: pair[0]["accuracy"])[1]


def table(found: list[Learned], seen: Seen, costs: Tensor) -> dict[str, dict[str, Any]]:
    """Accuracy and computation, by method and lambda."""
    rows: dict[str, dict[str, Any]] = {}
    for p in found:
        facts = evaluate(p.policy, seen, costs)
        rows.setdefault(p.method, {})[f"lambda {p.price:g}"] = {k: facts[k] for k in ("accuracy", "computation")}
    return rows
