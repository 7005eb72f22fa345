"""The translation task of fairseq, with routing: for fairseq-train, -validate, -generate, -interactive."""

import struct
from collections import deque
from pathlib import Path

from fairseq.logging import metrics
from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationTask
from fairseq.utils import resolve_max_positions, split_paths
from torch import Tensor

from coe_core import CoEError, check_one, share_gradient
from coe_core.support.files import sha256_of
from translation.corpora.vocabulary import fingerprint
from translation.generation.generator import CollaborativeGenerator
from translation.generation.routers import Router, check_threshold, parse_router
from translation.plugin.batches import TypedDataset, WholePairDataset
from translation.plugin.generators import routed_generator
from translation.plugin.model import CoETransformerModel
from translation.plugin.routes import RouteWriter
from translation.plugin.start import copy_into_experts
from translation.plugin.subwords import check_sampling, sampler_of
from translation.plugin.task_options import CoETranslationConfig
from translation.plugin.thresholds import CASCADE, is_stored, threshold_from
from translation.plugin.trust import check_direction, check_languages, last_loaded, no_such_set

CRITERION = "coe_label_smoothed_cross_entropy"
_DECODES_AGAIN = (
    "subword_nmt",
    "fastbpe",
)  # that a text is put together already does not matter to them


@register_task("coe_translation", dataclass=CoETranslationConfig)
class CoETranslationTask(TranslationTask):
    """Translate with a Collaboration of Experts; a plain fairseq model is translated with as it is."""

    def __init__(self, cfg, src_dict, tgt_dict):
        super().__init__(cfg, src_dict, tgt_dict)
        entries = {"source": src_dict, "target": tgt_dict}
        self.state.merge_state_dict(
            {"dictionaries": {side: fingerprint(words.symbols) for side, words in entries.items()}}
        )
        self.confidence = str(cfg.confidence)
        kind = parse_router(cfg.router, num_experts=None).kind
        threshold = threshold_from(cfg.threshold, kind, self._settings(kind))
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
        self._loaded: list[str] = []  # checkpoints of the models that were built, in their order
        self._routes = RouteWriter(cfg.routes)
        self._typed = 0  # lines that fairseq-interactive has read
        self._numbers: deque[Tensor] = deque()  # of the lines of each batch of them

    @classmethod
    def setup_task(cls, cfg, **named):
        """As the parent.

        Raises:
            ValueError: pieces would be put together twice, updates of no batch, or no data folder.
        """
        command = getattr(cfg, "_get_parent", lambda: None)()
        bpe = getattr(getattr(command, "bpe", None), "_name", None)
        removed = getattr(getattr(command, "common_eval", None), "post_process", None)
        if removed is not None and bpe is not None and bpe not in _DECODES_AGAIN:
            raise ValueError(
                f"--bpe {bpe} and --remove-bpe {removed} would put pieces together twice, and join all "
                f"words: give --bpe alone (text is typed), or --remove-bpe alone (data are pieces)"
            )
        check_sampling(cfg)
        frequency = getattr(getattr(command, "optimization", None), "update_freq", None) or [1]
        if min(frequency) < 1:
            raise ValueError(f"--update-freq must be at least 1, got {min(frequency)}")
        for folder in split_paths(cfg.data or ""):
            if "://" not in folder and not Path(folder).is_dir():
                raise ValueError(f"{folder}: no such folder; fairseq-preprocess makes it")
        try:
            given = cfg.source_lang, cfg.target_lang
            task = super().setup_task(cfg, **named)
            check_languages(given, (cfg.source_lang, cfg.target_lang), cfg.data)
            return task
        except (ValueError, CoEError):
            raise
        except Exception as error:  # fairseq's are of no particular kind
            raise ValueError(f"data folder {cfg.data}: {error}") from error

    @property
    def router(self) -> Router:
        return parse_router(self.cfg.router, self.num_experts or 0)

    def _settings(self, router: str) -> dict[str, str]:
        """What a stored threshold must have been fitted with; the search is known once there is one."""
        direction = f"{self.cfg.source_lang}-{self.cfg.target_lang}"
        return {"confidence": self.confidence, "router": router, "direction": direction}

    def build_model(self, cfg, from_checkpoint=False):
        model = super().build_model(cfg, from_checkpoint)
        if from_checkpoint and (loaded := last_loaded()) is not None:
            check_direction(loaded, f"{self.cfg.source_lang}-{self.cfg.target_lang}")
            self._loaded.append(loaded.path)
        if isinstance(model, CoETransformerModel):
            self.num_experts, self.equal_experts = model.num_experts, model.equal_experts
            self.new_team = None if from_checkpoint else model
            if self.new_team is not None and self.cfg.init_experts:
                copy_into_experts(self.new_team.experts, self.cfg.init_experts)
            _ = self.router  # an unknown one is an error now, not after the first epoch
        return model

    def build_criterion(self, cfg, from_checkpoint=False):
        """As the parent.

        Raises:
            ValueError: a team is to be trained by another criterion than its own.
        """
        name = str(getattr(cfg, "_name", None) or getattr(cfg, "criterion", cfg))
        if self.num_experts is not None and name != CRITERION:
            raise ValueError(
                f"--criterion {name} trains one network, not a delegator with its experts: "
                f"give --criterion {CRITERION}"
            )
        return super().build_criterion(cfg, from_checkpoint)

    def load_state_dict(self, state_dict):
        """As the parent; checkpoints know which dictionaries they were trained with.

        Raises:
            ValueError: these are others.
        """
        stored = state_dict.get("dictionaries")
        stored = stored if isinstance(stored, dict) else {}
        for side, dictionary in self.state.dictionaries.items():
            trained = stored.get(side, dictionary)
            if trained != dictionary:
                sizes = [str(which).partition(" ")[0] for which in (dictionary, trained)]
                what = "as many, but others or in another order"
                what = what if sizes[0] == sizes[1] else sizes[1]
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

    def num_training_sentences(self, option: str, all_come_up: bool = True) -> int:
        """Size of the training set, for portions that go by the numbers of its sentences.

        Args:
            option: that needs it, for messages.
            all_come_up: whether portions wait for every sentence.

        Raises:
            ValueError: several data folders, or sentences that training would skip though all must come up.
        """
        if len(split_paths(self.cfg.data)) > 1:
            raise ValueError(
                f"{option} needs one data folder: with several the training set changes every epoch"
            )
        self.load_dataset(self.cfg.train_subset, combine=True)
        dataset = self.dataset(self.cfg.train_subset)
        if not all_come_up:
            return len(dataset)
        assert self.new_team is not None, "portions are of a training"
        limits = resolve_max_positions(self.max_positions(), self.new_team.max_positions())
        _, ignored = dataset.filter_indices_by_size(dataset.ordered_indices(), limits)
        if len(ignored):
            raise ValueError(
                f"{option}: {len(ignored)} of {len(dataset)} training sentences are over "
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
                f"the first is number {ignored[0]}, of sizes {tuple(map(int, dataset.size(ignored[0])))}; "
                "--skip-invalid-size-inputs-valid-test leaves them out"
            )
        return super().filter_indices_by_size(
            indices, dataset, max_positions, ignore_invalid_inputs
        )

    def reduce_metrics(self, logging_outputs, criterion):
        """As the parent; where nothing was translated yet BLEU is 0, not missing."""
        super().reduce_metrics(logging_outputs, criterion)
        words = [log["_bleu_totals_0"] for log in logging_outputs if "_bleu_totals_0" in log]
        if words and not sum(words):
            metrics.log_scalar("bleu", 0.0)

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        self.num_updates, self.dummy_batch = update_num, ignore_grad
        team = self.new_team if getattr(criterion, "experts_are_one", False) else None
        if team is not None and not self._checked:
            check_one(team.experts)
            self._checked = True
        done = super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)
        if team is not None:
            share_gradient(team.experts)
        return done

    def plain_generator(self, networks: list, args, **named):
        """fairseq's own generator over one network, or over several as an ensemble."""
        return super().build_generator(networks, args, **named)

    def build_generator(self, models, args, *more, extra_gen_cls_kwargs=None, **named):
        """fairseq's generator for a plain model; for a team, one that routes between its networks'.

        Raises:
            ValueError: a beam below 1; see `routed_generator`.
        """
        if getattr(args, "beam", 1) < 1:
            raise ValueError(f"--beam must be at least 1, got {args.beam}")

        def over(networks: list):  # a generator over one network, or several as an ensemble
            extra = dict(extra_gen_cls_kwargs or {})
            return super(CoETranslationTask, self).build_generator(
                networks, args, *more, extra_gen_cls_kwargs=extra, **named
            )

        if not any(isinstance(model, CoETransformerModel) for model in models):
            return over(models)
        return routed_generator(self, models, args, over)

    def check_stored_threshold(self, args) -> None:
        """Refuse a stored threshold of another checkpoint or another search.

        Args:
            args: of the search.

        Raises:
            ValueError: see `threshold_from`.
        """
        if not is_stored(self.cfg.threshold) or not self._loaded:
            return
        kind = self.router.kind
        part = "checkpoint" if kind != CASCADE else "expert-alone"
        threshold_from(
            self.cfg.threshold,
            kind,
            {
                **self._settings(kind),
                part: sha256_of(self._loaded[-1]),
                "beam": getattr(args, "beam", 5),
                "lenpen": getattr(args, "lenpen", 1.0),
            },
        )

    def load_dataset(self, split, epoch=1, combine=False, **kwargs):
        """As the parent.

        Raises:
            ValueError: no such set, a damaged one, or sides of different length or without sentences.
        """
        again = (
            "check the texts with coe-translation check, and run fairseq-preprocess again; "
            f"data folder: {self.cfg.data}"
        )
        try:
            super().load_dataset(split, epoch=epoch, combine=combine, **kwargs)
        except FileNotFoundError as error:
            raise ValueError(no_such_set(split, self.cfg)) from error
        except AssertionError as error:
            if "same number" not in str(error):
                raise ValueError(f"{split}: the set is damaged ({error}); {again}") from error
            raise ValueError(
                f"{split}: source and target have different numbers of sentences; {again}"
            ) from error
        except ValueError as error:
            if "empty file" not in str(error):
                raise ValueError(f"{split}: the set is damaged ({error}); {again}") from error
            raise ValueError(f"{split}: source or target has no sentences; {again}") from error
        except (struct.error, KeyError, IndexError, TypeError, OverflowError, OSError) as error:
            raise ValueError(f"{split}: the set is damaged ({error!r}); {again}") from error
        dataset = self.datasets[split]
        dataset.__class__ = WholePairDataset
        is_trained_on = "data_selector" in kwargs  # so its trainer asks for it, and nobody else
        if self.cfg.subword_sampling and is_trained_on and split == self.cfg.train_subset:
            dataset.sampler, dataset.epoch = sampler_of(self.cfg, self.source_dictionary), epoch

    def get_batch_iterator(self, dataset, *options, seed=1, update_epoch_batch_itr=False, **named):
        if isinstance(dataset, WholePairDataset):
            dataset.order_seed = None if update_epoch_batch_itr else seed + 1
            if dataset.sampler is not None:
                dataset.sampler.seed = seed
        return super().get_batch_iterator(
            dataset, *options, seed=seed, update_epoch_batch_itr=update_epoch_batch_itr, **named
        )

    def build_dataset_for_inference(self, src_tokens, src_lengths, constraints=None):
        """As the parent; and remember which lines are in which batch, since `inference_step` is not told."""
        dataset = super().build_dataset_for_inference(
            src_tokens, src_lengths, constraints=constraints
        )
        self._numbers.clear()
        first, self._typed = self._typed, self._typed + len(src_tokens)
        return TypedDataset.over(dataset, first, self._numbers)

    def inference_step(self, generator, models, sample, prefix_tokens=None, constraints=None):
        hypotheses = super().inference_step(
            generator, models, sample, prefix_tokens=prefix_tokens, constraints=constraints
        )
        validating = generator is getattr(self, "sequence_generator", None)
        if isinstance(generator, CollaborativeGenerator) and not validating:
            numbers = sample["id"] if "id" in sample else self._numbers.popleft()
            self._routes.write(numbers.tolist(), generator.routes)
        return hypotheses
