"""What pydantic found wrong with a catalog, in the words of the one who wrote it."""

import re
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from pipeline.definitions import FeatureDefinition
from pipeline.errors import did_you_mean

KINDS: dict[str, type[BaseModel]] = {
    get_args(model.model_fields["kind"].annotation)[0]: model
    for model in get_args(get_args(FeatureDefinition)[0])
}
_EXPECTED = {
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "mapping_type": "a mapping",
    "tuple_type": "a list",
    "list_type": "a list",
    "string_type": "text",
    "path_type": "a path",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "too_short": "at least one entry",
}


def explanation(details: ErrorDetails, value: Mapping[str, Any], catalog: type[BaseModel]) -> tuple[str, str]:
    """Return the dotted key and the message of one validation error.

    Parameters
    ----------
    details
        What pydantic says.
    value
        The whole document.
    catalog
        The model of the whole document.
    """
    kind, got = details["type"], details["input"]
    location = [str(step) for step in details["loc"]]
    tag = None
    if location[0] in ("features", "collections", "models") and len(location) > 2:
        # The third step is the branch of the union (or '[key]'), which the file does not write.
        tag = None if location[0] == "models" else location.pop(2)
    location = [step for step in location if step not in ("[key]", "constrained-tuple", "tuple")]
    key = ".".join(location)
    context = details.get("ctx", {})

    if kind == "extra_forbidden":
        return key, _unknown_key(location[-1], _known_keys(location, tag, value, catalog))
    if kind == "missing":
        return key, "this required key is missing."
    if kind == "union_tag_invalid":
        chosen = str(context["tag"])
        return f"{key}.kind", f"expected {_one_of(KINDS)}, got {chosen!r}.{did_you_mean(chosen, KINDS)}"
    if kind == "union_tag_not_found" and isinstance(got, Mapping):
        if location[0] == "collections":
            both = "path" in got and "manifest" in got
            hint = (
                "" if both else next(filter(None, (did_you_mean(k, ("path", "manifest")) for k in got)), "")
            )
            seen = "both" if both else "neither"
            return key, (
                f"expected either 'path' (a folder) or 'manifest' (a CSV or Parquet file), got {seen}.{hint}"
            )
        hint = next(filter(None, (did_you_mean(k, ("kind",)) for k in got)), "")
        return f"{key}.kind", f"this required key is missing: {_one_of(KINDS)}.{hint}"
    if kind == "union_tag_not_found":
        return key, f"expected a mapping, got {shown(got)}."
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", str(context["expected"]))
        hint = did_you_mean(got, choices) if isinstance(got, str) else ""
        return key, f"expected {context['expected']}, got {shown(got)}.{hint}"
    if kind == "value_error":
        return key, str(context["error"])
    return key, f"expected {expected(details)}, got {shown(got)}."


def expected(details: ErrorDetails) -> str:
    """Return what one validation error says was expected."""
    known = _EXPECTED.get(details["type"], details["msg"].removeprefix("Input should be "))
    limits = details.get("ctx", {}).items()
    return known.format(
        **{name: int(n) if isinstance(n, float) and n.is_integer() else n for name, n in limits}
    )


def shown(value: object) -> str:
    """Return a value as an error message shows it.

    Examples
    --------
    >>> shown(None), shown(True), shown({"a": 1}), shown("x")
    ('nothing', 'true', 'a mapping', "'x'")
    """
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case Mapping():
            return "a mapping" if value else "an empty mapping"
        case list() | tuple():
            return "a list" if value else "an empty list"
        case _:
            text = repr(value)
            return text if len(text) <= 80 else f"{text[:77]}..."


def _one_of(names: Mapping[str, object]) -> str:
    return f"one of {', '.join(names)}"


def _unknown_key(name: str, known: list[str]) -> str:
    hint = did_you_mean(name, known) or f" Known keys: {', '.join(known)}."
    return f"unknown key.{hint}"


def _known_keys(
    location: list[str], tag: str | None, value: Mapping[str, Any], catalog: type[BaseModel]
) -> list[str]:
    """Keys that the section of an unknown key may have."""
    match location[0]:
        case "grid" if len(location) > 1:
            keys = _keys(_model(catalog, "grid"))
        case "features" if tag is not None:
            keys = _keys(KINDS[tag])
        case "collections" if tag is not None:
            keys = ["path", "include", "exclude"] if tag == "folder" else ["manifest", "root"]
        case _:
            return _keys(catalog)
    used = value.get(location[0], {})
    for step in location[1:-1]:
        used = used[step]
    return [key for key in keys if key not in used]


def _model(catalog: type[BaseModel], name: str) -> type[BaseModel]:
    annotation = catalog.model_fields[name].annotation
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        raise TypeError(name)
    return annotation


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]
