"""A report as it goes out, in the form that was asked for: JSON, JSON lines, or CSV for spreadsheets.

It is sent part by part, so that a large one holds neither the loop nor memory.
"""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from aiohttp import web

from meter_proxy.telemetry.csvtext import Cell, csv_lines

CONTENT_TYPES = {"json": "application/json", "jsonl": "application/jsonl", "csv": "text/csv"}

Row = Mapping[str, Any] | msgspec.Raw  # Raw: an object that is JSON already

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


async def send(
    request: web.Request,
    name: str,
    format: str,
    columns: Sequence[str],
    parts: AsyncIterator[Sequence[Row]],
    members: Mapping[str, Any] | None = None,
) -> web.StreamResponse:
    """Answer with the rows in `parts`. `format`: json, as `{**members, "data": [row, ...]}`; jsonl, a row a line; csv,
    with a heading, `columns` in this order. `name`: of the file that the latter two make in a browser.
    """
    response = web.StreamResponse(headers={"Content-Type": f"{CONTENT_TYPES[format]}; charset=utf-8"})
    if format != "json":
        response.headers["Content-Disposition"] = f'attachment; filename="{name}.{format}"'
    await response.prepare(request)
    if request.method == "HEAD":
        return response
    if format == "csv":
        await response.write(csv_lines([columns]).encode())
        async for rows in parts:
            await response.write(csv_lines(_cells(rows, columns)).encode("utf-8", "replace"))
    elif format == "jsonl":
        async for rows in parts:
            await response.write(b"".join([_encode(row) + b"\n" for row in rows]))
    else:
        lead = b'%b"data":[' % (_encode(members)[:-1] + b"," if members else b"{")
        async for rows in parts:
            await response.write(lead + b",".join(map(_encode, rows)))
            lead = b","
        await response.write(b"]}" if lead == b"," else lead + b"]}")
    return response


def _cells(rows: Sequence[Row], columns: Sequence[str]) -> Iterator[Sequence[Cell]]:
    for row in rows:
        values = _decode(row) if isinstance(row, msgspec.Raw) else row
        yield [" ".join(cell) if isinstance(cell := values.get(column), list) else cell for column in columns]
