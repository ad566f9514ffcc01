"""The combinations that no training sees: 5 % of subject × surrounding × relation, by hash."""

import hashlib

ONE_IN = 20


def is_held_out(subject: str, surrounding: str, relation: str) -> bool:
    """Whether this subject is kept out of this surrounding in this relation ("" for none).

    The same on every machine. Plain backgrounds are not surroundings; ask about places only.
    """
    text = f"{subject}|{surrounding}|{relation}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") % ONE_IN == 0
