"""The team as a fairseq model: a small encoder-decoder that also selects, and k plain transformers."""

# No "from __future__ import annotations": fairseq reads the types of dataclass fields.
from functools import partial
from typing import NamedTuple

import torch
from fairseq.models import BaseFairseqModel, register_model, register_model_architecture
from fairseq.models.transformer import TransformerModel
from jaxtyping import Float, Int
from torch import Tensor, nn

from coe_core import Partitioner, scale_gradient
from translation.generation.macs import TransformerMacs, encoder_macs
from translation.plugin.options import (
    PRESETS,
    CoETransformerConfig,
    complete,
    delegator_arguments,
    expert_arguments,
    fill,
    layers_of_experts,
)
from translation.plugin.selection import SelectionHead
from translation.plugin.shared_decoder import EncoderOut, joined, share_decoder
from translation.plugin.shared_encoder import (
    BranchedTransformer,
    Handed,
    SharedLayers,
    share_layers,
)

MOST_EXPERTS = 1024  # each is a whole network
PARTITION = "partition"  # how the names of the portions' state begin


class TeamOutput(NamedTuple):
    """Logits of every network on every sentence: all that a training step needs."""

    rough: Float[Tensor, "n t c"]
    selection_logits: Float[Tensor, "n k"]
    experts: list[Float[Tensor, "n t c"]]  # one where all are that one, or of each sentence its own


@register_model("coe_transformer", dataclass=CoETransformerConfig)
class CoETransformerModel(BaseFairseqModel):
    """A delegator and k experts, each a plain fairseq transformer; nothing is shared but what is asked for.

    PAPER: the delegator gives a rough prediction and a selection; experts are whole networks.
    RECONSTRUCTED: the delegator of translation is a smaller transformer whose selection head sees
    its mean-pooled encoder output. OURS: the first layers of all encoders may be the same, and the decoder
    of all experts.

    Args:
        delegator: network of the rough prediction.
        selection: its second answer.
        experts: k networks.
        shared: layers that all encoders begin with.
        shared_gradient: factor on each expert's gradient into them; None: 1 / k.
    """

    def __init__(
        self,
        delegator: TransformerModel,
        selection: SelectionHead,
        experts: list[TransformerModel],
        shared: SharedLayers | None = None,
        shared_gradient: float | None = None,
    ):
        super().__init__()
        self.delegator = delegator
        self.selection = selection
        self.experts = nn.ModuleList(experts)
        self.shared = shared
        self.shared_gradient = 1 / len(experts) if shared_gradient is None else shared_gradient

    @classmethod
    def build_model(cls, cfg, task):
        if not hasattr(task, "num_experts"):
            raise ValueError(
                "a Collaboration of Experts needs --task coe_translation; where none is given fairseq takes "
                "'translation', which cannot route"
            )
        cfg = complete(cfg)
        if cfg.num_experts < 1:
            raise ValueError(f"--num-experts must be at least 1, got {cfg.num_experts}")
        if cfg.num_experts > MOST_EXPERTS:
            raise ValueError(f"--num-experts must be at most {MOST_EXPERTS}, got {cfg.num_experts}")
        count = cfg.shared_encoder_layers
        _check_shared(cfg)
        kind = BranchedTransformer if count else TransformerModel
        delegator = kind.build_model(delegator_arguments(cfg), task)
        experts = [kind.build_model(arguments, task) for arguments in expert_arguments(cfg)]
        tied = cfg.share_all_embeddings
        shared = share_layers([delegator, *experts], count, tied) if count else None
        if cfg.shared_decoder:
            share_decoder(experts, tied)
        selection = SelectionHead(cfg.delegator_embed_dim, cfg.num_experts)
        return cls(delegator, selection, experts, shared, cfg.shared_encoder_gradient)

    @property
    def num_experts(self) -> int:
        return len(self.experts)

    @property
    def shared_macs(self) -> TransformerMacs:
        """What the shared layers spend on a sentence; nothing where there are none."""
        if self.shared is None:
            return TransformerMacs(0, 0, 0, 0, 0)
        return encoder_macs(self.shared.encoder, self.shared.count)

    @property
    def equal_experts(self) -> bool:
        """Whether all experts are built alike, so that they can start as one network."""
        first, *others = ([p.shape for p in expert.parameters()] for expert in self.experts)
        return all(other == first for other in others)

    def select(self, encoder_out: dict[str, list[Tensor]]) -> Float[Tensor, "n k"]:
        """Selection logits from what the delegator's encoder returned."""
        padding = encoder_out["encoder_padding_mask"]
        return self.selection(encoder_out["encoder_out"][0], padding[0] if padding else None)

    @torch.no_grad()
    def select_sentences(
        self, source: Int[Tensor, "n s"], length: Int[Tensor, " n"]
    ) -> Float[Tensor, "n k"]:
        """Selection logits of sentences that the delegator does not translate."""
        return self.select(self.delegator.encoder(source, src_lengths=length))

    def forward(
        self,
        src_tokens: Int[Tensor, "n s"],
        src_lengths: Int[Tensor, " n"],
        prev_output_tokens: Int[Tensor, "n t"],
        one_expert: bool = False,
        portion: Int[Tensor, " n"] | None = None,
    ) -> TeamOutput:
        """All networks on all sentences, teacher-forced: for training and validation.

        ``one_expert``: of the experts, the first only; for the shared start.
        ``portion``: of each sentence this expert only; where no other learns from it.
        """
        handed = None if self.shared is None else self.shared(src_tokens)
        encoder = self.delegator.encoder
        encoded = encoder(src_tokens, src_lengths) if handed is None else encoder.go_on(handed)
        rough, _ = self.delegator.decoder(prev_output_tokens, encoder_out=encoded)
        if handed is not None and not one_expert:  # one counts as one
            scaled = scale_gradient(handed.states, self.shared_gradient)
            handed = handed._replace(states=scaled)
        inputs = src_tokens, src_lengths, prev_output_tokens
        if portion is not None:
            experts = [self._by_portion(portion, handed, *inputs)]
        else:
            running = self.experts[:1] if one_expert else self.experts
            experts = [_logits(expert, handed, *inputs) for expert in running]
        return TeamOutput(rough, self.select(encoded), experts)

    def _by_portion(
        self, portion: Int[Tensor, " n"], handed: Handed | None, *inputs: Tensor
    ) -> Float[Tensor, "n t c"]:
        """Logits of each sentence by its own expert; experts without one have a gradient of zeros."""
        source, length, previous = inputs
        experts, order, encoded, idle = [], [], [], []
        for j, expert in enumerate(self.experts):
            rows = (portion == j).nonzero()[:, 0]
            if len(rows):
                mine = None if handed is None else handed.rows(rows)
                experts.append(expert)
                order.append(rows)
                encoded.append(_encoded(expert, mine, source[rows], length[rows]))
            else:  # data-parallel wrappers wait for a gradient of every parameter
                idle += [parameter.sum() for parameter in expert.parameters()]
        places = torch.cat(order).argsort()
        if self.shares_decoder:  # it runs once, on all
            logits = _decoded(self.experts[0], previous, joined(encoded, places))
        else:
            parts = zip(experts, order, encoded, strict=True)
            apart = [_decoded(expert, previous[rows], made) for expert, rows, made in parts]
            logits = torch.cat(apart)[places]
        return logits + 0 * sum(idle)

    @property
    def shares_decoder(self) -> bool:
        """Whether all experts have one decoder."""
        return all(expert.decoder is self.experts[0].decoder for expert in self.experts)

    def keep(self, partition: Partitioner) -> None:
        """Hold the state of the portions while training: fairseq saves that of models only."""
        self.partition = partition
        self.register_buffer("partition_epoch", torch.zeros((), dtype=torch.long))

    def begin_epoch(self, epoch: int) -> None:
        """Portions of a whole data set are cut anew; not when a training is resumed inside an epoch."""
        if hasattr(self, "partition") and int(self.partition_epoch) != epoch:
            self.partition.begin_epoch()
            self.partition_epoch.fill_(epoch)

    def max_positions(self) -> tuple[int, int]:
        """Longest source and target that every network takes."""
        sides = zip(
            *(network.max_positions() for network in (self.delegator, *self.experts)), strict=True
        )
        return tuple(min(side) for side in sides)

    def max_decoder_positions(self) -> int:
        return self.max_positions()[1]

    def load_state_dict(self, state_dict, strict=True, model_cfg=None, args=None):
        """As fairseq does, after checking that the checkpoint was trained with this vocabulary.

        Raises:
            ValueError: the dictionaries have other sizes than the checkpoint's embeddings.
        """
        for side in ("encoder", "decoder"):
            saved = state_dict.get(f"delegator.{side}.embed_tokens.weight")
            size = getattr(self.delegator, side).embed_tokens.num_embeddings
            if saved is not None and len(saved) != size:
                raise ValueError(
                    f"the {side}'s dictionary does not match the checkpoint: it has {size} entries, "
                    f"the checkpoint was trained with {len(saved)}; give the data folder (dict.*.txt) "
                    "that the model was trained on"
                )
        state_dict = {
            key: value for key, value in state_dict.items() if not key.startswith(PARTITION)
        } | {  # the state of the portions is for training on
            key: state_dict.get(key, value)
            for key, value in self.state_dict().items()
            if key.startswith(PARTITION)
        }
        return super().load_state_dict(state_dict, strict, model_cfg, args)


def _logits(
    expert: TransformerModel,
    handed: Handed | None,
    source: Int[Tensor, "n s"],
    length: Int[Tensor, " n"],
    previous: Int[Tensor, "n t"],
) -> Float[Tensor, "n t c"]:
    """An expert, teacher-forced, from tokens or from what shared layers made of them."""
    return _decoded(expert, previous, _encoded(expert, handed, source, length))


def _encoded(
    expert: TransformerModel,
    handed: Handed | None,
    source: Int[Tensor, "n s"],
    length: Int[Tensor, " n"],
) -> EncoderOut:
    """What an expert's encoder makes, from tokens or from what shared layers made of them."""
    encoder = expert.encoder
    return encoder(source, src_lengths=length) if handed is None else encoder.go_on(handed)


def _decoded(
    expert: TransformerModel, previous: Int[Tensor, "n t"], encoded: EncoderOut
) -> Float[Tensor, "n t c"]:
    """Logits of every token, from what an encoder made."""
    return expert.decoder(previous, encoder_out=encoded)[0]


def _check_shared(cfg) -> None:
    """Raise ValueError for options that do not go with shared layers, or that need some."""
    count, gradient = cfg.shared_encoder_layers, cfg.shared_encoder_gradient
    if count < 0:
        raise ValueError(f"--shared-encoder-layers must be at least 0, got {count}")
    if gradient is not None and count == 0:
        raise ValueError(
            "--shared-encoder-gradient is of shared layers: give --shared-encoder-layers too"
        )
    if gradient is not None and not 0 <= gradient <= 1000:
        raise ValueError(f"--shared-encoder-gradient must be in [0, 1000], got {gradient}")
    encoders = layers_of_experts(
        cfg.expert_encoder_layers, cfg.encoder_layers, cfg.num_experts, "--expert-encoder-layers"
    )
    if cfg.shared_decoder and count == max(encoders):
        raise ValueError(
            f"--shared-decoder: with {count} of {count} encoder layers shared, too, all experts would be one "
            "network"
        )
    if count and cfg.encoder_layerdrop:
        raise ValueError(
            "--encoder-layerdrop drops layers of one network, and --shared-encoder-layers are of all: "
            "leave one out"
        )


for _name in PRESETS:
    if _name != "coe_transformer":  # that one came with the model
        register_model_architecture("coe_transformer", _name)(partial(fill, sizes=PRESETS[_name]))
