"""Options of the networks: what the user gives, the sizes of architectures, and what each network gets."""

# No "from __future__ import annotations": fairseq reads the types of dataclass fields.
from argparse import Namespace
from dataclasses import dataclass, field, fields
from typing import Any, Optional, cast

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.models.transformer import base_architecture
from fairseq.utils import get_available_activation_fns
from omegaconf import II


@dataclass
class CoETransformerConfig(FairseqDataclass):
    """Options of the networks. Those without a prefix describe an expert, with fairseq's own names.

    Sizes that are not given are the architecture's, see `PRESETS`.
    """

    num_experts: int = field(default=4, metadata={"help": "number of experts, k"})
    expert_encoder_layers: Optional[str] = field(
        default=None,
        metadata={
            "help": "encoder layers of each expert, such as 6,4,2; default: --encoder-layers for all"
        },
    )
    expert_decoder_layers: Optional[str] = field(
        default=None,
        metadata={
            "help": "decoder layers of each expert, such as 6,4,2; default: --decoder-layers for all"
        },
    )
    delegator_embed_dim: Optional[int] = field(
        default=None, metadata={"help": "embedding dimension of the delegator"}
    )
    delegator_ffn_embed_dim: Optional[int] = field(
        default=None, metadata={"help": "feed-forward dimension of the delegator"}
    )
    delegator_attention_heads: Optional[int] = field(
        default=None, metadata={"help": "attention heads of the delegator"}
    )
    delegator_encoder_layers: Optional[int] = field(
        default=None, metadata={"help": "encoder layers of the delegator"}
    )
    delegator_decoder_layers: Optional[int] = field(
        default=None, metadata={"help": "decoder layers of the delegator"}
    )
    delegator_dropout: Optional[float] = field(
        default=None, metadata={"help": "dropout of the delegator; default: --dropout"}
    )
    shared_encoder_layers: int = field(
        default=0,
        metadata={
            "help": "first layers of the encoder, and its embeddings, that the delegator and all experts "
            "share: they run once a sentence; the delegator's encoder has the experts' sizes then; "
            "0: none, whole networks"
        },
    )
    shared_encoder_gradient: Optional[float] = field(
        default=None,
        metadata={
            "help": "factor on each expert's gradient into the shared layers; default: 1 / --num-experts"
        },
    )
    shared_decoder: bool = field(
        default=False,
        metadata={
            "help": "all experts have one decoder, and its embeddings where a network ties them, each an "
            "encoder of its own: for several source languages and one target"
        },
    )
    activation_fn: ChoiceEnum(get_available_activation_fns()) = field(  # type: ignore[valid-type]  # made here
        default="relu", metadata={"help": "activation function"}
    )
    dropout: Optional[float] = field(default=None, metadata={"help": "dropout probability"})
    attention_dropout: float = field(
        default=0.0, metadata={"help": "dropout probability for attention weights"}
    )
    activation_dropout: float = field(
        default=0.0, metadata={"help": "dropout probability after the activation in FFN"}
    )
    encoder_embed_dim: Optional[int] = field(
        default=None, metadata={"help": "encoder embedding dimension"}
    )
    encoder_ffn_embed_dim: Optional[int] = field(
        default=None, metadata={"help": "encoder embedding dimension for FFN"}
    )
    encoder_layers: Optional[int] = field(
        default=None, metadata={"help": "number of encoder layers"}
    )
    encoder_attention_heads: Optional[int] = field(
        default=None, metadata={"help": "number of encoder attention heads"}
    )
    encoder_normalize_before: bool = field(
        default=False, metadata={"help": "apply layernorm before each encoder block"}
    )
    encoder_learned_pos: bool = field(
        default=False, metadata={"help": "learned positional embeddings in the encoder"}
    )
    encoder_layerdrop: float = field(default=0, metadata={"help": "LayerDrop of the encoder"})
    decoder_embed_dim: Optional[int] = field(
        default=None, metadata={"help": "decoder embedding dimension; default: the encoder's"}
    )
    decoder_ffn_embed_dim: Optional[int] = field(
        default=None,
        metadata={"help": "decoder embedding dimension for FFN; default: the encoder's"},
    )
    decoder_layers: Optional[int] = field(
        default=None, metadata={"help": "number of decoder layers"}
    )
    decoder_attention_heads: Optional[int] = field(
        default=None, metadata={"help": "number of decoder attention heads"}
    )
    decoder_normalize_before: bool = field(
        default=False, metadata={"help": "apply layernorm before each decoder block"}
    )
    decoder_learned_pos: bool = field(
        default=False, metadata={"help": "learned positional embeddings in the decoder"}
    )
    decoder_layerdrop: float = field(default=0, metadata={"help": "LayerDrop of the decoder"})
    share_decoder_input_output_embed: bool = field(
        default=False, metadata={"help": "share decoder input and output embeddings"}
    )
    share_all_embeddings: bool = field(
        default=False,
        metadata={
            "help": "share encoder, decoder and output embeddings within each network "
            "(requires a joined dictionary)"
        },
    )
    layernorm_embedding: bool = field(
        default=False, metadata={"help": "add layernorm to embedding"}
    )
    no_scale_embedding: bool = field(
        default=False, metadata={"help": "if True, dont scale embeddings"}
    )
    no_token_positional_embeddings: bool = field(
        default=False, metadata={"help": "disable positional embeddings"}
    )
    checkpoint_activations: bool = field(
        default=False, metadata={"help": "checkpoint activations at each layer: less memory"}
    )
    max_source_positions: int = II("task.max_source_positions")
    max_target_positions: int = II("task.max_target_positions")


def layers_of_experts(text: str | None, default: int, num_experts: int, option: str) -> list[int]:
    """One number of layers for each expert.

    Raises:
        ValueError: not whole numbers above 0, or not one for each expert.

    Example:
        >>> layers_of_experts("6,4", 6, num_experts=2, option="--expert-encoder-layers")
        [6, 4]
    """
    if text is None:
        return [default] * num_experts
    parts = str(text).split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"{option} must be whole numbers above 0 such as 6,4,2; got {text!r}")
    if len(parts) != num_experts:
        raise ValueError(
            f"{option} {text} gives layers for {len(parts)} experts, but --num-experts is {num_experts}"
        )
    return [int(part) for part in parts]


def complete(cfg) -> Namespace:
    """All options: those given, the architecture's sizes, and for an older checkpoint the defaults."""
    given = Namespace(_name=getattr(cfg, "_name", None))
    for option in fields(CoETransformerConfig):
        if option.name != "_name":
            default = 1024 if option.name.startswith("max_") else option.default
            setattr(given, option.name, getattr(cfg, option.name, default))
    fill(given, PRESETS.get(given._name, PRESETS["coe_transformer"]))
    return given


def expert_arguments(cfg: CoETransformerConfig) -> list[Namespace]:
    """Arguments of fairseq's own ``transformer`` for each expert."""
    not_shared = {"num_experts", "expert_encoder_layers", "expert_decoder_layers"}
    not_shared |= {"shared_decoder", "_name"}
    common = {
        option.name: getattr(cfg, option.name)
        for option in fields(CoETransformerConfig)
        if option.name not in not_shared
        and not option.name.startswith(("delegator_", "shared_encoder_"))
    }
    for name in ("decoder_embed_dim", "decoder_ffn_embed_dim"):
        if common[name] is None:
            common[name] = common[name.replace("decoder", "encoder")]
    k = cfg.num_experts
    encoder_layers, decoder_layers = cast(tuple[int, int], (cfg.encoder_layers, cfg.decoder_layers))
    encoders = layers_of_experts(
        cfg.expert_encoder_layers, encoder_layers, k, "--expert-encoder-layers"
    )
    decoders = layers_of_experts(
        cfg.expert_decoder_layers, decoder_layers, k, "--expert-decoder-layers"
    )
    return [
        _transformer_arguments(common, encoder_layers=encoder, decoder_layers=decoder)
        for encoder, decoder in zip(encoders, decoders, strict=True)
    ]


def delegator_arguments(cfg: CoETransformerConfig) -> Namespace:
    """Arguments of fairseq's own ``transformer`` for the delegator without its selection head.

    Where it shares layers of the encoder, all of its encoder's have the experts' sizes, so that it is a
    transformer as others are.
    """
    common = vars(expert_arguments(cfg)[0])
    sides = ("decoder",) if cfg.shared_encoder_layers else ("encoder", "decoder")
    own = {
        f"{side}_{name}": getattr(cfg, f"delegator_{name}")
        for side in sides
        for name in ("ffn_embed_dim", "attention_heads")
    }
    own |= {f"{side}_embed_dim": cfg.delegator_embed_dim for side in ("encoder", "decoder")}
    return _transformer_arguments(
        common,
        dropout=cfg.dropout if cfg.delegator_dropout is None else cfg.delegator_dropout,
        encoder_layers=cfg.delegator_encoder_layers,
        decoder_layers=cfg.delegator_decoder_layers,
        decoder_output_dim=cfg.delegator_embed_dim,
        decoder_input_dim=cfg.delegator_embed_dim,
        **own,
    )


def _transformer_arguments(common: dict, **given) -> Namespace:
    arguments = Namespace(**{**common, **given})
    base_architecture(arguments)
    return arguments


def _sizes(
    width: int, inner: int, encoder: int, decoder: int, heads: int, prefix: str = ""
) -> dict:
    if prefix:
        names = (
            "embed_dim",
            "ffn_embed_dim",
            "encoder_layers",
            "decoder_layers",
            "attention_heads",
        )
        values = (width, inner, encoder, decoder, heads)
        return {f"{prefix}_{name}": value for name, value in zip(names, values, strict=True)}
    sizes: dict[str, Any] = {"encoder_embed_dim": width, "encoder_ffn_embed_dim": inner}
    sizes |= {"encoder_layers": encoder, "decoder_layers": decoder, "dropout": 0.1}
    return sizes | {"encoder_attention_heads": heads, "decoder_attention_heads": heads}


# Experts have the sizes of fairseq's architecture of the same name without "coe_"; the delegators' are
# OURS. Width, inner width, encoder layers, decoder layers, heads.
_BASE = _sizes(512, 2048, 6, 6, 8) | _sizes(256, 1024, 3, 2, 4, "delegator")
PRESETS = {
    "coe_transformer": _BASE,
    "coe_transformer_tiny": _sizes(64, 128, 2, 2, 2) | _sizes(32, 64, 1, 1, 2, "delegator"),
    "coe_transformer_iwslt_de_en": (
        _sizes(512, 1024, 6, 6, 4) | _sizes(256, 512, 3, 2, 4, "delegator")
    ),
    "coe_transformer_wmt_en_de": _BASE,
    "coe_transformer_vaswani_wmt_en_de_big": (
        _sizes(1024, 4096, 6, 6, 16) | _sizes(512, 2048, 3, 2, 8, "delegator") | {"dropout": 0.3}
    ),
}


def fill(args: Any, sizes: dict[str, Any]) -> None:
    """Set what the user has not set."""
    for name, value in sizes.items():
        if getattr(args, name, None) is None:
            setattr(args, name, value)
