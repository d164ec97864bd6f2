"""The seal of a dossier: hashes of its files, and an optional signature over them (Ed25519).

    dossier.json   {schema, files: {name: SHA-256}, policy_sha256, signature: {public_key, value} or null}

The signature is over the bytes of that object without its signature, keys sorted, no spaces. Signing, and
checking a signature, need the library ``cryptography`` (extra ``sign``); the hashes do not.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from latentprint.contracts import InputError, quoted
from latentprint.files import MAX_JSON, read, read_json, write
from latentprint.results.stored import first
from latentprint.results.value import Sha256

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

NAME = "dossier.json"
SEALED = ("dossier.html", "results.json", "run.json")
_MAX_KEY = 16 * 1024


class Signature(BaseModel):
    """Base64 of the 32 bytes of the public key and of the 64 bytes of the signature."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    algorithm: Literal["Ed25519"] = "Ed25519"
    public_key: Annotated[str, Field(max_length=64)]
    value: Annotated[str, Field(max_length=128)]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the public key, by which people compare keys."""
        return sha256(_bytes(self.public_key)).hexdigest()


class Seal(BaseModel):
    """dossier.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_: Literal["latentprint/dossier/1"] = Field(
        default="latentprint/dossier/1", alias="schema", serialization_alias="schema"
    )
    files: dict[str, Sha256]
    policy_sha256: Sha256 | None = None
    signature: Signature | None = None

    @property
    def signed(self) -> bytes:
        """The bytes that are signed."""
        plain = self.model_dump(mode="json", by_alias=True, exclude={"signature"})
        return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def read(cls, folder: Path) -> Seal | None:
        """The seal in a run folder; None if there is none."""
        if not (folder / NAME).is_file():
            return None
        found = read_json(folder / NAME)
        try:
            made = cls.model_validate(found, strict=True)
        except ValidationError as error:
            raise InputError(f"{NAME} is not a seal of a dossier: {first(error)}; write it again") from error
        if made.model_dump(mode="json", by_alias=True) != found:
            raise InputError(f"{NAME} is not as `latentprint dossier` writes it; write it again")
        return made


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise InputError(f"{NAME} holds a key or signature that is not base64; write it again") from error


def digests(folder: Path, names: tuple[str, ...] = SEALED) -> dict[str, str]:
    """SHA-256 of the named files of a run folder, as far as they exist."""
    found = {name: folder / name for name in names}
    return {name: sha256(read(path, MAX_JSON)).hexdigest() for name, path in found.items() if path.is_file()}


def seal(
    folder: Path, files: Mapping[str, str], policy_sha256: str | None, key: Ed25519PrivateKey | None
) -> Seal:
    """Write dossier.json into ``folder`` for ``files`` (name -> SHA-256), signed if a key is given."""
    made = Seal(files=dict(files), policy_sha256=policy_sha256)
    if key is not None:
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        signature = Signature(
            public_key=base64.b64encode(public).decode(),
            value=base64.b64encode(key.sign(made.signed)).decode(),
        )
        made = made.model_copy(update={"signature": signature})
    write(
        folder / NAME, json.dumps(made.model_dump(mode="json", by_alias=True), indent=1).encode(), public=True
    )
    return made


def private_key(path: Path) -> Ed25519PrivateKey:
    """The key to sign with, from a PEM file as ``openssl genpkey -algorithm ed25519`` writes it."""
    ed25519, load = _library()
    content = read(path, _MAX_KEY)
    try:
        key: object = load(content, password=None)
    except TypeError as error:
        raise InputError(f"the key {quoted(path)} is protected by a passphrase; give one without") from error
    except ValueError as error:
        raise InputError(f"{quoted(path)} holds no private key in PEM form: {_HOW}") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise InputError(f"{quoted(path)} holds a key of another kind than Ed25519: {_HOW}")
    return cast("Ed25519PrivateKey", key)


_HOW = "make one with `openssl genpkey -algorithm ed25519 -out key.pem`"


def holds(made: Seal) -> bool:
    """Whether the signature belongs to its public key and this seal."""
    ed25519, _ = _library()
    if made.signature is None:
        raise InputError("the dossier carries no signature; write it again with --key FILE")
    from cryptography.exceptions import InvalidSignature

    try:
        public = ed25519.Ed25519PublicKey.from_public_bytes(_bytes(made.signature.public_key))
        public.verify(_bytes(made.signature.value), made.signed)
    except (InvalidSignature, ValueError):
        return False
    return True


def _library():  # noqa: ANN202 (a module and a function of an optional library)
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError as error:
        raise InputError(
            "signatures need the library cryptography: install it with pip install 'latentprint[sign]'"
        ) from error
    return ed25519, load_pem_private_key
