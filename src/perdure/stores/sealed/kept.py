"""What a sealed store keeps for itself, in one document.

The store's id binds values to the store. The key of the digests of starts is made once and stays, since each digest is
compared for as long as its invocation is kept. With it goes the secret of the ids of awakeables. The two are sealed
under each of the codec's keys, so that a process which has any of them can go on. Once nothing else is
sealed under a key, they are not either.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from perdure.errors import KeyMissing, RevisionConflict, StoreReadOnly, Tampered, Unsealed
from perdure.stores.documents import Document, Put
from perdure.stores.port import Filter, Store
from perdure.stores.sealed.fields import (
    DIGEST_KEY_NAME_BYTES,
    MAGIC,
    DigestKey,
    sealed_under,
)

if TYPE_CHECKING:
    from perdure.encryption import Codec

COLLECTION = "perdure.sealed"
SECRET_BYTES = 16
STORE_ID_BYTES = 16
DIGEST_KEY_BYTES = 32

_KEY = ("store",)
_SCOPE, _PLACE = b"s/", b"kept"


class Kept(Struct, frozen=True):
    """The document: the store's id, and `Secrets` sealed under each key but those that are `retired`."""

    store: bytes
    under: dict[str, bytes] = {}
    retired: tuple[str, ...] = ()


class Secrets(Struct, frozen=True):
    """The key of the digests of starts, and the secret of the ids of awakeables."""

    digests: DigestKey
    awakeables: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Kept).decode
_decode_secrets = msgspec.msgpack.Decoder(Secrets).decode


async def read_kept(store: Store) -> tuple[Kept, int] | None:
    """Read the document and its revision; None if the store was never sealed."""
    (found,) = await store.documents.read(COLLECTION, [_KEY])
    return None if found is None else (_decoded(found), found.revision)


def _decoded(document: Document) -> Kept:
    try:
        return _decode(document.value)
    except msgspec.DecodeError as error:
        raise Tampered(f"the document of the keys of this sealed store does not decode ({error}): restore it") from None


async def unlock(store: Store, codec: Codec) -> tuple[Kept, Secrets]:
    """Return what a store keeps, opened. A store that was never sealed is from now on.

    Raises `KeyMissing` if the codec has none of its keys, and `Unsealed` if the store was in use before and the codec
    takes no plain values.
    """
    while True:
        found = await read_kept(store)
        kept, revision = (Kept(secrets.token_bytes(STORE_ID_BYTES)), 0) if found is None else found
        opened = await _new_secrets(store, codec) if found is None else _opened(kept, codec)
        # One that seals again is not retired any more: its processes would not open the store without the others.
        retired = tuple(name for name in kept.retired if name != codec.names[0])
        missing = [name for name in codec.names if name not in kept.under and name not in retired]
        if not missing:
            return kept, opened
        scope, data = kept.store + _SCOPE, _encode(opened)
        under = {name: sealed_under(codec, name, data, scope, _PLACE) for name in missing}
        kept = replace(kept, under=kept.under | under, retired=retired)
        try:
            await store.documents.write(COLLECTION, [Put(_KEY, _encode(kept), if_revision=revision)])
        except RevisionConflict:
            continue  # another process was first
        except StoreReadOnly:
            pass
        return kept, opened


async def retire(store: Store, codec: Codec) -> None:
    """Keep the secrets under the codec's first key only: nothing is sealed under the others any more.

    Processes that still have one of them do not add it again.
    """
    key = codec.names[0]
    while (found := await read_kept(store)) is not None and key in found[0].under:
        kept, revision = found
        others = tuple(name for name in kept.under if name != key)
        if not others:
            return
        kept = replace(kept, under={key: kept.under[key]}, retired=(*kept.retired, *others))
        try:
            await store.documents.write(COLLECTION, [Put(_KEY, _encode(kept), if_revision=revision)])
        except RevisionConflict:
            continue
        return


async def _new_secrets(store: Store, codec: Codec) -> Secrets:
    """Return new secrets. In a store that was in use, ids of awakeables were given out, and have to stay valid."""
    in_use = await store.search(Filter(limit=1))
    if in_use and not codec.takes_plain(store.clock.now()):
        raise Unsealed(
            "this store has invocations, and was never sealed, or the document of its keys was removed: connect with "
            "Encrypted(…, allow_plain_until=…) to seal what is written from now on"
        )
    digests = DigestKey(secrets.token_bytes(DIGEST_KEY_NAME_BYTES), secrets.token_bytes(DIGEST_KEY_BYTES))
    return Secrets(digests, store.secret if in_use else secrets.token_bytes(SECRET_BYTES))


def _opened(kept: Kept, codec: Codec) -> Secrets:
    for name in codec.names:
        if (data := kept.under.get(name)) is not None:
            header = len(MAGIC) + 1 + len(name.encode())
            opened = codec.decode(data[header:], kept.store + _SCOPE, _PLACE, name)
            if opened is None:
                why = "another key had that name when the store was sealed, or its document was changed"
                raise Tampered(f"key {name!r} does not open this store: {why}")
            return _decode_secrets(opened)
    names = " or ".join(map(repr, kept.under))
    raise KeyMissing(
        f"this store is sealed under {names}, and the codec has {', '.join(map(repr, codec.names))}: give it that key",
        key=next(iter(kept.under), ""),
    )
