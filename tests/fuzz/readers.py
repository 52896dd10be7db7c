"""Every reader of the project: the valid files that it begins with, what is damaged, and how it is asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

import lowbit
from lowbit.conformance import vectors
from lowbit.data.text import read_documents
from lowbit.formats import lut
from lowbit.formats.check import check_directory
from lowbit.formats.checkpoint import SafetensorsCheckpoint, open_checkpoint
from lowbit.formats.errors import CheckpointError
from lowbit.formats.factors import read_factors, write_factors
from lowbit.formats.gguf_header import check_header
from lowbit.formats.packed import compressed_tensors
from lowbit.formats.peft import read_adapter, write_adapter
from lowbit.formats.safetensors_file import SafetensorsFile, write_tensors
from lowbit.models.decoder import Decoder
from lowbit.recipes.decide import read_plan as open_plan
from lowbit.recipes.decide import table_of
from lowbit.recipes.options import DecisionOptions
from lowbit.reference import lut as tables
from lowbit.reference.errors import SpecError
from lowbit.report import render
from lowbit.report.plan import render_plan
from lowbit.report.schema import require_record
from lowbit.runs.errors import RecipeError
from lowbit.runs.files import digest
from lowbit.runs.folder import SUMS, RunFolder
from tests.formats.conftest import tiny_config
from tests.formats.records import decide, make_plan, make_record
from tests.formats.test_factors import several
from tests.formats.test_gguf import write_gguf
from tests.recipes.tiny_models import save_tiny

from .mutations import Draw, lines, mutate_bytes, mutate_gguf, mutate_json, mutate_safetensors

__all__ = ["READERS", "Reader"]

CONFIG, INDEX, WEIGHTS = "config.json", "model.safetensors.index.json", "model.safetensors"


class Reader(NamedTuple):
    """How one reader is asked."""

    seed: Callable[[Path], None]  # writes the valid files into an empty folder
    target: str  # the file that is damaged
    mutate: Callable[[bytes, Draw], bytes]
    read: Callable[[Path], object]
    errors: tuple[type[Exception], ...]
    valid: bool = True  # whether the files as they were written are read without an error


# ---- valid files ----------------------------------------------------------------------------------------------------


def a_model(folder: Path) -> None:
    save_tiny(folder, blocks=1)


def shards(folder: Path) -> None:
    a_model(folder)
    (folder / WEIGHTS).rename(folder / "a.safetensors")
    names = SafetensorsFile(folder / "a.safetensors").entries
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "a.safetensors")}))


def packed(folder: Path) -> None:
    a_model(folder)
    parts: dict[str, torch.Tensor] = {}
    checkpoint = open_checkpoint(folder)
    for name in checkpoint.names():
        weight = checkpoint.read(name)
        if "_proj" in name:
            rows, columns = weight.shape
            grid = [torch.ones(rows, columns // 16), torch.ones(rows, columns // 16, dtype=torch.int32)]
            codes = torch.ones(rows, columns, dtype=torch.int32)
            module = name.removesuffix(".weight")
            parts |= compressed_tensors.pack_module(module, codes, *grid, bits=3, scheme="asymmetric")
        else:
            parts[name] = weight
    write_tensors(folder / WEIGHTS, parts)
    entry = compressed_tensors.quantization_config(
        bits=3, scheme="asymmetric", group_size=16, ignore=["lm_head", "re:.*norm"], act_order=False
    )
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"quantization_config": entry}))


def tensors(folder: Path) -> None:
    few = {"a": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.int32), "c": torch.zeros(0, 2), "d": torch.ones(())}
    write_tensors(folder / WEIGHTS, few)


def gguf_file(folder: Path) -> None:
    config = tiny_config()
    config.num_hidden_layers = 1
    write_gguf(folder / "m.gguf", config=config)


def adapter(folder: Path) -> None:
    factors = {f"model.layers.{i}.mlp.up_proj": (torch.ones(6, 2 + i), torch.ones(2 + i, 4)) for i in range(2)}
    write_adapter(folder, factors, base_model="m", base_hash="0")


def packed_factors(folder: Path) -> None:
    write_factors(folder, several(), base_hash="0")


def record(folder: Path) -> None:
    found = make_record(blocks=1)
    found["modules"] = found["modules"][:2]
    for module in found["modules"]:
        module["spectrum"] = module["spectrum"][:6]
    curve = [{"bytes": 10**6, "kl": 0.5}, {"bytes": 2 * 10**6, "kl": 0.0}]
    uniform = {"bytes": 10**6, "kl": 0.75, "setting": [3, 64, 0, 16], "outer": None}
    decide(make_plan(blocks=1), found, frontier=[*curve, uniform])
    (folder / "lowbit.json").write_text(json.dumps(found))


def plan(folder: Path) -> None:
    found = make_plan(blocks=1)
    found["modules"] = [found["modules"][0], found["modules"][-1]]
    found["settings"] = found["settings"][-6:]
    for module in found["modules"]:
        module |= {"bytes": module["bytes"][-6:], "kl": module["kl"][-6:]}
    (folder / "plan.json").write_text(json.dumps(found))


def artefact(folder: Path) -> None:
    table = tables.chord_table("gelu", (-3, -2.26, -1, -0.5, 0.03, 0.625, 2.75))
    lut.write_artefact(folder / "t.json", lut.build_artefact("gelu", table, origin="here"))


def published(folder: Path) -> None:
    table = {"breakpoints": [-1.0, 0.5], "slopes": [0.0, 0.5, 1.0], "intercepts": [0.0, 0.5, 0.25]}
    (folder / "t.json").write_text(json.dumps({"gelu": {"3": table, "4": table}}))


def text(name: str) -> Callable[[Path], None]:
    rows = [{"text": f"line {number} ü"} for number in range(4)]

    def write(folder: Path) -> None:
        path = folder / name
        if path.suffix in (".parquet", ".arrow"):
            import pyarrow as pa
            import pyarrow.parquet as pq

            table = pa.Table.from_pylist(rows)
            if path.suffix == ".parquet":
                pq.write_table(table, path)
            else:
                with pa.ipc.new_file(path, table.schema) as file:
                    file.write_table(table)
        else:
            contents = {
                ".txt": "\n".join(row["text"] for row in rows),
                ".jsonl": "\n".join(map(json.dumps, rows)),
                ".json": json.dumps(rows),
                ".csv": "text,other\n" + "\n".join(f'"{row["text"]}",1' for row in rows),
            }
            path.write_text(contents[path.suffix], encoding="utf-8")

    return write


def vector(folder: Path) -> None:
    (folder / "v.json").write_bytes(vectors.folder().joinpath("Q-5a.json").read_bytes())


def backend_name(folder: Path) -> None:
    (folder / "name").write_text("lowbit.reference:low_rank")


# ---- how they are read ----------------------------------------------------------------------------------------------


def open_all(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    assert isinstance(checkpoint, SafetensorsCheckpoint)
    for name in checkpoint.names():
        checkpoint.read(name, (0, 1) if checkpoint.shape(name)[:1] > (0,) else None)


def decode(folder: Path) -> None:
    Decoder(open_checkpoint(folder))


def unpack(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    for name in checkpoint.names():
        checkpoint.read(name)


def read_file(folder: Path) -> None:
    file = SafetensorsFile(folder / WEIGHTS)
    for name in file.entries:
        file.read(name)


def read_gguf(folder: Path) -> None:
    checkpoint = open_checkpoint(folder / "m.gguf")
    for name in checkpoint.names():
        checkpoint.read(name)


def read_lora(folder: Path) -> None:
    check_directory(folder)
    read_adapter(folder)


def read_record(folder: Path) -> None:
    (folder / CONFIG).touch()
    files = [path for path in folder.iterdir() if path.is_file() and path.name != SUMS]
    (folder / SUMS).write_text("".join(f"{digest(path)}  {path.name}\n" for path in files))  # a forger's agree
    found = RunFolder(folder, record="lowbit.json", last=CONFIG).reuse({}, ())
    require_record(found, "lowbit.json")
    render(found)


def read_plan(folder: Path) -> None:
    found = open_plan(folder)
    render_plan(found)
    table = table_of(found, DecisionOptions())
    table.below(0.1 + table.frontier()[-1][1])


def documents(name: str) -> Callable[[Path], object]:
    return lambda folder: list(read_documents(str(folder / name)))


def read_vector(folder: Path) -> None:
    found = vectors.parse((folder / "v.json").read_bytes(), "v.json")
    list(vectors.verdicts(lowbit.load("reference"), found))


def load_backend(folder: Path) -> None:
    name = (folder / "name").read_bytes().decode("utf-8", "replace")
    if (
        name.startswith("lowbit") or not name.partition(".")[0].isidentifier()
    ):  # others could be any module of a machine
        lowbit.load(name)


FILES, RECIPE = (CheckpointError,), (RecipeError,)
READERS: dict[str, Reader] = {
    "safetensors": Reader(tensors, WEIGHTS, mutate_safetensors, read_file, FILES),
    "index": Reader(shards, INDEX, mutate_json, open_all, FILES),
    "config": Reader(a_model, CONFIG, mutate_json, decode, (CheckpointError, RecipeError)),
    "quantization": Reader(packed, CONFIG, mutate_json, unpack, FILES),
    "packed": Reader(packed, WEIGHTS, mutate_safetensors, unpack, FILES),
    "gguf": Reader(gguf_file, "m.gguf", mutate_gguf, read_gguf, FILES),
    "gguf header": Reader(gguf_file, "m.gguf", mutate_gguf, lambda folder: check_header(folder / "m.gguf"), FILES),
    "adapter": Reader(adapter, "adapter_config.json", mutate_json, read_lora, FILES),
    "factors": Reader(adapter, "adapter_model.safetensors", mutate_safetensors, read_lora, FILES),
    "packed factors": Reader(packed_factors, "factors.safetensors", mutate_safetensors, read_factors, FILES),
    "forms of factors": Reader(packed_factors, "factors.json", mutate_json, read_factors, FILES),
    "record": Reader(record, "lowbit.json", mutate_json, read_record, RECIPE),
    "plan": Reader(plan, "plan.json", mutate_json, read_plan, RECIPE),
    "table": Reader(artefact, "t.json", mutate_json, lambda f: lut.read_artefact(f / "t.json"), (lut.TableFileError,)),
    "published": Reader(
        published, "t.json", mutate_json, lambda f: lut.read_published(f / "t.json"), (lut.TableFileError,)
    ),
    "txt": Reader(text("a.txt"), "a.txt", mutate_bytes, documents("a.txt"), RECIPE),
    "jsonl": Reader(text("a.jsonl"), "a.jsonl", lines(mutate_json), documents("a.jsonl"), RECIPE),
    "json": Reader(text("a.json"), "a.json", mutate_json, documents("a.json"), RECIPE),
    "csv": Reader(text("a.csv"), "a.csv", mutate_bytes, documents("a.csv"), RECIPE),
    "parquet": Reader(text("a.parquet"), "a.parquet", mutate_bytes, documents("a.parquet"), RECIPE),
    "arrow": Reader(text("a.arrow"), "a.arrow", mutate_bytes, documents("a.arrow"), RECIPE),
    "vectors": Reader(vector, "v.json", mutate_json, read_vector, (vectors.VectorError, SpecError)),
    "backend": Reader(backend_name, "name", mutate_bytes, load_backend, (lowbit.BackendError,), valid=False),
}
