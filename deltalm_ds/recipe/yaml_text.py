"""YAML as recipes use it: every key once, 1e-3 is a number, dates are text."""

import re
from typing import IO, Any

import yaml

_TIMESTAMP, _FLOAT = "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:float"
_EXPONENT = re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)[eE][-+]?[0-9]+$")  # YAML 1.1 wants a dot and a sign


class _Loader(yaml.SafeLoader):
    pass


class _Dumper(yaml.SafeDumper):
    pass


for _reader in (_Loader, _Dumper):
    _reader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
        for first, resolvers in _reader.yaml_implicit_resolvers.items()
    }
    _reader.add_implicit_resolver(_FLOAT, _EXPONENT, list("-+.0123456789"))


def parse_yaml(text: str) -> Any:
    """The content of one YAML document; None where there is none.

    Raises:
        ValueError: it is not YAML, or a key stands twice in a mapping; one sentence with the line, without a full stop.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_keys(node, set())
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ValueError(f"{error.problem or error.context}{f' (line {mark.line + 1})' if mark else ''}") from None
    except yaml.reader.ReaderError as error:
        raise ValueError(f"it has the character #x{error.character:04x}, which no text has") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def dump_yaml(content: Any, file: IO[str]) -> None:
    """Write plain values such that `parse_yaml` reads the same."""
    yaml.dump(content, file, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _check_keys(node: yaml.Node, seen: set[int]) -> None:
    """Raise MarkedYAMLError where a mapping has a key twice: PyYAML would take the last one without a word."""
    if id(node) in seen:  # named by an anchor, perhaps from inside itself
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_keys(item, seen)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                problem = f"the key {name!r} stands twice, in lines {lines[name]} and {line}"
                raise yaml.MarkedYAMLError(problem=problem)
            lines[name] = line
            _check_keys(value, seen)
