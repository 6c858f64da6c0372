"""`millrace model ...`: what is done with models, and what is said of it."""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from millrace import models, settings, store, whole
from millrace.columns import size, table

CONVERTED = {"int8": 0.8, "int4": 0.6, "fp32": 2.2, "fp16": 1.2, "bf16": 1.2}
"""Bytes of a conversion, at most, for each byte of 16-bit weights; its tables of words are always 16 bits."""

STORE_HELP = "where models are kept (default: $XDG_DATA_HOME/millrace/models)"


def add_actions(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="action")

    def action(name: str, run: Callable[..., int], text: str) -> argparse.ArgumentParser:
        made = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        made.add_argument("--models", metavar="DIR", help=STORE_HELP)
        made.set_defaults(run=run)
        return made

    ls = action("ls", _ls, "list the models that `millrace up --model` takes by name")
    show = action("show", _show, "say what is known of a model, without loading it")
    verify = action("verify", _verify, "check every file of a model against its digest")
    rm = action("rm", _rm, "remove a model from the store")
    convert = action("convert", _convert, "a Hugging Face folder becomes one that the engine runs")
    measure = action("eval", _eval, "measure a model on a text, beside its original if that is there")
    plan = action("plan", _plan, "say what a model needs and what fits this machine, without loading it")
    plan.add_argument("--slots", type=int, default=0, help="sequences at once (default: what fits, up to 16)")
    plan.add_argument("--engines", type=int, default=1, help="that share the machine (default: 1)")
    plan.add_argument("--draft", default="", help="a smaller model that is to guess for it (default: none)")
    plan.add_argument("--fast", action="store_true", help="with prompts computed in fast mode")
    plan.add_argument("--max-len", type=int, default=0, help="tokens of context (default: the model's)")
    for each in (show, verify, rm, plan, measure):
        each.add_argument("name", help="as `millrace model ls` has it, or a folder")
    for each in (ls, show, verify, plan, measure):
        each.add_argument("--json", dest="as_json", action="store_true", help="print JSON")
    rm.add_argument("--yes", action="store_true", help="do not ask")
    measure.add_argument("text", type=Path, nargs="?", help="a file (default: what conversion measures on)")
    measure.add_argument(
        "--source",
        type=Path,
        metavar="FOLDER",
        help="its original (default: the folder that it was made from)",
    )
    clean = action("clean", _clean, "remove what this machine keeps of models and does not need any more")
    clean.add_argument("--all", dest="everything", action="store_true", help="what it may need, too")
    pull = action("pull", _pull, "get a model from the Hugging Face Hub, and convert it")
    pull.add_argument("repo", help="org/repo, or org/repo@revision")
    _conversion(pull)
    take = action("import", _import, "take a model that others exported to ONNX into the store")
    take.add_argument("folder", type=Path, help="of onnxruntime-genai's builder, optimum, or onnx-community")
    take.add_argument("--graph", default="", help="its graph, where there are several")
    take.add_argument("--name", help="its name in the store (default: the folder's)")
    convert.add_argument("folder", type=Path, help="config.json, safetensors, and the tokenizer's files")
    _conversion(convert)
    convert.add_argument("--out", type=Path, help="a new folder for it (default: the store)")


def _conversion(parser: argparse.ArgumentParser) -> None:
    """How a conversion is done, and what its result is called."""
    parser.add_argument(
        "--quant",
        choices=("int8", "int4", "fp32", "fp16", "bf16"),
        help="of the weights (default: int8, and fp16 for CUDA, which alone has bf16; weights in 4 bits "
        "already stay as they are)",
    )
    parser.add_argument(
        "--cache",
        choices=("int8", "fp32", "fp16", "bf16"),
        help="of keys and values (default: int8; for CUDA it is always fp16, and bf16 with weights in bf16)",
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="what the graphs are written for (default: cpu); making them needs no GPU",
    )
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="FILE",
        help="a text to choose the arithmetic by and to measure the result on (default: the model's "
        "calibration.txt, or one of ours)",
    )
    parser.add_argument("--accept", action="store_true", help="keep a result that is far from the original")
    parser.add_argument("--name", help="its name in the store")


def run(args: dict[str, Any]) -> int:
    """Run an action; the exit status."""
    action: Callable[..., int] = args.pop("run")
    del args["action"]
    root = models.store_root(settings.load(settings.Up, {"models": args.pop("models")}).models)
    if root.is_dir():
        whole.sweep(root)
    try:
        return action(root, **args)
    except settings.SettingError:
        raise
    except (ValueError, OSError) as error:
        print(f"millrace: {error}", file=sys.stderr)
        return 1


# -- the actions


def _ls(root: Path, as_json: bool) -> int:
    found = store.entries(root)
    if as_json:
        _print_json(found)
        return 0
    rows = [
        (each.name, each.kind, each.form, size(each.bytes), str(each.context or ""), each.made[:10])
        for each in found
    ]
    print(table(("NAME", "KIND", "FORM", "SIZE", "CONTEXT", "MADE"), rows))
    return 0


def _show(root: Path, name: str, as_json: bool) -> int:
    from millrace.convert import card

    found = store.entry(name, root)
    known = store.manifest(Path(found.folder))
    ours = Path(found.folder, models.CARD).is_file()
    measured = card.load(Path(found.folder)).quality if ours else None
    if as_json:
        files = known.files if known else {}
        _print_json({**msgspec.to_builtins(found), "quality": measured, "files": files})
        return 0
    facts = {**msgspec.to_builtins(found), "bytes": f"{found.bytes} ({size(found.bytes)})"}
    width = max(map(len, facts))
    print("\n".join(f"{key:{width}}  {value}" for key, value in facts.items() if value))
    if Path(found.folder, models.GUEST).is_file():
        from millrace.guest import form

        print("\n".join(form.load(Path(found.folder)).exactness))
    if measured:
        print(f"\nmeasured when it was converted\n{measured.table()}")
    if known:
        rows = [(path, size(file.size), file.sha256) for path, file in known.files.items()]
        print(f"\n{table(('FILE', 'SIZE', 'SHA-256'), rows)}")
    return 0


def _verify(root: Path, name: str, as_json: bool) -> int:
    model = models.find(name, str(root))
    wrong = store.verify(model.folder, progress_bar())
    if as_json:
        _print_json({"name": model.name, "folder": str(model.folder), "wrong": wrong})
    elif wrong:
        print("\n".join(f"{model.name}: {line}" for line in wrong))
    else:
        print(f"{model.name}: every file is as it was made")
    return 1 if wrong else 0


def _eval(root: Path, name: str, text: Path | None, source: Path | None, as_json: bool) -> int:
    from millrace.convert import convert
    from millrace.convert.evaluate import evaluate

    model = models.find(name, str(root))
    if model.simulated or model.guest:
        kind = "simulated" if model.simulated else "a guest"
        raise ValueError(f"{model.name} is {kind}; only what was converted is measured")
    words = text.read_text(encoding="utf-8") if text else None
    with tempfile.TemporaryDirectory() as scratch:
        folder = model.folder
        if not model.converted:  # as an engine would have it
            folder = convert(model.folder, Path(scratch) / "model", accept=True)
        found = evaluate(folder, words, source, progress_bar())
    if as_json:
        _print_json({"name": model.name, **msgspec.to_builtins(found)})
    else:
        print(found.table())
    return 0


def _rm(root: Path, name: str, yes: bool) -> int:
    if name in models.stored(root) and not yes:
        if not sys.stdin.isatty():
            raise ValueError(f"{name} is not removed without --yes where nobody can be asked")
        entry = store.entry(name, root)
        if input(f"remove {name} ({size(entry.bytes)})? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing was removed")
            return 1
    store.remove(root, name)
    print(f"{name} is removed")
    return 0


def _clean(root: Path, everything: bool) -> int:
    from millrace import cache

    kept = cache.root()
    for path, why in cache.tidy(kept, everything=everything).items():
        print(f"removed {path}: {why}")
    found = cache.copies(kept)
    print(f"{len(found)} copies of {size(sum(copy.bytes for copy in found))} are in {kept}")
    return 0


def _convert(root: Path, folder: Path, out: Path | None, name: str | None, **how: Any) -> int:
    if out and name:
        raise ValueError("--name is for the store, and --out is not in it: give one of them")
    if out:
        convert_into(folder, out, **how)
        print(out)
    else:
        from millrace.convert import usual

        name = name or f"{folder.resolve().name}-{how['quant'] or usual(folder, how['device'])}"
        keep(root, name, str(folder.resolve()), folder, how)
    return 0


def _import(root: Path, folder: Path, graph: str, name: str | None) -> int:
    from millrace import guest

    name = name or folder.resolve().name
    with store.adding(root, name, str(folder.resolve()), waiting) as made:
        card = guest.take(folder, made, graph, progress_bar())
    print(f"{name} is in the store; serve it with: millrace up --model {name}")
    print("\n".join(card.exactness))
    return 0


def _pull(root: Path, repo: str, name: str | None, **how: Any) -> int:
    from millrace import hub

    wanted = hub.Repo(repo)
    name = name or wanted.id
    store.check_free(root, name)
    pulled = wanted.pull(CONVERTED[how["quant"] or ("fp16" if how["device"] == "cuda" else "int8")], root)
    keep(root, name, f"hub:{wanted.id}@{pulled.commit}", pulled.folder, how)
    print(f"what was downloaded stays in the Hub's cache: {pulled.folder}")
    return 0


def keep(root: Path, name: str, source: str, folder: Path, how: dict[str, Any]) -> None:
    """Convert into the store."""
    with store.adding(root, name, source, waiting) as made:
        convert_into(folder, made, **how)
    print(f"{name} is in the store; serve it with: millrace up --model {name}")


def convert_into(
    folder: Path, out: Path, quant: Any, cache: Any, calibrate: Path | None, accept: bool, device: Any
) -> None:
    from millrace.convert import Poor, card, convert

    began = time.monotonic()
    try:
        words = calibrate.read_text(encoding="utf-8") if calibrate else None
        convert(folder, out, quant, progress_bar(), cache=cache, words=words, accept=accept, device=device)
    except Poor as error:
        print(error.quality.table())
        raise
    made = card.load(out)
    assert made.quality
    print(made.quality.table())
    if others := sorted(made.kernels.items()):
        why = " (CUDA's kernels want inputs by 64)" if made.device == "cuda" else ""
        print(f"in other arithmetic{why}:", ", ".join(f"{name} {kernel}" for name, kernel in others))
    if faults := made.quality.faults(made.quant):
        print(f"accepted, though {'; '.join(faults)}")
    print(f"converted in {time.monotonic() - began:.0f} s")


def _plan(root: Path, name: str, as_json: bool, **given: Any) -> int:
    from millrace import capacity, plan, possible
    from millrace.machine import Machine

    model = models.find(name, str(root))
    if model.simulated:
        raise ValueError(f"{name} is simulated: it has no weights, keys or values")
    wanted = settings.Engine(models=str(root), prefix_cache_mb=0, **given)
    possible.fast(model, wanted)
    machine = Machine()
    memory = machine.memory()
    fitting = plan.fits(model, wanted, memory, possible.draft(model, wanted))
    made = plan.made(model, store.form_of(model), fitting, machine.cpus(), plan.bandwidth(memory.available))
    if as_json:
        _print_json(made)
        return 0
    longer = f", or {made.slots} of {made.longest}" if made.longest > made.max_len else ""
    rows = [
        ("model", f"{made.model} ({made.form})"),
        (
            "weights",
            f"{size(made.weights)}, shared by the engines of a machine; a step reads {size(made.read)}",
        ),
        ("keys and values", f"{size(made.token)} a token"),
        (
            "machine",
            f"{size(made.memory)}, of which {size(made.available)} are available; {made.cpus:g} CPUs",
        ),
        ("fits", f"{made.slots} slots of {made.max_len} tokens: {size(made.slots_bytes)}"),
        ("", f"at most {made.most_slots} slots of {made.max_len} tokens{longer}"),
    ]
    if made.fast:
        rows.append(("fast", f"{size(made.fast)} of that: the prompt that is computed, in fp32"))
    if made.draft:
        rows.append(("draft", f"{size(made.draft)}: its weights, and its slot in each engine"))
    rows += [
        ("memory", f"{size(made.resident)} in all, if every slot of {made.engines} engine(s) is full"),
        ("bandwidth", f"{size(made.bandwidth)}/s, measured"),
    ]
    rows += [
        ("tokens/s", f"{rate:.0f} of one stream that holds {held} tokens")
        for held, rate in made.tokens_per_second.items()
    ]
    width = max(len(key) for key, _ in rows)
    print("\n".join(f"{key:{width}}  {value}" for key, value in rows))
    read = f"(bytes a step reads + tokens held x bytes a token) / ({capacity.SHARE} x bandwidth)"
    print(f"\nseconds a token = {read} + {made.layers} layers x {capacity.LAYER_S * 1e6:.0f} us")
    return 0


def waiting() -> None:
    print("another process adds this model: waiting for it", file=sys.stderr)


# -- how it is shown


def progress_bar() -> Callable[[int, int, str], None]:
    """A bar on a terminal, a line for every tenth elsewhere; how much longer, once that can be told."""
    shown = -1
    drawn = 0.0
    began = time.monotonic()

    def progress(done: int, total: int, what: str) -> None:
        nonlocal shown, drawn
        share = 100 * done // max(total, 1)
        if done and (left := (time.monotonic() - began) * (total - done) / done) >= 1:
            what = f"{what}, {left:.0f} s left"
        if sys.stderr.isatty():
            if time.monotonic() - drawn > 0.05 or done >= total:
                drawn = time.monotonic()
                bar = f"\r[{'#' * (share * 30 // 100):30}] {share:3} % {what:40.40}"
                print(bar, end="\n" if done >= total else "", file=sys.stderr, flush=True)
        elif share // 10 > shown:
            shown = share // 10
            print(f"{share} % {what}", file=sys.stderr, flush=True)

    return progress


def _print_json(value: Any) -> None:
    print(json.dumps(msgspec.to_builtins(value), indent=2))
