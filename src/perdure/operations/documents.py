"""What the operations on documents take and give: the types of the stores, where a document means the same."""

from perdure.stores.documents import (
    OWN_PREFIX,
    SCAN_BYTES,
    SCAN_LIMIT,
    SEPARATOR,
    Check,
    Delete,
    Document,
    DocumentKey,
    Fence,
    Put,
    Scan,
    Write,
    check_collection,
    check_key,
    checked,
    whole,
)

__all__ = [
    "OWN_PREFIX",
    "SCAN_BYTES",
    "SCAN_LIMIT",
    "SEPARATOR",
    "Check",
    "Delete",
    "Document",
    "DocumentKey",
    "Fence",
    "Put",
    "Scan",
    "Write",
    "check_collection",
    "check_key",
    "checked",
    "whole",
]
