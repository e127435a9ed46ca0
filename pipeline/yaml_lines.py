"""YAML that remembers its lines: values, the line of every key, and every problem with its place."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

# Deeper keys are reported at the line of the key above them.
_DEPTH = 5
_STRING, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
_REFERENCE = re.compile(r"\$\$\{|\$\{(?P<inside>[^}]*)\}|\$\{")
_VARIABLE = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<default>:-.*)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong at one place of a file.

    Parameters
    ----------
    line
        Line in the file, from 1.
    key
        Dotted key; empty for the whole file.
    message
        What was expected, what was got, what to do.
    """

    line: int
    key: str
    message: str


@dataclass(frozen=True, slots=True)
class Document:
    """A YAML document with its lines.

    Parameters
    ----------
    value
        What the document says; None if it could not be read at all.
    lines
        Line of every key, by dotted key (`features.logmel.n_mels`; list items by number).
    problems
        Syntax errors, duplicate keys, keys that are not text, unset variables.
    """

    value: Any = None
    lines: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def line_of(key: str, lines: Mapping[str, int]) -> int:
    """Return the line of a dotted key, or of the nearest key above it that the file has.

    Examples
    --------
    >>> line_of("features.logmel.n_mel", {"features": 3, "features.logmel": 5})
    5
    """
    while key and key not in lines:
        key = key.rpartition(".")[0]
    return lines.get(key, 1)


def substitute(text: str, environment: Mapping[str, str]) -> str:
    """Return a text with `${NAME}` and `${NAME:-default}` replaced; `$${` stands for `${`.

    Raises
    ------
    ValueError
        If a variable is not set and has no default, or a reference is malformed.

    Examples
    --------
    >>> substitute("${BUCKET}/${PREFIX:-store}", {"BUCKET": "s3://music"})
    's3://music/store'
    """

    def value(match: re.Match[str]) -> str:
        if match[0] == "$${":
            return "${"
        variable = _VARIABLE.fullmatch(match["inside"] or "")
        if variable is None:
            raise ValueError(
                f"expected ${{NAME}} or ${{NAME:-default}}, got {match[0]!r}. Write $${{ for a plain ${{."
            )
        name, default = variable["name"], variable["default"]
        # As in a shell, `:-` also stands in for an empty variable.
        if name in environment and (environment[name] or default is None):
            return environment[name]
        if default is None:
            raise ValueError(
                f"the environment variable {name} is not set. Set it, or write ${{{name}:-default}}."
            )
        return default.removeprefix(":-")

    return _REFERENCE.sub(value, text)


def read_document(text: str, *, environment: Mapping[str, str]) -> Document:
    """Read one YAML document (safe types only), with variables replaced in its string values.

    Parameters
    ----------
    text
        The document.
    environment
        Variables that `${NAME}` may name.

    Returns
    -------
    Document
        With problems instead of exceptions, so that all of them can be told at once.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return Document(problems=[Problem(1, "", "the file is empty.")])
        visit = _Visit(loader, environment)
        visit.node(node, "", ())
        if visit.fatal:
            return Document(problems=visit.problems)
        value = loader.construct_document(node)
        lines: dict[str, int] = {}
        _collect_lines(node, "", 0, lines)  # after construction, which unfolds merge keys
        return Document(value, lines, visit.problems)
    except yaml.MarkedYAMLError as error:
        return Document(problems=[_syntax_problem(error, text)])
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        character = f"U+{ord(text[error.position]):04X}"
        return Document(problems=[Problem(line, "", f"not valid YAML: the character {character}.")])
    except RecursionError:
        return Document(problems=[Problem(1, "", "not valid YAML: nested too deeply.")])


def _syntax_problem(error: yaml.MarkedYAMLError, text: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    message = f"not valid YAML: {error.problem or error.context}"
    if error.context and error.problem:
        message += f" ({error.context})"
    message = " ".join(message.split()).rstrip(".") + "."
    source = text.splitlines()[line - 1 : line]
    if "\\t" in message:
        message += " Indent with spaces."
    elif source and "${" in source[0]:
        message += " Put text that holds ${...} between quotes."
    return Problem(line, "", message)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _joined(above: str, name: object) -> str:
    return f"{above}.{name}" if above else str(name)


class _Visit:
    """One pass over the nodes: finds what is wrong with them and replaces variables in place."""

    def __init__(self, loader: yaml.SafeLoader, environment: Mapping[str, str]) -> None:
        self.loader = loader
        self.environment = environment
        self.problems: list[Problem] = []
        self.fatal = False
        self._seen: set[int] = set()

    def node(self, node: yaml.Node, key: str, above: tuple[int, ...]) -> None:
        if id(node) in above:
            self.fatal = True
            self.problems.append(Problem(_line(node), key, "an alias must not hold itself."))
            return
        if id(node) in self._seen:  # an alias to what was checked at its anchor
            return
        self._seen.add(id(node))
        below = (*above, id(node))
        if isinstance(node, yaml.MappingNode):
            self._mapping(node, key, below)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.node(item, _joined(key, index), below)
        elif isinstance(node, yaml.ScalarNode):
            self._scalar(node, key)

    def _mapping(self, node: yaml.MappingNode, key: str, below: tuple[int, ...]) -> None:
        first: dict[str, int] = {}
        for name, value in node.value:
            if name.tag == _MERGE:
                self.node(value, _joined(key, "<<"), below)
                continue
            if name.tag != _STRING:
                self.fatal = True
                shown = name.value if isinstance(name, yaml.ScalarNode) else "a list or mapping"
                self.problems.append(
                    Problem(_line(name), key, f"a key must be text, got {shown}. Write it between quotes.")
                )
                continue
            dotted = _joined(key, name.value)
            if name.value in first:
                self.problems.append(
                    Problem(_line(name), dotted, f"duplicate key, first on line {first[name.value]}.")
                )
            else:
                first[name.value] = _line(name)
            self.node(value, dotted, below)

    def _scalar(self, node: yaml.ScalarNode, key: str) -> None:
        try:
            if node.tag == _STRING:
                node.value = substitute(node.value, self.environment)
            else:
                self.loader.construct_object(node)
        except ValueError as error:  # such as a date with a 13th month
            self.fatal = self.fatal or node.tag != _STRING
            message = str(error) if node.tag == _STRING else f"{node.value!r}: {error}."
            self.problems.append(Problem(_line(node), key, message))


def _collect_lines(node: yaml.Node, key: str, depth: int, lines: dict[str, int]) -> None:
    if depth == _DEPTH:
        return
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            dotted = _joined(key, name.value)
            lines[dotted] = _line(name)  # of a merged and an own key the own one comes last
            _collect_lines(value, dotted, depth + 1, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            dotted = _joined(key, index)
            lines[dotted] = _line(item)
            _collect_lines(item, dotted, depth + 1, lines)
