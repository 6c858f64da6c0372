"""Where models live: a name or a folder in, what is known of it without loading it out."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace.settings import SettingError

SHIPPED = (
    Path(__file__).parent.parent / "models",  # a checkout
    Path(sys.prefix) / "share" / "millrace" / "models",  # an installed wheel
)


@dataclass(frozen=True)
class Model:
    name: str  # what clients call it
    folder: Path
    config: dict[str, Any]

    @property
    def simulated(self) -> bool:
        return self.config.get("model_type") == "millrace_sim"

    @property
    def converted(self) -> bool:
        """Whether it is in the engine's own form; else it is as the Hub has it."""
        return (self.folder / "millrace.json").is_file()

    @property
    def text(self) -> Path:
        """The folder of its tokenizer: the simulated model borrows one."""
        return self.folder.parent / self.config["tokenizer"] if "tokenizer" in self.config else self.folder

    @property
    def max_len(self) -> int:
        return int(self.config["max_position_embeddings"])


def find(name: str) -> Model:
    """A shipped model by its name, or any model by its folder."""
    for folder in (*(root / name for root in SHIPPED if "/" not in name), Path(name)):
        config = folder / "config.json"
        if config.is_file():
            try:
                return Model(folder.resolve().name, folder.resolve(), json.loads(config.read_text()))
            except json.JSONDecodeError as error:
                raise SettingError(f"{config}: {error}") from None
    raise SettingError(
        f"no model {name!r}: neither a shipped one ({', '.join(shipped())}) nor a folder with config.json"
    )


def shipped() -> list[str]:
    return sorted({path.parent.name for root in SHIPPED for path in root.glob("*/config.json")})
