"""The shape of a `metadata_condition` (contract, 7.3), for all routes that take one."""

from collections.abc import Mapping
from typing import Any

from api.errors import ApiError
from db.services import metadata_conditions

FIELD = "metadata_condition"
KEYS = ("name", "comparison_operator", "value")


def check_condition(condition: Mapping[str, Any]) -> Mapping[str, Any]:
    """The condition, which a wrong one cannot pass for one that no document meets. Raises `ApiError` (101) naming the field."""
    logic = condition.get("logic")
    if logic is not None and (not isinstance(logic, str) or logic.lower() not in ("and", "or")):
        raise ApiError(101, f'`{FIELD}.logic` must be "and" or "or"')
    conditions = condition.get("conditions")
    if conditions is not None and not isinstance(conditions, list):
        raise ApiError(101, f"`{FIELD}.conditions` must be a list")
    for place, item in enumerate(conditions or ()):
        _check_item(item, f"{FIELD}.conditions[{place}]")
    return condition


def _check_item(item: Any, field: str) -> None:
    if not isinstance(item, dict):
        raise ApiError(101, f"`{field}` must be an object")
    for key in KEYS:
        if key not in item:
            raise ApiError(101, f"`{field}.{key}` is missing")
    names = item["name"] if isinstance(item["name"], list) else [item["name"]]
    if not all(isinstance(name, str) for name in names):
        raise ApiError(101, f"`{field}.name` must be a string or a list of strings")
    if not metadata_conditions.is_operator(item["comparison_operator"]):
        raise ApiError(101, f"`{field}.comparison_operator` must be one of {', '.join(metadata_conditions.OPERATORS)}")
