"""Texts on which parity is checked: short and long, several scripts, and what breaks tokenizers.

They were written for this file. They stand in for a user's data until there is some
(`tfc verify --data`).
"""

from __future__ import annotations

SAMPLE_TEXTS: tuple[str, ...] = (
    "Where is my order?",
    "The battery died after two days, and nobody answers my e-mails.",
    "ok",
    "",
    "I have been a customer for eleven years and never had a problem until last Tuesday, when "
    "the courier left the parcel in the rain, the box fell apart, and two of the four glasses "
    "inside were broken; I would like either replacements or my money back, whichever is quicker.",
    "¿Dónde está mi paquete? Lo pedí hace tres semanas.",
    "Die Rechnung stimmt nicht: Es fehlen 12,50 € Rabatt.",
    "Je n'arrive pas à me connecter à mon compte depuis la mise à jour.",
    "商品が届きましたが、箱が壊れていました。",
    "Не могу войти в приложение, пишет «неверный пароль».",
    "أين طلبي؟ لقد مر أسبوع كامل.",
    "मेरा भुगतान दो बार कट गया है।",
    "Thanks a lot 😀👍 works like a charm!!!",
    "REFUND NOW!!! THIS IS THE THIRD TIME I ASK!!!",
    "pls cancle my oder #A-10045-77 asap, tyvm",
    "Contact: jane.doe@example.com, +44 20 7946 0958, https://example.com/a?b=c&d=1",
    "for i in range(10): print(f'{i:>3} {i ** 2:>5}')",
    "The quarterly report shows revenue of $4.2 million, up 8.3 % year on year, while operating "
    "costs fell by 1.1 % to $3.6 million.",
    "zzxqv blorptang fnargle \u200b\u00ad \ufffd",
    "a " * 60 + "end",
    "Ångström, naïve, façade, jalapeño, Łódź, Dvořák, Ελλάδα, ไทย, 한국어",
    "She said: \"It's fine\" — but it wasn't; it never was…",
    "0 1 22 333 4444 55555 666666 7777777 88888888 999999999",
    "To whom it may concern. I write about the warranty of my dishwasher. It was bought on the "
    "3rd of March. It leaked on the 5th. Your engineer came on the 9th and replaced a hose. It "
    "leaked again on the 12th. A second engineer replaced the pump on the 20th. On the 21st it "
    "tripped the fuse. I have photographs, receipts and both reports. Please tell me what to do "
    "next, because I would like to wash my dishes in a machine again before the summer begins.",
)
