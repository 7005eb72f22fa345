"""The systems that `inference.py` compares, each with its multiply-adds and a way to run it."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import timm
import torch
from torch import Tensor, nn

from coe_core import Delegation, TwoStage, confidence, count_macs, fit_threshold, infer

CLASSES, EXPERTS = 1000, 4
DELEGATOR, EXPERT = "tinynet_e", "tinynet_b"
PLAIN = ("tinynet_e", "tinynet_d", "tinynet_c", "tinynet_b", "tinynet_a")
CONDITIONAL = ("efficientnet_cc_b0_4e", "efficientnet_cc_b0_8e")
EXIT_RATES = (0.0, 0.25, 0.5, 0.75, 1.0)

Compute = Callable[[Tensor], Tensor]


@dataclass
class System:
    """A way to classify a batch; ``parts`` are the dense runs that it consists of, if it has such."""

    name: str
    macs: float  # mean per image
    predict: Callable[[Tensor, slice], object]
    parts: Callable[[Tensor, slice], Callable[[], object]] | None = None
    accuracy: float | None = None


def dense(name: str, macs: float, compute: Compute, accuracy: float | None = None) -> System:
    """A system that is one network."""
    return System(name, macs, lambda batch, _: compute(batch), accuracy=accuracy)


# How a network runs


def eager(network: nn.Module, example: Tensor) -> Compute:
    return network


def bf16(network: nn.Module, example: Tensor) -> Compute:
    def compute(images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return network(images).float()

    return compute


def compiled(network: nn.Module, example: Tensor) -> Compute:
    compute = torch.compile(network, dynamic=True)
    for size in (len(example), 1, 3):
        compute(example[:size])
    return compute


def onnx_session(network: nn.Module, example: Sequence) -> Callable[..., tuple[Tensor, ...]]:
    """A network in onnxruntime, as a function of its inputs, tensors or lists of them: all its outputs."""
    import onnxruntime as ort

    batch = {0: torch.export.Dim("n", min=1, max=65536)}
    shapes = tuple(batch if isinstance(v, Tensor) else [batch for _ in v] for v in example)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network, tuple(example), dynamo=True, dynamic_shapes=shapes, verbose=False
        )
    file = io.BytesIO()
    program.save(file)
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(*inputs: Tensor | list[Tensor]) -> tuple[Tensor, ...]:
        flat = [t for value in inputs for t in ([value] if isinstance(value, Tensor) else value)]
        feeds = dict(zip(names, (t.numpy() for t in flat), strict=True))
        return tuple(map(torch.from_numpy, session.run(None, feeds)))

    return run


def onnxruntime(network: nn.Module, example: Tensor) -> Compute:
    run = onnx_session(network, (example[:2],))
    return lambda images: run(images)[0]


MODES = {f.__name__: f for f in (eager, bf16, compiled, onnxruntime)}


# Systems of untrained networks


def network(name: str, outputs: int = CLASSES) -> nn.Module:
    model = timm.create_model(name, num_classes=outputs).eval()
    return model.to(memory_format=torch.channels_last)


class MultiExit(nn.Module):
    """A network with a classifier after each third of its blocks: the family of MSDNet and BranchyNet."""

    def __init__(self, whole: nn.Module, example: Tensor):
        super().__init__()
        blocks, third = list(whole.blocks), len(whole.blocks) // 3
        first = nn.Sequential(whole.conv_stem, whole.bn1, *blocks[:third])
        second = nn.Sequential(*blocks[third : 2 * third])
        last = nn.Sequential(*blocks[2 * third :], whole.conv_head, whole.bn2)
        self.stages, self.heads = nn.ModuleList([first, second, last]), nn.ModuleList()
        for stage in self.stages:
            example = stage(example)
            head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.heads.append(head.append(nn.Linear(example.shape[1], CLASSES)))

    def stage(self, i: int) -> nn.Module:
        class Both(nn.Module):
            def __init__(self, stage: nn.Module, head: nn.Module):
                super().__init__()
                self.stage, self.head = stage, head

            def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
                features = self.stage(x)
                return features, self.head(features)

        return Both(self.stages[i], self.heads[i]).eval()


def untrained(mode: str, images: Tensor) -> list[System]:
    """Plain networks, CoE, cascade, ensemble, conditional convolutions."""
    run, image = MODES[mode], images[:1]
    seeded = torch.Generator().manual_seed(0)
    uniform = torch.rand(len(images), generator=seeded)
    chosen = torch.randint(0, EXPERTS, (len(images),), generator=seeded)
    plain = {name: network(name) for name in PLAIN}
    compute = {name: run(net, images[:8]) for name, net in plain.items()}
    systems = [
        dense(f"plain {name}", count_macs(net, image), compute[name]) for name, net in plain.items()
    ]
    delegator = network(DELEGATOR, CLASSES + EXPERTS)
    experts = [network(EXPERT) for _ in range(EXPERTS)]
    first, second = count_macs(delegator, image), count_macs(experts[0], image)
    delegate = run(delegator, images[:8])
    answers = [run(expert, images[:8]) for expert in experts]

    def team(name: str, rate: float, calls: Sequence[Compute]) -> System:
        # Exactly this share of every 8 images exits.
        rank = uniform.view(-1, 8).argsort(1).argsort(1).flatten()
        confidences = (rank < round(8 * rate)).float()
        selection = nn.functional.one_hot(chosen % len(calls), len(calls)).float()

        def predict(batch: Tensor, rows: slice) -> object:
            def delegation(x: Tensor) -> Delegation:
                out = delegate(x)
                rough = out[:, :CLASSES]
                confidence(rough), out[:, CLASSES:]  # computed as always, then drawn instead
                return Delegation(rough, confidences[rows], selection[rows])

            return infer(delegation, calls, batch, 0.5)

        def parts(batch: Tensor, rows: slice) -> Callable[[], object]:
            stays, experts_of = confidences[rows] < 0.5, (chosen % len(calls))[rows]
            groups = {}
            for j in range(len(calls)):
                index = (stays & (experts_of == j)).nonzero().flatten()
                if len(index):
                    groups[j] = laid_out(batch[index], mode)

            def alone() -> None:
                delegate(batch)
                for j, group in groups.items():
                    calls[j](group)

            return alone

        share = round(8 * rate) / 8
        return System(name, first + (1 - share) * second, predict, parts)

    systems += [team(f"CoE, {100 * rate:.0f}% exit", rate, answers) for rate in EXIT_RATES]
    systems.append(team("cascade, 50% exit", 0.5, answers[:1]))

    def mean_of_all(batch: Tensor, _: slice) -> Tensor:
        return torch.stack([answer(batch).softmax(1) for answer in answers]).mean(0)

    systems.append(System("ensemble of 4 experts", EXPERTS * second, mean_of_all))
    return [*systems, multi_exit(mode, images, uniform), *conditional(mode, image)]


def conditional(mode: str, image: Tensor) -> list[System]:
    """Networks of conditional convolutions; none is exported: their kernels are made per image."""
    if mode not in ("eager", "bf16"):
        return []
    networks = {name: network(name) for name in CONDITIONAL}
    return [
        dense(f"CondConv {name}", count_macs(net, image), MODES[mode](net, image))
        for name, net in networks.items()
    ]


def multi_exit(mode: str, images: Tensor, uniform: Tensor) -> System:
    """A third of the images ends at each of three exits."""
    model = MultiExit(network(EXPERT), images[:2])
    stages, inputs, macs, calls = [model.stage(i) for i in range(3)], images[:8], 0.0, []
    for i, stage in enumerate(stages):
        macs += (1 - i / 3) * count_macs(stage, inputs[:1])
        calls.append(stage_call(mode, stage, inputs))
        inputs = stage(inputs)[0]
    leaves = (uniform * 3).long()

    def predict(batch: Tensor, rows: slice) -> Tensor:
        return exit_by_exit(calls, batch, leaves[rows], mode)

    return System("multi-exit, a third at each", macs, predict)


def exit_by_exit(calls: Sequence[Callable], batch: Tensor, leaves: Tensor, mode: str) -> Tensor:
    """Logits of images that leave at the exits given for them; those that stay go on together."""
    here, features = torch.arange(len(batch)), batch
    result = torch.empty(len(batch), CLASSES)
    for number, call in enumerate(calls):
        features, logits = call(features)
        confidence(logits)
        result[here] = logits
        stay = (leaves[here] > number).nonzero().flatten()
        if not len(stay):
            break
        if len(stay) < len(here):
            features, here = laid_out(features[stay], mode), here[stay]
    return result


def stage_call(mode: str, stage: nn.Module, example: Tensor) -> Callable:
    if mode == "onnxruntime":
        return onnx_session(stage, (example[:2],))
    if mode == "bf16":

        def call(x: Tensor) -> tuple[Tensor, Tensor]:
            with torch.autocast("cpu", torch.bfloat16):
                features, logits = stage(x)
                return features, logits.float()

        return call
    return torch.compile(stage, dynamic=True) if mode == "compiled" else stage


# Systems of a trained run


@dataclass
class Stages:
    """A first network, and one of several others where it is not confident.

    Args:
        first: logits of c classes, then of the selection, if there is one.
        second: the others.
        selected: which of them each image is sent to.
        num_classes: c.
        mode: see `MODES`.
    """

    first: Compute
    second: Sequence[Compute]
    selected: Tensor
    num_classes: int
    mode: str

    def system(
        self, name: str, stage: TwoStage, threshold: float, rough_weight: float, images: int
    ) -> System:
        """Both networks at a threshold; ``images`` of the test set are run."""
        stays, c = stage.confidence < threshold, self.num_classes

        def predict(batch: Tensor, _: slice) -> object:
            def delegation(x: Tensor) -> Delegation:
                out = self.first(x)
                selection = out[:, c:] if out.shape[1] > c else out[:, :1]
                return Delegation(out[:, :c], confidence(out[:, :c]), selection)

            pool = (lambda rough, answer: answer + rough_weight * rough) if rough_weight else None
            return infer(delegation, self.second, batch, threshold, combine=pool)

        def parts(batch: Tensor, rows: slice) -> Callable[[], object]:
            groups = {
                j: laid_out(batch[index], self.mode)
                for j in range(len(self.second))
                if len(index := (stays & (self.selected == j))[rows].nonzero().flatten())
            }

            def alone() -> None:
                self.first(batch)
                for j, group in groups.items():
                    self.second[j](group)

            return alone

        cost = stage.costs["macs"]
        spent = cost.first + float(torch.where(stays, cost.second, 0.0)[:images].mean())
        return System(name, spent, predict, parts, stage.at(threshold).quality)


def trained(mode: str, path: str) -> tuple[list[System], Tensor]:
    """The team at its operating points, and its controls, with accuracy on the test images given."""
    from vision.evaluation.predictions import predict_all
    from vision.evaluation.stages import coe_logits, fit_stages
    from vision.evaluation.stages import two_stage as stage_of
    from vision.recipe_networks import run_macs
    from vision.run import load_run, load_run_data

    loaded = load_run(path)
    networks, team = loaded.networks, loaded.networks.team
    data = load_run_data(loaded)
    test, macs = data.test, run_macs(networks)
    every = predict_all(networks, test)
    size = min(len(test) - len(test) % 8, 512)
    images = networks.prepare(torch.stack([test[i]["image"] for i in range(size)]))
    images = laid_out(images, mode)
    delegate = MODES[mode](team.delegator, images[:8])
    answers = [MODES[mode](expert, images[:8]) for expert in team.experts]
    plain = {name: MODES[mode](net, images[:8]) for name, net in networks.controls.items()}
    systems = [
        dense(
            f"plain {name}",
            macs.controls[name],
            compute,
            float(every.right(every.control_logits[name]).mean()),
        )
        for name, compute in plain.items()
    ]
    coe = Stages(delegate, answers, every.selected_expert, team.num_classes, mode)
    for name, point in loaded.stored.named().items():
        weight = point.rough_weight
        stage = stage_of(every, coe_logits(every, macs), weight)
        systems.append(coe.system(f"CoE at {name}", stage, point.threshold, weight, size))
    fitted = fit_stages(predict_all(networks, data.validation), every, macs).get("cascade")
    if fitted is not None:
        curve, only = fitted.validation.curve(), torch.zeros(len(test))
        cascade = Stages(plain["delegator"], [plain["expert"]], only, team.num_classes, mode)
        for name, point in loaded.stored.named().items():
            if point.cost_unit == "macs":
                index = fit_threshold(curve, "macs", max(point.cost, float(curve.cost.min())))
                at = (float(curve.threshold[index]), fitted.rough_weight, size)
                systems.append(cascade.system(f"cascade, MACs of {name}", fitted.test, *at))

    def mean_of_all(batch: Tensor, _: slice) -> Tensor:
        return torch.stack([answer(batch).softmax(1) for answer in answers]).mean(0)

    accuracy = float(every.right(every.expert_logits.softmax(2).mean(1)).mean())
    ensemble = f"ensemble of {len(answers)} experts"
    systems.append(System(ensemble, sum(macs.experts), mean_of_all, accuracy=accuracy))
    return systems, images


def laid_out(images: Tensor, mode: str) -> Tensor:
    """The images in the memory format that the mode computes in."""
    wanted = torch.contiguous_format if mode == "onnxruntime" else torch.channels_last
    return images.contiguous(memory_format=wanted)
