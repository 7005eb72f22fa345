"""The public names of coe_core: sorted, documented, with examples, and typed."""

import inspect

import jaxtyping
import pytest
import torch

import coe_core


def test_all_is_sorted_without_repeats():
    assert len(coe_core.__all__) > 30
    assert coe_core.__all__ == sorted(set(coe_core.__all__))


def test_all_is_what_the_package_imports():
    public = {
        name
        for name, value in vars(coe_core).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public == set(coe_core.__all__)


def needs_example(thing) -> bool:
    is_record = inspect.isclass(thing) and hasattr(thing, "_fields")  # a NamedTuple
    is_error = inspect.isclass(thing) and issubclass(thing, Exception)
    return not (is_record or is_error)


@pytest.mark.parametrize("name", coe_core.__all__)
def test_public_names_are_documented(name):
    thing = getattr(coe_core, name)
    assert thing.__doc__
    assert thing.__doc__.splitlines()[0].endswith((".", ":"))
    assert thing.__module__.startswith("coe_core.")
    if needs_example(thing):
        assert ">>> " in thing.__doc__


def test_some_names_need_examples():
    assert sum(needs_example(getattr(coe_core, name)) for name in coe_core.__all__) > 20


@pytest.mark.parametrize("name", coe_core.__all__)
def test_public_functions_and_their_results_are_annotated(name):
    thing = getattr(coe_core, name)
    if inspect.isfunction(thing):
        signature = inspect.signature(thing)
        assert signature.return_annotation is not signature.empty
        for parameter in signature.parameters.values():
            assert parameter.annotation is not parameter.empty, parameter.name


def test_errors_are_ours():
    errors = [name for name in coe_core.__all__ if name.endswith("Error")]
    assert len(errors) >= 4
    for name in errors:
        assert issubclass(getattr(coe_core, name), coe_core.CoEError)
        assert not issubclass(getattr(coe_core, name), ValueError)


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: coe_core.select_expert(torch.zeros(3)), "selection_logits"),
        (lambda: coe_core.selection_labels(torch.zeros(2, 2), "softt"), "kind"),
        (lambda: coe_core.Partitioner(2)(torch.zeros(3, 2), torch.zeros(4).long()), "index"),
    ],
)
def test_annotations_are_checked_in_these_tests(call, argument):
    with pytest.raises(jaxtyping.TypeCheckError, match=f"typechecking parameter '{argument}'"):
        call()
