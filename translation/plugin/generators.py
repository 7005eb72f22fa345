"""The generator of a team: fairseq's own over each of its networks, and what routes between them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from translation.generation.generator import CollaborativeGenerator, by_longest_source
from translation.plugin.model import CoETransformerModel
from translation.plugin.selection import listen_to_selection

_NOT_SUPPORTED = {
    "score_reference": "it scores one network's forced decoding; use fairseq-validate",
    "retain_iter_history": "it belongs to non-autoregressive models",
    "print_step": "it belongs to non-autoregressive models",
}


def routed_generator(
    task: Any, models: list[Any], args: Any, over: Callable[[list[Any]], Any]
) -> CollaborativeGenerator:
    """A generator that routes between the networks of a team.

    Args:
        task: with its router, threshold and confidence.
        models: of the checkpoints, a team among them.
        args: options of the search.
        over: fairseq's generator over one network, or over several as an ensemble.

    Raises:
        ValueError: an option of generation, or a mixture of checkpoints, that cannot be routed.
    """
    for option, reason in _NOT_SUPPORTED.items():
        if getattr(args, option, False):
            name = option.replace("_", "-")
            raise ValueError(f"--{name} does not go with a Collaboration of Experts: {reason}")
    teams = [model for model in models if isinstance(model, CoETransformerModel)]
    (team, *plain), kind = models, task.router.kind
    if len(teams) > 1 or team is not teams[0] or (plain and kind != "cascade"):
        raise ValueError(
            f"--path names {len(models)} checkpoints, {len(teams)} of them collaborations: give one "
            "collaboration alone, or, with --router cascade, COLLABORATION:PLAIN_MODEL"
        )
    if kind == "cascade" and not plain:
        raise ValueError(
            "router 'cascade' is the delegator and one plain model without selection: "
            "give --path COLLABORATION:PLAIN_MODEL"
        )
    if kind == "oracle":
        raise ValueError(
            "router 'oracle' looks at the reference: it serves fairseq-validate, not generation"
        )
    if kind == "cascade":
        experts = [over(plain)]
    elif kind == "ensemble":
        experts = [over(list(team.experts))]
    else:
        experts = [over([expert]) for expert in team.experts]
    delegator = over([team.delegator])
    task.check_stored_threshold(args)
    return CollaborativeGenerator(
        delegator,
        listen_to_selection(delegator, team.select),
        team.select_sentences,
        experts,
        task.router,
        threshold=task.threshold,
        confidence=task.confidence,
        pad=task.source_dictionary.pad(),
        eos=task.source_dictionary.eos(),
        by_length=by_longest_source(args),
        remembering=nullcontext if team.shared is None else team.shared.remembering,
    )
