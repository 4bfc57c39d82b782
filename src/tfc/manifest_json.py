"""The manifest as the text of `tfc.json`, and back: read strictly, into the dataclasses.

Nothing here touches the disk.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import json
import types
import typing
from typing import Any

from tfc.errors import BadArtifact
from tfc.manifest import SCHEMA_VERSION, Manifest


def manifest_to_json(manifest: Manifest) -> str:
    """The manifest as the text of `tfc.json`."""
    body = dataclasses.asdict(manifest)
    ordered = {"schema": body.pop("schema"), **body}
    return json.dumps(ordered, indent=2, ensure_ascii=False) + "\n"


def manifest_from_json(text: str, where: str) -> Manifest:
    """Read `tfc.json`.

    Raises:
        BadArtifact: the text is not JSON, has a newer schema, lacks a field or has one too many.
    """
    data = _parse(text, where)
    schema = data.get("schema") if isinstance(data, dict) else None
    if not isinstance(schema, int) or schema < 1:
        raise BadArtifact(
            "the manifest has no schema version",
            where=where,
            fix="Give the folder that 'tfc export' wrote",
        )
    if schema > SCHEMA_VERSION:
        raise BadArtifact(
            f"the manifest has schema {schema}, and this tfc reads up to {SCHEMA_VERSION}",
            where=where,
            fix="Upgrade tfc with: pip install -U tfc",
        )
    if schema is not True and schema < SCHEMA_VERSION:
        raise BadArtifact(
            f"the manifest has schema {schema}, which an older tfc wrote; this one reads "
            f"{SCHEMA_VERSION}",
            where=where,
            fix="Export the checkpoint again with: tfc export --overwrite",
        )
    try:
        manifest: Manifest = decode(Manifest, data, "manifest")
    except (TypeError, KeyError, ValueError) as error:
        raise BadArtifact(
            f"the manifest does not follow its schema ({error})",
            where=where,
            fix="Export the checkpoint again with: tfc export --overwrite",
        ) from error
    return manifest


def _parse(text: str, where: str) -> Any:
    """The JSON value in `text`; refuses what could not be written back as the same manifest."""
    try:
        data = json.loads(text, object_pairs_hook=_without_duplicates)
        json.dumps(data, ensure_ascii=False).encode()  # raises on half a surrogate pair
    except (ValueError, RecursionError) as error:
        reason = str(error)
        if isinstance(error, json.JSONDecodeError):
            reason = f"{error.msg}, line {error.lineno}"
        raise BadArtifact(
            f"the manifest is not valid JSON ({reason})",
            where=where,
            fix="Export the checkpoint again with: tfc export --overwrite",
        ) from error
    return data


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise ValueError(f"the field '{name}' stands twice")
        fields[name] = value
    return fields


def decode(kind: Any, value: Any, path: str) -> Any:
    """`value` (parsed JSON) as `kind`; raises TypeError naming `path` where it does not fit."""
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(typing.cast(type, kind), value, path)
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(typing.get_args(kind), value, path)
    if origin is tuple:
        _expect(value, list, path)
        item, _ = typing.get_args(kind)  # tuple[item, ...]
        return tuple(decode(item, v, f"{path}[{i}]") for i, v in enumerate(value))
    if origin is list:
        _expect(value, list, path)
        (item,) = typing.get_args(kind)
        return [decode(item, v, f"{path}[{i}]") for i, v in enumerate(value)]
    if origin in (dict, collections.abc.Mapping):
        _expect(value, dict, path)
        _, item = typing.get_args(kind)
        return {str(k): decode(item, v, f"{path}.{k}") for k, v in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    _expect(value, kind, path)
    return value


def _decode_dataclass(kind: type, value: Any, path: str) -> Any:
    _expect(value, dict, path)
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(value) - set(known))
    if unknown:
        raise TypeError(f"{path} has an unknown field '{unknown[0]}'")
    fields = {}
    for name, spec in known.items():
        if name in value:
            fields[name] = decode(hints[name], value[name], f"{path}.{name}")
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise TypeError(f"{path} lacks the field '{name}'")
    return kind(**fields)


def _decode_union(kinds: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    for kind in kinds:
        if kind is type(None):
            continue
        try:
            return decode(kind, value, path)
        except TypeError:
            continue
    raise TypeError(f"{path} is {type(value).__name__}")


def _expect(value: Any, kind: type, path: str) -> None:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{path} is {type(value).__name__}, not {kind.__name__}")
