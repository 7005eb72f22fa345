"""The translation task of fairseq, with routing: what fairseq-train, -validate, -generate, -interactive use."""

# No "from __future__ import annotations": fairseq reads the types of dataclass fields.
import logging
import sys
from collections import defaultdict, deque
from dataclasses import dataclass, field

import torch
from fairseq.dataclass import ChoiceEnum
from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from fairseq.utils import strip_pad

from translation.decoding import CollaborativeGenerator
from translation.model import CoETransformerModel
from translation.routers import ROUTERS, Router, check_threshold, parse_router

_NOT_SUPPORTED = {
    "score_reference": "it scores one network's forced decoding; use fairseq-validate",
    "retain_iter_history": "it belongs to non-autoregressive models",
    "print_step": "it belongs to non-autoregressive models",
}


@dataclass
class CoETranslationConfig(TranslationConfig):
    """Options of the task: those of ``translation``, and how sentences are routed."""

    router: str = field(
        default="learned",
        metadata={"help": f"who translates the sentences that do not end early: {ROUTERS}"},
    )
    threshold: str = field(
        default="inf",
        metadata={
            "help": "a sentence ends with the delegator's hypothesis when its confidence is at least this; "
            "higher means fewer exits; inf (default): none, 0: all"
        },
    )
    confidence: ChoiceEnum(["probability", "log_probability"]) = field(
        default="probability",
        metadata={
            "help": "confidence of a hypothesis: its length-normalised log-probability, or the "
            "exponential of it (in [0, 1], default)"
        },
    )
    no_route_lines: bool = field(
        default=False,
        metadata={"help": "do not print a line R-<id>, route, confidence for each sentence"},
    )


@register_task("coe_translation", dataclass=CoETranslationConfig)
class CoETranslationTask(TranslationTask):
    """Translate with a Collaboration of Experts; a plain fairseq model is translated with as it is."""

    def __init__(self, cfg, src_dict, tgt_dict):
        super().__init__(cfg, src_dict, tgt_dict)
        try:
            threshold = float(cfg.threshold)
        except ValueError:
            raise ValueError(
                f"threshold must be a number such as 0.6, or inf; got {cfg.threshold!r}"
            ) from None
        self.confidence = str(cfg.confidence)
        self.threshold = check_threshold(threshold, self.confidence)
        self.num_updates = 0
        self.epoch = 1
        self.dummy_batch = False  # whether this process fills up a step with a batch that does not count
        self.num_experts: int | None = None  # known once a model is built
        self._typed = 0  # lines that fairseq-interactive has read
        self._lines: dict[tuple, deque] = {}

    @property
    def router(self) -> Router:
        return parse_router(self.cfg.router, self.num_experts or 0)

    def build_model(self, cfg, from_checkpoint=False):
        model = super().build_model(cfg, from_checkpoint)
        if isinstance(model, CoETransformerModel):
            self.num_experts = model.num_experts
            _ = self.router  # an unknown one is an error now, not after the first epoch
        return model

    def begin_epoch(self, epoch, model):
        super().begin_epoch(epoch, model)
        self.epoch = epoch

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        self.num_updates, self.dummy_batch = update_num, ignore_grad
        return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)

    def build_generator(self, models, args, *more, extra_gen_cls_kwargs=None, **named):
        """fairseq's generator for a plain model; for a team, one that routes between its networks'.

        Raises:
            ValueError: an option of generation, or a mixture of checkpoints, that cannot be routed.
        """
        teams = [model for model in models if isinstance(model, CoETransformerModel)]

        def over(some: list):  # a generator over one network, or several as an ensemble
            extra = dict(extra_gen_cls_kwargs or {})
            return super(CoETranslationTask, self).build_generator(
                some, args, *more, extra_gen_cls_kwargs=extra, **named
            )

        if not teams:
            return over(models)
        for option, reason in _NOT_SUPPORTED.items():
            if getattr(args, option, False):
                name = option.replace("_", "-")
                raise ValueError(f"--{name} does not go with a Collaboration of Experts: {reason}")
        team, plain = models[0], models[1:]
        if len(teams) > 1 or team is not teams[0] or (plain and self.router.kind != "cascade"):
            raise ValueError(
                f"--path names {len(models)} checkpoints, {len(teams)} of them collaborations: give one "
                "collaboration alone, or, with --router cascade, COLLABORATION:PLAIN_MODEL"
            )
        if self.router.kind == "cascade" and not plain:
            raise ValueError(
                "router 'cascade' is the delegator and one plain model without selection: "
                "give --path COLLABORATION:PLAIN_MODEL"
            )
        if self.router.kind == "oracle":
            raise ValueError(
                "router 'oracle' looks at the reference: it serves fairseq-validate, not generation"
            )
        if self.router.kind == "cascade":
            experts = [over(plain)]
        elif self.router.kind == "ensemble":
            experts = [over(list(team.experts))]
        else:
            experts = [over([expert]) for expert in team.experts]
        delegator = over([team.delegator])
        return CollaborativeGenerator(
            delegator,
            _listen_to_selection(delegator, team),
            experts,
            self.router,
            threshold=self.threshold,
            confidence=self.confidence,
            pad=self.source_dictionary.pad(),
            eos=self.source_dictionary.eos(),
            by_length=getattr(args, "max_len_a", 0) > 0 or getattr(args, "match_source_len", False),
        )

    def build_dataset_for_inference(self, src_tokens, src_lengths, constraints=None):
        """As the parent; and remember which lines these are, since `inference_step` is not told."""
        self._lines = defaultdict(deque)
        for number, tokens in enumerate(src_tokens, start=self._typed):
            self._lines[tuple(tokens.tolist())].append(number)
        self._typed += len(src_tokens)
        return super().build_dataset_for_inference(src_tokens, src_lengths, constraints=constraints)

    def inference_step(self, generator, models, sample, prefix_tokens=None, constraints=None):
        hypotheses = super().inference_step(
            generator, models, sample, prefix_tokens=prefix_tokens, constraints=constraints
        )
        validating = generator is getattr(self, "sequence_generator", None)
        if isinstance(generator, CollaborativeGenerator) and not (
            validating or self.cfg.no_route_lines
        ):
            output = _output()
            for number, route in zip(self._numbers(sample), generator.routes, strict=True):
                print(f"R-{number}\t{route.network}\t{route.confidence:.4f}", file=output)
        return hypotheses

    def _numbers(self, sample) -> list[int]:
        """Number of each sentence of a batch, as fairseq prints it in S-<number>."""
        if "id" in sample:
            return sample["id"].tolist()
        pad = self.source_dictionary.pad()
        sources = sample["net_input"]["src_tokens"].cpu()
        return [self._lines[tuple(strip_pad(row, pad).tolist())].popleft() for row in sources]


def _listen_to_selection(generator, team: CoETransformerModel):
    """Let the generator's encoder pass also give the selection, so that nothing runs twice."""
    heard = []
    encode = generator.model.forward_encoder

    def forward_encoder(net_input):
        encoded = encode(net_input)
        heard[:] = [team.select(encoded[0])]
        return encoded

    generator.model.forward_encoder = forward_encoder
    return lambda: heard[0]


def _output():
    """Where fairseq's other lines go: fairseq-generate logs to the file of --results-path too."""
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler and handler.stream is not sys.stderr:
            return handler.stream
    return sys.stdout
