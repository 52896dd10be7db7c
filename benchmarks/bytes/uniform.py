"""One setting for all layers, at every width, rank and quantizer of this project that the sizes have room for.

The embedding is packed for all alike; each result is measured with the widest one that a size leaves room for. Factors
are stored in 8 bits. A run that was stopped continues; what is finished is only announced again.
"""

from __future__ import annotations

import json
from typing import Any

from study import CALIBRATION, GROUP, TEXTS, announce, arguments, original

from lowbit.recipes.compress import compress
from lowbit.recipes.options import CompressOptions, parse_options

RANKS = (32, 16, 8, 0)
SETTINGS = [
    *(("gptq", bits, rank) for bits in (3, 4, 2) for rank in RANKS),
    ("gptq", 5, 0),
    *(("rtn", bits, rank) for rank in (32, 0) for bits in (3, 4)),
]


def main() -> None:
    options = arguments(__doc__).parse_args()
    folder = original(options).parent
    for quantizer, bits, rank in SETTINGS:
        name = f"uniform-{quantizer}-{bits}" + (f"-rank{rank}" if rank else "")
        if not name.startswith(options.only):
            continue
        adapter: dict[str, Any] = {"compensate": "eora", "rank": rank, "adapter_bits": 8}
        result = compress(
            parse_options(
                CompressOptions,
                model=str(folder / "original"),
                out=folder / "uniform" / name,
                bits=bits,
                group_size=GROUP,
                quantizer=quantizer,
                **(adapter if rank else {"compensate": "none"}),
                calibration=str(options.data / TEXTS["wikitext2"].file),
                **CALIBRATION,
                spectrum=False,
                threads=1,
            )
        )
        own = int(result.record["totals"]["bytes_shipped"])
        announce(
            options,
            name,
            family=f"uniform {quantizer}",
            path=f"uniform/{name}",
            adapter=f"uniform/{name}/factors" if rank else None,
            bytes=own,
            embeddings="fit",
            bits=bits,
            rank=rank,
        )
        print(json.dumps({"name": name, "seconds": round(result.seconds), "bytes": own}), flush=True)


if __name__ == "__main__":
    main()
