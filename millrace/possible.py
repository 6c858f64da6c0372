"""Whether an engine can be what its settings ask for, as far as the models' files tell and nothing is loaded.

fast             why not `--fast`
large_pages      why not `--large-pages`
draft            the model that `--draft` names, or why not
"""

from millrace import cuda, models
from millrace.settings import Engine, SettingError, at_fault


def fast(of: models.Model, given: Engine) -> None:
    """SettingError if its prompts cannot be computed fast."""
    if given.fast and (refused := _not_fast(of, given.device)):
        raise SettingError(f"--fast: {refused}")


def _not_fast(of: models.Model, device: str) -> str:
    if of.simulated:
        return f"{of.name} is simulated, nothing computes"
    if of.guest:
        return f"{of.name} was exported by others, and is computed as it is"
    if of.vectors:
        return f"{of.name} makes vectors"
    if cuda.number(device) is not None:
        return f"it is for processors, and --device is {device}"
    quant, cache = _form(of)
    if cache != "int8":
        return f"{of.name} keeps keys and values in {cache}, its prompts are computed so already"
    if quant != "int8":
        return f"{of.name} is {quant}: its weights, not its attention, take a prompt's time"
    return ""


def large_pages(of: models.Model, given: Engine) -> None:
    """SettingError if its keys and values are in no pages of ours."""
    if not given.large_pages:
        return
    if of.simulated:
        refused = f"{of.name} is simulated, it has no keys or values"
    elif of.guest:
        refused = f"{of.name} was exported by others, and is computed as it is"
    elif cuda.number(given.device) is not None:
        refused = f"it is for processors, and --device is {given.device}"
    else:
        return
    raise SettingError(f"--large-pages: {refused}")


def draft(of: models.Model, given: Engine) -> models.Model | None:
    """None if none is asked for; SettingError if it cannot guess for this model."""
    if not given.draft:
        return None
    found = models.find(given.draft, given.models)
    if refused := _no_draft(of, found, given):
        raise SettingError(f"--draft {given.draft}: {refused}")
    return found


def _no_draft(of: models.Model, found: models.Model, given: Engine) -> str:
    if not given.speculate:
        return "with --no-speculate nothing is guessed"
    for each in (of, found):
        kinds = {
            "is simulated": each.simulated,
            "is a model that others exported": each.guest,
            "makes vectors": each.vectors,
        }
        if what := next((what for what, true in kinds.items() if true), ""):
            return f"{each.name} {what}, which neither guesses nor is guessed for"
    if cuda.number(given.device) is not None:
        return f"with --device {given.device} nothing is guessed"
    _, cache = _form(of)
    if cache != "int8":
        return f"{of.name} keeps keys and values in {cache}: nothing can be guessed exactly"
    try:
        own, its = (models.words(models.read_json(each.text, "tokenizer.json")) for each in (of, found))
    except (ValueError, KeyError, TypeError) as error:
        return f"no tokens to compare: {error}"
    if own == its:
        return ""
    word, id = min(own.items() ^ its.items(), key=lambda item: item[1])
    which = of.name if own.get(word) == id else found.name
    return (
        f"its tokens must be those of {of.name}. {of.name} has {len(own)}, {found.name} {len(its)}; "
        f"only {which} has {word!r} as number {id}"
    )


def _form(of: models.Model) -> tuple[str, str]:
    """How weights, and keys and values, are kept: of a folder that is not converted yet, as they will be."""
    from millrace.convert import card, usual  # noqa: PLC0415 - ONNX, which takes a second

    with at_fault("model"):
        if of.converted:
            known = card.load(of.folder)
            return known.quant, known.cache
        return usual(of.folder), "int8"
