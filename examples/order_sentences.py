"""A small grammar of orders and deliveries in English and German: what order_german.py learns.

It has hundreds of millions of sentences. Number words, dates, times of day, word order, gender and
case differ in the two languages: "thirty-seven" is "siebenunddreißig", and "on the third of May"
is "am dritten Mai". What is held out is in data/order_german/eval.jsonl, which this writes:

    python examples/order_sentences.py
"""

from __future__ import annotations

import json
import random
from collections.abc import Collection
from pathlib import Path

EVAL = Path(__file__).resolve().parent / "data" / "order_german" / "eval.jsonl"
EVAL_ROWS = 200
Pair = tuple[str, str]  # English, German

# Singular and plural in English; singular, plural and gender in German.
THINGS = """chair chairs Stuhl Stühle m, table tables Tisch Tische m, lamp lamps Lampe Lampen f,
book books Buch Bücher n, shelf shelves Regal Regale n, door doors Tür Türen f,
bicycle bicycles Fahrrad Fahrräder n, coat coats Mantel Mäntel m, cup cups Tasse Tassen f,
bed beds Bett Betten n, mirror mirrors Spiegel Spiegel m, carpet carpets Teppich Teppiche m,
clock clocks Uhr Uhren f, knife knives Messer Messer n, suitcase suitcases Koffer Koffer m,
blanket blankets Decke Decken f, bottle bottles Flasche Flaschen f, shirt shirts Hemd Hemden n,
umbrella umbrellas Regenschirm Regenschirme m, guitar guitars Gitarre Gitarren f"""
QUALITIES = """red rot, green grün, blue blau, black schwarz, white weiß, new neu, old alt, small
klein, heavy schwer, light leicht, cheap billig, broken kaputt, round rund, yellow gelb"""
GOODS = """tea Tee, coffee Kaffee, flour Mehl, sugar Zucker, rice Reis, salt Salz, sand Sand, soap
Seife, paper Papier, cheese Käse, honey Honig, milk Milch"""
UNITS = """box boxes Kiste Kisten, bag bags Sack Säcke, barrel barrels Fass Fässer, pallet pallets
Palette Paletten"""
TOWNS = (
    "Berlin Vienna/Wien Munich/München Hamburg Cologne/Köln Zurich/Zürich Geneva/Genf Prague/Prag"
)
PEOPLE = """the customer/der Kunde, our neighbour/unser Nachbar, the school/die Schule, the
hotel/das Hotel, my aunt/meine Tante, the driver/der Fahrer, Mr Brandt/Herr Brandt, the shop/das
Geschäft"""
DAYS = """Monday/Montag Tuesday/Dienstag Wednesday/Mittwoch Thursday/Donnerstag Friday/Freitag
Saturday/Samstag Sunday/Sonntag"""
MONTHS = """January/Januar February/Februar March/März April/April May/Mai June/Juni July/Juli
August/August September/September October/Oktober November/November December/Dezember"""
ONES = """one/eins two/zwei three/drei four/vier five/fünf six/sechs seven/sieben eight/acht
nine/neun ten/zehn eleven/elf twelve/zwölf thirteen/dreizehn fourteen/vierzehn fifteen/fünfzehn
sixteen/sechzehn seventeen/siebzehn eighteen/achtzehn nineteen/neunzehn"""
TENS = """twenty/zwanzig thirty/dreißig forty/vierzig fifty/fünfzig sixty/sechzig seventy/siebzig
eighty/achtzig ninety/neunzig"""
ORDINALS = """first/ersten second/zweiten third/dritten fourth/vierten fifth/fünften sixth/sechsten
seventh/siebten eighth/achten ninth/neunten tenth/zehnten eleventh/elften twelfth/zwölften
thirteenth/dreizehnten fourteenth/vierzehnten fifteenth/fünfzehnten twentieth/zwanzigsten
twenty-first/einundzwanzigsten twenty-fifth/fünfundzwanzigsten thirtieth/dreißigsten"""
# By gender: the ending of "ein" and of the adjective after it, as an object.
OBJECT = {"m": ("en", "en"), "f": ("e", "e"), "n": ("", "es")}
THE = {"m": "der", "f": "die", "n": "das"}


def words(table: str) -> list[list[str]]:
    """The entries of a table above, each in its parts."""
    if "," not in table:
        return [[*entry.split("/"), entry][:2] for entry in table.split()]
    entries = [" ".join(entry.split()) for entry in table.split(",")]
    return [entry.split("/" if "/" in entry else " ") for entry in entries]


def short(german: str) -> str:
    """A number before a noun or within a word: ein Uhr, einundzwanzig."""
    return "ein" if german == "eins" else german


def number(rng: random.Random) -> Pair:
    """From two to ninety-nine."""
    value = rng.randrange(2, 100)
    ones, tens = words(ONES), words(TENS)
    if value < 20:
        return ones[value - 1][0], ones[value - 1][1]
    english, german = tens[value // 10 - 2]
    if value % 10 == 0:
        return english, german
    digit_en, digit_de = ones[value % 10 - 1]
    return f"{english}-{digit_en}", f"{short(digit_de)}und{german}"


def thing(rng: random.Random) -> Pair:
    """An object: a red chair, seventeen boxes of tea, forty new lamps."""
    kind = rng.random()
    count_en, count_de = number(rng)
    if kind < 0.3:
        _, many_en, _, many_de = rng.choice(words(UNITS))
        good_en, good_de = rng.choice(words(GOODS))
        return f"{count_en} {many_en} of {good_en}", f"{count_de} {many_de} {good_de}"
    one_en, many_en, one_de, many_de, gender = rng.choice(words(THINGS))
    quality_en, quality_de = rng.choice(words(QUALITIES))
    if kind < 0.65:
        return f"{count_en} {quality_en} {many_en}", f"{count_de} {quality_de}e {many_de}"
    article = "an" if quality_en[0] in "aeiou" else "a"
    ending, adjective = OBJECT[gender]
    return f"{article} {quality_en} {one_en}", f"ein{ending} {quality_de}{adjective} {one_de}"


def day(rng: random.Random) -> Pair:
    """On Monday, on the third of May."""
    if rng.random() < 0.4:
        english, german = rng.choice(words(DAYS))
        return f"on {english}", f"am {german}"
    date_en, date_de = rng.choice(words(ORDINALS))
    month_en, month_de = rng.choice(words(MONTHS))
    return f"on the {date_en} of {month_en}", f"am {date_de} {month_de}"


def time(rng: random.Random) -> Pair:
    """At four, at half past four (halb fünf), at a quarter to five."""
    hour = rng.randrange(1, 12)
    (now_en, now_de), (_, next_de) = words(ONES)[hour - 1], words(ONES)[hour]
    return rng.choice(
        (
            (f"at {now_en} o'clock", f"um {short(now_de)} Uhr"),
            (f"at half past {now_en}", f"um halb {next_de}"),
            (f"at a quarter past {now_en}", f"um Viertel nach {now_de}"),
            (f"at a quarter to {words(ONES)[hour][0]}", f"um Viertel vor {next_de}"),
        )
    )


def sentence(rng: random.Random) -> Pair:
    """One sentence and its translation."""
    (x, x_de), (d, d_de), (t, t_de) = thing(rng), day(rng), time(rng)
    (p, p_de), (town, town_de) = rng.choice(words(PEOPLE)), rng.choice(words(TOWNS))
    one, _, one_de, _, gender = rng.choice(words(THINGS))
    who, who_de = p[0].upper() + p[1:], p_de[0].upper() + p_de[1:]
    return rng.choice(
        (
            (f"We ordered {x} {d}.", f"Wir haben {d_de} {x_de} bestellt."),
            (f"{who} needs {x} {d}.", f"{who_de} braucht {d_de} {x_de}."),
            (f"Please send {x} to {town} {d}.", f"Bitte senden Sie {d_de} {x_de} nach {town_de}."),
            (f"{who} will collect {x} {t}.", f"{who_de} wird {t_de} {x_de} abholen."),
            (
                f"The {one} arrives in {town} {d} {t}.",
                f"{THE[gender].capitalize()} {one_de} kommt {d_de} {t_de} in {town_de} an.",
            ),
            (f"{d[0].upper()}{d[1:]} {p} bought {x}.", f"A{d_de[1:]} hat {p_de} {x_de} gekauft."),
            (f"Is the {one} still in {town}?", f"Ist {THE[gender]} {one_de} noch in {town_de}?"),
            (f"Can you deliver {x} {d} {t}?", f"Können Sie {d_de} {t_de} {x_de} liefern?"),
            (f"{who} never ordered {x}.", f"{who_de} hat nie {x_de} bestellt."),
            (f"I would like to return {x}.", f"Ich möchte {x_de} zurückgeben."),
            (f"The train to {town} leaves {t}.", f"Der Zug nach {town_de} fährt {t_de} ab."),
            (
                f"{who} paid for {x} {d}, but nothing has come.",
                f"{who_de} hat {d_de} {x_de} bezahlt, aber nichts ist gekommen.",
            ),
        )
    )


def sentences(count: int, seed: int, without: Collection[str] = ()) -> list[dict[str, str]]:
    """So many different sentences, none of `without`: `text` and `translation`."""
    rng = random.Random(seed)
    found: dict[str, str] = {}
    while len(found) < count:
        text, translation = sentence(rng)
        if text not in without:
            found[text] = translation
    return [{"text": text, "translation": german} for text, german in found.items()]


if __name__ == "__main__":
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in sentences(EVAL_ROWS, seed=1)]
    EVAL.write_text("".join(lines), encoding="utf-8")
