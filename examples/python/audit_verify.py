"""Verifies an export of the audit: doorward audit export | python3 audit_verify.py [FILE] [COUNT:HASH]

Each line is a row: {"id", "body", "hash"}; the last one is the registry's own head: {"count", "hash"}.
hash = SHA-256(hash of the row before, 32 zero bytes for the first || body in UTF-8). Standard library alone.
"""
import hashlib
import json
import sys

arguments = sys.argv[1:]
noted = arguments.pop().split(":") if arguments and ":" in arguments[-1] else None
lines = open(arguments[0], encoding="utf-8") if arguments else sys.stdin
rows, sealed, last, head = 0, 0, bytes(32), None
for row in map(json.loads, lines):
    if head is not None:
        sys.exit("there is more after the head")
    if "count" in row:
        head = row
        continue
    rows += 1
    if row["id"] != rows:
        sys.exit(f"row {rows} is missing")
    if row["hash"] is None:  # SQLite: written by plain SQL, not yet sealed by a command
        continue
    last = hashlib.sha256(last + row["body"].encode()).digest()
    sealed += 1
    if sealed != rows or last.hex() != row["hash"]:
        sys.exit(f"row {rows} does not fit")
    if noted and rows == int(noted[0]) and last.hex() != noted[1]:
        sys.exit(f"row {rows} is not the one that was noted")
if head is None or head["count"] != sealed or head["hash"] != last.hex():
    sys.exit(f"the chain ends at row {sealed}, and the head is {head}")
if noted and int(noted[0]) > sealed:
    sys.exit(f"row {sealed + 1} is missing: the note counts {noted[0]}")
print(f"{rows} rows, {rows - sealed} unsealed, head {sealed}:{last.hex()}")
