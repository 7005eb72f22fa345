"""The translation task of fairseq, with routing: for fairseq-train, -validate, -generate, -interactive."""

# No "from __future__ import annotations": fairseq reads the types of dataclass fields.
from collections import defaultdict, deque
from dataclasses import dataclass, field

from fairseq.data import LanguagePairDataset
from fairseq.data.data_utils import numpy_seed
from fairseq.dataclass import ChoiceEnum
from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from fairseq.utils import resolve_max_positions, split_paths, strip_pad

from coe_core import check_one, share_gradient
from translation.corpora.vocabulary import fingerprint
from translation.evaluation.calibrate import stored_threshold
from translation.generation.generator import CollaborativeGenerator, Route, by_longest_source
from translation.generation.routers import ROUTERS, Router, check_threshold, parse_router
from translation.plugin.model import CoETransformerModel

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
            "higher means fewer exits; inf (default): none, 0: all; or FILE:AIM, a threshold that "
            "coe-translation calibrate stored, such as thresholds.json:macs=60%"
        },
    )
    confidence: ChoiceEnum(["probability", "log_probability"]) = field(
        default="probability",
        metadata={
            "help": "confidence of a hypothesis: its length-normalised log-probability, or the "
            "exponential of it (in [0, 1], default)"
        },
    )
    routes: str = field(
        default="-",
        metadata={
            "help": "where the line R-<id>, route, confidence of each sentence goes: a file, - (standard "
            "output, default) or none; with --results-path only a file keeps them beside the rest"
        },
    )


class WholePairDataset(LanguagePairDataset):
    """fairseq's data set without two faults of 0.12.3 in how batches are cut.

    - It leaves out the last batch if its size is not a multiple of --required-batch-size-multiple, 8 by
      default: up to a whole batch is neither trained on, nor validated on, nor translated.
    - It cuts batches by chance from the epoch at which a process starts, so a training that is resumed
      goes on with other batches than one that was not interrupted. Here they are those of epoch 1.
    """

    order_seed: int | None = None

    def ordered_indices(self):
        if self.order_seed is None:
            return super().ordered_indices()
        with numpy_seed(self.order_seed):
            return super().ordered_indices()

    def batch_by_size(self, indices, *options, **named):
        batches = super().batch_by_size(indices, *options, **named)
        rest = indices[sum(len(batch) for batch in batches) :]
        return [*batches, rest] if len(rest) else batches


@register_task("coe_translation", dataclass=CoETranslationConfig)
class CoETranslationTask(TranslationTask):
    """Translate with a Collaboration of Experts; a plain fairseq model is translated with as it is."""

    def __init__(self, cfg, src_dict, tgt_dict):
        super().__init__(cfg, src_dict, tgt_dict)
        entries = {"source": src_dict, "target": tgt_dict}
        self.state.merge_state_dict(
            {"dictionaries": {side: fingerprint(words.symbols) for side, words in entries.items()}}
        )
        try:
            threshold = float(cfg.threshold)
        except ValueError:
            if ":" not in cfg.threshold:
                raise ValueError(
                    "threshold must be a number such as 0.6, or inf, or FILE:AIM of what "
                    f"coe-translation calibrate wrote; got {cfg.threshold!r}"
                ) from None
            threshold = stored_threshold(cfg.threshold)
        self.confidence = str(cfg.confidence)
        self.threshold = check_threshold(threshold, self.confidence)
        self.num_updates = 0
        self.epoch = 1
        self.dummy_batch = (
            False  # whether this process fills up a step with a batch that does not count
        )
        self.num_experts: int | None = None  # known once a model is built
        self.equal_experts = False
        self.new_team: CoETransformerModel | None = (
            None  # built for training, not from a checkpoint
        )
        self._checked = False  # whether experts that train as one are known to be one
        self._told = False  # whether the file of --routes is ours already
        self._typed = 0  # lines that fairseq-interactive has read
        self._lines: dict[tuple, deque] = {}

    @property
    def router(self) -> Router:
        return parse_router(self.cfg.router, self.num_experts or 0)

    def build_model(self, cfg, from_checkpoint=False):
        model = super().build_model(cfg, from_checkpoint)
        if isinstance(model, CoETransformerModel):
            self.num_experts, self.equal_experts = model.num_experts, model.equal_experts
            self.new_team = None if from_checkpoint else model
            _ = self.router  # an unknown one is an error now, not after the first epoch
        return model

    def load_state_dict(self, state_dict):
        """As the parent; checkpoints know which dictionaries they were trained with.

        Raises:
            ValueError: these are others.
        """
        own, saved = self.state.dictionaries, state_dict.get("dictionaries", {})
        for side, found in own.items():
            trained = saved.get(side, found)
            if trained != found:
                sizes = [int(one.partition(" ")[0]) for one in (found, trained)]
                what = "as many, but others or in another order"
                what = what if sizes[0] == sizes[1] else f"{sizes[1]}"
                raise ValueError(
                    f"the {side} dictionary does not match the checkpoint: it has {sizes[0]} entries, the "
                    f"checkpoint was trained with {what}; give the data folder (dict.*.txt) that the "
                    "model was trained on"
                )
        super().load_state_dict(state_dict)

    def begin_epoch(self, epoch, model):
        super().begin_epoch(epoch, model)
        self.epoch = epoch
        if self.new_team is not None:
            self.new_team.begin_epoch(epoch)

    def num_training_sentences(self) -> int:
        """Size of the training set, for portions that are balanced over all of it.

        Raises:
            ValueError: several data folders, or sentences that training would skip: portions would wait
                for them.
        """
        if len(split_paths(self.cfg.data)) > 1:
            raise ValueError(
                "--portion-scope dataset needs one data folder: with several the training set changes "
                "every epoch"
            )
        self.load_dataset(self.cfg.train_subset, combine=True)
        dataset = self.dataset(self.cfg.train_subset)
        limits = resolve_max_positions(self.max_positions(), self.new_team.max_positions())
        _, ignored = dataset.filter_indices_by_size(dataset.ordered_indices(), limits)
        if len(ignored):
            raise ValueError(
                f"--portion-scope dataset: {len(ignored)} of {len(dataset)} training sentences are over "
                f"the length limit {limits}, and all must come up; leave them out of the data, or raise "
                "--max-source-positions and --max-target-positions"
            )
        return len(dataset)

    def filter_indices_by_size(
        self, indices, dataset, max_positions=None, ignore_invalid_inputs=False
    ):
        """As the parent, with an error that counts.

        Raises:
            ValueError: sentences over the length limit, unless fairseq is told to skip them.
        """
        _, ignored = dataset.filter_indices_by_size(indices, max_positions)
        if len(ignored) and not ignore_invalid_inputs:
            raise ValueError(
                f"{len(ignored)} of {len(indices)} sentences are over the length limit {max_positions}; "
                f"the first is number {ignored[0]}, of sizes {dataset.size(ignored[0])}; "
                "--skip-invalid-size-inputs-valid-test leaves them out"
            )
        return super().filter_indices_by_size(
            indices, dataset, max_positions, ignore_invalid_inputs
        )

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        self.num_updates, self.dummy_batch = update_num, ignore_grad
        shared = getattr(criterion, "experts_are_one", False)
        if shared and not self._checked:
            check_one(self.new_team.experts)
            self._checked = True
        done = super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)
        if shared:
            share_gradient(self.new_team.experts)
        return done

    def plain_generator(self, networks: list, args, **named):
        """fairseq's own generator over one network, or over several as an ensemble."""
        return super().build_generator(networks, args, **named)

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
            team.select_sentences,
            experts,
            self.router,
            threshold=self.threshold,
            confidence=self.confidence,
            pad=self.source_dictionary.pad(),
            eos=self.source_dictionary.eos(),
            by_length=by_longest_source(args),
        )

    def load_dataset(self, split, epoch=1, combine=False, **kwargs):
        """As the parent.

        Raises:
            ValueError: source and target have different numbers of sentences, or none.
        """
        again = (
            "check the texts with coe-translation check, and run fairseq-preprocess again; "
            f"data folder: {self.cfg.data}"
        )
        try:
            super().load_dataset(split, epoch=epoch, combine=combine, **kwargs)
        except AssertionError as error:
            if "same number" not in str(error):
                raise
            raise ValueError(
                f"{split}: source and target have different numbers of sentences; {again}"
            ) from error
        except ValueError as error:
            if "empty file" not in str(error):
                raise
            raise ValueError(f"{split}: source or target has no sentences; {again}") from error
        self.datasets[split].__class__ = WholePairDataset

    def get_batch_iterator(self, dataset, *options, seed=1, update_epoch_batch_itr=False, **named):
        if isinstance(dataset, WholePairDataset):
            dataset.order_seed = None if update_epoch_batch_itr else seed + 1
        return super().get_batch_iterator(
            dataset, *options, seed=seed, update_epoch_batch_itr=update_epoch_batch_itr, **named
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
        if isinstance(generator, CollaborativeGenerator) and not validating:
            self._tell(self._numbers(sample), generator.routes)
        return hypotheses

    def _tell(self, numbers: list[int], routes: list[Route]) -> None:
        """A line for each sentence, written at once, so that it can be followed."""
        if self.cfg.routes == "none":
            return
        told = zip(numbers, routes, strict=True)
        text = [f"R-{number}\t{one.network}\t{one.confidence:.4f}" for number, one in told]
        if self.cfg.routes == "-":
            print(*text, sep="\n")
            return
        with open(self.cfg.routes, "a" if self._told else "w", encoding="utf-8") as file:
            print(*text, sep="\n", file=file)
        self._told = True

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
