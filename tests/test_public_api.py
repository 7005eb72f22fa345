"""The public names of coe_core: sorted, documented, with examples, and typed."""

import ast
import inspect
from pathlib import Path

import jaxtyping
import pytest
import torch

import coe_core
import translation
import vision


def test_all_is_sorted_without_repeats():
    assert len(coe_core.__all__) > 30
    assert coe_core.__all__ == sorted(set(coe_core.__all__))


def checked_imports(package) -> dict[str, str]:
    """Name -> module of what the package imports for type checkers."""
    tree = ast.parse(Path(package.__file__).read_text(encoding="utf-8"))
    (checked,) = [node for node in tree.body if isinstance(node, ast.If)]
    return {alias.name: node.module for node in checked.body for alias in node.names}


def test_all_is_what_the_package_hands_out():
    """Lazily at run time, and the same for a type checker, which reads the imports."""
    homes = {name: f"coe_core.{module}" for name, module in coe_core._HOME_OF.items()}
    assert checked_imports(coe_core) == homes
    assert sorted(homes) == coe_core.__all__
    assert set(coe_core.__all__) <= set(dir(coe_core))
    star: dict = {}
    exec("from coe_core import *", star)
    assert set(coe_core.__all__) == set(star) - {"__builtins__"}


def test_the_face_of_vision():
    assert checked_imports(vision) == vision._HOME_OF
    assert sorted(vision._HOME_OF) == vision.__all__
    assert set(vision.__all__) <= set(dir(vision))
    for name in vision.__all__:
        member = getattr(vision, name)
        assert member.__module__ == vision._HOME_OF[name]
        assert member.__doc__
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = vision.nothing
    assert vision.__version__ == translation.__version__ == coe_core.__version__


def test_what_the_package_does_not_have():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = coe_core.nothing
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from coe_core import nothing  # noqa: F401
    assert coe_core.transport.even_demand is coe_core.even_demand
    assert coe_core.__version__[0].isdigit()


def needs_example(member) -> bool:
    is_record = inspect.isclass(member) and hasattr(member, "_fields")  # a NamedTuple
    is_error = inspect.isclass(member) and issubclass(member, Exception)
    return not (is_record or is_error)


@pytest.mark.parametrize("name", coe_core.__all__)
def test_public_names_are_documented(name):
    member = getattr(coe_core, name)
    assert member.__doc__
    assert member.__doc__.splitlines()[0].endswith((".", ":"))
    assert member.__module__.startswith("coe_core.")
    if needs_example(member):
        assert ">>> " in member.__doc__


def test_some_names_need_examples():
    assert sum(needs_example(getattr(coe_core, name)) for name in coe_core.__all__) > 20


@pytest.mark.parametrize("name", coe_core.__all__)
def test_public_functions_and_their_results_are_annotated(name):
    member = getattr(coe_core, name)
    if inspect.isfunction(member):
        signature = inspect.signature(member)
        assert signature.return_annotation is not signature.empty
        for parameter in signature.parameters.values():
            assert parameter.annotation is not parameter.empty, parameter.name


def test_errors_are_ours():
    errors = [name for name in coe_core.__all__ if name.endswith("Error")]
    assert len(errors) >= 4
    for name in errors:
        assert issubclass(getattr(coe_core, name), coe_core.CoEError)
        assert not issubclass(getattr(coe_core, name), ValueError)


@pytest.mark.slow
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
